"""The paper audit: every claim of the prose recomputed from the printed numbers.

Claims and the cells that each compares are listed in `results/paper/claims.csv`; a verdict is about the paper's own
numbers, never about runs.
"""

from __future__ import annotations

import pandas as pd

from amif_lib.core import paths
from amif_lib.data import manifests
from amif_lib.reporting import audit, audit_power
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_power import DISCORDANCE
from amif_lib.reporting.audit_sources import SETS, hundredths, points
from amif_lib.reporting.table_rows import dataset_name

RESULT = ["claim", "where", "says", "dataset", "split", "paper", "recomputed", "verdict", "note"]
UNCHECKED = {"figure": "the figure's values are printed nowhere", "map": "pictures only, no numbers in the paper"}


def claims(discordance: float = DISCORDANCE) -> pd.DataFrame:
    """Each claim of the paper's text with the number it states, the recomputed one and a verdict: columns `RESULT`.

    `recomputed`: the difference or lead in points; for the kind `close` the spread, for `size` the number of questions.
    `verdict`: `ok`, `wrong`, `is the Open lead`, `cells and average disagree` (right by the printed average, not by the
    cells), `not comparable`, `cannot be checked`; `differs` for a size; `within noise` for rows said to be close, if
    their spread is too small to be shown on so many questions with this share of discordant ones.
    """
    rows = []
    for record in pd.read_csv(paths.published() / "claims.csv", dtype=str, keep_default_na=False).to_dict("records"):
        record["paper"] = float(record["paper"] or "nan")
        if record["kind"] in UNCHECKED:
            found = {"verdict": "cannot be checked", "note": UNCHECKED[record["kind"]]}
        elif record["kind"] == "size":
            found = _size(record)
        else:
            found = _close(record, discordance) if record["kind"] == "close" else _compared(record)
        rows.append(record | found)
    return pd.DataFrame(rows, columns=RESULT)


def _close(record: dict[str, str], discordance: float) -> dict[str, object]:
    """Verdict on a claim that the rows `first` are close; the claim leaves out the rows `second`."""
    where = record["dataset"], record["split"]
    values = [points(cell, *where) for cell in record["first"].split()]
    spread, notes = max(values) - min(values), []
    if near := spread < audit_power.needed(record["dataset"], discordance):
        notes.append("too small to be told apart on so many questions, which does not show them equal")
    notes += [f"{cell} ({points(cell, *where):.2f}) is left out" for cell in record["second"].split()]
    verdict = "within noise" if near else "wrong"
    return {"recomputed": round(spread, 4), "verdict": verdict, "note": "; ".join(notes)}


def _compared(record: dict[str, str]) -> dict[str, object]:
    """Verdict on a claim that compares a row with another or with its best rival."""
    kind, where, paper = record["kind"], (record["dataset"], record["split"]), record["paper"]
    first, second, notes = record["first"], record["second"], []
    if kind in ("best", "lead"):
        second = _rival(first, *where)
        notes.append(f"next: {second.removeprefix('table1:')} {points(second, *where):.2f}")
    lead, averages = points(first, *where) - points(second, *where), record["dataset"] == "avg"
    verdict = "ok" if lead > 0 else "wrong"
    if kind == "best" and not audit.comparable(*where, second.removeprefix("table1:")):
        verdict = "not comparable"
        notes.append("the two rows count different questions as open (see the implied open share)")
    elif kind == "best" and averages:
        tops = {name: _rival(first, name, "overall") for name in SETS}
        over = [(name, top) for name, top in tops.items() if points(top, name) > points(first, name)]
        notes += [f"not on {dataset_name(name)}, where {top} has {points(top, name):.2f}" for name, top in over]
    elif kind == "lead" and abs(lead - paper) > 0.0051:
        opened = points(first, where[0], "open") - points(_rival(first, where[0], "open"), where[0], "open")
        verdict = "is the Open lead" if abs(opened - paper) <= 0.0051 else "wrong"
        notes.append(f"overall the lead is {lead:.2f}, on open questions {opened:.2f}")
    elif kind in ("difference", "direction") and averages:
        each = {name: points(first, name) - points(second, name) for name in SETS}
        against = [f"{dataset_name(name)} {value:+.2f}" for name, value in each.items() if round(value, 4) <= 0]
        notes += [f"not on {', '.join(against)}"] if against else []
    if kind == "difference" and abs(lead - paper) > 0.0151:  # two printed figures and their difference are rounded
        printed = (hundredths(first, *where) - hundredths(second, *where)) / 100
        verdict = audit.DISAGREE if abs(printed - paper) <= 0.0151 else "wrong"
        notes.append(f"{lead:.3f} from the cells, {printed:.2f} from the printed averages (see the table of averages)")
    return {"recomputed": round(lead, 4), "verdict": verdict, "note": "; ".join(notes)}


def _rival(cell: str, dataset: str, split: str) -> str:
    """The best other row of the cell's table."""
    table, own = cell.split(":")
    part = sources.cells().query("table == @table and dataset == @dataset and split == @split").set_index("row")
    return f"{table}:{part['hundredths'].drop(own).idxmax()}"


def _size(record: dict[str, str]) -> dict[str, object]:
    """Compares the stated number of question-answer pairs with the released files, and with parts of them."""
    name, said = record["dataset"], int(record["paper"])
    manifest, known = manifests.load(name), sources.questions(name)
    whole = next(split for split in manifest.splits if split.name == "all").questions
    total, source = (whole, sources.FROM_MANIFEST) if isinstance(known, str) else (len(known), sources.FROM_FILES)
    choices = {"all questions": total}
    for variant in manifest.variants:
        mark = f"{variant.name}{', which leaks' * variant.leaks}"
        choices[mark] = sum(n or 0 for n in (variant.train, variant.val, variant.test))
        choices[f"the training questions of {mark}"] = variant.train or 0
    nearest = min(choices, key=lambda choice: abs(choices[choice] - said))
    off = said - choices[nearest]
    note = f"nearest: {nearest}, {choices[nearest]:,}{f' ({off:+d})' if off else ''}; counted: {source}"
    return {"recomputed": total, "verdict": "ok" if said == total else "differs", "note": note}
