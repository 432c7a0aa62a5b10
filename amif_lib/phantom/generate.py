"""Phantom: synthetic radiology studies, drawn from random cases and written in the real data sets' own layouts.

Pictures, texts, questions and masks follow from the cases, and the cases from the seed; readers see only what the
real set ships.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amif_lib.core.errors import InputError
from amif_lib.phantom import sets, shapes

KINDS = ("mimic_cxr", "roco", "medicat", "shapes", "vqa_rad", "slake", "pathvqa", "vqa_med_2019")


def generate(root: Path, kind: str, seed: int, size: int, counts: Mapping[str, int]) -> None:
    """Write a phantom data set into the folder `root`, replacing what another setting or version left there.

    Args:
        kind: one of `KINDS`, the layout (`shapes`: coloured shapes in ROCO's).
        seed: determines every case; two seeds share no patient.
        size: side of the square images, pixels.
        counts: `studies` of a pre-training set; else `train_images, train_questions` and so on for each split, of SLAKE
            also `train_questions_zh` and so on. There are at most so many questions.

    Does nothing where the folder already holds the same settings, written by the same code. Written aside and then
    moved, so that a half-written set is never read.
    """
    if kind not in KINDS:
        raise InputError(f"phantom: kind {kind!r} is not one of {', '.join(KINDS)}")
    if is_current(root, kind, seed, size, counts):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (root.with_name(f".{root.name}.{uuid.uuid4().hex[:8]}") for _ in range(2))
    try:
        aside.mkdir()
        made = sets.Set(aside, seed, size)
        if kind == "shapes":
            shapes.shapes(made, dict(counts))
        else:
            getattr(sets, kind)(made, dict(counts))
            made.finish()
        stamp = json.dumps(_stamp(kind, seed, size, counts), indent=1)
        (aside / "generator.json").write_text(stamp, encoding="utf-8")
        if not is_current(root, kind, seed, size, counts):  # else another process was faster
            if root.exists():
                root.replace(old)
            aside.replace(root)
    except OSError:
        if not is_current(root, kind, seed, size, counts):
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def is_current(root: Path, kind: str, seed: int, size: int, counts: Mapping[str, int]) -> bool:
    """Whether `root` holds a complete phantom of these settings, written by this code."""
    try:
        return json.loads((root / "generator.json").read_text(encoding="utf-8")) == _stamp(kind, seed, size, counts)
    except (OSError, ValueError):
        return False


def _stamp(kind: str, seed: int, size: int, counts: Mapping[str, int]) -> dict[str, Any]:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes().replace(b"\r\n", b"\n") for path in sources)).hexdigest()[:12]
    return {"kind": kind, "seed": seed, "size": size, "counts": dict(counts), "code": code}
