"""Synthetic studies, drawn and written in the real data sets' own layouts."""
