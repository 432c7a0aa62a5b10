"""AMiF Kit: an independent reproduction of AMiF (alignment, mining, fusion) for medical visual question answering."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["AMiFForVQA", "load_run"]


def __getattr__(name: str) -> Any:  # imported when asked for, so that tables and figures need no torch
    if name == "AMiFForVQA":
        from amif_lib.methods.amif.network import AMiFForVQA

        return AMiFForVQA
    if name == "load_run":
        from amif_lib.experiments.stored import load_run

        return load_run
    raise AttributeError(f"module 'amif_lib' has no attribute {name!r}")
