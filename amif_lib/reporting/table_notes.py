"""What a reader must know to read a table, in plain sentences."""

from __future__ import annotations

from amif_lib.experiments import stored
from amif_lib.reporting.table_rows import SCALE_NOTES, dataset_name
from amif_lib.reporting.tables import Table, training_questions
from amif_lib.scoring import baselines, protocols


def question_sets(table: Table) -> str:
    """The question sets with their numbers of test questions, and the paper's rows that this selection leaves out."""
    counts = table.cells[table.cells["split"] == "overall"].groupby("dataset")["n_questions"].first()
    said = f"Test questions: {', '.join(f'{dataset_name(name)} {counts[name]:,}' for name in table.datasets)}."
    run = {line.paper_row for line in table.lines}
    lacking = [] if table.name == "table1" else [row for row in table.published["row"].unique() if row not in run]
    return f"{said} Part of the table: without the paper's row {', '.join(lacking)}." if lacking else said


def trainings(table: Table) -> str:
    """How many trainings stand behind the rows, and what their intervals hold."""
    counts = {len(line.run_ids) for line in table.lines if line.kind == "row"}
    said = "The intervals hold the choice of test images and not the spread between trainings"
    if counts == {1}:
        return f"Teaching run: each row was trained once. {said}, so differences say nothing about the method."
    few = " Rows of one training are for orientation only." if 1 in counts else ""
    return f"Rows are means over the trainings in their second column, ± their standard deviation. {said}.{few}"


def looking(table: Table) -> str:
    """What the full model answers when it is shown another case's image, averaged over the question sets."""
    cells = table.cells.query("protocol == 'paper' and split == 'overall'").set_index(["dataset", "row"])["ours"]
    lines, out = [line for line in table.lines if line.row.startswith("shuffled_at_test")], []
    row_of = {line.headline: line.row for line in table.lines if line.kind == "row" and line.headline}
    for row in dict.fromkeys(line.row for line in lines):
        own = [line for line in lines if line.row == row]
        keys = [(line.dataset, row_of[line.headline]) for line in own]
        right = [cells.loc[key] for key in keys], [cells.loc[(line.dataset, row)] for line in own]
        mean = [sum(each) / len(own) for each in (*right, [100 * line.changed for line in own])]
        out.append(
            f"Shown another case's image, the full model changes {mean[2]:.0f}% of its answers and is right on "
            f"{mean[1]:.1f}% of the questions instead of {mean[0]:.1f}%."
        )
    return " ".join(out)


def notes(table: Table) -> list[str]:
    """What a reader must know to read the numbers, one paragraph each."""
    out = [f"Scale: {SCALE_NOTES[table.scale]}."]
    out += [f"Protocol {p.title}: {p.note}" for p in (protocols.PROTOCOLS["paper"], protocols.PROTOCOLS["strict"])]
    for dataset in table.datasets:
        settings = training_questions(table.runs, dataset)
        known = baselines.stored(table.scale, dataset, **settings)
        reached = protocols.score(known["vocabulary_ceiling"], None, protocols.PROTOCOLS["generate"])["correct"].mean()
        out.append(
            f"{dataset_name(dataset)} (training file {settings['training_file']}, language {settings['language']}): no "
            f"method that answers with training answers can pass {100 * reached:.1f}%."
        )
    if any(line.leaks for line in table.lines):
        out.append("† trained on a file, knowledge or images that hold test answers; never shown under strict.")
    commits = stored.commits(table.runs.values())
    listed = ", ".join(f"{commit[:12] or 'unknown'} ({len(ids)} runs)" for commit, ids in commits.items())
    return [*out, f"Commit of the code that made the runs: {listed}."]
