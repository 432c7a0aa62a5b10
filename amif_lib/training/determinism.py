"""The same bits each time the same run is trained on the same machine with the same versions.

On several threads some of PyTorch's backward passes add in whatever order the threads arrive; the last digit differs, and after
some hundred steps predictions do. On a CPU PyTorch has an orderly version of each. On a GPU not of all (attention's backward
pass, some matrix products): there fewer digits differ, and a warning names what has none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from amif_lib.core.errors import InputError


def asked() -> bool:
    """$AMIF_DETERMINISTIC, 1 or 0; unset: on CPUs, where it costs next to nothing. Raises InputError for anything else."""
    text = os.environ.get("AMIF_DETERMINISTIC", "")
    if text not in ("", "0", "1"):
        raise InputError(f"AMIF_DETERMINISTIC={text!r}: give 1 for the same bits on every run, or 0")
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    return text == "1" or (text == "" and not on_gpu)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Use PyTorch's deterministic algorithms, where `asked`; an operation that has none warns. For `with`, or as a decorator."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(asked(), warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled
