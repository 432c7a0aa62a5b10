"""The paper's tables from stored runs: scored answers become tidy cells and differences with intervals.

Nothing here needs torch, and nothing trains: a missing run is an error that says how to make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored
from amif_lib.experiments.rows import RunSpec
from amif_lib.reporting.table_lines import PAPER, Line, average_name, lines_of, on_all_sets
from amif_lib.reporting.table_rows import MODEL_BASELINES, Selection, is_synthetic, real_name
from amif_lib.scoring import baselines, protocols, statistics
from amif_lib.scoring.protocols import Protocol

SPLITS = ("open", "closed", "overall")
KEYS = ["table", "row", "label", "dataset", "split", "protocol"]
NUMBERS = ["ours", "ours_sd", "n_seeds", "n_questions", "ci_low", "ci_high", "paper", "delta"]
COLUMNS = [*KEYS, *NUMBERS, "run_ids", "scale"]
SEED_COLUMNS = [*KEYS, "pretrain_seed", "seed", "run_id", "ours", "scale"]
TEST_COLUMNS = [*KEYS, "against", "against_label", "difference", "ci_low", "ci_high", "detectable"]
TEST_COLUMNS += ["wins", "losses", "mcnemar_p", "n_seeds", "n_questions", "scale"]


@dataclass(frozen=True)
class Table:
    """The frames of one table at one scale, made by `collect`; accuracies in percent."""

    name: str
    scale: str
    lines: list[Line]
    runs: dict[str, stored.Run]
    published: pd.DataFrame  # the paper's numbers of this table; empty where it prints none
    cells: pd.DataFrame  # columns `COLUMNS`
    seeds: pd.DataFrame  # columns `SEED_COLUMNS`
    tests: pd.DataFrame  # columns `TEST_COLUMNS`

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(line.dataset for line in self.lines))


def collect(name: str, scale: str, selection: Selection | None = None) -> Table:
    """Score a table's stored runs and the baselines beside them (default selection: that of the scale's last plan).

    A row that is a configuration of the contrasts has all its finished replicates. Raises InputError where a run is
    missing (naming rows and command), a prediction file is damaged, or a run answered other questions than the present
    data has.
    """
    selection = selection or Selection.planned(name, scale)
    rows, heads = selection.rows(name, scale), selection.headlines(name, scale)
    blank = selection.blank_runs(name, scale)
    asked = [(f"row {row.row}", run) for row in rows for run in row.runs]
    _refuse_missing(name, scale, asked + [("question-only baseline", run) for own in blank.values() for run in own])
    repeated = selection.replicates(scale)
    rows = [row.model_copy(update={"runs": _with_replicates(row.runs, repeated)}) for row in rows]
    blank = {row: _with_replicates(runs, repeated) for row, runs in blank.items()}
    used = {run.run_id: run for each in (*(row.runs for row in rows), *blank.values()) for run in each}
    runs = {run_id: stored.load_run(run) for run_id, run in used.items()}
    lines = []
    for dataset in dict.fromkeys(run.data.questions for row in rows for run in row.runs):
        known = baselines.stored(scale, dataset, **training_questions(runs, dataset))
        lines += lines_of(dataset, rows, heads, blank, runs, known)
    printed = any(row.paper_row for row in rows)
    published = stored.published(name) if printed else stored.published("table1")[:0]
    frames = (cells(name, scale, lines, published), seeds(name, scale, lines), tests(name, scale, lines))
    return Table(name, scale, lines, runs, published, *frames)


def training_questions(runs: dict[str, stored.Run], dataset: str) -> dict:
    """Which questions the rows of a question set are trained on: the baselines learn from the same."""
    return next(run.spec.data.question_settings for run in runs.values() if run.spec.data.questions == dataset)


def _refuse_missing(name: str, scale: str, asked: list[tuple[str, RunSpec]]) -> None:
    lacking = {run.run_id for run in stored.missing(run for _, run in asked)}
    lost = [(row, run) for row, run in asked if run.run_id in lacking]
    named = [f"{row} ({run.data.questions}, seed {run.seed}) = run {run.run_id}" for row, run in lost]
    remedy = f"run `make reproduce SCALE={scale}`, or notebook 05_finetune_vqa with spec={scale}/{name}"
    if paths.from_reference():
        remedy = "FROM=reference reads committed results only; leave it unset to run them yourself"
    if named:
        more = f" and {len(named) - 4} more" if len(named) > 4 else ""
        raise InputError(f"{name} at scale {scale} lacks {', '.join(named[:4])}{more}; {remedy}")


def _with_replicates(runs: Sequence[RunSpec], repeated: dict[str, list[RunSpec]]) -> tuple[RunSpec, ...]:
    """A row's runs, each once, with the further replicates that the contrasts trained; by seed."""
    whole = [also for run in runs for also in (run, *repeated.get(run.run_id, ()))]
    return tuple({run.run_id: run for run in sorted(whole, key=lambda run: run.seed)}.values())


def cells(name: str, scale: str, lines: list[Line], published: pd.DataFrame) -> pd.DataFrame:
    """One line per cell, columns `COLUMNS`; several question sets are averaged without weights, as the paper's Avg.

    The 95% interval is from resampling images, `ours_sd` over runs. `delta` to the published number is filled like for
    like only: real data, protocol `paper`, scale base or paper. A protocol such as `paper/answer_type` is the same
    scoring split by the other definition of closed.
    """
    known = published.set_index(["row", "dataset", "split"])["value"].to_dict()
    like_for_like = scale in ("base", "paper") and not any(is_synthetic(line.dataset) for line in lines)
    out = []

    def add(own: list[Line], dataset: str, split: str, protocol: Protocol, definition: str) -> None:
        parts = [line.right(protocol, split, definition) for line in own]  # (S, n), (n,) per question set
        parts = [(answered, images) for answered, images in parts if len(images)]
        if not parts:
            return
        first, runs = own[0], min(len(answered) for answered, _ in parts)
        found = statistics.bootstrap(*parts[0]) if len(parts) == 1 else statistics.bootstrap_mean(parts)
        each = np.mean([answered[:runs].mean(1) for answered, _ in parts], axis=0)  # (S,)
        deviation = 100 * each.std(ddof=1) if runs > 1 else np.nan
        title = protocol.title if definition == protocol.closed else f"{protocol.title}/{definition}"
        paper = known.get((first.paper_row, real_name(dataset), split), np.nan) if title == "paper" else np.nan
        delta = 100 * found.value - paper if like_for_like else np.nan
        numbers = (100 * found.value, deviation, runs, sum(len(images) for _, images in parts))
        ids = " ".join(dict.fromkeys(run_id for line in own for run_id in line.run_ids))
        about = (name, first.row, first.label, dataset, split, title)
        out.append((*about, *numbers, 100 * found.low, 100 * found.high, paper, delta, ids, scale))

    for line in lines:
        for protocol in line.protocols:
            for definition in protocols.DEFINITIONS:
                for split in SPLITS if definition == protocol.closed else SPLITS[:2]:
                    add([line], line.dataset, split, protocol, definition)
    for own in on_all_sets(lines).values():
        for protocol in min((line.protocols for line in own), key=len):  # strict only if no set leaks
            for split in SPLITS:
                add(own, average_name(lines), split, protocol, protocol.closed)
    return pd.DataFrame(out, columns=COLUMNS)


def seeds(name: str, scale: str, lines: list[Line]) -> pd.DataFrame:
    """Each run's own accuracy in percent, columns `SEED_COLUMNS`: what mean and spread of a cell are made of."""
    out = []
    for line in (line for line in lines if line.seeds):
        for protocol in line.protocols:
            for split in SPLITS:
                answered, images = line.right(protocol, split)
                for run_id, drawn, own in zip(line.run_ids, line.seeds, answered, strict=True) if len(images) else ():
                    about = (name, line.row, line.label, line.dataset, split, protocol.title)
                    out.append((*about, *drawn, run_id, 100 * own.mean(), scale))
    return pd.DataFrame(out, columns=SEED_COLUMNS).astype({"pretrain_seed": "Int64", "seed": "Int64"})


# --- differences on the trained models at hand; what may be said of the method is said by contrasts ------------------


def tests(name: str, scale: str, lines: list[Line]) -> pd.DataFrame:
    """Rows against their references and baselines under the protocol `paper`, by split: columns `TEST_COLUMNS`.

    `difference` is in points, its 95% interval from resampling images; `detectable` the smallest difference between
    such models that these images show in 80% of draws. `wins`, `losses` (questions that only the first, only the second
    has right) and McNemar's exact p are given for two single trainings on one question set.
    """
    pairs, out = comparisons(lines), []
    for line, other in pairs:
        out += [_compare([line], [other], line.dataset, split) for split in SPLITS]
    whole = on_all_sets(lines)
    for row, against in dict.fromkeys((line.row, other.row) for line, other in pairs):
        if row in whole and against in whole:
            out += [_compare(whole[row], whole[against], average_name(lines), split) for split in SPLITS]
    about = {"table": name, "protocol": PAPER.title, "scale": scale}
    frame = pd.DataFrame([row for row in out if row], columns=TEST_COLUMNS).assign(**about)
    return frame.astype({"wins": "Int64", "losses": "Int64", "mcnemar_p": float})


def comparisons(lines: list[Line]) -> list[tuple[Line, Line]]:
    """Each row with its references, each headline row with the baselines beside it."""
    out = []
    for line in (line for line in lines if line.kind == "row"):
        beside = [other for other in lines if other.dataset == line.dataset]
        out += [(line, other) for row in line.references for other in beside if other.row == row]
        for other in (other for other in beside if line.headline and other.kind == "baseline"):
            if other.headline in ("", line.headline) or other.row.startswith(MODEL_BASELINES[0]):
                out.append((line, other))
    return out


def _compare(first: list[Line], second: list[Line], dataset: str, split: str) -> dict[str, object]:
    """One comparison; `first` and `second` hold a line per question set, the runs of each are paired in order."""
    parts, runs, test = [], 0, None
    for line, other in zip(first, second, strict=True):
        (own, images), (theirs, _) = line.right(PAPER, split), other.right(PAPER, split)
        if len(images):
            runs = min(len(own), len(theirs)) if len(theirs) > 1 else len(own)  # one baseline is paired with all
            parts.append((own[:runs] - theirs[:runs], images))
            test = statistics.mcnemar(own[0], theirs[0]) if runs == len(first) == 1 else None
    if not parts:
        return {}
    gap = statistics.bootstrap_mean(parts)
    found = {"row": first[0].row, "label": first[0].label, "dataset": dataset, "split": split}
    found |= {"against": second[0].row, "against_label": second[0].label, "difference": 100 * gap.value}
    found |= {"ci_low": 100 * gap.low, "ci_high": 100 * gap.high, "detectable": 100 * statistics.detectable(gap)}
    if test:
        found |= {"wins": test.wins, "losses": test.losses, "mcnemar_p": test.p}
    return found | {"n_seeds": runs, "n_questions": sum(len(images) for _, images in parts)}
