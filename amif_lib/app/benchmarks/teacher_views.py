"""What it changes that the teacher sees clean images while the student sees augmented ones (`teacher.views`).

The teacher's embeddings are computed once, of images as they are; the student's views are cropped and blurred anew at every
step. Stage 1 then aligns a view with labels of another picture than the one it sees. Here both labels are computed for the
very same batches, and the scale's full model is trained with either; the two are compared question by question.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pandas as pd
import torch

from amif_lib.app import cost_model
from amif_lib.app.benchmarks.feed import machine
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import write_aside
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.rows import RunSpec
from amif_lib.experiments.stored import Run
from amif_lib.methods.amif.global_alignment import pick
from amif_lib.objectives import contrastive
from amif_lib.scoring import protocols, statistics
from amif_lib.training import launch
from amif_lib.training import loop as train
from amif_lib.training.batches import loader
from amif_lib.training.prepare import prepare

VIEWS = ("clean", "augmented")


def write(scale: str, batches: int = 20) -> list[Path]:
    """Write `teacher_views_labels.csv` and `teacher_views_scores.csv`.

    Both trainings run now unless they are finished: minutes at demo scale. Raises InputError at a scale that needs a GPU.
    """
    if cost_model.DEVICES[scale] != "cpu":
        raise InputError(f"SCALE={scale}: this comparison trains the full model twice; give demo or small")
    folder = paths.scale_dir(scale) / "benchmarks"
    out = []
    for name, frame in (("labels", labels(scale, batches)), ("scores", scores(scale))):
        out.append(folder / f"teacher_views_{name}.csv")
        with write_aside(out[-1]) as aside:
            frame.assign(**machine()).to_csv(aside, index=False)
    return out


def runs(scale: str, question_set: str = "") -> dict[str, RunSpec]:
    """The scale's full model by what its teacher sees."""
    question_set = question_set or next(iter(experiments.scale_settings(scale)["question_sets"]))
    return {views: experiments.build_run(scale, {"teacher": {"views": views}}, question_set) for views in VIEWS}


def labels(scale: str, batches: int = 20) -> pd.DataFrame:
    """Image-to-text soft labels of stage-1 batches, from clean images and from the student's views.

    One row per batch: `mean_q_ii_clean, mean_q_ii_augmented, neighbours_clean, neighbours_augmented`, `divergence` (mean over
    samples of KL(augmented || clean), nats), `total_variation`, `same_nearest` (share of samples whose likeliest text is the
    same) and `retrieval_clean, retrieval_augmented` (share whose own text is the likeliest).
    """
    run = next(each for each in runs(scale)["augmented"].lineage() if each.stage == "stage1")
    prepared = prepare(run)
    keys = [keys for _, _, keys in islice(train.epoch_keys(prepared, run, 0), batches)]
    temperature = run.objective.teacher_temperature
    rows = []
    for clean in loader(prepared.data, keys, workers=0):
        seen = {"clean": clean, "augmented": prepared.teacher(clean)}
        own = torch.arange(len(clean.view))  # (N,)
        q = {}
        row: dict[str, float] = {}
        for views, batch in seen.items():
            image = pick(batch.teacher_views, batch.view)  # (N, 2, e) -> (N, e)
            similarity = image @ batch.teacher_text.T  # (N, N)
            q[views] = contrastive.soft_labels(similarity, temperature, 0.0, own).double()
            found = contrastive.teacher_statistics(q[views], own)
            row |= {f"mean_q_ii_{views}": found["mean_q_ii"], f"neighbours_{views}": found["effective_neighbours"]}
            row[f"retrieval_{views}"] = float((similarity.argmax(1) == own).double().mean())
        p, r = q["augmented"], q["clean"]
        row["divergence"] = float((torch.xlogy(p, p) - torch.xlogy(p, r)).sum(1).mean())
        row["total_variation"] = float((p - r).abs().sum(1).mean() / 2)
        row["same_nearest"] = float((p.argmax(1) == r.argmax(1)).double().mean())
        rows.append(row)
    return pd.DataFrame(rows)


def scores(scale: str, protocol: str = "paper") -> pd.DataFrame:
    """Accuracy of both trainings (trained now unless finished) and their paired difference, in points.

    One row per `teacher_sees`: `accuracy, low, high` and, of the second, `difference, difference_low, difference_high` from the
    first: 95% bootstrap intervals over images. One seed each.
    """
    correct, images, rows = {}, None, []
    for views, run in runs(scale).items():
        for each in run.lineage():
            launch.train(each)
        stored = Run(run.directory)
        scored = protocols.score(stored.predictions, stored.candidates, protocols.PROTOCOLS[protocol])
        correct[views], images = scored["correct"].to_numpy(float), scored["image_id"].to_numpy()
        found = statistics.bootstrap(correct[views], images)
        rows.append({"teacher_sees": views, "accuracy": found.value, "low": found.low, "high": found.high})
    apart = statistics.bootstrap_difference(correct["augmented"], correct["clean"], images)
    rows[1] |= {"difference": apart.value, "difference_low": apart.low, "difference_high": apart.high}
    frame = pd.DataFrame(rows)
    numbers = frame.columns.drop("teacher_sees")
    frame[numbers] = frame[numbers].astype(float) * 100
    return frame
