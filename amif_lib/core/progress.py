"""A progress bar that reads well at a terminal, in a notebook and in a headless log."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm


class Bar(tqdm):
    """tqdm's bar, whose steps may show values."""

    def step(self, n: int = 1, **values: float) -> None:
        self.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        self.update(n)


def bar(total: int, label: str, show: bool = True) -> Bar:
    """A bar of `total` steps. It is redrawn at a terminal and in JupyterLab (there as text, which a reopened notebook
    still shows); with `AMIF_HEADLESS` or in a pipe it prints a new line every ten seconds."""
    notebook = "ipykernel" in sys.modules
    if not os.environ.get("AMIF_HEADLESS") and (notebook or sys.stderr.isatty()):
        place = {"file": sys.stdout, "ncols": 100} if notebook else {}
        return Bar(total=total, desc=label, disable=not show, mininterval=0.5, **place)
    line = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%) {elapsed}, {remaining} left{postfix}\n"
    return Bar(total=total, desc=label, disable=not show, mininterval=10, file=sys.stdout, bar_format=line)
