"""The paper audit: rows that tables share, what follows from them, and every claim of the prose recomputed.

The claims and the cells that each compares stand in `results/paper/claims.csv`. A verdict is about the paper's own
numbers; whether a claim holds on data is for runs to say, never for this module.
"""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.reporting import audit, audit_power
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_power import ALPHA, DISCORDANCE
from amif_lib.reporting.audit_sources import SETS
from amif_lib.reporting.layout import dataset_name

COLUMNS = ("claim", "where", "says", "kind", "paper", "first", "second", "dataset", "split")
KINDS = ("best", "lead", "difference", "direction", "close", "figure", "map", "size")
RESULT = [*COLUMNS[:3], "dataset", "split", "paper", "recomputed", "verdict", "can_be_significant"]
RESULT += ["smallest_p", "needed", "beyond_noise", "note"]


NOT_CLOSE = ", too small to be told apart on so many questions, which does not show that they are close"

# --- rows that tables share ---


def identities() -> pd.DataFrame:
    """Rows of two ablation tables with the same four accuracies, and single accuracies that two other rows share.

    `shared` is `row` or `cell`; a cell that equal rows share is not listed again.
    """
    found = sources.cells().query("table != 'table1' and dataset != 'avg'")
    rows = {key: group.set_index("dataset")["hundredths"] for key, group in found.groupby(["table", "row"], sort=False)}
    twins, out, seen = {key: key for key in rows}, [], set()
    for first, second in combinations(rows, 2):
        if first[0] != second[0] and (rows[first] == rows[second]).all():
            out.append(("row", ":".join(first), ":".join(second), "all", float("nan")))
            twins[second] = twins[first]
    for first, second in combinations(rows, 2):
        pair = twins[first], twins[second]
        if pair[0] == pair[1] or first[0] == second[0]:
            continue
        for name in SETS:
            if rows[first][name] == rows[second][name] and (*sorted(pair), name) not in seen:
                seen.add((*sorted(pair), name))
                out.append(("cell", ":".join(first), ":".join(second), name, rows[first][name] / 100))
    return pd.DataFrame(out, columns=["shared", "first", "second", "data_set", "value"])


def implications() -> pd.DataFrame:
    """What the shared rows imply, as sums of recomputed averages: `what, terms, value, against, other, reading`.

    The sums assume that effects add up, which the paper neither says nor excludes.
    """

    def mean(cell: str) -> float:
        return sum(sources.hundredths(cell, name) for name in SETS) / 100 / len(SETS)

    gate, fusion = mean("table4:6") - mean("table4:5"), mean("table4:6") - mean("table4:3")
    rows = [
        (
            "Table 5 was fine-tuned with answer vocabulary and without the gate",
            "table5:6 = table4:5",
            mean("table5:6"),
            "headline table4:6",
            mean("table4:6"),
            f"its best row is {gate:.2f} points below the headline, the gate's whole effect",
        ),
        (
            "Table 5 has no row with one-hot labels: its row 1 is without any pre-training",
            "table4:1 = table5:1",
            mean("table5:1"),
            "no pre-training table4:1",
            mean("table4:1"),
            "the effect of soft labels over one-hot ones cannot be read from Table 5",
        ),
        (
            "one-hot labels without the gate, if effects add up",
            "table2:4 - (table4:6 - table4:5)",
            mean("table2:4") - gate,
            "soft labels of CLIP table5:2",
            mean("table5:2"),
            "a teacher that is not medical looks worse than no teacher",
        ),
        (
            "answer vocabulary and gate without pre-training, if effects add up",
            "table4:1 + (table4:6 - table4:3)",
            mean("table4:1") + fusion,
            "inter-modality alignment alone table2:1",
            mean("table2:1"),
            "either this pre-training hurts, or effects do not add up, or Table 2 was fine-tuned in another way",
        ),
    ]
    return pd.DataFrame(rows, columns=["what", "terms", "value", "against", "other", "reading"])


# --- the prose ---


def read_claims() -> list[dict[str, str]]:
    """The records of `results/paper/claims.csv`, checked: known kind, numbers and cells that exist.

    Raises InputError naming file and line.
    """
    path, seen = paths.published() / "claims.csv", {}
    records = sources.read_csv(path, COLUMNS)
    if not records:
        raise InputError(f"{paths.shown(path)}: line 1: no claim in it; restore the file")
    for record in records:
        where = f"{paths.shown(path)}: line {record['line']}"
        if record["kind"] not in KINDS:
            raise InputError(f"{where}: kind {record['kind']!r} is not one of {', '.join(KINDS)}")
        try:
            float(record["paper"] or 0)
        except ValueError:
            raise InputError(f"{where}: paper {record['paper']!r} is not a number; restore the file") from None
        if not record["paper"] and record["kind"] in ("lead", "difference", "size"):
            raise InputError(f"{where}: paper is empty, but a {record['kind']} needs the paper's number")
        if record["dataset"] not in (*SETS, "avg"):
            raise InputError(f"{where}: unknown dataset {record['dataset']!r}; restore the file")
        needed = {"best": 1, "lead": 1, "difference": 2, "direction": 2, "close": 2, "map": 2}.get(record["kind"], 0)
        cells = [*record["first"].split(), *record["second"].split()]
        if len(cells) < needed:
            raise InputError(f"{where}: a {record['kind']} compares at least {needed} cells; restore the file")
        for cell in cells if record["kind"] != "figure" else ():  # its numbers are in no table
            if sources.hundredths(cell, record["dataset"], record["split"]) is None:
                raise InputError(f"{where}: no cell {cell} {record['dataset']} {record['split']} in the paper's tables")
        key = tuple(record[name] for name in ("claim", "first", "second", "dataset", "split"))
        if key in seen:
            raise InputError(f"{where}: repeats line {seen[key]}; restore the file")
        seen[key] = record["line"]
    return records


def claims(discordance: float = DISCORDANCE) -> pd.DataFrame:
    """Each claim of the prose with the paper's figure, the recomputed one and a verdict.

    `recomputed`: the difference or lead in points, the spread for `close`, the number of questions for `size`.
    `verdict`: `ok`, `wrong`, `misleading`, `not comparable`, `cannot be checked`, for a size `differs`, for rows said to be
    close `within noise` where their spread is below what so many questions can show, which does not show them equal.
    `can_be_significant`: `yes` or `no` in the best case (no question lost; `smallest_p`), empty where no test applies.
    `needed` is the smallest significant difference at this share of discordant questions, and `beyond_noise` says
    whether the claim reaches it.
    """
    judge = {"best": _best, "lead": _lead, "close": _close, "figure": _figure, "map": _map, "size": _size}
    rows = []
    for record in read_claims():
        line = {name: record[name] for name in ("claim", "where", "says", "dataset", "split")}
        line["paper"] = float(record["paper"]) if record["paper"] else float("nan")
        rows.append(line | judge.get(record["kind"], _difference)(record, discordance))
    return pd.DataFrame(rows, columns=RESULT)


def _points(cell: str, record: dict[str, str]) -> float:
    """A cell in points; of the Avg column the exact mean, so that a wrong printed average cannot pass on."""
    if record["dataset"] == "avg":
        return sum(sources.hundredths(cell, name) for name in SETS) / 100 / len(SETS)
    return sources.hundredths(cell, record["dataset"], record["split"]) / 100


def _tests(first: str, second: str, record: dict[str, str], discordance: float) -> dict[str, object]:
    """What the difference of two cells can show; nothing where both do not count the same questions."""
    name, split = record["dataset"], record["split"]
    if name == "avg":
        p = audit_power.smallest_p({n: audit_power.in_questions(first, second, n) for n in SETS})
        needed = audit_power.average_threshold(discordance)
    else:
        if not audit.comparable(name, split, second.partition(":")[2]):
            return {"can_be_significant": "", "beyond_noise": ""}
        n = sources.test_size(name, split)
        counts = [round(sources.hundredths(cell, name, split) * n / 10_000) for cell in (first, second)]
        p = float(audit_power.mcnemar_p(max(0, counts[0] - counts[1]), 0))
        needed = audit_power.smallest_difference(n, discordance)
    difference = _points(first, record) - _points(second, record)
    return {
        "can_be_significant": "yes" if p < ALPHA and difference > 0 else "no",
        "smallest_p": p,
        "needed": needed,
        "beyond_noise": "yes" if difference >= needed else "no",
    }


def _difference(record: dict[str, str], discordance: float) -> dict[str, object]:
    first, second = record["first"], record["second"]
    difference = _points(first, record) - _points(second, record)
    notes = []
    if record["dataset"] == "avg":
        each = {n: (sources.hundredths(first, n) - sources.hundredths(second, n)) / 100 for n in SETS}
        if against := [f"{dataset_name(n)} {value:+.2f}" for n, value in each.items() if value <= 0]:
            notes.append(f"not on {', '.join(against)}")
    verdict = "ok" if difference > 0 else "wrong"
    # each of the two printed figures may be off by half a hundredth, and their difference by as much again
    if record["paper"] and abs(difference - float(record["paper"])) > 0.0151:
        verdict = "wrong"
        for line in audit.averages().query("verdict == 'wrong'").itertuples():
            if f"{line.table}:{line.row}" in (first, second) and record["dataset"] == "avg":
                cell = f"{line.table}:{line.row}"
                notes.append(
                    f"from the printed average {line.printed:.2f} of {cell}, whose mean is {line.exact_mean:.4f}"
                )
    return {"recomputed": round(difference, 4), "verdict": verdict, "note": "; ".join(notes)} | _tests(
        first, second, record, discordance
    )


def _rivals(record: dict[str, str]) -> pd.Series:
    """All other rows of the first cell's table, in points, best first; the exact means for the Avg column."""
    table, row = record["first"].split(":")
    part = sources.cells()
    part = part[(part["table"] == table) & (part["row"] != row)]
    part = part[(part["dataset"] == record["dataset"]) & (part["split"] == record["split"])]
    rows = [f"{table}:{other}" for other in part["row"]]
    return pd.Series({cell: _points(cell, record) for cell in rows}).sort_values(ascending=False)


def _best(record: dict[str, str], discordance: float) -> dict[str, object]:
    rivals, own = _rivals(record), _points(record["first"], record)
    rival, lead = rivals.index[0], own - rivals.iloc[0]
    known = _tests(record["first"], rival, record, discordance)
    notes = [f"next: {rival.partition(':')[2] if rival.startswith('table1') else rival} {rivals.iloc[0]:.2f}"]
    verdict = "ok" if lead > 0 else "wrong"
    if not audit.comparable(record["dataset"], record["split"], rival.partition(":")[2]):
        verdict = "not comparable"
        notes.append("the two rows count different questions as open (see the implied open share)")
    if record["dataset"] == "avg":
        for name in SETS:
            better = [
                cell
                for cell in rivals.index
                if sources.hundredths(cell, name) > sources.hundredths(record["first"], name)
            ]
            if better:
                top = max(better, key=lambda cell: sources.hundredths(cell, name))
                notes.append(f"not on {dataset_name(name)}, where {top} has {sources.hundredths(top, name) / 100:.2f}")
    elif record["split"] == "overall" and known.get("smallest_p", 0) >= ALPHA:
        questions = audit_power.in_questions(record["first"], rival, record["dataset"])
        notes.append(f"{questions} of {sources.test_size(record['dataset'])} questions")
    return {"recomputed": round(lead, 4), "verdict": verdict, "note": "; ".join(notes)} | known


def _lead(record: dict[str, str], discordance: float) -> dict[str, object]:
    """A lead over the second best: as claimed, or the lead of another split than the claim speaks of."""
    paper = float(record["paper"])
    rivals = _rivals(record)
    lead = _points(record["first"], record) - rivals.iloc[0]
    out = {"recomputed": round(lead, 4), "verdict": "ok", "note": f"next: {rivals.index[0].partition(':')[2]}"}
    if abs(lead - paper) > 0.0051:
        out["verdict"] = "wrong"
        for split in ("open", "closed"):
            other = record | {"split": split}
            lead_there = _points(record["first"], other) - _rivals(other).iloc[0]
            if abs(lead_there - paper) <= 0.0051:
                out |= {
                    "verdict": "misleading",
                    "note": f"{paper:.2f} is the lead on {split} questions; overall it is {lead:.2f}",
                }
    return out | _tests(record["first"], rivals.index[0], record, discordance)


def _close(record: dict[str, str], discordance: float) -> dict[str, object]:
    """Rows said to be close: their spread against what could be told apart."""
    values = {cell: _points(cell, record) for cell in record["first"].split()}
    high, low = max(values, key=values.get), min(values, key=values.get)
    left_out = [f"{cell} ({_points(cell, record):.2f}) is left out" for cell in record["second"].split()]
    known = _tests(high, low, record, discordance)
    near = values[high] - values[low] < known["needed"]
    return {
        "recomputed": round(values[high] - values[low], 4),
        "verdict": "within noise" if near else "wrong",
        "note": "; ".join([f"spread of the rows{NOT_CLOSE if near else ''}", *left_out]),
    } | known


def _figure(record: dict[str, str], discordance: float) -> dict[str, object]:
    return {
        "recomputed": float("nan"),
        "verdict": "cannot be checked",
        "can_be_significant": "",
        "beyond_noise": "",
        "note": "the figure's values are printed nowhere",
    }


def _map(record: dict[str, str], discordance: float) -> dict[str, object]:
    return _figure(record, discordance) | {"note": "pictures only, no numbers in the paper"}


def _size(record: dict[str, str], discordance: float) -> dict[str, object]:
    """The number of question-answer pairs against the release, and the choice of its questions that is nearest."""
    name, said = record["dataset"], int(float(record["paper"]))
    manifest = manifests.load(name)
    whole = next(split for split in manifest.splits if split.name == "all")
    known = sources.questions(name)
    total, source = (
        (whole.questions, sources.FROM_MANIFEST) if isinstance(known, str) else (len(known), sources.FROM_FILES)
    )
    choices = {"all questions": total}
    for variant in manifest.variants:
        mark = ", which holds answers to test questions" if variant.leaks and name == "vqa_rad" else ""
        mark = ", which trains on test images" if variant.leaks and name == "slake" else mark
        choices[f"{variant.name}{mark}"] = sum(n or 0 for n in (variant.train, variant.val, variant.test))
        choices[f"the training questions of {variant.name}{mark}"] = variant.train or 0
    nearest = min(choices, key=lambda choice: abs(choices[choice] - said))
    off = said - choices[nearest]
    verdict = "ok" if said == total else "differs"
    why = f" ({off:+d}{'; the release has one question without an answer' if name == 'slake' else ''})" if off else ""
    note = f"nearest: {nearest}, {choices[nearest]:,}{why}; counted: {source}"
    return {"recomputed": total, "verdict": verdict, "can_be_significant": "", "beyond_noise": "", "note": note}
