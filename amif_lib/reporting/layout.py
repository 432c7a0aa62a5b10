"""A collected table as a person reads it: the paper's layout in Markdown and HTML (`layout_latex` has LaTeX)."""

from __future__ import annotations

import html as _html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from amif_lib.reporting.table_cells import SPLITS
from amif_lib.reporting.table_notes import bold as bold_note
from amif_lib.reporting.table_notes import code_note, not_run, notes, one_training, question_sets
from amif_lib.reporting.table_rows import NAMES, SCALE_NOTES, dataset_name, is_synthetic, real_name, short_dataset_name
from amif_lib.reporting.table_tests import supported_cells
from amif_lib.scoring import protocols

if TYPE_CHECKING:
    from amif_lib.reporting.tables import Table

__all__ = [
    "NAMES",
    "bold_note",
    "both_definitions",
    "caption",
    "code_note",
    "compact",
    "compact_note",
    "dataset_name",
    "grid",
    "heading",
    "html",
    "markdown",
    "notes",
    "one_training",
    "paper_layout",
    "question_sets",
    "seeds_layout",
    "short_dataset_name",
    "short_name",
    "supported_cells",
    "supported_differences",
    "tests_layout",
]
STRICT = protocols.PROTOCOLS["strict"].title
NOT_ABOUT_THE_ROW = ("row", "label", "dataset", "split", "value", "citation", "underlined")
MOST_SHOWN = 6  # differences that the summary names


def heading(table: Table) -> str:
    return f"{short_name(table.name)}: {table.title} (SCALE={table.scale})"


def short_name(name: str) -> str:
    return f"Table {name.removeprefix('table')}" if name.startswith("table") else name.replace("_", " ").capitalize()


def caption(table: Table, dataset: str) -> str:
    """The caption of a table's accuracy figure."""
    return (
        f"{short_name(table.name)}, {dataset_name(dataset)}: accuracy under the protocol paper with 95% intervals "
        f"from resampling images ({SCALE_NOTES[table.scale]})."
    )


def compact(table: Table, strong: Callable[[str], str] = str) -> pd.DataFrame:
    """Overall accuracy under the protocol `paper`: one column per question set, the average first, ours / the paper's.

    A table of one question set has that set's open and closed accuracies in their own columns (`paper_layout`). Rows of
    Table 1 that are other people's methods have the paper's number alone. `strong` marks supported cells.
    """
    if len(table.datasets) == 1:
        return paper_layout(table, strong)
    bold, out = table.supported, _rows(table)
    shown = table.cells[(table.cells["protocol"] == "paper") & (table.cells["split"] == "overall")]
    for dataset in sorted(dict.fromkeys(shown["dataset"]), key=lambda name: not name.startswith("avg")):
        part = shown[shown["dataset"] == dataset].set_index("row")
        theirs = _theirs(table, dataset, "overall") | part["paper"].dropna().to_dict()
        for row, entry in out.items():
            text = "-" if row in theirs else ""
            if row in part.index:
                cell = part.loc[row]
                spread = f" ± {cell.ours_sd:.1f}" if pd.notna(cell.ours_sd) else ""
                text = f"{cell.ours:.1f}{spread} [{cell.ci_low:.1f}, {cell.ci_high:.1f}]"
                text = strong(text) if (row, dataset, "overall") in bold else text
            entry[short_dataset_name(dataset)] = text + (f" / {theirs[row]:.2f}" if row in theirs else "")
    return pd.DataFrame(list(out.values()))


def compact_note(table: Table) -> str:
    """How to read a cell of `compact`, as a sentence; empty for a table of one question set, whose columns say it."""
    if len(table.datasets) == 1:
        return ""
    where = ", on the real data sets" if any(map(is_synthetic, table.datasets)) else ""
    theirs = f" / the paper's number{where}" if len(table.published) else "; the paper prints no number"
    cells = table.cells[(table.cells["protocol"] == "paper") & (table.cells["split"] == "overall")]
    asked = cells[cells["dataset"].isin(table.datasets)].groupby("dataset", sort=False)["n_questions"].max()
    n = ", ".join(f"{short_dataset_name(name)} {count:.0f}" for name, count in asked.items())
    spread = " ± standard deviation over the runs" if cells["ours_sd"].notna().any() else ""
    return f"Overall accuracy in percent: ours{spread} [95% interval]{theirs}. Test questions: {n}."


def row_labels(table: Table) -> dict[str, str]:
    """What the layouts print in their column `row`, by row."""
    return {row: entry["row"] for row, entry in _rows(table).items()}


def _rows(table: Table) -> dict[str, dict[str, str]]:
    """Number and label by row: other people's methods of Table 1, then the table's rows, then the baselines."""
    out = {}
    own = {line.paper_row for line in table.lines}
    if table.name == "table1":
        others = table.published[~table.published["row"].isin(own)].drop_duplicates("row")
        out = {cell.row: {"#": "", "row": f"{cell.label} [{cell.citation}]"} for cell in others.itertuples()}
    for line in sorted(table.lines, key=lambda line: line.kind == "baseline"):
        marks = "†" if any(other.leaks for other in table.lines if other.row == line.row) else ""
        marks += " (extra)" if line.extra and line.kind == "row" else ""
        number = "" if line.kind == "baseline" else "ours" if table.name == "table1" else line.row
        out.setdefault(line.row, {"#": number, "row": line.label + marks})
    return out


def _theirs(table: Table, dataset: str, split: str) -> dict[str, float]:
    """The paper's numbers of other people's methods, which have no run of ours, by row."""
    known, own = table.published, {line.paper_row for line in table.lines}
    if table.name != "table1":
        return {}
    here = (known["dataset"] == real_name(dataset)) & (known["split"] == split) & ~known["row"].isin(own)
    return known[here].set_index("row")["value"].to_dict()


def supported_differences(table: Table) -> str:
    """In a few sentences: which differences the paired tests support, over references and over the baselines."""
    tested = table.tests[(table.tests["protocol"] == "paper") & (table.tests["split"] == "overall")]
    found, out = tested[tested["kind"] == "reference"], []
    named = {line.row: line.label if table.name == "table1" else f"#{line.row}" for line in table.lines}
    if len(found):
        sure = [
            f"{named[t.row]} against {named[t.against]} on {short_dataset_name(t.dataset)} "
            f"{t.difference:+.1f} [{t.ci_low:.1f}, {t.ci_high:.1f}]"
            for t in found[found["supported"]].itertuples()
        ]
        rest = f"; and {len(sure) - MOST_SHOWN} more" if len(sure) > MOST_SHOWN else ""
        which = f"{len(sure)} of {len(found)} differences between rows and their references are supported"
        out.append(which + (": " + "; ".join(sure[:MOST_SHOWN]) + rest if sure else "") + ".")
    for row, group in tested[tested["kind"] == "baseline"].groupby("row", sort=False):
        won = (group["supported"] & (group["difference"] > 0)).groupby(group["dataset"], sort=False).all()
        yes, no = ([short_dataset_name(name) for name in won.index[won == way]] for way in (True, False))
        said = [f"better than every baseline on {', '.join(yes)}"] if yes else []
        said += [f"not shown to be better than every baseline on {', '.join(no)}"] if no else []
        out.append(f"{named[row]} is {'; '.join(said)}.")
    return " ".join(out)


def paper_layout(
    table: Table,
    strong: Callable[[str], str] = str,
    protocol: str = "paper",
    datasets: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Rows as in the paper, baselines below; per question set and split one column of ours and one of the paper's.

    The overall accuracy under the protocol `strict` stands beside that under `paper`. `strong` marks the cells that
    `supported_cells` names. `datasets` selects question sets (default: all, and their average). Behind the paper's
    number stands the difference where the two are like for like.
    """
    cells, bold = table.cells, table.supported
    cells = cells if datasets is None else cells[cells["dataset"].isin(datasets)]
    known = table.published
    about = [name for name in known if name not in NOT_ABOUT_THE_ROW]  # e.g. pretraining, knowledge, gate
    out, paper_rows = _rows(table), {line.row: line.paper_row for line in table.lines}
    for row, entry in out.items():
        described = known[known["row"] == paper_rows.get(row, row)].head(1)[about].to_dict("records")
        entry |= {name.replace("_", " "): text for found in described for name, text in found.items()}
    filled = set(cells.loc[cells["protocol"] == protocol, "row"])
    for dataset in dict.fromkeys(cells["dataset"]):
        real = real_name(dataset)
        printed = set(known.loc[known["dataset"] == real.split(" ")[0], "split"]) or {"overall"}
        for split in (s for s in SPLITS if s in printed):
            part = cells[(cells["dataset"] == dataset) & (cells["split"] == split) & (cells["protocol"] == protocol)]
            ours, theirs = _columns(table, dataset, split, datasets is not None)
            for cell in part.itertuples():
                strong_here = protocol == "paper" and (cell.row, dataset, split) in bold
                out[cell.row][ours] = strong(_accuracy(cell)) if strong_here else _accuracy(cell)
                if protocol == "paper" and part["paper"].notna().any():
                    delta = "" if pd.isna(cell.delta) else f" ({cell.delta:+.2f})"
                    out[cell.row][theirs] = "" if pd.isna(cell.paper) else f"{cell.paper:.2f}{delta}"
            for row, value in (_theirs(table, dataset, split) if protocol == "paper" else {}).items():
                out[row][theirs] = f"{value:.2f}"
                filled.add(row)
            if protocol == "paper" and split == "overall":  # beside it, without any test answer seen
                same = (cells["dataset"] == dataset) & (cells["split"] == split)
                for cell in cells[same & (cells["protocol"] == STRICT)].itertuples():
                    out[cell.row][f"{STRICT} {ours}"] = _accuracy(cell)
    frame = pd.DataFrame([entry for row, entry in out.items() if row in filled]).fillna("")
    first = [name for name in ("#", "row", *(n.replace("_", " ") for n in about)) if name in frame]
    ordered = [name for name in _column_order(table, cells, datasets is not None) if name in frame]
    return frame[[*first, *ordered]]


def _column_order(table: Table, cells: pd.DataFrame, alone: bool) -> list[str]:
    """Titles of all number columns in reading order: a row without ours must not push its column to the front."""
    out = []
    for dataset in dict.fromkeys(cells["dataset"]):
        for split in SPLITS:
            ours, theirs = _columns(table, dataset, split, alone)
            out += [ours, theirs, f"{STRICT} {ours}"]
    return list(dict.fromkeys(out))


def seeds_layout(table: Table) -> pd.DataFrame:
    """Each run's overall accuracy under the protocol `paper`, in the order of seeds; empty unless two or three runs."""
    part = table.seeds[(table.seeds["protocol"] == "paper") & (table.seeds["split"] == "overall")]
    if not 2 <= part.groupby(["row", "dataset"]).size().max() <= 3:
        return pd.DataFrame()
    out: dict[str, dict[str, str]] = {}
    for (row, label, dataset), group in part.groupby(["row", "label", "dataset"], sort=False):
        entry = out.setdefault(row, {"row": f"{row}: {label}" if ":" not in row else label})
        entry[dataset_name(dataset)] = ", ".join(f"{value:.2f}" for value in group["ours"])
    return pd.DataFrame(list(out.values())).fillna("")


def _columns(table: Table, dataset: str, split: str, alone: bool = False) -> tuple[str, str]:
    """Titles of our and of the paper's column; a table of a single question set does not repeat its name."""
    real, synthetic = NAMES.get(real_name(dataset), dataset), is_synthetic(dataset)
    alone = alone or len(table.datasets) == 1
    ours = split if alone else f"{dataset_name(dataset)} {split}"
    return ours, f"paper (real {real}), {split}" if synthetic else f"paper, {split if alone else ours}"


def _accuracy(cell: object) -> str:
    spread = f" ± {cell.ours_sd:.2f}" if pd.notna(cell.ours_sd) else ""
    return f"{cell.ours:.2f}{spread} [{cell.ci_low:.2f}, {cell.ci_high:.2f}]"


def both_definitions(table: Table, dataset: str) -> pd.DataFrame:
    """Every protocol, split and definition of closed for one question set."""
    part = table.cells[table.cells["dataset"] == dataset]
    out = []
    for (row, label), group in part.groupby(["row", "label"], sort=False):
        for protocol in dict.fromkeys(p.split("/")[0] for p in group["protocol"]):
            entry = {
                "row": f"{row}: {label}" if any(x.row == row and x.kind == "row" for x in table.lines) else label,
                "protocol": protocol,
            }
            for cell in group.itertuples():
                name, _, definition = cell.protocol.partition("/")
                if name != protocol:
                    continue
                own = definition or protocols.PROTOCOLS[protocol.split("@")[0]].closed
                title = cell.split if cell.split == "overall" else f"{cell.split}, {own.replace('_', '/', 1)}"
                title = title.replace("answer/type", "answer_type")
                entry[f"{title} (n = {cell.n_questions})"] = _accuracy(cell)
            out.append(entry)
    return pd.DataFrame(out).fillna("")


def tests_layout(table: Table) -> pd.DataFrame:
    """The paired tests on all questions, protocol `paper` first."""
    part = table.tests[table.tests["split"] == "overall"].sort_values("protocol", kind="stable")
    return pd.DataFrame(
        {
            "row": part["row"],
            "question set": part["dataset"].map(dataset_name),
            "protocol": part["protocol"],
            "against": [
                against if kind == "reference" else label
                for against, label, kind in zip(part["against"], part["against_label"], part["kind"], strict=True)
            ],
            "difference": [
                f"{d:+.2f} [{low:+.2f}, {high:+.2f}]"
                for d, low, high in zip(part["difference"], part["ci_low"], part["ci_high"], strict=True)
            ],
            "only this right / only that right": [
                f"{w} / {l}" if w else "" for w, l in zip(part["wins"], part["losses"], strict=True)
            ],
            "McNemar p": part["mcnemar_p"],
            "bootstrap p": part["bootstrap_p"].map("{:.3g}".format),
            "p after Holm": part["p_holm"].map("{:.3g}".format),
            "replication": part["replication"],
        }
    )


def markdown(table: Table) -> str:
    """The whole table as one Markdown page: what `make reproduce` prints, up to the notes, then the details."""
    parts = [f"# {heading(table)}", f"**{SCALE_NOTES[table.scale]}**"]
    parts.append(" ".join(filter(None, [question_sets(table), not_run(table)])))
    if len(table.digests) > 1:
        parts.append(f"**{code_note(table)}**")
    parts += [
        "## Ours beside the paper, protocol paper",
        compact_note(table),
        grid(compact(table, _bold)),
        " ".join(filter(None, [bold_note(table), one_training(table)])),
        supported_differences(table),
    ]
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes(table))]
    for dataset in table.datasets:
        parts += [f"## {dataset_name(dataset)}"]
        parts += [grid(paper_layout(table, _bold, datasets=[dataset]))] if len(table.datasets) > 1 else []
        parts += ["Open and closed by both definitions:", grid(both_definitions(table, dataset))]
    each = seeds_layout(table)
    if len(each):
        parts += ["## Each run, overall accuracy, protocol paper", grid(each)]
    compared = grid(tests_layout(table)) if len(table.tests) else "None in this selection."
    parts += ["## Paired tests, all questions", compared]
    cells = table.cells
    runs = cells[cells["run_ids"] != ""].drop_duplicates(["row", "dataset"])[["row", "dataset", "run_ids"]]
    parts += ["## Runs", grid(runs)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _bold(text: str) -> str:
    return f"**{text}**"


def grid(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, texts and numbers as they are."""
    return frame.to_markdown(index=False, disable_numparse=True)


def html(frame: pd.DataFrame, kind: str = "numbers") -> str:
    """A laid-out frame as an HTML table inside a box that scrolls sideways; cells in \\x01...\\x02 are strong.

    `kind` is the box's class: `numbers` never breaks a cell into lines, `words` does.
    """
    safe = frame.map(lambda value: _html.escape(str(value)).replace("\x01", "<strong>").replace("\x02", "</strong>"))
    safe.columns = [_html.escape(str(column)) for column in frame.columns]
    return f'<div class="scroll {kind}">{safe.to_html(index=False, escape=False, border=0, na_rep="")}</div>'
