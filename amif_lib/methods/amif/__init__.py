"""AMiF: alignment, mining and fusion."""
