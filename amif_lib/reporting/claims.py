"""The paper's prose claims, each with two verdicts kept apart: what its own numbers say (`audit_claims`), and what our
stored runs of the same rows say (the replication, judged on real data at base and paper scale only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.reporting import audit, audit_claims, audit_power, tables
from amif_lib.reporting.layout import grid
from amif_lib.reporting.table_rows import SCALE_NOTES, Selection, dataset_name, real_name, required_runs
from amif_lib.reporting.table_tests import difference, withheld
from amif_lib.reporting.tables import Line, Table, average_name
from amif_lib.scoring import protocols, statistics

COLUMNS = ["claim", "where", "says", "table", "dataset", "split", "paper", "recomputed", "audit", "can_be_significant"]
COLUMNS += [
    "needed",
    "beyond_noise",
    "audit_note",
    "compared",
    "ours",
    "ci_low",
    "ci_high",
    "p",
    "p_holm",
    "replication",
]
COLUMNS += ["note", "n_questions", "run_ids", "scale"]
NOT_RUN, NO_RUNS, NO_MAPS = "not run", "not about runs", "no maps"
PAPER = protocols.PROTOCOLS["paper"]
READING = (
    "*Significant in the best case*: whether a difference of that size can reach p < .05 on so many questions at all, "
    "if no question is lost. *Needed*: the smallest significant difference in points when "
    f"{audit_power.DISCORDANCE:.0%} of the answers differ; *beyond noise*: whether the paper's difference reaches it. "
    "*p after Holm* is that of the table's own paired tests where these make the same comparison, else over the other "
    "comparisons of the table's claims."
)


def table(scale: str, names: Sequence[str] = (), known: Mapping[str, Table] | None = None) -> pd.DataFrame:
    """Each claim as a line with both verdicts, columns `COLUMNS`; `names` selects those about these tables, `known` are
    tables that the caller has collected.

    `ours` is the difference of our two rows in points (against published methods our own accuracy, in percent) with its
    95% interval, `p` the bootstrap's. `replication`: `holds`, `opposite` or `within noise` where it may be judged, else
    why not. Raises InputError as `tables.collect` does where stored runs or `results/paper/` are damaged.
    """
    collected, rows = dict(known or {}), []
    for record, said in zip(audit_claims.read_claims(), audit_claims.claims().to_dict("records"), strict=True):
        name = record["first"].partition(":")[0]
        if names and name not in names:
            continue
        if name and name not in collected:
            collected[name] = _collect(name, scale)
        shown = {"replication": NO_MAPS, "note": "map_scores.csv has the scores of the maps"}
        ours = shown if record["kind"] == "map" else _replicate(record, collected.get(name))
        said = said | {"audit": said["verdict"], "audit_note": said["note"], "table": name, "scale": scale, "note": ""}
        rows.append(said | ours)
    out = pd.DataFrame(rows, columns=[*COLUMNS, "judged"]).astype({"n_questions": "Int64"})
    text = ["compared", "note", "run_ids"]
    out[text] = out[text].astype(object).fillna("")
    out["p_holm"] = out["p_holm"].astype(float).fillna(_own_family(out[out["p"].notna() & out["p_holm"].isna()]))
    shown = np.where(out["ours"] > 0, "holds", "opposite")
    verdict = np.where(out["p_holm"] < 0.05, np.where(out["judged"] == "close", "opposite", shown), "within noise")
    out["replication"] = out["replication"].where(out["replication"].notna(), verdict)
    return out[COLUMNS]


def _own_family(tested: pd.DataFrame) -> pd.Series:
    """Holm over each table's comparisons, each counted once however many claims it bears; index as `tested`."""
    keys = tested[["table", "dataset", "split", "run_ids", "p"]].copy()
    keys["pair"] = [" - ".join(sorted(compared.split(" - "))) for compared in tested["compared"]]
    once = keys.drop_duplicates()
    adjusted = once.assign(adjusted=once.groupby("table")["p"].transform(lambda p: statistics.holm(list(p))))
    return keys.merge(adjusted, how="left").set_index(tested.index)["adjusted"].astype(float)


def _collect(name: str, scale: str) -> Table | None:
    """The table as the scale's last plan has it, or None where runs are missing or the scale does not make it."""
    asked = Selection.planned(name, scale)
    absent = name not in experiments.tables_of(scale) or stored.missing(required_runs(name, scale, asked))
    return None if absent else tables.collect(name, scale, asked)


def _replicate(record: dict[str, str], whole: Table | None) -> dict[str, object]:
    """What our runs say of a claim that compares rows.

    A row said to be best is set against the nearest of the others: all must be beaten, so p is the largest, and not to
    be best one must fail, so p is that one's times their number. Rows said to be close show their largest difference, p
    times the number of pairs.
    """
    if record["kind"] == "size" or whole is None:
        return {"replication": NO_RUNS if record["kind"] == "size" else NOT_RUN}
    first, others = ([cell.partition(":")[2] for cell in record[name].split()] for name in ("first", "second"))
    if whole.name == "table1":
        return _beside_published(record, whole, first[0], *others)
    close = record["kind"] == "close"
    if record["kind"] == "best":
        others = [row for row in whole.published["row"].unique() if row not in first]
    pairs = [(a, b) for a in first for b in (first if close else others) if a != b]
    lines = {row: _lines(whole, row, record["dataset"]) for row in dict.fromkeys(row for pair in pairs for row in pair)}
    if lacking := [row for row, found in lines.items() if not found]:
        return {"replication": NOT_RUN, "note": f"without row {', '.join(lacking)}"}
    gaps = {(a, b): difference(lines[a], lines[b], PAPER, record["split"]) for a, b in pairs}
    shown = (max if close else min)(pairs, key=lambda pair: gaps[pair][0].value)
    gap, questions = gaps[shown]
    if close or gap.value < 0:
        p, note = min(1.0, gap.p * len(pairs) / (2 if close else 1)), "the two rows furthest apart" if close else ""
    else:
        p, note = max(gap.p for gap, _ in gaps.values()), ""
    if len(pairs) > 1 and not close:
        note = f"the one of {len(pairs)} rows with the smallest difference"
    used = [line for row in lines for line in lines[row]]
    reason, partial = withheld(whole.scale, used), average_name(whole.lines)
    if record["dataset"] == "avg" and partial != "avg":
        reason, note = reason or f"not tested: {partial}", "; ".join(filter(None, [note, partial]))
    return {
        "replication": reason or None,
        "judged": record["kind"],
        "note": note,
        "compared": f"#{shown[0]} - #{shown[1]}",
        "ours": 100 * gap.value,
        "ci_low": 100 * gap.low,
        "ci_high": 100 * gap.high,
        "p": p,
        "p_holm": _of_the_table(whole, lines[shown[0]], lines[shown[1]], record["split"]) if len(pairs) == 1 else None,
        "n_questions": questions,
        "run_ids": " ".join(dict.fromkeys(run_id for line in used for run_id in line.run_ids)),
    }


def _lines(whole: Table, paper_row: str, dataset: str) -> list[Line]:
    """A row's lines on what a claim is about: one question set, or every set of the table for the average."""
    own = [x for x in whole.lines if x.kind == "row" and not x.extra and (x.paper_row or x.row) == paper_row]
    own = [line for line in own if line.row == own[0].row]  # the first of several starts
    if dataset == "avg":
        return own if len(own) == len(whole.datasets) else []
    return [line for line in own if real_name(line.dataset) == dataset]


def _of_the_table(whole: Table, first: list[Line], second: list[Line], split: str) -> float | None:
    """The Holm-adjusted p of two rows, whichever is the reference, in the table's own tests; None where it has none."""
    dataset = first[0].dataset if len(first) == 1 else average_name(whole.lines)
    found = whole.tests[(whole.tests["kind"] == "reference") & (whole.tests["protocol"] == PAPER.title)]
    pair = (first[0].row, second[0].row)
    found = found[found["row"].isin(pair) & found["against"].isin(pair)]
    found = found[(found["dataset"] == dataset) & (found["split"] == split)]
    return float(found["p_holm"].iloc[0]) if len(found) else None


def _beside_published(record: dict[str, str], whole: Table, own: str, rival: str = "") -> dict[str, object]:
    """Our accuracy beside the method that the claim names, or the best published one, of which there are no answers.

    Like for like, the difference to its printed number is tested with the variance of our answers alone.
    """
    lines = _lines(whole, own, record["dataset"])
    if not lines:
        return {"replication": NOT_RUN, "note": f"not on {dataset_name(record['dataset'])}"}
    known = whole.published[whole.published["row"] != own]
    known = known[(known["dataset"] == record["dataset"]) & (known["split"] == record["split"])].set_index("row")[
        "value"
    ]
    rival = rival or known.idxmax()
    counted = audit.open_share().set_index(["data_set", "row"])["nearest"].get((record["dataset"], rival), "")
    definition = "" if record["split"] == "overall" else counted  # as the other method counts, so that the two compare
    answered, images = lines[0].right(PAPER, record["split"], definition)
    reason = withheld(whole.scale, lines)
    if reason:
        gap = statistics.bootstrap(answered, images, pretrainings=lines[0].pretrainings)
    else:
        level = float(known[rival]) / 100
        gap = statistics.bootstrap_against(answered, images, level, pretrainings=lines[0].pretrainings)
    as_they = f", {record['split']} by {definition} as for {rival}" if definition else ""
    return {
        "replication": reason or None,
        "note": f"{rival} has {known[rival]:.2f} on the real set, as printed: not paired, its own chance is not in the "
        f"interval{as_they}",
        "compared": "ours" if reason else f"ours - {rival}",
        "ours": 100 * gap.value,
        "ci_low": 100 * gap.low,
        "ci_high": 100 * gap.high,
        "p": None if reason else gap.p,
        "n_questions": len(images),
        "run_ids": " ".join(lines[0].run_ids),
    }


def write(scale: str, frame: pd.DataFrame | None = None) -> list[Path]:
    """Write `results/<scale>/tables/claims.csv` and `.md` (`frame`: what `table` gave); returns their paths."""
    frame = table(scale) if frame is None else frame
    stem = paths.scale_dir(scale) / "tables" / "claims"
    page = (
        f"# Claims of the paper (SCALE={scale})\n\n**{SCALE_NOTES[scale]}**\n\n*Audit* is about the paper's own "
        f"numbers, *replication* about our runs; neither follows from the other. {READING}\n\n{grid(layout(frame))}\n"
    )
    files.write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    files.write_text(stem.with_suffix(".md"), page)
    return [stem.with_suffix(".csv"), stem.with_suffix(".md")]


def layout(frame: pd.DataFrame) -> pd.DataFrame:
    """The claims as a person reads them, from `table`'s frame."""

    def texts(column: str, form: str) -> pd.Series:
        return frame[column].map(lambda value: "" if pd.isna(value) else form.format(value))

    split = frame["split"].where(frame["split"].isin(["open", "closed"]), "")
    ours = texts("ours", "{:.2f}") + texts("ci_low", " [{:.2f}, ") + texts("ci_high", "{:.2f}]")
    return pd.DataFrame(
        {
            "claim": frame["says"],
            "on": (frame["dataset"].map(dataset_name) + " " + split).str.strip(),
            "paper says": texts("paper", "{:g}"),
            "recomputed": texts("recomputed", "{:g}"),
            "audit": frame["audit"],
            "significant in the best case": frame["can_be_significant"],
            "needed": texts("needed", "{:.2f}"),
            "beyond noise": frame["beyond_noise"],
            "ours": frame["compared"].where(frame["compared"] == "", frame["compared"] + ": ") + ours,
            "p after Holm": texts("p_holm", "{:.3g}"),
            "replication": frame["replication"],
            "notes": (frame["audit_note"] + "; " + frame["note"]).str.strip("; "),
        }
    )
