"""The lines of a table: each row, and each baseline, on each question set, with its scored answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.data import load
from amif_lib.experiments.predictions import PREDICTIONS, read_predictions
from amif_lib.experiments.rows import Row
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.reporting.table_rows import BASELINES, OTHER_IMAGES, PAPER_SETS, PROTOCOLS, QUESTION_ONLY, real_name
from amif_lib.scoring import baselines, protocols
from amif_lib.scoring.protocols import Protocol

PAPER = protocols.PROTOCOLS["paper"]
SAME = ["image_id", *protocols.DEFINITIONS.values()]  # columns that are equal in all lines of a question set
Answers = tuple[pd.DataFrame, pd.DataFrame | None]  # predictions of one run, and the candidates that it ranked


@dataclass(frozen=True)
class Line:
    """One row of a table, or a baseline, on one question set, with the scored answers of its runs."""

    row: str
    label: str
    dataset: str
    scored: dict[str, pd.DataFrame]  # by protocol, see `scored`
    runs: tuple[RunSpec, ...] = ()  # by seed; none of a baseline without a model
    entry: Row | None = None  # the table's row; none of a baseline
    headline: str = ""  # row of the full model, if these runs are one or this baseline belongs to one
    changed: float = float("nan")  # for the baselines in OTHER_IMAGES: share of answers that the other image changes

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs' ids, in the same order."""
        return tuple(run.run_id for run in self.runs)

    @property
    def leaks(self) -> bool:
        """Whether test answers were seen in training."""
        return any(run.saw_test_answers for run in self.runs)

    def right(self, protocol: Protocol, split: str = "overall", definition: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Which answers are right (S, n), for S runs and the n questions of a split, and the questions' clusters (n,).

        `definition` of closed: by default the protocol's. All lines of a question set have the questions in one order.
        """
        frame = self.scored[protocol.name]
        frame = frame[protocols.select(frame, split, definition or protocol.closed)]
        return frame.drop(columns=SAME).to_numpy(float).T, np.array(load.clusters(self.dataset, frame["image_id"]))


def lines_of(
    dataset: str, rows: Sequence[Row], heads: Sequence[Row], blank: Sequence[RunSpec], known: dict[str, pd.DataFrame]
) -> list[Line]:
    """The table's rows on one question set, then the baselines.

    `heads`: the rows of the full model; `blank`: the first one's runs that are trained on blank images; `known`: the
    answers of the baselines without a model. Raises InputError if a run answered other questions than these.
    """
    head_of = {run.run_id: row.row for row in heads for run in row.runs}
    asked, out, full = known[BASELINES[0]], [], {}
    for row in rows:
        if own := _on(dataset, row.runs):
            head = head_of.get(own[0].run_id, "")
            out.append(Line(row.row, row.label, dataset, scored(_answers(row.row, own, asked), own), own, row, head))
            full.setdefault(head, own)
    for name in BASELINES:
        if name != "nearest_question" or known[name]["image_in_training"].any():  # else equal to most_frequent
            out.append(Line(name, baselines.BASELINES[name][0], dataset, scored([(known[name], None)])))
    for head in heads:
        start = f", {head.label.removeprefix('AMiF, ')}" if len(heads) > 1 else ""
        if head is heads[0] and (own := _on(dataset, blank)):
            row, label = f"{QUESTION_ONLY}:{head.row}", f"question only (trained on blank images){start}"
            out.append(Line(row, label, dataset, scored(_answers(row, own, asked), own), own, headline=head.row))
        for name, (folder, images) in OTHER_IMAGES.items():
            own = full.get(head.row, ())
            if own and all((run.directory / folder / PREDICTIONS).is_file() for run in own):
                row, label = f"{name}:{head.row}", f"{images} at test time only{start}"
                answers = _answers(row, own, asked, folder)
                share = changed(own, answers)
                out.append(Line(row, label, dataset, scored(answers, own), own, headline=head.row, changed=share))
    return out


def _on(dataset: str, runs: Sequence[RunSpec]) -> tuple[RunSpec, ...]:
    """The runs on a question set, each once."""
    return tuple({run.run_id: run for run in runs if run.data.questions == dataset}.values())


def _answers(row: str, runs: Sequence[RunSpec], known: pd.DataFrame, folder: str = "") -> list[Answers]:
    """The runs' predictions, stored in `folder` of each. InputError if they answered other questions than `known`."""
    out = [read_predictions(run.directory / folder) for run in runs]
    for run, (frame, _) in zip(runs, out, strict=True):
        if not _questions(frame).equals(_questions(known)):
            said = f"row {row} (run {run.run_id}): its questions on {run.data.questions} are not the present ones"
            raise InputError(f"{said} (ids, images, answers, definitions of closed); fine-tune it again")
    return out


def changed(runs: Sequence[RunSpec], answers: Sequence[Answers]) -> float:
    """The share of questions, over all runs, whose answer in `answers` differs from that with the right image."""
    pairs = [(read_predictions(run.directory), other) for run, other in zip(runs, answers, strict=True)]
    chosen = [[protocols.score(*each, PAPER).set_index("question_id")["prediction"] for each in pair] for pair in pairs]
    return float(np.mean([(own.reindex(other.index) != other).mean() for own, other in chosen]))


def _questions(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.set_index("question_id").sort_index()[[*SAME, "gold"]]
    return frame.astype(dict.fromkeys(protocols.DEFINITIONS.values(), bool)).assign(gold=frame["gold"].map(list))


def scored(answers: Sequence[Answers], runs: Sequence[RunSpec] = ()) -> dict[str, pd.DataFrame]:
    """By protocol, which questions are right: indexed by question id, the columns `SAME` and one per run.

    Runs that saw test answers have no score under strict; baselines without candidates have equal scores under each.
    """
    out = {}
    for name in PROTOCOLS if not any(run.saw_test_answers for run in runs) else PROTOCOLS[:1]:
        protocol, columns = protocols.PROTOCOLS[name], []
        for number, (frame, candidates) in enumerate(answers):
            used = protocol if candidates is not None else replace(protocol, candidates="generate")
            one = protocols.score(frame, candidates, used).set_index("question_id").sort_index()
            columns.append(one["correct"].rename(number))
        out[name] = pd.concat([one[SAME], *columns], axis=1)
    return out


def average_name(lines: Sequence[Line]) -> str:
    """The name of the average in the column `dataset`: `avg` over the paper's four sets, else with their number."""
    sets = {real_name(line.dataset) for line in lines}
    return "avg" if sets == set(PAPER_SETS) else f"avg ({len(sets)} sets)"


def on_all_sets(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines by row, for rows that have a line on every question set; empty if there is one set only."""
    rows = {row: [line for line in lines if line.row == row] for row in dict.fromkeys(line.row for line in lines)}
    count = len({line.dataset for line in lines})
    return {row: own for row, own in rows.items() if len(own) == count > 1}
