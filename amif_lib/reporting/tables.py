"""The paper's tables from stored runs: tidy cells, paired tests, and files to read them.

A table has the rows that its specification names and, beside them, baselines on the same questions. `Table` collects
the scored answers; `table`, `tests` and `write` are what notebooks call. Nothing here needs torch, and nothing here
trains: a missing run is an error that says how to make it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import RunSpec
from amif_lib.reporting import table_cells, table_tests
from amif_lib.reporting.table_cells import COLUMNS
from amif_lib.reporting.table_rows import (
    MODEL_BASELINES,
    PAPER_SETS,
    PROTOCOLS,
    SCALE_NOTES,
    SHOWN_BASELINES,
    Line,
    Selection,
    is_baseline,
    is_synthetic,
    required_notebooks,
    required_runs,
    seeds_of,
)
from amif_lib.reporting.table_tests import NOT_TESTED, TEST_COLUMNS
from amif_lib.scoring import baselines, protocols

__all__ = [
    "COLUMNS",
    "FILES",
    "NOT_TESTED",
    "PAPER_SETS",
    "PROTOCOLS",
    "SCALE_NOTES",
    "TEST_COLUMNS",
    "Selection",
    "Table",
    "is_baseline",
    "is_synthetic",
    "required_notebooks",
    "required_runs",
    "store",
    "table",
    "tests",
    "write",
]

FILES = (".csv", "_tests.csv", "_seeds.csv", ".md", ".tex")


class Table:
    """A table at a scale, collected from finished runs.

    Raises InputError where a run is missing (naming rows and command), a prediction file is damaged, or two rows of a
    question set were evaluated on different questions.
    """

    def __init__(self, name: str, scale: str, selection: Selection | None = None) -> None:
        selection = selection or Selection.planned(name, scale)
        self.name, self.scale = name, scale
        self.title = str(experiments.table_settings(name)["title"])
        self.rows = selection.rows(name, scale)
        self.headlines = selection.headlines(name, scale)
        self.blank = selection.blank_runs(name, scale)
        self._refuse_missing()
        self.runs: dict[str, results.Run] = {}
        self._scored: dict[tuple[str, ...], pd.DataFrame] = {}
        self._answers: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
        self.datasets = tuple(dict.fromkeys(run.data.questions for row in self.rows for run in row.runs))
        self.lines = [line for dataset in self.datasets for line in self._lines(dataset)]
        self._refuse_different_questions()
        self.digests = results.digests(self.runs.values())
        self.digest_of = {run_id: digest for digest, ids in self.digests.items() for run_id in ids}

    @property
    def seed_counts(self) -> tuple[int, int]:
        """The most fine-tunings of one pre-training, and the most pre-trainings, that a row has on one question set."""
        counts = [[first for first, _ in line.drawn] for line in self.lines if line.kind == "row"]
        return max(max(map(each.count, each)) for each in counts), max(len(set(each)) for each in counts)

    def question_settings(self, dataset: str) -> dict:
        """Which questions the table's rows are trained on; the baselines learn from the same."""
        runs = (run for row in self.rows if not row.extra for run in row.runs)
        return next(run.data.question_settings for run in runs if run.data.questions == dataset)

    @cached_property
    def published(self) -> pd.DataFrame:
        """The paper's numbers of this table (`results.published`); empty where the paper prints none."""
        return (
            results.published(self.name) if any(row.paper_row for row in self.rows) else results.published("table1")[:0]
        )

    # --- collecting ---

    def _refuse_missing(self) -> None:
        asked = [
            (f"row {row.row} ({run.data.questions}, seed {run.seed})", run) for row in self.rows for run in row.runs
        ]
        asked += [
            (f"question-only baseline ({run.data.questions})", run) for runs in self.blank.values() for run in runs
        ]
        lacking = {run.run_id for run in results.missing(run for _, run in asked)}
        names = [f"{name} = run {run.run_id}" for name, run in asked if run.run_id in lacking]
        if not names:
            return
        rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
        if paths.from_reference():
            if not paths.plan(self.scale).is_file():
                known = ", ".join(sorted(path.parent.name for path in paths.reference().glob("*/plan.json"))) or "none"
                raise InputError(
                    f"FROM=reference SCALE={self.scale}: no committed results; there are those of: {known}"
                )
            raise InputError(
                f"{self.name} at scale {self.scale}: the reference results were made for an earlier version of the settings "
                f"or without this table: {', '.join(names[:4])}{rest} is not stored; use the release that they came with, "
                "or leave FROM unset and run it yourself"
            )
        raise InputError(
            f"{self.name} at scale {self.scale} lacks {', '.join(names[:4])}{rest}; run `make reproduce "
            f"SCALE={self.scale}`, or notebook 05_finetune_vqa with spec={self.scale}/{self.name}"
        )

    def _run(self, spec: RunSpec) -> results.Run:
        return self.runs.setdefault(spec.run_id, results.load_run(spec))

    def _lines(self, dataset: str) -> list[Line]:
        lines = []
        headline_of = {run.run_id: row.row for row in self.headlines for run in row.runs}
        for row in self.rows:
            specs = list({run.run_id: run for run in row.runs if run.data.questions == dataset}.values())
            if not specs:  # a row of other question sets
                continue
            runs = [self._run(spec) for spec in specs]
            lines.append(
                Line(
                    row.row,
                    row.label,
                    dataset,
                    "row",
                    tuple((r.predictions, r.candidates) for r in runs),
                    tuple(r.run_id for r in runs),
                    row.references,
                    row.paper_row,
                    headline_of.get(runs[0].run_id, ""),
                    any(spec.saw_test_answers for spec in specs),
                    row.extra,
                    tuple(map(seeds_of, specs)),
                )
            )
        stored = baselines.stored(self.scale, dataset, **self.question_settings(dataset))
        lines += [
            Line(name, baselines.BASELINES[name][0], dataset, "baseline", ((stored[name], None),))
            for name in SHOWN_BASELINES
            if name != "nearest_question"
            or stored[name]["image_in_training"].any()  # else the most frequent answer again
        ]
        for head in self.headlines:
            suffix = f", {head.label.removeprefix('AMiF, ')}" if len(self.headlines) > 1 else ""
            for run in (self._run(spec) for spec in self.blank.get(head.row, ()) if spec.data.questions == dataset):
                name, label = f"{MODEL_BASELINES[0]}:{head.row}", f"question only (trained on blank images){suffix}"
                lines.append(
                    Line(
                        name,
                        label,
                        dataset,
                        "baseline",
                        ((run.predictions, run.candidates),),
                        (run.run_id,),
                        headline=head.row,
                        leaks=run.spec.saw_test_answers,
                    )
                )
            shown = next((line for line in lines if line.kind == "row" and line.headline == head.row), None)
            if shown:  # the same weights, blank images at test time only
                answers = tuple(self.runs[run_id].blank_test for run_id in shown.run_ids)
                name, label = f"{MODEL_BASELINES[1]}:{head.row}", f"blank images at test time only{suffix}"
                lines.append(
                    replace(
                        shown,
                        row=name,
                        label=label,
                        kind="baseline",
                        answers=answers,
                        references=(),
                        paper_row="",
                        headline=head.row,
                    )
                )
        return lines

    def _refuse_different_questions(self) -> None:
        """Every line has the baseline's questions, and of each the same image, answers and definitions of closed."""
        for dataset in self.datasets:
            lines = [line for line in self.lines if line.dataset == dataset]
            known = next(x for x in lines if x.row == SHOWN_BASELINES[0]).answers[0][0].set_index("question_id")
            expected = set(known.index)
            for line in lines:
                for run_id, (frame, _) in zip(line.run_ids or [""] * len(line.answers), line.answers, strict=True):
                    where = f"{self.name}, row {line.row} (run {run_id})"
                    if (got := set(frame["question_id"])) != expected:
                        what, odd = ("lacks", expected - got) if expected - got else ("has the unknown", got - expected)
                        raise InputError(
                            f"{where}: {what} question {min(odd)} of {dataset} ({len(odd)} in all); run its fine-tuning again"
                        )
                    own = frame.set_index("question_id").loc[known.index]
                    for field in ("image_id", "gold", *protocols.DEFINITIONS.values()):
                        for question, have, should in zip(known.index, own[field], known[field], strict=True):
                            if (list(have) != list(should)) if field == "gold" else have != should:
                                raise InputError(
                                    f"{where}: question {question} of {dataset}: {field} is {_plain(have)}, in the present "
                                    f"data {_plain(should)}; run its fine-tuning again"
                                )

    # --- what is read off it ---

    def correct(self, line: Line, protocol: protocols.Protocol) -> pd.DataFrame:
        """`line.score(protocol)`, worked out once."""
        key = (line.row, line.dataset, protocol.name)
        if key not in self._scored:
            self._scored[key] = line.score(protocol)
        return self._scored[key]

    def answers(
        self, line: Line, protocol: protocols.Protocol, split: str = "overall", definition: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which answers are right and on which image, of a split by a definition of closed (default: the protocol's).

        (S, n) of 0 and 1 and (n,) names, the questions in the same order for every line of a question set; worked out
        once.
        """
        key = (line.row, line.dataset, protocol.name, split, definition or protocol.closed)
        if key not in self._answers:
            scored = self.correct(line, protocol)
            chosen = protocols.select(scored, split, key[-1]).to_numpy()
            right = scored[line.seeds].to_numpy(dtype=float).T
            self._answers[key] = right[:, chosen], scored["image_id"].to_numpy()[chosen]
        return self._answers[key]

    @cached_property
    def supported(self) -> set[tuple[str, str, str]]:
        """`(row, dataset, split)` that is set in bold (see `table_tests.supported_cells`)."""
        return table_tests.supported_cells(self.tests, self.lines)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One line per cell, columns `COLUMNS`, accuracies in percent (see `table`)."""
        return table_cells.cells(self)

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """Each run's own accuracy (see `table_cells.seeds`)."""
        return table_cells.seeds(self)

    @cached_property
    def tests(self) -> pd.DataFrame:
        """Paired tests, one line per comparison, split and protocol; columns `TEST_COLUMNS` (see `tests`)."""
        return table_tests.tests(self)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else value


def table(name: str, scale: str, selection: Selection | None = None) -> pd.DataFrame:
    """A table as tidy cells, one line per cell, columns `COLUMNS`.

    Accuracies are percent, means over seeds. The 95% interval comes from resampling images, crossed with seeds, so it
    holds the variance of the test sample and, with several seeds, of training; `ours_sd` is over seeds. `paper` is the
    published number; `delta` is filled like for like only: real data, protocol `paper`, scale base or paper. A protocol
    such as `paper/answer_type` is the same scoring split by the other definition of closed. Baselines carry their
    names in `row`. Without a `selection`, that of the scale's last plan is used. Raises InputError as `Table` does.
    """
    return Table(name, scale, selection).cells


def tests(name: str, scale: str, selection: Selection | None = None) -> pd.DataFrame:
    """Paired tests of a table's rows with their references and of its headline rows with the baselines.

    `difference` is in points of accuracy, its interval from resampling images jointly; `wins`, `losses` and the exact
    McNemar p are given per seed. Averages over question sets are compared as well, by the bootstrap of the mean
    difference alone. `p_holm` is the larger of the bootstrap's and all McNemar p values, adjusted by Holm over the
    comparisons of one kind and protocol, those on all questions apart from those on open or closed ones; `supported` is
    `p_holm < .05`. `replication` is a verdict at base and paper scale only, and not of a row that was trained once. Rows
    that different code made are not judged.
    """
    return Table(name, scale, selection).tests


def write(name: str, scale: str, selection: Selection | None = None) -> list[Path]:
    """Write `results/<scale>/tables/<name>.csv`, `_tests.csv`, `_seeds.csv`, `.md` and `.tex`; returns their paths."""
    return store(Table(name, scale, selection), always=True)


def store(whole: Table, always: bool = False) -> list[Path]:
    """Write the files of a collected table, each aside and then moved into place.

    A file that holds the same text already is left alone, unless `always` (a workflow goes by time stamps). The files
    are for people: nothing of the kit reads numbers back from them, so that an edited one changes nothing, and is
    written anew with a note.
    """
    from amif_lib.reporting.layout import markdown
    from amif_lib.reporting.layout_latex import latex

    texts = (
        whole.cells.to_csv(index=False, float_format="%.4f", lineterminator="\n"),
        whole.tests.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        whole.seeds.to_csv(index=False, float_format="%.4f", lineterminator="\n"),
        markdown(whole),
        latex(whole),
    )
    folder = paths.scale_dir(whole.scale) / "tables"
    written = [folder / f"{whole.name}{ending}" for ending in FILES]
    for path, text in zip(written, texts, strict=True):
        same = path.is_file() and path.read_bytes() == text.encode()
        if path.is_file() and not same and path.suffix == ".csv":
            print(
                f"note: {paths.shown(path)} did not hold what the stored runs say (edited, or of other runs); written anew"
            )
        if always or not same:
            files.write_text(path, text)
    return written
