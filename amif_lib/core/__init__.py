"""Where files are, how they are written, and the error type."""
