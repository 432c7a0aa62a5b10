"""The paper audit: every claim of the prose recomputed from the printed numbers.

Claims and the cells that each compares are listed in `results/paper/claims.csv`; a verdict is about the paper's own
numbers, and `claims` checks the claims on runs.
"""

from __future__ import annotations

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.reporting import audit, audit_power
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_power import ALPHA, DISCORDANCE
from amif_lib.reporting.audit_sources import SETS, hundredths, points
from amif_lib.reporting.table_rows import dataset_name

COLUMNS = ["claim", "where", "says", "kind", "paper", "first", "second", "dataset", "split"]
CELLS = {
    "best": 1,
    "lead": 1,
    "difference": 2,
    "direction": 2,
    "close": 2,
    "map": 2,
    "figure": 0,
    "size": 0,
}  # at least
RESULT = ["claim", "where", "says", "dataset", "split", "paper", "recomputed", "verdict", "can_be_significant"]
RESULT += ["smallest_p", "needed", "beyond_noise", "note"]


def read_claims() -> list[dict[str, str]]:
    """The records of `results/paper/claims.csv`. Raises InputError naming file and line for what cannot be computed."""
    path = paths.published() / "claims.csv"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)[COLUMNS]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{paths.shown(path)}: {error}; restore the file with git checkout") from None
    for line, record in enumerate(frame.to_dict("records"), start=2):
        kind, cells = record["kind"], [*record["first"].split(), *record["second"].split()]
        where, number = (record["dataset"], record["split"]), record["paper"].replace(".", "", 1)
        unknown = [cell for cell in cells if kind != "figure" and hundredths(cell, *where) is None]
        if kind not in CELLS or len(cells) < CELLS[kind] or unknown or (number and not number.isdigit()):
            why = f"no cell {unknown[0]}" if unknown else f"kind {kind!r}, cells {cells}, paper {record['paper']!r}"
            raise InputError(f"{paths.shown(path)}: line {line}: {why} cannot be used; restore the file")
    return frame.to_dict("records")


def claims(discordance: float = DISCORDANCE) -> pd.DataFrame:
    """Each claim of the prose with the paper's figure, the recomputed one and a verdict, columns `RESULT`.

    `recomputed`: the difference or lead in points, the spread for `close`, the number of questions for `size`.
    `verdict`: `ok`, `wrong`, `misleading`, `not comparable`, `cannot be checked`, for a size `differs`, for rows said
    to be close `within noise` where their spread is below what so many questions can show, which does not show them
    equal. `can_be_significant`: in the best case (no question lost; `smallest_p`). `needed` is the smallest significant
    difference at this share of discordant questions, `beyond_noise` whether the claim reaches it. Empty where no test
    applies.
    """
    rows = []
    for record in read_claims():
        if record["kind"] in ("figure", "map"):
            why = {"figure": "the figure's values are printed nowhere", "map": "pictures only, no numbers in the paper"}
            found = {"verdict": "cannot be checked", "note": why[record["kind"]]}
        else:
            found = _size(record) if record["kind"] == "size" else _compared(record, discordance)
        paper = float(record["paper"]) if record["paper"] else float("nan")
        empty = {"recomputed": float("nan"), "can_be_significant": "", "beyond_noise": ""}
        rows.append(record | {"paper": paper} | empty | found)
    return pd.DataFrame(rows, columns=RESULT)


def _compared(record: dict[str, str], discordance: float) -> dict[str, object]:
    """Verdict on a claim that compares cells: a row with another or its best rival, or rows said to be close."""
    kind, where, paper = record["kind"], (record["dataset"], record["split"]), float(record["paper"] or "nan")
    first, second, notes = record["first"], record["second"], []
    if kind in ("best", "lead"):
        second = _rival(first, *where)
        shown = second.partition(":")[2] if second.startswith("table1") else second
        notes.append(f"next: {shown}" + (f" {points(second, *where):.2f}" if kind == "best" else ""))
    elif kind == "close":
        left_out = [f"{cell} ({points(cell, *where):.2f}) is left out" for cell in second.split()]
        ordered = sorted(first.split(), key=lambda cell: points(cell, *where))
        first, second = ordered[-1], ordered[0]
    lead = points(first, *where) - points(second, *where)
    out = {"recomputed": round(lead, 4), "verdict": "ok" if lead > 0 else "wrong"}
    same = audit.comparable(*where, second.partition(":")[2])
    if kind == "close":
        near = lead < audit_power.needed(record["dataset"], discordance)
        cannot = ", too small to be told apart on so many questions, which does not show that they are close"
        out["verdict"] = "within noise" if near else "wrong"
        notes += [f"spread of the rows{cannot if near else ''}", *left_out]
    elif kind == "best" and not same:
        out["verdict"] = "not comparable"
        notes.append("the two rows count different questions as open (see the implied open share)")
    elif kind == "best" and record["dataset"] == "avg":
        for name in SETS:
            top = _rival(first, name, "overall")
            if points(top, name) > points(first, name):
                notes.append(f"not on {dataset_name(name)}, where {top} has {points(top, name):.2f}")
    elif kind == "lead" and abs(lead - paper) > 0.0051:
        leads = {
            s: points(first, where[0], s) - points(_rival(first, where[0], s), where[0], s) for s in ("open", "closed")
        }
        elsewhere = [split for split, value in leads.items() if abs(value - paper) <= 0.0051]
        out["verdict"] = "misleading" if elsewhere else "wrong"
        notes = [f"{paper:.2f} is the lead on {s} questions; overall it is {lead:.2f}" for s in elsewhere] or notes
    elif kind in ("difference", "direction") and record["dataset"] == "avg":
        each = {name: points(first, name) - points(second, name) for name in SETS}
        against = [f"{dataset_name(name)} {value:+.2f}" for name, value in each.items() if round(value, 4) <= 0]
        notes += [f"not on {', '.join(against)}"] if against else []
    if kind == "difference" and abs(lead - paper) > 0.0151:  # two printed figures and their difference are rounded
        out["verdict"] = "wrong"
        for line in audit.averages().query("verdict == 'wrong'").itertuples() if record["dataset"] == "avg" else ():
            if (cell := f"{line.table}:{line.row}") in (first, second):
                notes.append(
                    f"from the printed average {line.printed:.2f} of {cell}, whose mean is {line.exact_mean:.4f}"
                )
    tests = _tests(first, second, *where, discordance) if same else {}
    if kind == "best" and where[0] != "avg" and where[1] == "overall" and tests["smallest_p"] >= ALPHA:
        questions = audit_power.in_questions(first, second, where[0])
        notes.append(f"{questions} of {sources.test_size(where[0])} questions")
    return out | {"note": "; ".join(notes)} | tests


def _tests(first: str, second: str, dataset: str, split: str, discordance: float) -> dict[str, object]:
    """What the difference of two cells, which count the same questions, can show."""
    if dataset == "avg":
        p = audit_power.smallest_p({name: audit_power.in_questions(first, second, name) for name in SETS})
        needed = audit_power.needed("avg", discordance)
    else:
        p = float(audit_power.mcnemar_p(max(0, audit_power.in_questions(first, second, dataset, split)), 0))
        needed = audit_power.smallest_difference(sources.test_size(dataset, split), discordance)
    difference = points(first, dataset, split) - points(second, dataset, split)
    can, beyond = p < ALPHA and difference > 0, difference >= needed
    words = {True: "yes", False: "no"}
    return {"can_be_significant": words[can], "smallest_p": p, "needed": needed, "beyond_noise": words[bool(beyond)]}


def _rival(cell: str, dataset: str, split: str) -> str:
    """The best other row of the cell's table."""
    part = sources.cells()
    part = part[(part["dataset"] == dataset) & (part["split"] == split)]
    others = [other for other in part["table"] + ":" + part["row"] if other.split(":")[0] == cell.split(":")[0]]
    return max((other for other in others if other != cell), key=lambda other: points(other, dataset, split))


def _size(record: dict[str, str]) -> dict[str, object]:
    """The number of question-answer pairs against the release, and the choice of its questions that is nearest."""
    name, said = record["dataset"], int(float(record["paper"]))
    manifest, known = manifests.load(name), sources.questions(name)
    whole = next(split for split in manifest.splits if split.name == "all").questions
    total, source = (whole, sources.FROM_MANIFEST) if isinstance(known, str) else (len(known), sources.FROM_FILES)
    choices = {"all questions": total}
    leaking = {"vqa_rad": ", which holds answers to test questions", "slake": ", which trains on test images"}
    for variant in manifest.variants:
        mark = leaking.get(name, "") if variant.leaks else ""
        choices[f"{variant.name}{mark}"] = sum(n or 0 for n in (variant.train, variant.val, variant.test))
        choices[f"the training questions of {variant.name}{mark}"] = variant.train or 0
    nearest = min(choices, key=lambda choice: abs(choices[choice] - said))
    off = said - choices[nearest]
    note = f"nearest: {nearest}, {choices[nearest]:,}{f' ({off:+d})' if off else ''}; counted: {source}"
    return {"recomputed": total, "verdict": "ok" if said == total else "differs", "note": note}
