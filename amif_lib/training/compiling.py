"""torch.compile for the network's repeated blocks, each kind compiled once for all its layers.

A setting of the machine, `$AMIF_COMPILE`, and not of the run: it changes results by rounding. Off unless asked for: the first
steps take minutes longer, and whether the rest is faster shows `python -m amif_lib.app.benchmark`, which times both.
"""

from __future__ import annotations

import os

from torch import nn

from amif_lib.core.errors import InputError

BLOCKS = ("CLIPEncoderLayer", "BertLayer", "CoAttentionLayer", "DecoderLayer", "GatedCrossAttention")


def asked() -> bool:
    """Whether $AMIF_COMPILE is 1. Raises InputError where it is neither 0 nor 1."""
    text = os.environ.get("AMIF_COMPILE", "") or "0"
    if text not in ("0", "1"):
        raise InputError(f"AMIF_COMPILE={text!r}: give 1 to compile the network's blocks, or 0")
    return text == "1"


def compile_blocks(module: nn.Module, backend: str = "inductor") -> int:
    """Compile every transformer block in `module` in place, for any batch size and length; returns how many.

    Parameter names, checkpoints and hooks stay as they are.
    """
    blocks = [part for part in module.modules() if type(part).__name__ in BLOCKS]
    for block in blocks:
        block.compile(backend=backend, dynamic=True)
    return len(blocks)
