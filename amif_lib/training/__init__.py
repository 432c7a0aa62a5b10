"""One training loop for any method."""
