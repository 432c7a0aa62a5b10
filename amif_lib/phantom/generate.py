"""Writes phantom sets: synthetic studies, drawn from random cases, in the real data sets' own layouts.

Pictures, texts, questions and masks follow from the cases, and the cases from the seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from amif_lib.core import progress
from amif_lib.core.files import exclusive
from amif_lib.phantom import sets, shapes


def generate(root: Path, kind: str, seed: int, size: int, counts: Mapping[str, int]) -> None:
    """Write a phantom data set into the folder `root`, replacing what another setting or version left there.

    Args:
        kind: the layout: a function of `sets`, or `shapes`: coloured shapes in ROCO's.
        seed: determines every case; two seeds share no patient.
        size: side of the square images, pixels.
        counts: `studies` of a pre-training set; else `train_images, train_questions` and so on for each split, of SLAKE
            also `train_questions_zh` and so on. There are at most so many questions.

    Does nothing where the folder already holds the same settings, written by the same code. The set is written beside
    `root` and then moved, so that a half-written one is never read.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    stamp = {"kind": kind, "seed": seed, "size": size, "counts": dict(counts), "code": code}
    if _stamp_of(root) == stamp:
        return
    with exclusive(root.with_name(f".{root.name}.lock"), f"the generator of {root.name}"):
        if _stamp_of(root) == stamp:  # made by the process that was waited for
            return
        with TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as beside:
            cases = sum(number for name, number in counts.items() if name == "studies" or name.endswith("_images"))
            bar = progress.bar(cases, f"drawing {root.name}")
            out = sets.Writer(Path(beside) / "set", seed, size, bar)
            out.root.mkdir()
            (shapes.shapes if kind == "shapes" else getattr(sets, kind))(out, dict(counts))
            out.finish()
            bar.close()
            out.write_json("generator.json", stamp)
            if root.exists():
                root.replace(Path(beside) / "old")
            out.root.replace(root)


def _stamp_of(root: Path) -> Any:
    try:
        return json.loads((root / "generator.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
