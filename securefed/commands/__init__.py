"""One file per command: `NAME`, `SUMMARY`, `EXAMPLE`, `add_arguments(parser)` and `play(args) -> exit code`.

Importing them is cheap; what a command needs is imported when it is played.
"""
