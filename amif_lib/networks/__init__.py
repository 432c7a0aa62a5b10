"""Network blocks that any method may use."""
