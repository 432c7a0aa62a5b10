"""The rows of a table on each question set, with the scored answers of their runs and of the baselines beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.experiments import stored
from amif_lib.experiments.predictions import PREDICTIONS
from amif_lib.experiments.rows import Row, RunSpec
from amif_lib.reporting.table_rows import BASELINES, MODEL_BASELINES, PAPER_SETS, PROTOCOLS, real_name
from amif_lib.scoring import baselines, protocols
from amif_lib.scoring.protocols import Protocol

PAPER = protocols.PROTOCOLS["paper"]
OTHER_IMAGES = {"blank_test": "blank images", "shuffled_test": "another case's image"}  # predictions of a stored run
Answers = tuple[pd.DataFrame, pd.DataFrame | None]  # predictions of one run, and the candidates that it ranked


@dataclass(frozen=True)
class Line:
    """One row of a table on one question set, with the scored answers of its runs."""

    row: str
    label: str
    dataset: str
    kind: str = "baseline"  # or "row"
    run_ids: tuple[str, ...] = ()
    seeds: tuple[tuple[int | None, int], ...] = ()  # per run: of its pre-training (None: it has none), and its own
    references: tuple[str, ...] = ()  # rows that this one is compared with
    paper_row: str = ""
    headline: str = ""  # the headline row that these runs are, or that this baseline belongs to
    leaks: bool = False  # test answers were seen in training
    extra: bool = False  # not a row of the paper's
    changed: float = float("nan")  # share of the full model's answers that differ from those to the right images
    scored: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)  # by protocol, see `scored`

    @property
    def protocols(self) -> list[Protocol]:
        return [protocols.PROTOCOLS[name] for name in PROTOCOLS if not (name == "strict" and self.leaks)]

    def right(self, protocol: Protocol, split: str = "overall", definition: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Right answers (S, n) of S runs and image ids (n,) of a split, by a definition of closed (the protocol's).

        The questions have the same order in every line of a question set.
        """
        frame = self.scored[protocol.name]
        frame = frame[protocols.select(frame, split, definition or protocol.closed)]
        runs = frame.drop(columns=["image_id", *protocols.DEFINITIONS.values()])
        return runs.to_numpy(float).T, frame["image_id"].to_numpy()


def lines_of(
    dataset: str,
    rows: Sequence[Row],
    heads: Sequence[Row],
    blank: dict[str, Sequence[RunSpec]],
    runs: dict[str, stored.Run],
    known: dict[str, pd.DataFrame],
) -> list[Line]:
    """The table's rows on one question set, then the baselines.

    `heads` are the headline rows, `blank` the question-only runs of each, `runs` all stored runs by id, `known` the
    answers of the baselines without a model. Raises InputError where a run answered other questions than these.
    """
    head_of = {run.run_id: row.row for row in heads for run in row.runs}
    out: list[Line] = []

    def add(line: Line, answers: Sequence[Answers]) -> None:
        _refuse_other_questions(line, answers, known[BASELINES[0]])
        out.append(replace(line, scored={protocol.name: scored(answers, protocol) for protocol in line.protocols}))

    def on_set(specs: Sequence[RunSpec]) -> tuple[tuple[str, ...], bool, list[Answers]]:
        ids = tuple(dict.fromkeys(run.run_id for run in specs if run.data.questions == dataset))
        leaks = any(run.saw_test_answers for run in specs if run.run_id in ids)
        return ids, leaks, [(runs[run_id].predictions, runs[run_id].candidates) for run_id in ids]

    for row in rows:
        ids, leaks, answers = on_set(row.runs)
        if ids:  # otherwise a row of other question sets
            seeds = tuple((spec.parent and spec.parent.seed, spec.seed) for spec in (runs[i].spec for i in ids))
            about = {"references": row.references, "paper_row": row.paper_row, "extra": row.extra, "leaks": leaks}
            line = Line(row.row, row.label, dataset, "row", ids, seeds, headline=head_of.get(ids[0], ""), **about)
            add(line, answers)
    shown = {line.headline: line for line in reversed(out)}
    for name in BASELINES:
        if name != "nearest_question" or known[name]["image_in_training"].any():  # else the most frequent answer again
            add(Line(name, baselines.BASELINES[name][0], dataset), [(known[name], None)])
    for head in heads:
        start = f", {head.label.removeprefix('AMiF, ')}" if len(heads) > 1 else ""
        ids, leaks, answers = on_set(blank.get(head.row, ()))
        label = f"question only (trained on blank images){start}"
        line = Line(f"{MODEL_BASELINES[0]}:{head.row}", label, dataset, run_ids=ids, headline=head.row, leaks=leaks)
        if ids:
            add(line, answers)
        full = shown.get(head.row)
        own = [runs[run_id] for run_id in full.run_ids] if full else []
        for name, (folder, label) in zip(MODEL_BASELINES[1:], OTHER_IMAGES.items(), strict=True):
            if own and all((run.directory / folder / PREDICTIONS).is_file() for run in own):  # none of a single image
                answers = [getattr(run, folder) for run in own]  # the same weights, other images at test time only
                changed = float(np.mean([_changed(run, *other) for run, other in zip(own, answers, strict=True)]))
                about = {"kind": "baseline", "references": (), "paper_row": "", "extra": False, "changed": changed}
                label = f"{label} at test time only{start}"
                add(replace(full, row=f"{name}:{head.row}", label=label, headline=head.row, **about), answers)
    return out


def _changed(run: stored.Run, frame: pd.DataFrame, candidates: pd.DataFrame) -> float:
    """The share of questions to which a run gives another answer in these predictions than in its own."""
    both = protocols.score(run.predictions, run.candidates, PAPER), protocols.score(frame, candidates, PAPER)
    own, other = (each.set_index("question_id")["prediction"] for each in both)
    return float((own.reindex(other.index) != other).mean())


def _refuse_other_questions(line: Line, answers: Sequence[Answers], known: pd.DataFrame) -> None:
    """Every run has the questions of the present data, with the same image, answers and definitions of closed."""

    def plain(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.set_index("question_id")[["image_id", "gold", *protocols.DEFINITIONS.values()]]
        return frame.assign(gold=frame["gold"].map(list).map(str))

    known = plain(known)
    for run_id, (frame, _) in zip(line.run_ids or [""], answers, strict=True):
        own = plain(frame)
        both = known.index.union(own.index, sort=False)  # a question that one of them lacks differs as well
        if (odd := (own.reindex(both) != known.reindex(both)).any(axis=1)).any():
            raise InputError(
                f"row {line.row} (run {run_id}): question {odd.idxmax()} of {line.dataset} is not as in the present "
                "data (missing, unknown, or another image, answer or definition of closed); fine-tune it again"
            )


def scored(answers: Sequence[Answers], protocol: Protocol) -> pd.DataFrame:
    """Which questions are right, by id: `image_id`, both definitions of closed, a column per run."""
    columns = []
    for run, (frame, candidates) in enumerate(answers):
        used = protocol if candidates is not None else replace(protocol, candidates="generate")
        one = protocols.score(frame, candidates, used).set_index("question_id").sort_index()
        columns.append(one["correct"].rename(run))
    return pd.concat([one[["image_id", *protocols.DEFINITIONS.values()]], *columns], axis=1)


def average_name(lines: Sequence[Line]) -> str:
    """What the column `dataset` calls the average: `avg` over the paper's four sets, else marked as partial."""
    sets = {real_name(line.dataset) for line in lines}
    return "avg" if sets == set(PAPER_SETS) else f"avg ({len(sets)} of {len(PAPER_SETS)} sets)"


def on_all_sets(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """By row the lines of those rows that have every one of several question sets."""
    rows = {row: [line for line in lines if line.row == row] for row in dict.fromkeys(line.row for line in lines)}
    count = len({line.dataset for line in lines})
    return {row: own for row, own in rows.items() if len(own) == count > 1}
