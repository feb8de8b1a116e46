"""A package, so that `tests.contracts` is ours even where some installed wheel ships a `tests` of its own."""
