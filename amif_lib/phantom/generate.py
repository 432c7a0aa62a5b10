"""Phantom: synthetic radiology studies, drawn from latent cases and written in the real data sets' own layouts.

All of it is synthetic and none of it is medicine. A case has a modality, a patient's proportions and findings with
side, site, size and severity; pictures, reports, questions and region masks all follow from it, and all of it from the
seed. Readers see only what the real set ships; the latents (`latents.json`) and region masks (`masks/`, `masks.json`,
`question_regions.json`) lie beside it and no reader opens them.
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
from amif_lib.phantom import pretraining_sets as phantom_pretraining_sets
from amif_lib.phantom import question_sets as phantom_question_sets
from amif_lib.phantom import shapes as phantom_shapes

WRITERS = phantom_pretraining_sets.WRITERS | phantom_question_sets.WRITERS | phantom_shapes.WRITERS


def generate(root: Path, kind: str, seed: int, size: int, counts: Mapping[str, int]) -> None:
    """Write a phantom data set into the folder `root`, replacing what an other setting or version left there.

    Args:
        kind: `mimic_cxr` (MIMIC-CXR-JPG layout with reports; counts: `studies`); `roco` and `medicat` (single images
            with captions; counts: `studies`, the listed images); `shapes` (coloured shapes with captions, in ROCO's
            layout; counts: `studies`); `vqa_rad` (VQA-RAD JSON layout; counts: `train_images,
            test_images, train_questions, test_questions`, the questions being at most as many); `slake`, `pathvqa` and
            `vqa_med_2019` in the layouts of those sets (counts also `val_images, val_questions`; SLAKE's Chinese
            questions `train_questions_zh` and so on).
        seed: determines every case; two seeds share no patient.
        size: side of the square images, pixels.

    Does nothing where the folder already holds the same settings, written by the same code. Written aside and then
    moved, so that a half-written set is never read.
    """
    if kind not in WRITERS:
        raise InputError(f"phantom: kind {kind!r} is not one of {', '.join(WRITERS)}")
    if is_current(root, kind, seed, size, counts):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    aside = root.with_name(f".{root.name}.{uuid.uuid4().hex[:8]}")
    try:
        WRITERS[kind](aside, seed, size, dict(counts))
        stamp = json.dumps(_stamp(kind, seed, size, counts), indent=1)
        (aside / "generator.json").write_text(stamp, encoding="utf-8")
        if root.exists() and not is_current(root, kind, seed, size, counts):
            old = root.with_name(f".{root.name}.{uuid.uuid4().hex[:8]}")
            root.replace(old)
            shutil.rmtree(old)
        try:
            aside.replace(root)
        except OSError:  # an other process was faster
            if not is_current(root, kind, seed, size, counts):
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
