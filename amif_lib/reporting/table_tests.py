"""Paired tests of a table: rows against their references, headline rows against the baselines, averages too."""

from __future__ import annotations

import numpy as np
import pandas as pd

from amif_lib.reporting.table_rows import MODEL_BASELINES, is_synthetic
from amif_lib.reporting.tables import KEYS, SPLITS, Line, average_name, on_all_sets
from amif_lib.scoring import statistics
from amif_lib.scoring.protocols import Protocol

COLUMNS = [*KEYS, "against", "against_label", "kind", "difference", "ci_low", "ci_high", "wins", "losses", "mcnemar_p"]
COLUMNS += ["bootstrap_p", "p_holm", "supported", "replication", "n_seeds", "n_questions", "scale"]
NOT_TESTED = "not tested at this scale"
ONE_TRAINING = "one training: not judged"  # the test holds no variance between trainings
HOLM = (
    "Holm's correction is over the comparisons of one kind (rows with their references, or with the baselines) under "
    "one protocol of a table: those on all questions, averages among them, are one family, those on open and on closed "
    "questions together another."
)


def tests(name: str, scale: str, lines: list[Line]) -> pd.DataFrame:
    """One line per comparison, protocol and split, columns `COLUMNS`.

    `difference` is in points, its interval from resampling images jointly; `wins`, `losses` and the exact McNemar p are
    given per run, averages over question sets are compared by resampling alone. `p_holm` is the largest of these p
    values, adjusted (`HOLM`); `supported` is `p_holm < .05`. `replication` is a verdict at base and paper scale only.
    """
    pairs, rows = comparisons(lines), []
    for line, other, kind in pairs:
        for protocol in _shared_protocols(line, other):
            for split in SPLITS:
                if len(line.right(protocol, split)[1]):
                    found = _test([line], [other], line.dataset, split, protocol)
                    rows.append(found | {"kind": kind, "replication": withheld(scale, [line, other])})
    whole = on_all_sets(lines)
    for row, against, kind in dict.fromkeys((line.row, other.row, kind) for line, other, kind in pairs):
        if row in whole and against in whole:
            for protocol in _shared_protocols(*whole[row], *whole[against]):
                found = _test(whole[row], whole[against], average_name(lines), "overall", protocol)
                said = withheld(scale, [*whole[row], *whole[against]])
                rows.append(found | {"kind": kind, "replication": said})
    out = pd.DataFrame(rows, columns=[*COLUMNS, "p"]).assign(table=name, scale=scale)
    family = [out["kind"], out["protocol"], out["split"] == "overall"]
    out["p_holm"] = out.groupby(family)["p"].transform(lambda p: statistics.holm(list(p)))
    out["supported"] = out["p_holm"] < 0.05
    verdict = np.select([~out["supported"], out["difference"] > 0], ["within noise", "better"], "worse")
    out["replication"] = out["replication"].where(out["replication"] != "", verdict)
    return out[COLUMNS]


def comparisons(lines: list[Line]) -> list[tuple[Line, Line, str]]:
    """Pairs to test: each row with its references, each headline row with the baselines beside it."""
    out = []
    for line in (line for line in lines if line.kind == "row"):
        beside = [other for other in lines if other.dataset == line.dataset]
        out += [(line, other, "reference") for row in line.references for other in beside if other.row == row]
        for other in (other for other in beside if line.headline and other.kind == "baseline"):
            if other.headline in ("", line.headline) or other.row.startswith(MODEL_BASELINES[0]):
                out.append((line, other, "baseline"))
    return out


def _shared_protocols(*lines: Line) -> list[Protocol]:
    """Protocols under which every line may be shown: `strict` only where no row has seen test answers."""
    return min((line.protocols for line in lines), key=len)


def difference(
    first: list[Line], second: list[Line], protocol: Protocol, split: str = "overall"
) -> tuple[statistics.Estimate, int]:
    """Accuracy of a row minus another's, as a fraction, with interval and p, and the number of questions.

    `first` and `second` hold one line per question set; with several the difference is that of the unweighted means.
    """
    parts = []
    for line, other in zip(first, second, strict=True):
        (own, images), (theirs, _) = line.right(protocol, split), other.right(protocol, split)
        parts.append((own, theirs, images))
    both = (first[0].pretrainings, second[0].pretrainings)
    return statistics.bootstrap_mean_difference(parts, pretrainings=both), sum(len(images) for *_, images in parts)


def runs_paired(line: Line, other: Line) -> list[tuple[int, int]]:
    """Which runs of two lines are compared: those of equal seeds; a single one, or one not pre-trained, with all."""
    alone = min(len(line.seeds), len(other.seeds)) <= 1
    return [
        (i, j)
        for i, (first, seed) in enumerate(line.seeds or [(None, 0)])
        for j, (second, its_seed) in enumerate(other.seeds or [(None, 0)])
        if alone or (seed == its_seed and (first == second or None in (first, second)))
    ]


def _test(first: list[Line], second: list[Line], dataset: str, split: str, protocol: Protocol) -> dict[str, object]:
    line, other = first[0], second[0]
    gap, questions = difference(first, second, protocol, split)
    each = []
    if len(first) == 1:  # McNemar's test is about one set of questions
        own, theirs = (x.right(protocol, split)[0] for x in (line, other))  # (S, n)
        each = [statistics.mcnemar(own[i], theirs[j]) for i, j in runs_paired(line, other)]
    return {
        "row": line.row,
        "label": line.label,
        "dataset": dataset,
        "split": split,
        "protocol": protocol.title,
        "against": other.row,
        "against_label": other.label,
        "difference": 100 * gap.value,
        "ci_low": 100 * gap.low,
        "ci_high": 100 * gap.high,
        "wins": " ".join(str(test.wins) for test in each),
        "losses": " ".join(str(test.losses) for test in each),
        "mcnemar_p": " ".join(f"{test.p:.4g}" for test in each),
        "bootstrap_p": gap.p,
        "p": max([gap.p, *(test.p for test in each)]),
        "n_seeds": max(1, len(line.run_ids)),
        "n_questions": questions,
    }


def withheld(scale: str, lines: list[Line]) -> str:
    """Why a difference of these lines is not judged, or nothing: the scale or the data test no claim, or a row was
    trained once, so that no spread between trainings is in the test (a baseline's own training is not asked for)."""
    if scale not in ("base", "paper") or any(is_synthetic(line.dataset) for line in lines):
        return NOT_TESTED
    return ONE_TRAINING if min(len(line.run_ids) for line in lines if line.kind == "row") == 1 else ""


def supported_cells(tested: pd.DataFrame, lines: list[Line]) -> set[tuple[str, str, str]]:
    """`(row, dataset, split)` to set in bold under the protocol `paper`.

    A row with references: better than each of them, none missing in this selection; in Table 1 the full model: better
    than every baseline beside it. Never a row that saw test answers, or one that was trained once at base or paper
    scale.
    """
    references = {line.row: set(line.references) for line in lines if line.kind == "row"}
    leaking = {line.row for line in lines if line.leaks}
    bold = set()
    own = tested[(tested["protocol"] == "paper") & ~tested["row"].isin(leaking)]
    for key, group in own.groupby(["row", "dataset", "split"]):
        reference = group[group["kind"] == "reference"]
        judged = reference if references[key[0]] else group[group["table"] == "table1"]
        whole = references[key[0]] <= set(judged["against"]) and (reference["replication"] != ONE_TRAINING).all()
        if whole and len(judged) and (judged["supported"] & (judged["difference"] > 0)).all():
            bold.add(key)
    return bold
