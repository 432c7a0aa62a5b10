"""What a table is made of: which runs a selection asks for, and one row's answers on one question set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from amif_lib.core import files, paths
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.rows import RunSpec
from amif_lib.scoring import protocols

PROTOCOLS = ("paper", "strict")
PAPER_SETS = ("vqa_rad", "slake", "pathvqa", "vqa_med_2019")  # the four sets of the paper's Avg column
SHOWN_BASELINES = ("most_frequent", "nearest_question")
MODEL_BASELINES = ("question_only", "blank_at_test")
NAMES = {"vqa_rad": "VQA-RAD", "slake": "SLAKE", "pathvqa": "PathVQA", "vqa_med_2019": "VQA-2019", "avg": "Avg"}
SCALE_NOTES = {
    "demo": "synthetic demo data; not comparable with the paper",
    "small": "a small model on real VQA-RAD, trained on a laptop without the paper's weights and data; not comparable "
    "with the paper",
    "base": "real data, open pre-training sets only; the paper also pre-trains on MIMIC-CXR",
    "paper": "real data at the paper's size",
}


def real_name(dataset: str) -> str:
    """The real data set that a demo set stands for: `phantom_vqa_rad` -> `vqa_rad`."""
    return dataset.removeprefix("phantom_")


def dataset_name(dataset: str) -> str:
    """What a reader calls a question set; a demo set says which layout it imitates."""
    if dataset.startswith("phantom_"):
        return f"phantom ({NAMES.get(dataset.removeprefix('phantom_'), dataset)} layout)"
    return NAMES.get(dataset, dataset)


def short_dataset_name(dataset: str) -> str:
    """A question set's name for a column or a panel, with what it is not: real."""
    return f"{'phantom ' if is_synthetic(dataset) else ''}{NAMES.get(real_name(dataset), dataset)}"


def is_synthetic(dataset: str) -> bool:
    return dataset.startswith("phantom_")


def is_baseline(row: str) -> bool:
    """Whether a value of the column `row` names a baseline; `question_only:demo` belongs to headline row `demo`."""
    return row.split(":")[0] in (*SHOWN_BASELINES, *MODEL_BASELINES)


@dataclass(frozen=True)
class Selection:
    """Which part of a table: question sets and rows (none given: all), fine-tuning and pre-training seeds."""

    question_sets: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seeds: int = 1
    pretrain_seeds: int = 1

    @classmethod
    def planned(cls, name: str, scale: str) -> Selection:
        """What the scale's last plan asked for (`DATASETS= ROWS= SEEDS= PRETRAIN_SEEDS=`), or all with one seed."""
        path = paths.plan(scale)
        asked = files.read_yaml(path)["selection"] if path.is_file() else {}
        own = experiments.row_names(name, scale)
        return cls(
            tuple(asked.get("question_sets", ())),
            tuple(row for row in own if {row, f"{name}:{row}"} & set(asked.get("rows", ()))),
            asked.get("seeds", 1),
            asked.get("pretrain_seeds", 1),
        )

    def rows(self, name: str, scale: str) -> list[experiments.Row]:
        return experiments.rows(name, scale, self.question_sets, self.seeds, self.pretrain_seeds, self.only)

    def headlines(self, name: str, scale: str) -> list[experiments.Row]:
        """The full model, one row per named start: what baselines are made for."""
        only = self.only if name == "table1" else ()
        return [row for row in replace(self, only=only).rows("table1", scale) if not row.extra]

    def blank_runs(self, name: str, scale: str) -> dict[str, list[RunSpec]]:
        """Question-only baselines by headline row: the full model trained on blank images, once per question set.

        Where a scale has several starts, the first one's model stands for all: its table says which.
        """
        once = replace(self, seeds=1, pretrain_seeds=1)
        return {
            row.row: [experiments.blank_image_run(run) for run in row.runs] for row in once.headlines(name, scale)[:1]
        }


def required_notebooks(name: str, scale: str, selection: Selection | None = None) -> list[tuple[RunSpec, ...]]:
    """The fine-tunings that a table reads, by the notebook that makes them: its rows and the question-only baselines."""
    selection = selection or Selection.planned(name, scale)
    needed = [runs for row in selection.rows(name, scale) for runs in row.notebooks]
    needed += [tuple(runs) for runs in selection.blank_runs(name, scale).values()]
    return list({tuple(run.run_id for run in runs): runs for runs in needed}.values())


def planned_tables(scale: str) -> list[str]:
    """The tables that the scale's last plan makes, or, without a plan, those that the scale names."""
    path = paths.plan(scale)
    if not path.is_file():
        return list(experiments.tables_of(scale))
    return [job["name"] for job in files.read_yaml(path)["jobs"] if job["rule"] == "table"]


def required_runs(name: str, scale: str, selection: Selection | None = None) -> list[RunSpec]:
    """Every fine-tuning that a table reads, each once: its rows and the question-only baselines beside them."""
    needed = [run for runs in required_notebooks(name, scale, selection) for run in runs]
    return list({run.run_id: run for run in needed}.values())


def seeds_of(spec: RunSpec) -> tuple[int | None, int]:
    """The seeds of a fine-tuning's pre-training (None where it has none) and of the fine-tuning itself."""
    return (spec.parent.seed if spec.parent else None), spec.seed


@dataclass(frozen=True)
class Line:
    """One row of a table on one question set: the answers of all its runs, each run once."""

    row: str
    label: str
    dataset: str
    kind: str  # "row" or "baseline"
    answers: tuple[tuple[pd.DataFrame, pd.DataFrame | None], ...]  # per seed: predictions, candidates
    run_ids: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    paper_row: str = ""
    headline: str = ""  # the headline row that these runs are, or that this baseline belongs to
    leaks: bool = False  # test answers were seen in training
    extra: bool = False  # not a row of the paper's
    drawn: tuple[tuple[int | None, int], ...] = ()  # per run: pre-training seed (None: no pre-training), own seed

    @property
    def seeds(self) -> list[int]:
        """Columns of `score`, one per run."""
        return list(range(len(self.answers)))

    @property
    def pretrainings(self) -> list[int] | None:
        """Each run's pre-training seed, where there are several."""
        first = [pretraining for pretraining, _ in self.drawn]
        return first if len(set(first)) > 1 else None

    @property
    def protocols(self) -> list[protocols.Protocol]:
        return [protocols.PROTOCOLS[name] for name in PROTOCOLS if not (name == "strict" and self.leaks)]

    def score(self, protocol: protocols.Protocol) -> pd.DataFrame:
        """Correctness for all seeds: one row per question, ordered by id, one column per seed: 0, 1, ..."""
        scored = []
        for frame, candidates in self.answers:
            used = protocol if candidates is not None else protocol.model_copy(update={"candidates": "generate"})
            scored.append(protocols.score(frame, candidates, used).set_index("question_id").sort_index())
        out = scored[0][["image_id", *protocols.DEFINITIONS.values()]].copy()
        for seed, one in enumerate(scored):
            out[seed] = one["correct"]
        return out
