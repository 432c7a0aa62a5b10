"""A file on disk becomes a `Study` or a `Question`."""
