"""The paper's tables from stored runs: tidy cells, paired tests, and files to read them.

A table has the rows that its specification names and, beside them, baselines on the same questions. `Table` collects
the scored answers; `table`, `tests` and `write` are what notebooks call. Nothing here needs torch, and nothing here
trains: a missing run is an error that says how to make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib import baselines, evaluate, experiments, files, paths, results, statistics
from amif_lib.errors import InputError
from amif_lib.experiments import RunSpec
from amif_lib.table_rows import (
    MODEL_BASELINES,
    PAPER_SETS,
    PROTOCOLS,
    SCALE_NOTES,
    SHOWN_BASELINES,
    Line,
    Selection,
    is_baseline,
    is_synthetic,
    real_name,
    required_runs,
    saw_test_answers,
)

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
    "required_runs",
    "store",
    "table",
    "tests",
    "write",
]

COLUMNS = [
    "table",
    "row",
    "label",
    "dataset",
    "split",
    "protocol",
    "ours",
    "ours_sd",
    "n_seeds",
    "n_questions",
    "ci_low",
    "ci_high",
    "paper",
    "delta",
    "run_ids",
    "scale",
]
TEST_COLUMNS = [
    "table",
    "row",
    "label",
    "dataset",
    "split",
    "protocol",
    "against",
    "against_label",
    "kind",
    "difference",
    "ci_low",
    "ci_high",
    "wins",
    "losses",
    "mcnemar_p",
    "bootstrap_p",
    "p_holm",
    "supported",
    "replication",
    "n_seeds",
    "n_questions",
    "scale",
]
FILES = (".csv", "_tests.csv", ".md", ".tex")
NOT_TESTED = "not tested at this scale"


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
        self._scored: dict[tuple[str, str, str], pd.DataFrame] = {}
        self.datasets = tuple(dict.fromkeys(run.data.questions for row in self.rows for run in row.runs))
        self.lines = [line for dataset in self.datasets for line in self._lines(dataset)]
        self._refuse_different_questions()
        self.digests = results.digests(self.runs.values())

    def question_settings(self, dataset: str) -> dict:
        """Which questions the table's rows are trained on; the baselines learn from the same."""
        return next(run.data.question_settings for run in self.rows[0].runs if run.data.questions == dataset)

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
            specs = [run for run in row.runs if run.data.questions == dataset]
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
                    any(map(saw_test_answers, specs)),
                )
            )
        stored = baselines.stored(self.scale, dataset, **self.question_settings(dataset))
        lines += [
            Line(name, baselines.BASELINES[name][0], dataset, "baseline", ((stored[name], None),))
            for name in SHOWN_BASELINES
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
                        leaks=saw_test_answers(run.spec),
                    )
                )
            shown = next((line for line in lines if line.kind == "row" and line.headline == head.row), None)
            if shown:  # the same weights, blank images at test time only
                answers = tuple(self.runs[run_id].blank_test for run_id in shown.run_ids)
                name, label = f"{MODEL_BASELINES[1]}:{head.row}", f"blank images at test time only{suffix}"
                lines.append(
                    Line(name, label, dataset, "baseline", answers, shown.run_ids, headline=head.row, leaks=shown.leaks)
                )
        return lines

    def _refuse_different_questions(self) -> None:
        for dataset in self.datasets:
            lines = [line for line in self.lines if line.dataset == dataset]
            expected = set(next(x for x in lines if x.row == SHOWN_BASELINES[0]).answers[0][0]["question_id"])
            for line in lines:
                for got in (set(frame["question_id"]) for frame, _ in line.answers):
                    if got == expected:
                        continue
                    what, odd = ("lacks", expected - got) if expected - got else ("has the unknown", got - expected)
                    raise InputError(
                        f"{self.name}, row {line.row} (run {', '.join(line.run_ids)}): {what} question "
                        f"{min(odd)} of {dataset} ({len(odd)} in all); run its fine-tuning again"
                    )

    # --- cells ---

    def correct(self, line: Line, protocol: evaluate.Protocol) -> pd.DataFrame:
        """`line.score(protocol)`, worked out once."""
        key = (line.row, line.dataset, protocol.name)
        if key not in self._scored:
            self._scored[key] = line.score(protocol)
        return self._scored[key]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One line per cell, columns `COLUMNS`, accuracies in percent (see `table`)."""
        rows = [cell for line in self.lines for cell in self._cells(line)]
        if len(self.datasets) > 1:
            rows += self._averages()
        return pd.DataFrame(rows, columns=COLUMNS)

    def _cells(self, line: Line) -> list[dict[str, object]]:
        out = []
        for protocol in line.protocols:
            correct = self.correct(line, protocol)
            for definition in evaluate.DEFINITIONS:
                for split in ("open", "closed", "overall"):
                    part = correct[evaluate.select(correct, split, definition)]
                    own = definition == protocol.closed
                    if not len(part) or (split == "overall" and not own):
                        continue
                    estimate = statistics.bootstrap(part[line.seeds].to_numpy().T, part["image_id"])
                    _, deviation = statistics.combine_seeds([part[seed].mean() for seed in line.seeds])
                    shown = protocol.title if own else f"{protocol.title}/{definition}"
                    out.append(self._cell(line, line.dataset, split, shown, estimate, deviation, len(part)))
        return out

    def _cell(
        self,
        line: Line,
        dataset: str,
        split: str,
        protocol: str,
        estimate: statistics.Estimate,
        deviation: float,
        questions: int,
        run_ids: Sequence[str] | None = None,
    ) -> dict[str, object]:
        paper = self._published(line.paper_row, dataset, split) if protocol == "paper" else np.nan
        like_for_like = self.scale in ("base", "paper") and not any(map(is_synthetic, self.datasets))
        return {
            "table": self.name,
            "row": line.row,
            "label": line.label,
            "dataset": dataset,
            "split": split,
            "protocol": protocol,
            "ours": 100 * estimate.value,
            "ours_sd": 100 * deviation,
            "n_seeds": len(line.answers),
            "n_questions": questions,
            "ci_low": 100 * estimate.low,
            "ci_high": 100 * estimate.high,
            "paper": paper,
            "delta": 100 * estimate.value - paper if like_for_like else np.nan,
            "run_ids": " ".join(line.run_ids if run_ids is None else run_ids),
            "scale": self.scale,
        }

    def _published(self, paper_row: str, dataset: str, split: str) -> float:
        if not paper_row:
            return np.nan
        known = self.published
        here = (known["row"] == paper_row) & (known["dataset"] == real_name(dataset)) & (known["split"] == split)
        return float(known["value"][here].iloc[0]) if here.any() else np.nan

    def _averages(self) -> list[dict[str, object]]:
        """The paper's Avg: the unweighted mean of the overall accuracies, marked where it spans fewer than its sets."""
        whole = {real_name(dataset) for dataset in self.datasets} == set(PAPER_SETS)
        name = "avg" if whole else f"avg ({len(self.datasets)} of {len(PAPER_SETS)} sets)"
        out = []
        for row in dict.fromkeys(line.row for line in self.lines):
            lines = [line for line in self.lines if line.row == row]
            if len(lines) < len(self.datasets):
                continue
            for protocol in min((line.protocols for line in lines), key=len):  # strict only if no set leaks
                scored = [self.correct(line, protocol) for line in lines]
                parts = [
                    (one[line.seeds].to_numpy().T, one["image_id"]) for one, line in zip(scored, lines, strict=True)
                ]
                seeds = range(min(len(line.answers) for line in lines))
                _, deviation = statistics.combine_seeds([np.mean([one[s].mean() for one in scored]) for s in seeds])
                out.append(
                    self._cell(
                        lines[0],
                        name,
                        "overall",
                        protocol.title,
                        statistics.bootstrap_mean(parts),
                        deviation,
                        sum(map(len, scored)),
                        [i for line in lines for i in line.run_ids],
                    )
                )
        return out

    # --- paired tests ---

    def comparisons(self) -> list[tuple[Line, Line, str]]:
        """Pairs to test: each row with its reference, each headline row with the baselines beside it."""
        out = []
        for line in (x for x in self.lines if x.kind == "row"):
            beside = [x for x in self.lines if x.dataset == line.dataset]
            out += [(line, other, "reference") for name in line.references for other in beside if other.row == name]
            out += [
                (line, other, "baseline")
                for other in beside
                if line.headline
                and other.kind == "baseline"
                and (other.headline in ("", line.headline) or other.row.startswith(MODEL_BASELINES[0]))
            ]
        return out

    @cached_property
    def tests(self) -> pd.DataFrame:
        """Paired tests, one line per comparison, split and protocol; columns `TEST_COLUMNS` (see `tests`)."""
        rows = []
        for line, other, kind in self.comparisons():
            for protocol in line.protocols:
                first, second = self.correct(line, protocol), self.correct(other, protocol)
                for split in ("open", "closed", "overall"):
                    chosen = evaluate.select(first, split, protocol.closed)
                    if chosen.any():
                        rows.append(self._test(line, other, kind, split, protocol, first[chosen], second[chosen]))
        out = pd.DataFrame(rows, columns=[*TEST_COLUMNS, "p"])
        out["p_holm"] = out.groupby(["kind", "protocol"])["p"].transform(lambda p: statistics.holm(list(p)))
        out["supported"] = out["p_holm"] < 0.05
        out["replication"] = [
            self._verdict(*entry) for entry in zip(out["supported"], out["difference"], out["dataset"], strict=True)
        ]
        return out[TEST_COLUMNS]

    def _test(
        self,
        line: Line,
        other: Line,
        kind: str,
        split: str,
        protocol: evaluate.Protocol,
        first: pd.DataFrame,
        second: pd.DataFrame,
    ) -> dict[str, object]:
        a, b = first[line.seeds].to_numpy().T, second[other.seeds].to_numpy().T  # (S, n), (S', n)
        if len(b) not in (1, len(a)):
            raise InputError(
                f"{self.name}: row {line.row} has {len(a)} seeds, row {other.row} {len(b)}; use the same SEEDS for both"
            )
        each = [statistics.mcnemar(x, b[seed % len(b)]) for seed, x in enumerate(a)]
        gap = statistics.bootstrap_difference(a, b, first["image_id"])
        return {
            "table": self.name,
            "row": line.row,
            "label": line.label,
            "dataset": line.dataset,
            "split": split,
            "protocol": protocol.title,
            "against": other.row,
            "against_label": other.label,
            "kind": kind,
            "difference": 100 * gap.value,
            "ci_low": 100 * gap.low,
            "ci_high": 100 * gap.high,
            "wins": " ".join(str(test.wins) for test in each),
            "losses": " ".join(str(test.losses) for test in each),
            "mcnemar_p": " ".join(f"{test.p:.4g}" for test in each),
            "bootstrap_p": gap.p,
            "p": max(gap.p, *(test.p for test in each)),
            "n_seeds": len(a),
            "n_questions": len(first),
            "scale": self.scale,
        }

    def _verdict(self, supported: bool, difference: float, dataset: str) -> str:
        if self.scale not in ("base", "paper") or is_synthetic(dataset):
            return NOT_TESTED
        if not supported:
            return "within noise"
        return "better" if difference > 0 else "worse"


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
    McNemar p are given per seed. `p_holm` is the larger of the bootstrap's and all McNemar p values, adjusted by Holm
    over the comparisons of one kind and protocol; `supported` is `p_holm < .05`. `replication` is a verdict at base
    and paper scale only.
    """
    return Table(name, scale, selection).tests


def write(name: str, scale: str, selection: Selection | None = None) -> list[Path]:
    """Write `results/<scale>/tables/<name>.csv`, `_tests.csv`, `.md` and `.tex`; returns their paths."""
    return store(Table(name, scale, selection), always=True)


def store(whole: Table, always: bool = False) -> list[Path]:
    """Write the files of a collected table, each aside and then moved into place.

    A file that holds the same text already is left alone, unless `always` (a workflow goes by time stamps).
    """
    from amif_lib.layout import latex, markdown

    texts = (
        whole.cells.to_csv(index=False, float_format="%.4f", lineterminator="\n"),
        whole.tests.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        markdown(whole),
        latex(whole),
    )
    folder = paths.scale_dir(whole.scale) / "tables"
    written = [folder / f"{whole.name}{ending}" for ending in FILES]
    for path, text in zip(written, texts, strict=True):
        if always or not path.is_file() or path.read_text(encoding="utf-8") != text:
            files.write_text(path, text)
    return written
