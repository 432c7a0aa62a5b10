"""Predictions become numbers; no torch."""
