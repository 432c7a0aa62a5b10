"""Numbers become tables, pictures and pages; no torch."""
