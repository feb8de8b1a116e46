"""One client's local work, with DP-SGD through Opacus."""
