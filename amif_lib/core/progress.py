"""A progress bar that reads well at a terminal, in a notebook and in a headless log."""

from __future__ import annotations

import os
import sys
import time


class _Lines:
    """One plain line every `every` seconds: for logs, where a redrawn bar would be one long line."""

    def __init__(self, total: int, label: str, every: float = 10.0):
        self.total, self.label, self.every = total, label, every
        self.done, self.started, self.last = 0, time.monotonic(), 0.0

    def step(self, n: int = 1, **values: float) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.last >= self.every or self.done >= self.total:
            self.last = now
            spent = now - self.started
            left = spent / max(self.done, 1) * (self.total - self.done)
            shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(
                f"{self.label}: {self.done}/{self.total} ({100 * self.done / max(self.total, 1):.0f}%) "
                f"{spent:.0f} s, {left:.0f} s left {shown}".rstrip(),
                flush=True,
            )

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, total: int, label: str):
        from tqdm.auto import tqdm

        self.bar = tqdm(total=total, desc=label, mininterval=0.5)

    def step(self, n: int = 1, **values: float) -> None:
        if values:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        self.bar.update(n)

    def close(self) -> None:
        self.bar.close()


class _Silent:
    def step(self, n: int = 1, **values: float) -> None:
        pass

    def close(self) -> None:
        pass


def bar(total: int, label: str, show: bool = True) -> _Lines | _Bar | _Silent:
    """A bar of `total` steps: redrawn at a terminal or in JupyterLab, plain lines with `AMIF_HEADLESS` or in a pipe."""
    if not show:
        return _Silent()
    in_notebook = "ipykernel" in sys.modules
    if os.environ.get("AMIF_HEADLESS") or not (in_notebook or sys.stderr.isatty()):
        return _Lines(total, label)
    return _Bar(total, label)
