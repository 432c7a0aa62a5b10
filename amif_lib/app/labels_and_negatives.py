"""For notebooks 03 and 04: a step's batch, soft labels beside the student's probabilities, and hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from amif_lib import methods
from amif_lib.data import manifests, regions
from amif_lib.data.load import pretraining_studies
from amif_lib.data.records import Study
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.methods.amif.network import AMiF
from amif_lib.methods.amif.stage1 import Side, distributions, pick
from amif_lib.methods.amif.stage2 import Stage2
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks import tokenizers
from amif_lib.training import batches

HEAT_MAP = 32  # samples of the soft labels' heat maps


def drawn_batch(spec: RunSpec, step: int) -> tuple[PretrainingBatch, list[Study]]:
    """The global batch of a step (-1: the last) of a stored pre-training, made again, with its studies."""
    studies = pretraining_studies(spec.data, spec.model.stored_side)
    extras = methods.load(spec.method).extras(spec, studies, {})
    data = batches.PretrainingData(studies, spec, tokenizers.load(spec.directory / "model"), extras)
    _, _, keys = batches.steps_of(data, spec)[step]
    return data.collate([data[key] for key in keys]), [studies[key[1]] for key in keys]


@torch.inference_mode()
def label_matrices(run: Any, batch: PretrainingBatch, studies: Sequence[Study]) -> dict[str, np.ndarray]:
    """Labels H, student's P and teacher's Q of the batch's first N samples: `<pair>_labels`, `_student`, `_teacher`.

    Pairs are image to text (`i2t`) and text to text (`t2t`), (N, N) each; `findings` (N,) names what each sample shows.
    """
    o, batch = run.spec.objective, batch.map(lambda x: x[:HEAT_MAP])
    amif = AMiF.from_pretrained(run.directory / "model")
    views = amif.encode_views(batch.views)[:, :, 0]  # (N, V, d): [CLS] of each view
    text = amif.text_encoder(batch.ids, batch.mask)[:, 0]  # (N, d)
    v, r = pick(amif.image_projection(views), batch.view), amif.text_projection(text)  # (N, e)
    teacher_r = batch.extras.get("teacher_text", r)
    teacher_v = pick(batch.extras["teacher_views"], batch.view) if batch.extras else v
    image, report = Side(v, teacher_v), Side(r, teacher_r)
    out = {}
    for pair, sides in {"i2t": (image, report), "t2t": (report, report)}.items():
        logits, labels, _ = distributions(*sides, o)
        out |= {f"{pair}_student": logits.softmax(1), f"{pair}_labels": labels}
        if batch.extras:
            q = o.model_copy(update={"labels": "soft", "positive_weight": 0.0})
            out[f"{pair}_teacher"] = distributions(*sides, q)[1]
    out = {name: values.numpy() for name, values in out.items()}
    return out | {"findings": np.array([_shows(study) for study in studies[:HEAT_MAP]])}


@torch.inference_mode()
def mined_negatives(run: Any, batch: PretrainingBatch, studies: Sequence[Study]) -> pd.DataFrame:
    """The hard negatives of a step, one line per sample and kind of pair; without a teacher, by the final weights.

    `probability` is that of drawing this negative, `uniform` the same if all allowed samples were equally likely. If
    the findings of images are known: whether sample and negative have the `same_findings`, and the probability that
    they do if drawn by these probabilities (`p_same`) or uniformly (`uniform_same`). Texts and ids are left out if a
    set does not allow them to be shown.
    """
    amif = AMiF.from_pretrained(run.directory / "model")
    stage = Stage2(amif, run.spec.objective, run.spec.seed, special_ids=(0, 0))  # mining reads no tokens
    views = text = None  # not needed if the batch has the teacher's vectors
    if not batch.extras:
        views, text = amif.encode_views(batch.views), amif.text_encoder(batch.ids, batch.mask)
    sets, lines = run.spec.data.pretrain, []
    named = not manifests.withheld(sets, "texts")  # else neither texts nor ids may leave the data's folder
    shown = np.array([_shows(study) for study in studies])  # (N,)
    same = shown[:, None] == shown  # (N, N)
    for kind, (index, valid, probabilities) in stage.mine(batch, views, text).items():
        p = probabilities.numpy()  # (N, N)
        uniform = (p > 0) / (p > 0).sum(1, keepdims=True).clip(1)
        for i in np.flatnonzero(valid.numpy()):
            j = int(index[i])
            ids = (studies[i].study_id, studies[j].study_id) if named else (i, j)
            line = {"pair": kind, "id": ids[0], "negative_id": ids[1]}
            line |= {"probability": p[i, j], "uniform": uniform[i, j]}
            if all(map(regions.known, sets)):
                line |= {"findings": shown[i], "negative_findings": shown[j], "same_findings": same[i, j]}
                line |= {"p_same": (p[i] * same[i]).sum(), "uniform_same": (uniform[i] * same[i]).sum()}
            if named:
                line |= {"text": studies[i].text[:400], "negative_text": studies[j].text[:400]}
            lines.append(line)
    return pd.DataFrame(lines)


def _shows(study: Study) -> str:
    """The findings that a study's images show, where regions are known."""
    if not study.data_set or not regions.known(study.data_set):
        return ""
    return "; ".join(sorted({label for i in study.images for label in regions.findings(study.data_set, i.image_id)}))
