"""A progress bar that reads well at a terminal, in a notebook and in a headless log."""

from __future__ import annotations

import os
import sys

from tqdm.auto import tqdm


class Bar(tqdm):
    """tqdm's bar, whose steps may show values."""

    def step(self, n: int = 1, **values: float) -> None:
        self.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        self.update(n)


def bar(total: int, label: str, show: bool = True) -> Bar:
    """A bar of `total` steps: redrawn at a terminal or in JupyterLab; with `AMIF_HEADLESS` or in a pipe a line every
    ten seconds, since a redrawn bar would be one long line of a log."""
    if not os.environ.get("AMIF_HEADLESS") and ("ipykernel" in sys.modules or sys.stderr.isatty()):
        return Bar(total=total, desc=label, disable=not show, mininterval=0.5)
    line = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%) {elapsed}, {remaining} left{postfix}\n"
    return Bar(total=total, desc=label, disable=not show, mininterval=10, file=sys.stdout, bar_format=line)
