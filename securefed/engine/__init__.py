"""Where clients run, who carries the bytes, and which of them lie or fail in a simulation."""
