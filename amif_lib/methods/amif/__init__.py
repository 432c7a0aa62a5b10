"""AMiF: alignment, mining and fusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def model(folder: Path) -> Any:
    """The fine-tuned network in `folder`, in evaluation mode on the CPU."""
    from amif_lib.methods.amif.network import AMiFForVQA

    return AMiFForVQA.from_pretrained(folder)
