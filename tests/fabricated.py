"""Finished runs made up by hand, so that tables and report can be tested without training anything."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.data import load as datasets
from amif_lib.data.records import Question
from amif_lib.experiments import identity
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import candidate_frame, question_frame, write_predictions
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.reporting.table_rows import Selection
from amif_lib.scoring import baselines

# Twelve test questions on five images: 7 yes/no, 5 not; `which side` is closed by the data set's own field only.
# (image, question, answer, closed by the field)
TEST = [
    ("i1", "is there a mass", "yes", True),
    ("i1", "where is the mass", "left lung", False),
    ("i1", "which side is it on", "left", True),
    ("i2", "is there a mass", "no", True),
    ("i2", "is the heart large", "yes", True),
    ("i2", "what modality is this", "mri", False),
    ("i3", "is there a fracture", "no", True),
    ("i3", "which side is it on", "right", True),
    ("i4", "is this an x ray", "no", True),
    ("i4", "what modality is this", "mri", False),
    ("i5", "is there a mass", "yes", True),
    ("i5", "is the liver large", "no", True),
]
TRAIN = [
    ("i1", "is there a nodule", "no", True),
    ("i2", "is the heart small", "no", True),
    ("i2", "what modality is used", "ct", False),
    ("i3", "which side is it", "right", True),
    ("i4", "is this a ct", "yes", True),
    ("i5", "where is the nodule", "left lung", False),
    ("i5", "which side is the nodule on", "left", True),
]
ANSWERS = ["ct", "left", "left lung", "mri", "no", "right", "yes"]
GOLD = [answer for _, _, answer, _ in TEST]


def questions(*arguments: object, **named: object) -> list[Question]:
    """What `load_questions` gives in these tests, whatever the set."""
    return [
        Question(
            f"{split}-{n:02d}",
            image,
            Path(f"{image}.jpg"),
            text,
            (answer,),
            split,
            closed,
            answer in ("yes", "no"),
            "type",
        )
        for split, part in (("train", TRAIN), ("test", TEST))
        for n, (image, text, answer, closed) in enumerate(part)
    ]


def install(monkeypatch, folder: Path, sets: tuple[str, ...] = ("phantom_vqa_rad",)) -> None:
    """Send results to `folder`, need no data sets and manifests, and give the demo these question sets."""
    known = cache(experiments.scale_settings)  # it reads a file, once per run asked for

    def settings(scale: str) -> dict:
        found = deepcopy(known(scale))
        if scale == "demo":
            found["question_sets"] = {name: found["question_sets"][name] for name in sets}
            found["ablation_sets"] = list(sets)
        return found

    monkeypatch.setattr(experiments, "scale_settings", settings)
    monkeypatch.setenv("AMIF_RESULTS", str(folder))
    monkeypatch.setattr(datasets, "load_questions", questions)
    for module in (identity, baselines):
        monkeypatch.setattr(module, "data_digest", lambda name: f"manifest-{name}")


def plan(*names: str, **asked: dict) -> None:
    """The plan of these tables at demo, as `make reproduce` leaves it behind, with what each was asked for."""
    made = [{"rule": "data", "name": "demo"}, *({"rule": "table", "name": name} for name in names)]
    files.write_json(paths.plan("demo"), {"tables": asked, "jobs": made})


def predictions(chosen: list[str]) -> pd.DataFrame:
    """`chosen` is each question's likeliest candidate; the gold answer is the second likeliest."""
    test = [q for q in questions() if q.split == "test"]
    scores = np.full((len(test), len(ANSWERS)), -20, dtype=np.float32)
    for row, (question, answer) in enumerate(zip(test, chosen, strict=True)):
        scores[row, ANSWERS.index(question.answer)] = -5
        scores[row, ANSWERS.index(answer)] = -1
    return question_frame(test).assign(generated=chosen, log_likelihoods=list(scores))


def candidates() -> pd.DataFrame:
    return candidate_frame(ANSWERS, [1 + len(answer.split()) for answer in ANSWERS], questions())


def wrong_at(*positions: int) -> list[str]:
    """All answers right but those at `positions`: there yes and no are swapped, others get another test answer."""
    swapped = {"yes": "no", "no": "yes", "left": "right", "right": "left", "left lung": "mri", "mri": "left lung"}
    return [swapped[answer] if n in positions else answer for n, answer in enumerate(GOLD)]


@cache
def _provenance() -> dict:
    """Of this machine, asked once: it calls git."""
    return results.provenance(seconds=90.0)


def write_run(spec: RunSpec, chosen: list[str] | None = None, blank: list[str] | None = None) -> Path:
    """A finished run folder; `chosen` are the fine-tuning's answers, `blank` those with blank or other images."""
    folder = spec.directory
    folder.mkdir(parents=True, exist_ok=True)
    write = {
        "spec.json": spec.model_dump(mode="json"),
        "metrics.json": {"stage": spec.stage, "steps": 10, "train_time_s": 30.0},
        "provenance.json": _provenance(),
    }
    for name, content in write.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    lines = [{"step": step, "epoch": step // 5, "learning_rate": 1e-3, "total": 2.0 / (1 + step)} for step in range(10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if chosen is not None:
        write_predictions(folder, predictions(chosen), candidates())
        for name in (results.BLANK_TEST, results.SHUFFLED_TEST) if blank is not None else ():
            write_predictions(folder / name, predictions(blank), candidates())
    return folder


def write_table(name: str, scale: str, wrong: dict[str, tuple[int, ...]], selection: Selection | None = None) -> None:
    """Every run that a table needs: `wrong` holds, per row, the positions answered wrongly by each of its runs.

    A row that `wrong` leaves out is wrong where the row before it is.
    """
    selection = selection or Selection()
    positions: tuple[int, ...] = ()
    for row in selection.rows(name, scale):
        positions = wrong.get(row.row, positions)
        for run in row.runs:
            write_run(run, wrong_at(*positions), blank=wrong_at(*range(8)))
            for stage in run.trainings()[:-1]:
                write_run(stage)
    for run in selection.blank_runs(name, scale):
        write_run(run, wrong_at(*range(9)))
    for head in selection.headlines(name, scale):
        for run in head.runs:
            if not results.is_finished(run):
                write_run(run, wrong_at(), blank=wrong_at(*range(8)))
