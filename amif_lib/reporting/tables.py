"""The paper's tables from stored runs: scored answers become tidy cells with intervals, and files to read them.

Nothing here needs torch, and nothing trains: a missing run is an error that says how to make it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.experiments.predictions import PREDICTIONS
from amif_lib.experiments.rows import RunSpec
from amif_lib.reporting.table_rows import (
    BASELINES,
    CONTRASTS,
    MODEL_BASELINES,
    PAPER_SETS,
    PROTOCOLS,
    Selection,
    is_synthetic,
    real_name,
    seeds_of,
)
from amif_lib.scoring import baselines, protocols, statistics
from amif_lib.scoring.protocols import Protocol

SPLITS = ("open", "closed", "overall")
PAPER = protocols.PROTOCOLS["paper"]
KEYS = ["table", "row", "label", "dataset", "split", "protocol"]
NUMBERS = ["ours", "ours_sd", "n_seeds", "n_questions", "ci_low", "ci_high", "paper", "delta"]
COLUMNS = [*KEYS, *NUMBERS, "run_ids", "scale"]
SEED_COLUMNS = [*KEYS, "pretrain_seed", "seed", "run_id", "ours", "scale"]
SHOWN = {stored.BLANK_TEST: "blank images", stored.SHUFFLED_TEST: "another case's image"}
Predictions = tuple[pd.DataFrame, pd.DataFrame | None]  # of one run, and the candidates that it ranked


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
    tests: pd.DataFrame  # columns `table_tests.COLUMNS`

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(line.dataset for line in self.lines))


def collect(name: str, scale: str, selection: Selection | None = None) -> Table:
    """Score a table's stored runs and the baselines beside them (default selection: that of the scale's last plan).

    A row that is a configuration of the contrasts has all its finished replicates. Raises InputError where a run is
    missing (naming rows and command), a prediction file is damaged, or a run answered other questions than the present
    data has.
    """
    from amif_lib.reporting import table_tests

    selection = selection or Selection.planned(name, scale)
    rows, heads = selection.rows(name, scale), selection.headlines(name, scale)
    blank = selection.blank_runs(name, scale)
    asked = [(f"row {row.row}", run) for row in rows for run in row.runs]
    asked += [("question-only baseline", run) for runs in blank.values() for run in runs]
    _refuse_missing(name, scale, asked)
    repeated = selection.replicates(scale)
    rows = [row.model_copy(update={"runs": _with_replicates(row.runs, repeated)}) for row in rows]
    blank = {row: _with_replicates(runs, repeated) for row, runs in blank.items()}
    used = [run for each in (*(row.runs for row in rows), *blank.values()) for run in each]
    runs = {run_id: stored.load_run(run) for run_id, run in {run.run_id: run for run in used}.items()}
    lines = []
    for dataset in dict.fromkeys(run.data.questions for row in rows for run in row.runs):
        known = baselines.stored(scale, dataset, **training_questions(runs, dataset))
        for line, found in _lines(dataset, rows, heads, blank, runs, known):
            _refuse_other_questions(name, line, found, known[BASELINES[0]])
            line.scored.update({protocol.name: scored(found, protocol) for protocol in line.protocols})
            lines.append(line)
    printed = any(row.paper_row for row in rows)
    published = stored.published(name) if printed else stored.published("table1")[:0]
    own, each = cells(name, scale, lines, published), seeds(name, scale, lines)
    return Table(name, scale, lines, runs, published, own, each, table_tests.tests(name, scale, lines))


def training_questions(runs: dict[str, stored.Run], dataset: str) -> dict:
    """Which questions the rows of a question set are trained on: the baselines learn from the same."""
    return next(run.spec.data.question_settings for run in runs.values() if run.spec.data.questions == dataset)


def _refuse_missing(name: str, scale: str, asked: list[tuple[str, RunSpec]]) -> None:
    lacking = {run.run_id for run in stored.missing(run for _, run in asked)}
    names = [
        f"{row} ({run.data.questions}, seed {run.seed}) = run {run.run_id}"
        for row, run in asked
        if run.run_id in lacking
    ]
    remedy = f"run `make reproduce SCALE={scale}`, or notebook 05_finetune_vqa with spec={scale}/{name}"
    if paths.from_reference():
        remedy = "FROM=reference reads committed results only; leave it unset to run them yourself"
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise InputError(f"{name} at scale {scale} lacks {', '.join(names[:4])}{more}; {remedy}")


def _with_replicates(runs: Sequence[RunSpec], repeated: dict[str, list[RunSpec]]) -> tuple[RunSpec, ...]:
    """A row's runs, each once, with the further replicates that the contrasts trained; by seed."""
    whole = [also for run in runs for also in (run, *repeated.get(run.run_id, ()))]
    return tuple({run.run_id: run for run in sorted(whole, key=lambda run: run.seed)}.values())


def _lines(
    dataset: str,
    rows: list[experiments.Row],
    heads: list[experiments.Row],
    blank: dict[str, tuple[RunSpec, ...]],
    runs: dict[str, stored.Run],
    known: dict[str, pd.DataFrame],
) -> Iterator[tuple[Line, list[Predictions]]]:
    """The table's rows on one question set, then the baselines, each with the predictions of its runs."""
    head_of = {run.run_id: row.row for row in heads for run in row.runs}
    shown: dict[str, Line] = {}
    for row in rows:
        specs = {run.run_id: run for run in row.runs if run.data.questions == dataset}
        if not specs:  # a row of other question sets
            continue
        seeds, leaks = tuple(map(seeds_of, specs.values())), any(run.saw_test_answers for run in specs.values())
        about = (row.references, row.paper_row, head_of.get(next(iter(specs)), ""), leaks, row.extra)
        line = Line(row.row, row.label, dataset, "row", tuple(specs), seeds, *about)
        shown.setdefault(line.headline, line)
        yield line, [(runs[run_id].predictions, runs[run_id].candidates) for run_id in specs]
    for name in BASELINES:
        if name != "nearest_question" or known[name]["image_in_training"].any():  # else the most frequent answer again
            yield Line(name, baselines.BASELINES[name][0], dataset), [(known[name], None)]
    for head in heads:
        start = f", {head.label.removeprefix('AMiF, ')}" if len(heads) > 1 else ""
        if own := [run for run in blank.get(head.row, ()) if run.data.questions == dataset]:
            ids, leaks = tuple(run.run_id for run in own), any(run.saw_test_answers for run in own)
            name, label = f"{MODEL_BASELINES[0]}:{head.row}", f"question only (trained on blank images){start}"
            line = Line(name, label, dataset, "baseline", ids, headline=head.row, leaks=leaks)
            yield line, [(runs[run_id].predictions, runs[run_id].candidates) for run_id in ids]
        if whole := shown.get(head.row):  # the same weights, other images at test time only
            own = [runs[run_id] for run_id in whole.run_ids]
            for name, kind in zip(MODEL_BASELINES[1:], SHOWN, strict=True):
                if not all((run.directory / kind / PREDICTIONS).is_file() for run in own):  # of one image alone
                    continue
                found = [run.blank_test if kind == stored.BLANK_TEST else run.shuffled_test for run in own]
                changed = np.mean([_changed(run, *other) for run, other in zip(own, found, strict=True)])
                label = f"{SHOWN[kind]} at test time only{start}"
                about = (f"{name}:{head.row}", label, dataset, "baseline", whole.run_ids)
                yield Line(*about, whole.seeds, headline=head.row, leaks=whole.leaks, changed=float(changed)), found


def _changed(run: stored.Run, frame: pd.DataFrame, candidates: pd.DataFrame) -> float:
    """The share of questions to which a run gives another answer in these predictions than in its own."""
    own, other = protocols.score(run.predictions, run.candidates, PAPER), protocols.score(frame, candidates, PAPER)
    both = own.set_index("question_id")["prediction"], other.set_index("question_id")["prediction"]
    return float((both[0].reindex(both[1].index) != both[1]).mean())


def _refuse_other_questions(name: str, line: Line, found: list[Predictions], known: pd.DataFrame) -> None:
    """Every run has the questions of the present data, with the same image, answers and definitions of closed."""
    known = _plain(known)
    for run_id, (frame, _) in zip(line.run_ids or [""], found, strict=True):
        own = _plain(frame)
        odd = (own.reindex(known.index) != known).any(axis=1)  # a missing question differs as well
        if odd.any() or len(own) != len(known):
            first = odd.idxmax() if odd.any() else own.index.difference(known.index)[0]
            raise InputError(
                f"{name}, row {line.row} (run {run_id}): question {first} of {line.dataset} is not as in the present "
                "data (missing, unknown, or another image, answer or definition of closed); fine-tune it again"
            )


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.set_index("question_id")[["image_id", "gold", *protocols.DEFINITIONS.values()]]
    return frame.assign(gold=frame["gold"].map(list).map(str))


# --- from answers to numbers ---


def scored(found: Sequence[Predictions], protocol: Protocol) -> pd.DataFrame:
    """Which questions are right, by id: `image_id`, both definitions of closed, a column per run."""
    columns = []
    for run, (frame, candidates) in enumerate(found):
        used = protocol if candidates is not None else protocol.model_copy(update={"candidates": "generate"})
        one = protocols.score(frame, candidates, used).set_index("question_id").sort_index()
        columns.append(one["correct"].rename(run))
    return pd.concat([one[["image_id", *protocols.DEFINITIONS.values()]], *columns], axis=1)


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


def average_name(lines: list[Line]) -> str:
    """What the column `dataset` calls the average: `avg` over the paper's four sets, else marked as partial."""
    sets = {real_name(line.dataset) for line in lines}
    return "avg" if sets == set(PAPER_SETS) else f"avg ({len(sets)} of {len(PAPER_SETS)} sets)"


def on_all_sets(lines: list[Line]) -> dict[str, list[Line]]:
    """By row the lines of those rows that have every one of several question sets."""
    rows = {row: [line for line in lines if line.row == row] for row in dict.fromkeys(line.row for line in lines)}
    count = len({line.dataset for line in lines})
    return {row: own for row, own in rows.items() if len(own) == count > 1}


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


# --- files ---


def write(name: str, scale: str, selection: Selection | None = None) -> list[Path]:
    """Write `results/<scale>/tables/<name>.csv`, `_tests.csv`, `_seeds.csv`, `.md` and `.tex`; returns their paths.

    The table `contrasts` has the contrasts in its `.csv` and `.md`, and `_seeds.csv`.
    """
    return store(collect(name, scale, selection), always=True)


def store(table: Table, always: bool = False) -> list[Path]:
    """Write a collected table's files; one that holds the same text is left alone, unless `always` (workflows go by
    time). Nothing of the kit reads numbers back from them."""
    from amif_lib.reporting import contrasts, layout

    if table.name == CONTRASTS:
        found = contrasts.contrasts(table)
        texts = {".csv": _csv(found, "%.6g"), "_seeds.csv": _csv(table.seeds), ".md": contrasts.markdown(found, table)}
    else:
        texts = {".csv": _csv(table.cells), "_tests.csv": _csv(table.tests, "%.6g"), "_seeds.csv": _csv(table.seeds)}
        texts |= {".md": layout.markdown(table), ".tex": layout.latex(table)}
    written = [paths.scale_dir(table.scale) / "tables" / f"{table.name}{ending}" for ending in texts]
    for path, text in zip(written, texts.values(), strict=True):
        if always or not path.is_file() or path.read_bytes() != text.encode():
            files.write_text(path, text)
    return written


def _csv(frame: pd.DataFrame, form: str = "%.4f") -> str:
    return frame.to_csv(index=False, float_format=form, lineterminator="\n")
