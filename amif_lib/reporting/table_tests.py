"""Paired tests of a collected table: rows against their references, headline rows against baselines, averages too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.reporting.table_cells import KEYS, SPLITS, average_name, on_all_sets
from amif_lib.reporting.table_rows import MODEL_BASELINES, Line, is_synthetic
from amif_lib.scoring import protocols, statistics

if TYPE_CHECKING:
    from amif_lib.reporting.tables import Table

TEST_COLUMNS = [
    *KEYS,
    "against",
    "against_label",
    "kind",
    "difference",
    "ci_low",
    "ci_high",
    "wins",
    "losses",
    "mcnemar_p",
]
TEST_COLUMNS += ["bootstrap_p", "p_holm", "supported", "replication", "n_seeds", "n_questions", "scale"]
NOT_TESTED = "not tested at this scale"
MIXED = "not judged: the two rows were made by different code"
ONE_TRAINING = "one training: not judged"  # the test holds no variance between trainings
HOLM = (
    "Holm's correction is over the comparisons of one kind (rows with their references, or with the baselines) under one "
    "protocol of a table: those on all questions, averages among them, are one family, those on open and on closed "
    "questions together another."
)


def comparisons(table: Table) -> list[tuple[Line, Line, str]]:
    """Pairs to test: each row with its references, each headline row with the baselines beside it."""
    out = []
    for line in (x for x in table.lines if x.kind == "row"):
        beside = [x for x in table.lines if x.dataset == line.dataset]
        out += [(line, other, "reference") for name in line.references for other in beside if other.row == name]
        out += [
            (line, other, "baseline")
            for other in beside
            if line.headline
            and other.kind == "baseline"
            and (other.headline in ("", line.headline) or other.row.startswith(MODEL_BASELINES[0]))
        ]
    return out


def tests(table: Table) -> pd.DataFrame:
    """One line per comparison, protocol and split, columns `TEST_COLUMNS` (see `tables.tests`)."""
    pairs, rows = comparisons(table), []
    for line, other, kind in pairs:
        for protocol in _shared_protocols([line], [other]):
            for split in SPLITS:
                if len(table.answers(line, protocol, split)[1]):
                    rows.append(_test(table, [line], [other], kind, split, protocol))
    if len(table.datasets) > 1:
        whole = on_all_sets(table)
        for row, against, kind in dict.fromkeys((line.row, other.row, kind) for line, other, kind in pairs):
            if row in whole and against in whole:
                for protocol in _shared_protocols(whole[row], whole[against]):
                    rows.append(_test(table, whole[row], whole[against], kind, "overall", protocol))
    out = pd.DataFrame(rows, columns=[*TEST_COLUMNS, "p"])
    family = [out["kind"], out["protocol"], out["split"] == "overall"]
    out["p_holm"] = out.groupby(family)["p"].transform(lambda p: statistics.holm(list(p)))
    out["supported"] = (out["p_holm"] < 0.05) & (out["replication"] != MIXED)
    out["replication"] = [
        said or verdict(supported, difference)
        for said, supported, difference in zip(out["replication"], out["supported"], out["difference"], strict=True)
    ]
    return out[TEST_COLUMNS]


def _shared_protocols(first: list[Line], second: list[Line]) -> list[protocols.Protocol]:
    """Protocols under which every line may be shown: `strict` only where no row has seen test answers."""
    return min((line.protocols for line in (*first, *second)), key=len)


def difference(
    table: Table, first: list[Line], second: list[Line], protocol: protocols.Protocol, split: str = "overall"
) -> tuple[statistics.Estimate, int]:
    """Accuracy of a row minus another's, as a fraction, with interval and p, and the number of questions.

    `first` and `second` hold one line per question set; with several the difference is that of the unweighted means.
    """
    parts, questions = [], 0
    for line, other in zip(first, second, strict=True):
        (a, images), (b, _) = table.answers(line, protocol, split), table.answers(other, protocol, split)
        parts.append((a, b, images))
        questions += len(images)
    both = (first[0].pretrainings, second[0].pretrainings)
    return statistics.bootstrap_mean_difference(parts, pretrainings=both), questions


def runs_paired(name: str, line: Line, other: Line) -> list[tuple[int, int]]:
    """Which runs of two lines are compared: those of equal seeds; a single run, or one without pre-training, with all.

    Raises InputError where a run is left without a partner.
    """
    every = [(i, j) for i in line.seeds for j in other.seeds]
    if min(len(line.answers), len(other.answers)) == 1:
        return every
    same = [
        (i, j)
        for i, j in every
        if line.drawn[i][1] == other.drawn[j][1]
        and (line.drawn[i][0] == other.drawn[j][0] or None in (line.drawn[i][0], other.drawn[j][0]))
    ]
    if {i for i, _ in same} != set(line.seeds) or {j for _, j in same} != set(other.seeds):
        raise InputError(
            f"{name}: row {line.row} has {len(line.answers)} seeds, row {other.row} {len(other.answers)}; use the same "
            "SEEDS and PRETRAIN_SEEDS for both"
        )
    return same


def _test(
    table: Table, first: list[Line], second: list[Line], kind: str, split: str, protocol: protocols.Protocol
) -> dict[str, object]:
    line, other = first[0], second[0]
    gap, questions = difference(table, first, second, protocol, split)
    each = []
    for one, two in zip(first, second, strict=True):
        pairs = runs_paired(table.name, one, two)  # refuses unequal seeds for averages too
        if len(first) == 1:  # McNemar's test is about one set of questions
            a, b = (table.answers(x, protocol, split)[0] for x in (one, two))
            each = [statistics.mcnemar(a[i], b[j]) for i, j in pairs]
    return {
        "table": table.name,
        "row": line.row,
        "label": line.label,
        "dataset": line.dataset if len(first) == 1 else average_name(table),
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
        "p": max([gap.p, *(test.p for test in each)]),
        "replication": withheld(table, first, second),
        "n_seeds": len(line.answers),
        "n_questions": questions,
        "scale": table.scale,
    }


def withheld(table: Table, first: list[Line], second: list[Line]) -> str:
    """Why a difference of two rows is not judged, or nothing: different code, a scale or data that tests no claim, or a row that was
    trained once, so that no spread between trainings is in the test (a baseline's own training is not asked for).
    """
    if len({table.digest_of[run_id] for line in (*first, *second) for run_id in line.run_ids}) > 1:
        return MIXED
    if table.scale not in ("base", "paper") or any(is_synthetic(line.dataset) for line in first):
        return NOT_TESTED
    trained = [line for line in (*first, *second) if line.kind == "row"]
    return ONE_TRAINING if min(len(line.answers) for line in trained) == 1 else ""


def verdict(supported: bool, difference: float) -> str:
    """The replication verdict on a difference that may be judged."""
    return "within noise" if not supported else "better" if difference > 0 else "worse"


def supported_cells(tested: pd.DataFrame, lines: Sequence[Line]) -> set[tuple[str, str, str]]:
    """`(row, dataset, split)` to set in bold under the protocol `paper`.

    A row with references: better than each of them, and none of them missing in this selection; in Table 1 the full
    model, which has none: better than every baseline beside it; each time with the paired tests' support. Never bold: a
    row that saw test answers, and a row that is set against a reference on account of one training at base or paper scale.
    """
    own = tested[tested["protocol"] == "paper"]
    needed = {line.row: set(line.references) for line in lines if line.kind == "row"}
    leaking = {line.row for line in lines if line.leaks}
    bold = set()
    for key, group in own[~own["row"].isin(leaking)].groupby(["row", "dataset", "split"]):
        reference = group[group["kind"] == "reference"]
        judged = reference if needed[key[0]] else group[group["table"] == "table1"]
        whole = needed[key[0]] <= set(judged["against"]) and (reference["replication"] != ONE_TRAINING).all()
        if whole and len(judged) and (judged["supported"] & (judged["difference"] > 0)).all():
            bold.add(key)
    return bold


def lacking_references(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Rows with references that this selection leaves out on some question set, and which: they are never bold."""
    have = {(line.row, line.dataset) for line in lines}
    out: dict[str, list[str]] = {}
    for line in (x for x in lines if x.kind == "row" and not x.leaks):
        lost = [name for name in line.references if (name, line.dataset) not in have]
        out[line.row] = list(dict.fromkeys([*out.get(line.row, []), *lost]))
    return {row: lost for row, lost in out.items() if lost}
