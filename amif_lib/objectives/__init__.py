"""The papers' mathematics: tensors in, tensors out; no settings, no network, no method's name."""
