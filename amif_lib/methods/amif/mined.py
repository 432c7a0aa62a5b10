"""What pre-training asked for and drew, from a stored run: soft labels of a batch, and the negatives that were mined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from amif_lib.data import redistribution, regions
from amif_lib.data.load import pretraining_studies
from amif_lib.experiments.rows import RunSpec
from amif_lib.experiments.stored import Run
from amif_lib.methods.amif import teacher as teachers
from amif_lib.methods.amif.network import AMiF
from amif_lib.methods.amif.stage1 import Stage1, pick
from amif_lib.methods.amif.stage2 import Stage2
from amif_lib.networks import tokenizers
from amif_lib.networks.fusion import PAIR_TYPES
from amif_lib.objectives import contrastive
from amif_lib.reporting import map_files
from amif_lib.training.batches import PretrainingData, epoch_keys

SHOWN = 32  # samples of the soft-label heat maps


def network(run: Run, tokenizer: Any, trained: bool = True) -> Stage1 | Stage2:
    """The stored pre-training network with its objective, in evaluation mode."""
    spec = run.spec
    with torch.random.fork_rng():
        torch.manual_seed(0)
        amif = AMiF(spec.model)
        special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        stage1 = spec.stage == "stage1"
        module = Stage1(amif, spec.objective) if stage1 else Stage2(amif, spec.objective, spec.seed, special)
    if trained:
        amif.load(run.directory / "model")
    return module.eval()


@torch.inference_mode()
def soft_labels(run: Run) -> dict[str, np.ndarray]:
    """Teacher's and student's distributions over the run's first batch: arrays `<pair>_teacher`, `_labels`, `_student`.

    The pairs are image to text (`i2t`) and text to text (`t2t`), each (N, N) with N at most `SHOWN`; the distributions are
    those over these N samples, with the run's temperatures. Without a teacher there is no `_teacher`.
    """
    spec, o = run.spec, run.spec.objective
    data, module = _data(run)
    _, keys = _step(data, spec, last=False)
    batch = data.collate([data[key] for key in keys[:SHOWN]])
    amif, extras = module.amif, batch.extras
    v = amif.image_projection(pick(amif.encode_views(batch.views), batch.view)[:, 0])
    r = amif.text_projection(amif.text_encoder(batch.ids, batch.mask)[:, 0])
    student = {"i2t": (v, r), "t2t": (r, r)}
    teacher = {}
    if extras:
        text = extras["teacher_text"]
        teacher = {"i2t": (pick(extras["teacher_views"], batch.view), text), "t2t": (text, text)}
    positive = torch.arange(len(batch.view))
    out: dict[str, Tensor] = {}
    for pair, (a, b) in student.items():
        out[f"{pair}_student"] = (contrastive.similarity(a, b) / o.temperature).softmax(1)  # (N, N)
        out[f"{pair}_labels"] = torch.eye(len(positive))
        if teacher:
            similar, tau = contrastive.similarity(*teacher[pair]), o.teacher_temperature
            out[f"{pair}_teacher"] = contrastive.soft_labels(similar, tau, 0.0, positive)
            if o.labels == "soft":
                out[f"{pair}_labels"] = contrastive.soft_labels(similar, tau, o.positive_weight, positive)
    indices = [key[1] for key in keys[:SHOWN]]
    named = _named(spec)
    return {
        "version": np.array(map_files.VERSION),
        "ids": np.array([data.studies[i].study_id if named else str(i) for i in indices]),
        "findings": np.array(["; ".join(_shows(data.studies[i])) for i in indices]),
        **{name: values.float().numpy().astype(np.float16) for name, values in out.items()},
    }


@torch.inference_mode()
def mined_negatives(run: Run) -> pd.DataFrame:
    """The hard negatives of the run's last step, one line per sample and kind of pair.

    Columns: `step, pair, id, negative_id, probability` (of being drawn), `uniform` (the same, were all allowed samples
    equally likely), `rank` (1: the most probable), `findings, negative_findings, same_findings`, and over all that could have
    been drawn the share with the same findings, weighted by probability (`p_same`) and not (`uniform_same`); `text,
    negative_text` where these may be shown. What an image shows is known of generated data only. Negatives drawn from the
    teacher are those of training (of its clean images, where it sees augmented ones); of a student they are drawn anew
    with its final weights.
    """
    spec = run.spec
    data, module = _data(run)
    step, keys = _step(data, spec, last=True)
    batch = data.collate([data[key] for key in keys])
    views = text = None
    if not batch.extras:  # drawn from the student
        views = module.amif.encode_views(batch.views)
        text = module.amif.text_encoder(batch.ids, batch.mask)
    drawn = module.mine(batch, views, text)
    studies, named = [data.studies[key[1]] for key in keys], _named(spec)
    shown = [_shows(study) for study in studies]
    same = torch.tensor([[a == b for b in shown] for a in shown])  # (N, N)
    known = all(regions.known(name) for name in spec.data.pretrain)
    rows = []
    for kind in (kind for kind in PAIR_TYPES if kind in drawn):
        share = drawn[kind].probabilities  # (N, N)
        allowed = (share > 0).double()
        uniform = allowed / allowed.sum(1, keepdim=True).clamp_min(1)
        for i, study in enumerate(studies):
            if not drawn[kind].valid[i]:
                continue
            j = int(drawn[kind].index[i])
            row = {
                "step": step,
                "pair": kind,
                "id": study.study_id if named else str(keys[i][1]),
                "negative_id": studies[j].study_id if named else str(keys[j][1]),
                "probability": float(share[i, j]),
                "uniform": float(uniform[i, j]),
                "rank": 1 + int((share[i] > share[i, j]).sum()),
            }
            if known:
                row |= {
                    "findings": "; ".join(shown[i]),
                    "negative_findings": "; ".join(shown[j]),
                    "same_findings": bool(same[i, j]),
                    "p_same": float((share[i] * same[i]).sum()),
                    "uniform_same": float((uniform[i] * same[i]).sum()),
                }
            if named:
                row |= {"text": study.text[:400], "negative_text": studies[j].text[:400]}
            rows.append(row)
    return pd.DataFrame(rows)


def _data(run: Run) -> tuple[PretrainingData, Stage1 | Stage2]:
    """A pre-training run's samples and its stored network."""
    spec = run.spec
    studies = pretraining_studies(spec.data, spec.model.stored_side)
    with torch.inference_mode(False), torch.enable_grad():  # a teacher that is gone is trained again
        embeddings = teachers.embeddings(spec, studies) if spec.teacher is not None else None
    tokenizer = tokenizers.load(run.directory / "model")
    return PretrainingData(studies, spec, tokenizer, embeddings), network(run, tokenizer)


def _step(data: PretrainingData, spec: RunSpec, last: bool) -> tuple[int, list[tuple[int, int]]]:
    """Number and sample keys of the training's first or last step."""
    _, step, keys = list(epoch_keys(data, spec))[-1 if last else 0]
    return step, keys


def _shows(study: Any) -> list[str]:
    """The findings that a study's images show, where regions are known."""
    if not study.data_set or not regions.known(study.data_set):
        return []
    return sorted({label for image in study.images for label in regions.findings(study.data_set, image.image_id)})


def _named(spec: RunSpec) -> bool:
    """Whether ids and texts of the pre-training sets may stand in a run's files."""
    return not redistribution.withheld(spec.data.pretrain, "texts")
