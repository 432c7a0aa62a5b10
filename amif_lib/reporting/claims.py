"""The paper's prose claims, each with two verdicts kept apart: what its own numbers say, and what our runs say.

The *audit* verdict is `audit_claims`' and needs no run. The *replication* puts the same rows of ours beside it, from stored
runs; it is a verdict at base and paper scale on real data only. Claims stand in `results/paper/claims.csv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from amif_lib.core import files, paths
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.reporting import audit, audit_claims, audit_power, map_claims, table_tests, tables
from amif_lib.reporting.audit_sources import SETS, hundredths
from amif_lib.reporting.layout import grid
from amif_lib.reporting.table_cells import average_name
from amif_lib.reporting.table_rows import Line, dataset_name, real_name
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
NOT_RUN = "not run"
NO_RUNS = "not about runs"
# Figure 6 is the one claim whose numbers are in no table: the row said to be locally best, and its neighbours.
FIGURES = {"lambda": ("lambda_sweep", "0.01", ("0.005", "0.05"))}
PAPER = protocols.PROTOCOLS["paper"]
READING = (
    "*Significant in the best case*: whether a difference of that size can reach p < .05 on so many questions at all, if "
    "no question is lost. *Needed*: the smallest significant difference in points when "
    f"{audit_power.DISCORDANCE:.0%} of the answers differ; *beyond noise*: whether the paper's difference reaches it. *p "
    "after Holm* is that of the table's own paired tests where these make the same comparison, else over the other "
    "comparisons of the table's claims."
)


@dataclass(frozen=True)
class Replication:
    """What our runs say of one claim, in percent and points; empty where nothing was run."""

    replication: str
    note: str = ""
    compared: str = ""
    ours: float = float("nan")
    ci_low: float = float("nan")
    ci_high: float = float("nan")
    p: float = float("nan")
    p_holm: float = float("nan")  # of the same comparison in the table's own tests, where it is one of them
    n_questions: int | None = None
    run_ids: str = ""
    judge: str = ""  # how a supported result reads: `better`, `close`; nothing where it is not to be judged


def table(scale: str, names: Sequence[str] = (), known: Mapping[str, tables.Table] | None = None) -> pd.DataFrame:
    """Each claim as a line with both verdicts, columns `COLUMNS`; `names` selects those about these tables;
    `known` are tables that the caller has collected already.

    `ours` is the difference of our two rows in points (for a claim against published methods our own accuracy, in
    percent), with its 95% interval; `p` is the bootstrap's. `p_holm` is that of the table's own paired tests where
    these make the same comparison; the other comparisons of a table's claims, each once, are a Holm family of their own.
    `replication`: `holds`, `opposite` or `within noise` where it may be judged, else why it is not.
    Rows that the scale's last plan leaves out read "not run". Raises InputError as `tables.Table` does where stored runs
    are damaged, or where `results/paper/` is.
    """
    audited = audit_claims.claims().to_dict("records")
    found = [
        (record, said, _table_of(record)) for record, said in zip(audit_claims.read_claims(), audited, strict=True)
    ]
    if names:
        found = [one for one in found if one[2] in names]
    collected = {
        name: (known or {}).get(name) or _collect(name, scale)
        for name in dict.fromkeys(name for *_, name in found if name)
    }
    rows = []
    for record, said, name in found:
        ours = (
            Replication(**map_claims.replicate(record, scale))
            if record["kind"] == "map"
            else _replicate(record, collected.get(name))
        )
        rows.append(
            {key: said[key] for key in ("claim", "where", "says", "dataset", "split", "paper", "recomputed")}
            | {"table": name, "audit": said["verdict"], "can_be_significant": said["can_be_significant"]}
            | {key: said[key] for key in ("needed", "beyond_noise")}
            | {"audit_note": said["note"], "scale": scale}
            | vars(ours)
        )
    out = pd.DataFrame(rows, columns=[*COLUMNS, "judge"]).astype({"n_questions": "Int64"})
    out["p_holm"] = out["p_holm"].fillna(_own_family(out[out["p"].notna() & out["p_holm"].isna()]))
    out["replication"] = [
        _verdict(*one) for one in zip(out["replication"], out["judge"], out["ours"], out["p_holm"], strict=True)
    ]
    return out[COLUMNS]


def _own_family(tested: pd.DataFrame) -> pd.Series:
    """Holm over each table's comparisons, each counted once however many claims it bears; index as `tested`."""
    pairs = [" - ".join(sorted(compared.split(" - "))) for compared in tested["compared"]]
    keys = tested[["table", "dataset", "split", "run_ids", "p"]].assign(pair=pairs)
    once = keys.drop_duplicates()
    adjusted = once.groupby("table")["p"].transform(lambda p: statistics.holm(list(p)))
    known = dict(zip(once.itertuples(index=False, name=None), adjusted, strict=True))
    return pd.Series([known[key] for key in keys.itertuples(index=False, name=None)], tested.index, dtype=float)


def write(scale: str, frame: pd.DataFrame | None = None) -> list[Path]:
    """Write `results/<scale>/tables/claims.csv` and `.md` (`frame`: what `table` gave, if at hand); returns their paths."""
    frame = table(scale) if frame is None else frame
    stem = paths.scale_dir(scale) / "tables" / "claims"
    written = [stem.with_suffix(".csv"), stem.with_suffix(".md")]
    files.write_text(written[0], frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    files.write_text(written[1], markdown(frame, scale))
    return written


def layout(frame: pd.DataFrame) -> pd.DataFrame:
    """The claims as a person reads them, from `table`'s frame."""
    return pd.DataFrame(
        {
            "claim": frame["says"],
            "on": [
                ", ".join(filter(None, [dataset_name(d), s if s in ("open", "closed") else ""]))
                for d, s in zip(frame["dataset"], frame["split"], strict=True)
            ],
            "paper says": frame["paper"].map(_number),
            "recomputed": frame["recomputed"].map(_number),
            "audit": frame["audit"],
            "significant in the best case": frame["can_be_significant"],
            "needed": frame["needed"].map(lambda points: "" if pd.isna(points) else f"{points:.2f}"),
            "beyond noise": frame["beyond_noise"],
            "ours": [
                ""
                if pd.isna(value)
                else f"{compared}: {value:+.2f} [{low:+.2f}, {high:+.2f}]"
                if " - " in compared
                else f"{compared}: {value:.2f} [{low:.2f}, {high:.2f}]"
                for compared, value, low, high in zip(
                    frame["compared"], frame["ours"], frame["ci_low"], frame["ci_high"], strict=True
                )
            ],
            "p after Holm": frame["p_holm"].map(lambda p: "" if pd.isna(p) else f"{p:.3g}"),
            "replication": frame["replication"],
            "notes": [
                "; ".join(filter(None, (f"audit: {a}" if a else "", f"ours: {b}" if b else "")))
                for a, b in zip(frame["audit_note"], frame["note"], strict=True)
            ],
        }
    )


def markdown(frame: pd.DataFrame, scale: str) -> str:
    """The claims as one Markdown page."""
    return (
        f"# Claims of the paper (SCALE={scale})\n\n**{tables.SCALE_NOTES[scale]}**\n\n"
        f"*Audit* is about the paper's own numbers, *replication* about our runs; neither follows from the other. {READING}"
        f"\n\n{grid(layout(frame))}\n"
    )


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:g}"


# --- our runs ---


def _table_of(record: dict[str, str]) -> str:
    """The table whose rows a claim is about; empty for the size of a data set."""
    if record["claim"] in FIGURES:
        return FIGURES[record["claim"]][0]
    return record["first"].partition(":")[0]


def _collect(name: str, scale: str) -> tables.Table | None:
    """The table as the scale's last plan has it, or None where runs are missing or the scale does not make it."""
    asked = tables.Selection.planned(name, scale)
    if name not in experiments.tables_of(scale) or results.missing(tables.required_runs(name, scale, asked)):
        return None
    return tables.Table(name, scale, asked)


def _replicate(record: dict[str, str], whole: tables.Table | None) -> Replication:
    if record["kind"] == "size":
        return Replication(NO_RUNS)
    if whole is None:
        return Replication(NOT_RUN)
    if record["claim"] in FIGURES:
        _, first, others = FIGURES[record["claim"]]
        return _best(record, whole, first, others)
    names = [cell.partition(":")[2] for cell in record["first"].split()]
    if whole.name == "table1":
        return _beside_published(record, whole, names[0])
    if record["kind"] == "best":
        others = [row for row in dict.fromkeys(whole.published["row"]) if row != names[0]]
        return _best(record, whole, names[0], others)
    if record["kind"] == "close":
        return _close(record, whole, names)
    return _best(record, whole, names[0], [record["second"].partition(":")[2]])


def _lines(whole: tables.Table, paper_row: str, dataset: str) -> list[Line]:
    """A row's lines on what a claim is about: one question set, or every set of the table for the average."""
    own = [x for x in whole.lines if x.kind == "row" and not x.extra and (x.paper_row or x.row) == paper_row]
    own = [x for x in own if x.row == own[0].row]  # the first of several starts
    if dataset == "avg":
        return own if len(own) == len(whole.datasets) else []
    return [line for line in own if real_name(line.dataset) == dataset]


def _best(record: dict[str, str], whole: tables.Table, first: str, others: Sequence[str]) -> Replication:
    """A row minus each of the others: the smallest difference. To be best all must hold at once, so p is the largest;
    not to be best one must fail, so p is that one's times the number of others.
    """
    lines = {row: _lines(whole, row, record["dataset"]) for row in (first, *others)}
    if lacking := [row for row, found in lines.items() if not found]:
        return Replication(NOT_RUN, f"without row {', '.join(lacking)}")
    gaps = {other: _difference(whole, lines[first], lines[other], record["split"]) for other in others}
    nearest = min(others, key=lambda other: gaps[other][0].value)
    used = [line for row in (first, *others) for line in lines[row]]
    p = max(gap.p for gap, _ in gaps.values())
    if gaps[nearest][0].value < 0:
        p = min(1.0, gaps[nearest][0].p * len(others))
    note = f"the one of {len(others)} rows with the smallest difference" if len(others) > 1 else ""
    known = _of_the_table(whole, lines[first], lines[nearest], record["split"]) if len(others) == 1 else float("nan")
    return _found(record, whole, f"#{first} - #{nearest}", gaps[nearest], p, used, note, known)


def _close(record: dict[str, str], whole: tables.Table, names: Sequence[str]) -> Replication:
    """The spread of rows said to be close: the highest minus the lowest, p times the number of pairs."""
    lines = {row: _lines(whole, row, record["dataset"]) for row in names}
    if lacking := [row for row, found in lines.items() if not found]:
        return Replication(NOT_RUN, f"without row {', '.join(lacking)}")
    pairs = [(a, b) for a in names for b in names if a != b]
    gaps = {pair: _difference(whole, lines[pair[0]], lines[pair[1]], record["split"]) for pair in pairs}
    high, low = max(pairs, key=lambda pair: gaps[pair][0].value)
    p = min(1.0, gaps[high, low][0].p * len(pairs) / 2)
    note = "the two rows furthest apart; no difference shown does not show that there is none"
    used = [line for row in names for line in lines[row]]
    return _found(record, whole, f"#{high} - #{low}", gaps[high, low], p, used, note)


def _difference(
    whole: tables.Table, first: list[Line], second: list[Line], split: str
) -> tuple[statistics.Estimate, int]:
    return table_tests.difference(whole, first, second, PAPER, split)


def _of_the_table(whole: tables.Table, first: list[Line], second: list[Line], split: str) -> float:
    """The Holm-adjusted p of two rows, whichever is the reference, in the table's own tests; NaN where it has none."""
    dataset = first[0].dataset if len(first) == 1 else average_name(whole)
    found = whole.tests[(whole.tests["kind"] == "reference") & (whole.tests["protocol"] == PAPER.title)]
    found = found[(found["dataset"] == dataset) & (found["split"] == split)]
    pair = {first[0].row, second[0].row}
    same = [{row, against} == pair for row, against in zip(found["row"], found["against"], strict=True)]
    return float(found["p_holm"][same].iloc[0]) if any(same) else float("nan")


def _found(
    record: dict[str, str],
    whole: tables.Table,
    compared: str,
    gap: tuple[statistics.Estimate, int],
    p: float,
    used: list[Line],
    note: str,
    p_holm: float = float("nan"),
) -> Replication:
    estimate, questions = gap
    reason = table_tests.withheld(whole, used, used)
    if record["dataset"] == "avg" and average_name(whole) != "avg":
        reason = reason or f"not tested on {len(whole.datasets)} of {len(SETS)} sets"
        note = "; ".join(filter(None, [note, f"average over {len(whole.datasets)} of {len(SETS)} sets"]))
    ids = dict.fromkeys(run_id for line in used for run_id in line.run_ids)
    low, high = 100 * estimate.low, 100 * estimate.high
    judge = "" if reason else "close" if record["kind"] == "close" else "better"
    ours = 100 * estimate.value
    return Replication(reason, note, compared, ours, low, high, p, p_holm, questions, " ".join(ids), judge)


def _beside_published(record: dict[str, str], whole: tables.Table, own: str) -> Replication:
    """Our accuracy beside the method that the claim names, or the best published one, of which there are no answers.

    Like for like, the difference to its printed number is tested with the variance of our answers alone.
    """
    lines = _lines(whole, own, record["dataset"])
    if not lines:
        return Replication(NOT_RUN, f"not on {dataset_name(record['dataset'])}")
    here = (whole.published["dataset"] == record["dataset"]) & (whole.published["split"] == record["split"])
    known = whole.published[here & (whole.published["row"] != own)].set_index("row")["value"]
    rival = record["second"].partition(":")[2] or known.idxmax()
    counted = audit.open_share().set_index(["data_set", "row"])["nearest"].get((record["dataset"], rival), "")
    definition = "" if record["split"] == "overall" else counted  # as the other method counts, so that the two compare
    as_they = f", {record['split']} by {definition} as for {rival}" if definition else ""
    right, images = whole.answers(lines[0], PAPER, record["split"], definition)
    reason = table_tests.withheld(whole, lines, lines)
    ids = " ".join(lines[0].run_ids)
    if reason:
        estimate = statistics.bootstrap(right, images, pretrainings=lines[0].pretrainings)
        interval = (100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
        printed = hundredths(f"table1:{rival}", record["dataset"], record["split"]) / 100
        note = f"our own accuracy{as_they}; {rival} has {printed:.2f} on the real set"
        return Replication(reason, note, "ours", *interval, n_questions=len(images), run_ids=ids)
    level = float(known[rival]) / 100
    gap = statistics.bootstrap_against(right, images, level, pretrainings=lines[0].pretrainings)
    note = f"{rival} has {100 * level:.2f} as printed: not paired, and its own chance is not in the interval{as_they}"
    interval = (100 * gap.value, 100 * gap.low, 100 * gap.high)
    return Replication(
        "", note, f"ours - {rival}", *interval, gap.p, n_questions=len(images), run_ids=ids, judge="better"
    )


def _verdict(reason: str, judge: str, ours: float, p: float) -> str:
    if not judge:
        return reason
    if judge == "close":
        return "opposite" if p < 0.05 else "within noise"
    return "within noise" if not p < 0.05 else "holds" if ours > 0 else "opposite"
