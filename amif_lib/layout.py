"""A collected table as a person reads it: the paper's layout in Markdown, LaTeX and HTML."""

from __future__ import annotations

import html as _html
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd

from amif_lib import baselines, evaluate, statistics
from amif_lib.table_rows import SCALE_NOTES

if TYPE_CHECKING:
    from amif_lib.tables import Table

NAMES = {"vqa_rad": "VQA-RAD", "slake": "SLAKE", "pathvqa": "PathVQA", "vqa_med_2019": "VQA-2019", "avg": "Avg"}
SPLITS = ("open", "closed", "overall")
STRICT = evaluate.PROTOCOLS["strict"].title
NOT_ABOUT_THE_ROW = ("row", "label", "dataset", "split", "value", "citation", "underlined")


def dataset_name(dataset: str) -> str:
    """What a reader calls a question set; a demo set says which layout it imitates."""
    if dataset.startswith("phantom_"):
        return f"phantom ({NAMES.get(dataset.removeprefix('phantom_'), dataset)} layout)"
    return NAMES.get(dataset, dataset)


def heading(table: Table) -> str:
    return f"{short_name(table.name)}: {table.title} (SCALE={table.scale})"


def short_name(name: str) -> str:
    return f"Table {name.removeprefix('table')}" if name.startswith("table") else name.capitalize()


def caption(table: Table, dataset: str) -> str:
    """The caption of a table's accuracy figure."""
    return (
        f"{short_name(table.name)}, {dataset_name(dataset)}: accuracy under the protocol paper with 95% intervals "
        f"from resampling images ({SCALE_NOTES[table.scale]})."
    )


def supported_cells(tested: pd.DataFrame) -> set[tuple[str, str, str]]:
    """`(row, dataset, split)` to set in bold under the protocol `paper`.

    A row with a reference: better than the reference; a headline row without one: better than every baseline beside
    it; each time with the paired tests' support.
    """
    own = tested[tested["protocol"] == "paper"]
    bold = set()
    for key, group in own.groupby(["row", "dataset", "split"]):
        reference = group[group["kind"] == "reference"]
        judged = reference if len(reference) else group
        if (judged["supported"] & (judged["difference"] > 0)).all():
            bold.add(key)
    return bold


def paper_layout(table: Table, strong: Callable[[str], str] = str, protocol: str = "paper") -> pd.DataFrame:
    """Rows as in the paper, baselines below; per question set and split one column of ours and one of the paper's.

    The overall accuracy under the protocol `strict` stands beside that under `paper`. `strong` marks the cells that
    `supported_cells` names.
    """
    cells, bold = table.cells, supported_cells(table.tests)
    known = table.published
    about = [name for name in known if name not in NOT_ABOUT_THE_ROW]  # e.g. pretraining, knowledge, gate
    out: dict[str, dict[str, str]] = {}
    for line in {line.row: line for line in reversed(table.lines)}.values():  # one per row, whatever its question sets
        marks = "†" if any(other.leaks for other in table.lines if other.row == line.row) else ""
        described = known[known["row"] == line.paper_row].head(1)[about].to_dict("records")
        out[line.row] = {
            "#": line.row if line.kind == "row" else "",
            "row": line.label + marks,
            **{name.replace("_", " "): text for entry in described for name, text in entry.items()},
        }
    out = {row: out[row] for row in dict.fromkeys(cells.loc[cells["protocol"] == protocol, "row"])}
    for dataset in dict.fromkeys(cells["dataset"]):
        real = dataset.removeprefix("phantom_")
        printed = set(known.loc[known["dataset"] == real.split(" ")[0], "split"]) or {"overall"}
        for split in (s for s in SPLITS if s in printed):
            part = cells[(cells["dataset"] == dataset) & (cells["split"] == split) & (cells["protocol"] == protocol)]
            ours, theirs = _columns(table, dataset, split)
            for cell in part.itertuples():
                strong_here = protocol == "paper" and (cell.row, dataset, split) in bold
                out[cell.row][ours] = strong(_accuracy(cell)) if strong_here else _accuracy(cell)
                if protocol == "paper" and part["paper"].notna().any():
                    out[cell.row][theirs] = "" if pd.isna(cell.paper) else f"{cell.paper:.2f}"
            if protocol == "paper" and split == "overall":  # beside it, without any test answer seen
                same = (cells["dataset"] == dataset) & (cells["split"] == split)
                for cell in cells[same & (cells["protocol"] == STRICT)].itertuples():
                    out[cell.row][f"{STRICT} {ours}"] = _accuracy(cell)
    return pd.DataFrame(list(out.values())).fillna("")


def _columns(table: Table, dataset: str, split: str) -> tuple[str, str]:
    """Titles of our and of the paper's column; a table of a single question set does not repeat its name."""
    real = NAMES.get(dataset.removeprefix("phantom_"), dataset)
    alone, synthetic = len(table.datasets) == 1, dataset.startswith("phantom_")
    ours = split if alone else f"{dataset_name(dataset)} {split}"
    return ours, f"paper (real {real}), {split}" if synthetic else f"paper, {split if alone else ours}"


def question_sets(table: Table) -> str:
    """The question sets in words, with their numbers of test questions."""
    whole = table.cells[table.cells["split"] == "overall"].groupby("dataset", sort=False)["n_questions"].first()
    listed = ", ".join(f"{dataset_name(name)} ({whole[name]} test questions)" for name in table.datasets)
    return f"Question set{'s' if len(table.datasets) > 1 else ''}: {listed}."


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
                own = definition or evaluate.PROTOCOLS[protocol.split("@")[0]].closed
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
            "only this right / only that right": part["wins"] + " / " + part["losses"],
            "McNemar p": part["mcnemar_p"],
            "p after Holm": part["p_holm"].map("{:.3g}".format),
            "replication": part["replication"],
        }
    )


def notes(table: Table) -> list[str]:
    """What a reader must know to read the numbers, one paragraph each, plain text."""
    several = max(len(line.answers) for line in table.lines) > 1
    out = [f"Scale: {SCALE_NOTES[table.scale]}."]
    out += [f"Protocol {p.title}: {p.note}" for p in (evaluate.PROTOCOLS["paper"], evaluate.PROTOCOLS["strict"])]
    out.append(
        f"Accuracy in percent with a 95% interval from resampling images {statistics.DRAWS:,} times"
        + (
            ", crossed with seeds; ± is the standard deviation over seeds."
            if several
            else "; one training seed, so it does not hold the spread between trainings."
        )
    )
    out.append(
        "Bold: better than the row's reference (a headline row without one: than every baseline beside it), "
        "exact McNemar and image-resampling test both p < .05 after Holm's correction within the table."
    )
    for dataset in table.datasets:
        settings = table.question_settings(dataset)
        stored = baselines.stored(table.scale, dataset, **settings)
        which = f"{dataset_name(dataset)} (training file {settings['training_file']}"
        which += ")" if settings["language"] == "en" else f", language {settings['language']})"
        ceiling, by_form = (_in_words(stored[name]) for name in ("vocabulary_ceiling", "most_frequent_by_form"))
        new = int((~stored["nearest_question"]["image_in_training"]).sum())
        if new:
            out.append(
                f"{which}: {new} of {len(stored['nearest_question'])} test questions are on an image without a "
                "training question; there the nearest-question baseline gives the most frequent answer."
            )
        out.append(f"{which}: no method that answers with training answers can pass {ceiling}")
        out.append(
            f"{which}: the most frequent answer, found separately for questions that start like a yes/no "
            f"question, scores {by_form}"
        )
    if any(line.leaks for line in table.lines):
        out.append(
            "† trained on a file, or with a knowledge vocabulary, that holds test answers (or on test images, language "
            "en+zh); never shown under strict."
        )
    out.append(code_note(table))
    return out


def _in_words(frame: pd.DataFrame) -> str:
    scored = evaluate.score(frame, None, evaluate.PROTOCOLS["generate"])
    found = evaluate.accuracy_table(scored).set_index(["definition", "split"])["accuracy"]
    return (
        f"{found['answer_type', 'overall']:.2f} overall, {found['answer_type', 'open']:.2f} open and "
        f"{found['answer_type', 'closed']:.2f} closed by answer_type, {found['yes_no', 'open']:.2f} and "
        f"{found['yes_no', 'closed']:.2f} by yes/no."
    )


def code_note(table: Table) -> str:
    """Which code made the runs; a mixture is said in capitals."""
    if len(table.digests) == 1:
        return f"All runs were made by one version of the code (digest {next(iter(table.digests))})."
    listed = "; ".join(f"{digest}: runs {', '.join(ids)}" for digest, ids in sorted(table.digests.items()))
    return (
        f"MIXED CODE: the runs of this table were made by {len(table.digests)} versions of the code, so "
        f"differences between rows may come from the code ({listed}). Run them again to compare."
    )


def markdown(table: Table) -> str:
    """The whole table as one Markdown page."""
    parts = [f"# {heading(table)}", f"**{SCALE_NOTES[table.scale]}**"]
    parts.append(question_sets(table))
    if len(table.digests) > 1:
        parts.append(f"**{code_note(table)}**")
    parts += [
        "## Protocol paper",
        _grid(paper_layout(table, lambda text: f"**{text}**")),
        f"## Protocol {STRICT}",
        _grid(paper_layout(table, protocol=STRICT)),
    ]
    for dataset in table.datasets:
        parts += [
            f"## Open and closed by both definitions: {dataset_name(dataset)}",
            _grid(both_definitions(table, dataset)),
        ]
    compared = _grid(tests_layout(table)) if len(table.tests) else "None in this selection."
    parts += ["## Paired tests, all questions", compared]
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes(table))]
    cells = table.cells
    runs = cells[cells["run_ids"] != ""].drop_duplicates(["row", "dataset"])[["row", "dataset", "run_ids"]]
    parts += ["## Runs", _grid(runs)]
    return "\n\n".join(parts) + "\n"


def _grid(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)


def _tex(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash{}"),
        ("&", r"\&"),
        ("%", r"\%"),
        ("#", r"\#"),
        ("_", r"\_"),
        ("±", r"$\pm$"),
        ("†", r"$\dagger$"),
        ("→", r"$\to$"),
    ):
        text = text.replace(plain, escaped)
    return text


def latex(table: Table) -> str:
    """The paper's layout for LaTeX (booktabs), protocol `paper`."""
    start, end = "\x01", "\x02"  # survive escaping
    frame = paper_layout(table, lambda text: f"{start}{text}{end}")
    lines = [" & ".join(map(_tex, frame.columns)) + r" \\", r"\midrule"]
    kinds = ["row" if number else "baseline" for number in frame["#"]]
    for position, values in enumerate(frame.itertuples(index=False)):
        if position and kinds[position] != kinds[position - 1]:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_tex, values)).replace(start, r"\textbf{").replace(end, "}") + r" \\")
    body = "\n".join(lines)
    alignment = "".join("r" if column.split()[-1] in SPLITS else "l" for column in frame.columns)
    caption = _tex(
        f"{heading(table)}: {SCALE_NOTES[table.scale]}. Accuracy in percent with a 95% interval. {code_note(table)}"
    )
    return (
        f"% needs \\usepackage{{booktabs}}\n\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n"
        f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def html(frame: pd.DataFrame, kind: str = "numbers") -> str:
    """A laid-out frame as an HTML table inside a box that scrolls sideways; cells in \\x01...\\x02 are strong.

    `kind` is the box's class: `numbers` never breaks a cell into lines, `words` does.
    """
    safe = frame.map(lambda value: _html.escape(str(value)).replace("\x01", "<strong>").replace("\x02", "</strong>"))
    safe.columns = [_html.escape(str(column)) for column in frame.columns]
    return f'<div class="scroll {kind}">{safe.to_html(index=False, escape=False, border=0, na_rep="")}</div>'
