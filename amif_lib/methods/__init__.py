"""One folder per method: its settings, network, stages and maps."""
