"""One file per data set: its official layout becomes records."""
