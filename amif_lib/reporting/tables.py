"""The paper's tables from stored runs: scored answers become tidy cells and differences with intervals.

Nothing here needs torch, and nothing trains: a missing run is an error that says how to make it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.experiments import stored
from amif_lib.experiments.rows import is_judged
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.reporting.table_lines import PAPER, Line, average_name, lines_of, on_all_sets
from amif_lib.reporting.table_rows import CONTRASTS, Selection, is_synthetic, real_name
from amif_lib.scoring import baselines, inference, protocols
from amif_lib.scoring.protocols import Protocol

SPLITS = ("open", "closed", "overall")
KEYS = ["table", "row", "label", "dataset", "split", "protocol"]
NUMBERS = ["ours", "ours_sd", "n_seeds", "n_questions", "ci_low", "ci_high", "paper", "delta"]
COLUMNS = [*KEYS, *NUMBERS, "run_ids", "scale"]
SEED_COLUMNS = [*KEYS, "pretrain_seed", "seed", "run_id", "ours", "scale"]
TEST_COLUMNS = [*KEYS, "against", "against_label", "difference", "ci_low", "ci_high", "detectable"]
TEST_COLUMNS += ["n_seeds", "n_questions", "scale"]


@dataclass(frozen=True)
class Table:
    """One table at one scale, made by `collect`; accuracies in percent."""

    name: str
    scale: str
    lines: list[Line]
    published: pd.DataFrame  # the paper's numbers of this table; empty where it prints none

    @property
    def datasets(self) -> list[str]:
        """The question sets, each once."""
        return list(dict.fromkeys(line.dataset for line in self.lines))

    @property
    def runs(self) -> list[RunSpec]:
        """The fine-tunings behind the lines, each once."""
        return list({run.run_id: run for line in self.lines for run in line.runs}.values())

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One line per cell, columns `COLUMNS`; several question sets are averaged without weights, as the paper's Avg.

        The 95% interval is from resampling clusters, `ours_sd` over runs. `delta`, the difference to the published
        number, is filled only if both are comparable: real data, protocol `paper`, scale base or paper. A protocol such
        as `paper/answer_type` is the same scoring with the other definition of closed.
        """
        known = self.published.set_index(["row", "dataset", "split"])["value"].to_dict()
        like_for_like = self.scale in ("base", "paper") and not any(map(is_synthetic, self.datasets))
        out = []
        for own, dataset, split, protocol, definition in _wanted(self.lines):
            parts = [part for line in own if len((part := line.right(protocol, split, definition))[1])]  # (S, n), (n,)
            if parts:
                found = inference.bootstrap(*parts[0]) if len(parts) == 1 else inference.bootstrap_mean(parts)
                runs = min(len(right) for right, _ in parts)
                each = np.mean([right[:runs].mean(1) for right, _ in parts], axis=0)  # (S,)
                title = protocol.title if definition == protocol.closed else f"{protocol.title}/{definition}"
                key = (own[0].entry.paper_row if own[0].entry else "", real_name(dataset), split)
                paper = known.get(key, np.nan) if title == "paper" else np.nan
                cell = dict(zip(KEYS, (self.name, own[0].row, own[0].label, dataset, split, title), strict=True))
                cell |= {"ours": 100 * found.value, "ci_low": 100 * found.low, "ci_high": 100 * found.high}
                cell |= {"ours_sd": 100 * each.std(ddof=1) if runs > 1 else np.nan, "n_seeds": runs, "paper": paper}
                cell |= {"n_questions": sum(len(clusters) for _, clusters in parts), "scale": self.scale}
                cell |= {"delta": cell["ours"] - paper if like_for_like else np.nan}
                out.append(cell | {"run_ids": " ".join(dict.fromkeys(run for line in own for run in line.run_ids))})
        return pd.DataFrame(out, columns=COLUMNS)

    @cached_property
    def tests(self) -> pd.DataFrame:
        """Rows against their references and baselines under the protocol `paper`, by split: columns `TEST_COLUMNS`.

        `difference` is in points, its 95% interval from resampling clusters; `detectable` is the smallest true
        difference whose interval leaves out 0 in 80% of repetitions, of each line alone.
        """
        pairs, whole = comparisons(self.lines), on_all_sets(self.lines)
        compared = [([line], [other], line.dataset) for line, other in pairs]
        for row, against in dict.fromkeys((line.row, other.row) for line, other in pairs):
            if row in whole and against in whole:
                compared.append((whole[row], whole[against], average_name(self.lines)))
        found = [_difference(*each, split) for each, split in product(compared, SPLITS)]
        frame = pd.DataFrame([row for row in found if row], columns=TEST_COLUMNS)
        return frame.assign(table=self.name, protocol=PAPER.title, scale=self.scale)

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """The accuracy of each run in percent, columns `SEED_COLUMNS`; a cell shows their mean and deviation."""
        out = []
        for line in (line for line in self.lines if line.runs):
            for name, split in product(line.scored, SPLITS):
                protocol = protocols.PROTOCOLS[name]
                right, clusters = line.right(protocol, split)
                for run, own in zip(line.runs, right, strict=True) if len(clusters) else ():
                    about = (self.name, line.row, line.label, line.dataset, split, protocol.title)
                    first = run.parent and run.parent.seed
                    out.append((*about, first, run.seed, run.run_id, 100 * own.mean(), self.scale))
        return pd.DataFrame(out, columns=SEED_COLUMNS).astype({"pretrain_seed": "Int64", "seed": "Int64"})


def collect(name: str, scale: str, selection: Selection | None = None) -> Table:
    """Score a table's stored runs and the baselines beside them (default selection: that of its last plan).

    A row that the contrasts also train gets all its finished replicates, unless the table has contrasts of its own,
    whose rows need equally many. Raises InputError if a run is missing (the message names row and command), a
    prediction file is damaged, or a run answered other questions than the set has now.
    """
    selection = selection or Selection.planned(name, scale)
    rows, heads = selection.rows(name, scale), selection.headlines(name, scale)
    blank = selection.blank_runs(name, scale)
    asked = [(f"row {row.row}", run) for row in rows for run in row.runs]
    _refuse_missing(name, scale, [*asked, *(("question-only baseline", run) for run in blank)])
    repeated = {} if is_judged(name) and name != CONTRASTS else selection.replicates(scale)
    rows = [row.model_copy(update={"runs": _with_replicates(row.runs, repeated)}) for row in rows]
    blank, lines = _with_replicates(blank, repeated), []
    for dataset in dict.fromkeys(run.data.questions for row in rows for run in row.runs):
        lines += lines_of(dataset, rows, heads, blank, known_answers(scale, dataset, [run for _, run in asked]))
    printed = any(row.paper_row for row in rows)
    published = stored.published(name) if printed else stored.published("table1")[:0]
    return Table(name, scale, lines, published)


def known_answers(scale: str, dataset: str, runs: Sequence[RunSpec]) -> dict[str, pd.DataFrame]:
    """Answers of the baselines without a model, taught by the training questions of the first of the runs on a set."""
    settings = next(run.data.question_settings for run in runs if run.data.questions == dataset)
    return baselines.stored(scale, dataset, **settings)


def _refuse_missing(name: str, scale: str, asked: list[tuple[str, RunSpec]]) -> None:
    if lacking := [(row, run) for row, run in asked if not stored.is_finished(run)]:
        row, run = lacking[0]
        said = f"{row} ({run.data.questions}, seed {run.seed}) = run {run.run_id}"
        said += f" and {len(lacking) - 1} more" if lacking[1:] else ""
        remedy = f"run `make {name if is_judged(name) else 'reproduce'} SCALE={scale}`"
        raise InputError(f"{name} at scale {scale} lacks {said}; {remedy}")


def _with_replicates(runs: Sequence[RunSpec], repeated: dict[str, list[RunSpec]]) -> tuple[RunSpec, ...]:
    """A row's runs, each once, with the further replicates that the contrasts trained; by seed."""
    whole = [also for run in runs for also in (run, *repeated.get(run.run_id, ()))]
    return tuple({run.run_id: run for run in sorted(whole, key=lambda run: run.seed)}.values())


def _wanted(lines: list[Line]) -> Iterator[tuple[list[Line], str, str, Protocol, str]]:
    """For each cell: its lines, data set, split, protocol and definition of closed."""
    for line in lines:
        for protocol, definition, split in product(line.scored, protocols.DEFINITIONS, SPLITS):
            protocol = protocols.PROTOCOLS[protocol]
            if split != "overall" or definition == protocol.closed:
                yield [line], line.dataset, split, protocol, definition
    for own in on_all_sets(lines).values():
        for name, split in product(min((line.scored for line in own), key=len), SPLITS):  # strict only if no set leaks
            protocol = protocols.PROTOCOLS[name]
            yield own, average_name(lines), split, protocol, protocol.closed


# --- differences between these trained models; statements about the method are made by contrasts only ---


def comparisons(lines: list[Line]) -> list[tuple[Line, Line]]:
    """Each row with its references, and each row of the full model with the baselines beside it."""
    out = []
    for line in (line for line in lines if line.entry):
        beside = [other for other in lines if other.dataset == line.dataset]
        out += [(line, other) for row in line.entry.references for other in beside if other.row == row]
        if line.headline:
            out += [(line, other) for other in beside if not other.entry and other.headline in ("", line.headline)]
    return out


def _difference(first: list[Line], second: list[Line], dataset: str, split: str) -> dict[str, object]:
    """One comparison of two rows, with a line per question set each; runs of the same seed are paired."""
    parts = []
    for line, other in zip(first, second, strict=True):
        (own, clusters), (theirs, _) = line.right(PAPER, split), other.right(PAPER, split)  # (S, n), (n,), (T, n)
        if len(theirs) > 1:  # else all are compared with one
            seeds = [[run.seed for run in each.runs] for each in (line, other)]
            _, mine, its = np.intersect1d(*seeds, return_indices=True)  # those of the plan are in both
            own, theirs = own[mine], theirs[its]  # (P, n), P common seeds
        if len(clusters):
            parts.append((own - theirs, clusters))
    if not parts:
        return {}
    gap = inference.bootstrap_mean(parts)
    found = {"row": first[0].row, "label": first[0].label, "dataset": dataset, "split": split}
    found |= {"against": second[0].row, "against_label": second[0].label, "difference": 100 * gap.value}
    found |= {"ci_low": 100 * gap.low, "ci_high": 100 * gap.high, "detectable": 100 * inference.detectable(gap)}
    return found | {"n_seeds": min(len(own) for own, _ in parts), "n_questions": sum(len(at) for _, at in parts)}
