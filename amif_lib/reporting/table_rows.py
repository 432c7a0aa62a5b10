"""The runs that a table needs, and the names of data sets and scales for readers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from amif_lib.core import files, paths
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.experiments.run_spec import RunSpec

PROTOCOLS = ("paper", "strict")
PAPER_SETS = ("vqa_rad", "slake", "pathvqa", "vqa_med_2019")  # the four sets of the paper's Avg column
NAMES = {"vqa_rad": "VQA-RAD", "slake": "SLAKE", "pathvqa": "PathVQA", "vqa_med_2019": "VQA-2019", "avg": "Avg",
         "medpix2_questions": "MedPix-2.0 questions"}  # fmt: skip
CONTRASTS = "contrasts"  # the table of the configurations that contrasts compare
BESIDE = ("methods",)  # tables beside the paper's, with contrasts of their own
BASELINES = ("most_frequent", "nearest_question")  # shown as lines of a table; the others are in its notes
QUESTION_ONLY = "question_only"  # the full model trained and tested on blank images
OTHER_IMAGES = {  # the full model's predictions on other images at test time only: folder in the run, label
    "blank_at_test": ("blank_test", "blank images"),
    "shuffled_at_test": ("shuffled_test", "another case's image"),
}
STAGES = {"stage1": "stage 1", "stage2": "stage 2", "pretrain": "pre-training", "finetune": "fine-tuning"}
SCALE_NOTES = {
    "demo": "synthetic demo data; not comparable with the paper",
    "small": "a small model on real data (VQA-RAD, MedPix-2.0), trained on a laptop without the paper's weights and "
    "data; not comparable with the paper",
    "base": "real data, open pre-training sets only; the paper also pre-trains on MIMIC-CXR",
    "paper": "real data at the paper's size",
}


def real_name(dataset: str) -> str:
    """The real data set that a demo set stands for: `phantom_vqa_rad` -> `vqa_rad`."""
    return dataset.removeprefix("phantom_")


def is_synthetic(dataset: str) -> bool:
    """Whether a question set is drawn by the kit."""
    return dataset.startswith("phantom_")


def dataset_name(dataset: str) -> str:
    """A question set's name for readers; synthetic sets are called `phantom`."""
    return f"{'phantom ' if is_synthetic(dataset) else ''}{NAMES.get(real_name(dataset), dataset)}"


def is_baseline(row: str) -> bool:
    """Whether a value of the column `row` names a baseline; `question_only:demo` belongs to Table 1's row `demo`."""
    return row.split(":")[0] in (*BASELINES, QUESTION_ONLY, *OTHER_IMAGES)


@dataclass(frozen=True)
class Selection:
    """Part of a table: question sets and rows (empty: all), numbers of fine-tuning and pre-training seeds."""

    question_sets: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seeds: int = 1
    pretrain_seeds: int | None = None  # by default as many as the table names, or one

    @classmethod
    def planned(cls, name: str, scale: str) -> Selection:
        """What was last asked for of this table (`DATASETS= ROWS= SEEDS= PRETRAIN_SEEDS=`), or all with one seed."""
        asked = asked_for(scale).get(name, {})
        rows = {row.removeprefix(f"{name}:") for row in asked.get("rows", ())}
        own = tuple(row for row in experiments.entries(name, scale) if row in rows)
        return cls(tuple(asked.get("question_sets", ())), own, asked.get("seeds", 1), asked.get("pretrain_seeds"))

    def rows(self, name: str, scale: str) -> list[experiments.Row]:
        """The selected rows of a table."""
        return experiments.rows(name, scale, self.question_sets, self.seeds, self.pretrain_seeds, self.only)

    def headlines(self, name: str, scale: str) -> list[experiments.Row]:
        """The full model, one row per named start; the baselines belong to these."""
        only = self.only if name == "table1" else ()
        return [row for row in replace(self, only=only).rows("table1", scale) if not row.extra]

    def blank_runs(self, name: str, scale: str) -> tuple[RunSpec, ...]:
        """The question-only baseline: the full model (of the first start) trained on blank images, one seed.

        It is trained on the selected question sets, by default on `question_only_sets` if the scale has it.
        """
        some = experiments.scale_settings(scale).get("question_only_sets", ())
        sets = self.question_sets or tuple(some) or experiments.sets_of(name, scale)
        once = replace(self, question_sets=sets, seeds=1, pretrain_seeds=1).headlines(name, scale)
        return tuple(map(experiments.blank_image_run, once[0].runs if once else ()))

    def replicates(self, scale: str) -> dict[str, list[RunSpec]]:
        """The finished further replicates of the contrasts' rows, by the run id of the first on the question set."""
        found: dict[str, list[RunSpec]] = {}
        for row in replace(self, only=()).rows(CONTRASTS, scale):
            for name in dict.fromkeys(run.data.questions for run in row.runs):
                first, *more = (run for run in row.runs if run.data.questions == name)
                found[first.run_id] = [run for run in more if stored.is_finished(run)]
        return found


def asked_for(scale: str) -> dict[str, dict[str, Any]]:
    """The last selection (`DATASETS= ROWS= SEEDS= PRETRAIN_SEEDS=`) of each table that a plan of the scale named."""
    return files.read_yaml(paths.plan(scale)).get("tables", {}) if paths.plan(scale).is_file() else {}


def planned_rows(name: str, scale: str) -> list[experiments.Row]:
    """The rows of a table with the runs of its last plan."""
    return Selection.planned(name, scale).rows(name, scale)


def required_runs(name: str, scale: str, selection: Selection | None = None) -> list[RunSpec]:
    """Every fine-tuning that a table reads, question-only baselines too, each once; of a row by seed."""
    selection = selection or Selection.planned(name, scale)
    needed = [run for row in selection.rows(name, scale) for run in sorted(row.runs, key=lambda run: run.seed)]
    return list({run.run_id: run for run in [*needed, *selection.blank_runs(name, scale)]}.values())


def planned_tables(scale: str) -> list[str]:
    """The tables of the scale's last plan or, without a plan, those that the scale names; contrasts come first.

    Contrasts and the tables `BESIDE` are added if all their runs are finished, whether planned or not. If the last plan
    had only these, the scale's tables are added, too, if finished.
    """
    path, tables = paths.plan(scale), experiments.tables_of(scale)
    optional, planned = [CONTRASTS, *BESIDE], list(tables)
    if path.is_file():
        planned = [job["name"] for job in files.read_yaml(path)["jobs"] if job["rule"] == "table"]
    whole = [CONTRASTS, *tables, *BESIDE]
    optional = whole if set(planned) <= set(optional) else optional
    more = [name for name in optional if name not in planned and not stored.missing(required_runs(name, scale))]
    return sorted({*planned, *more}, key=[*whole, *planned].index)
