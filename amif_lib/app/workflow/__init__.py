"""The workflow behind `make reproduce`: which jobs a scale needs (plan), how they are run (engine, job, Snakefile)."""
