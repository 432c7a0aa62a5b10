"""What a reader must know to read a table, in plain sentences."""

from __future__ import annotations

import pandas as pd

from amif_lib.experiments import stored as stored_runs
from amif_lib.reporting.table_rows import SCALE_NOTES, dataset_name
from amif_lib.reporting.table_tests import HOLM
from amif_lib.reporting.tables import Line, Table, training_questions
from amif_lib.scoring import baselines, protocols, statistics

MOST_SHOWN = 6  # differences that a sentence names


def seed_counts(lines: list[Line]) -> tuple[int, int]:
    """The most fine-tunings of one pre-training, and the most pre-trainings, that a row has on one question set."""
    counts = [[first for first, _ in line.seeds] for line in lines if line.kind == "row"]
    pretrainings = max(len(set(each)) for each in counts)
    return max(map(len, counts)) // pretrainings, pretrainings


def variance(fine_tunings: int, pretrainings: int) -> str:
    """Which variance the intervals hold, by the number of fine-tunings of each pre-training and of pre-trainings."""
    if fine_tunings == pretrainings == 1:
        return "one training per cell, so the interval holds the choice of test images and no spread between trainings."
    drawn = f"crossed with {fine_tunings} fine-tunings (SEEDS) of {pretrainings} pre-training(s) (PRETRAIN_SEEDS)"
    if pretrainings == 1:
        return f"{drawn}: it holds the spread between fine-tunings, not that between pre-trainings. ±: over the runs."
    return f"{drawn}, pre-trainings drawn first: it holds the spread between whole trainings. ±: over the runs."


def bold(table: Table) -> str:
    """What a bold cell says, and what the tests of rows that were trained once are about."""
    than = "each of the row's references"
    if table.name == "table1":
        than = "every baseline below (not a comparison with published rows)"
    said = f"Bold: better than {than}, with the paired tests' support."
    if min(len(line.run_ids) for line in table.lines if line.kind == "row") > 1:
        return said
    said += " With one training of a row the tests are about these trained models, not about the methods"
    if table.scale in ("base", "paper"):
        return f"{said}: comparisons with a reference are neither judged nor bold. Give SEEDS=3."
    return f"{said}: another training may come out otherwise."


def question_sets(table: Table) -> str:
    """The question sets with their numbers of test questions, and the paper's rows that this selection leaves out."""
    counts = table.cells[table.cells["split"] == "overall"].groupby("dataset")["n_questions"].first()
    said = f"Test questions: {', '.join(f'{dataset_name(name)} {counts[name]:,}' for name in table.datasets)}."
    run = {line.paper_row for line in table.lines}
    lacking = [] if table.name == "table1" else [row for row in table.published["row"].unique() if row not in run]
    return f"{said} Part of the table: without the paper's row {', '.join(lacking)}." if lacking else said


def supported_differences(table: Table) -> str:
    """In a few sentences: which differences on all questions the paired tests support."""
    tested, out = table.tests.query("protocol == 'paper' and split == 'overall'"), []
    labels = {line.row: line.label if table.name == "table1" else f"#{line.row}" for line in table.lines}
    found = tested[tested["kind"] == "reference"]
    if len(found):
        sure = [
            f"{labels[t.row]} against {labels[t.against]} on {dataset_name(t.dataset)} "
            f"{t.difference:+.1f} [{t.ci_low:.1f}, {t.ci_high:.1f}]"
            for t in found[found["supported"]].itertuples()
        ]
        more = f"; and {len(sure) - MOST_SHOWN} more" if len(sure) > MOST_SHOWN else ""
        listed = f": {'; '.join(sure[:MOST_SHOWN])}{more}" if sure else ""
        out.append(f"{len(sure)} of {len(found)} differences between rows and their references are supported{listed}.")
    for row, group in tested[tested["kind"] == "baseline"].groupby("row", sort=False):
        won = (group["supported"] & (group["difference"] > 0)).groupby(group["dataset"], sort=False).all()
        where = ", ".join(dataset_name(name) for name in won.index[won]) or "no question set"
        out.append(f"{labels[row]} is shown to be better than every baseline on {where}.")
    return " ".join(out)


def notes(table: Table) -> list[str]:
    """What a reader must know to read the numbers, one paragraph each."""
    out = [f"Scale: {SCALE_NOTES[table.scale]}."]
    out += [f"Protocol {p.title}: {p.note}" for p in (protocols.PROTOCOLS["paper"], protocols.PROTOCOLS["strict"])]
    out.append(
        f"Accuracy in percent with a 95% interval from resampling images {statistics.DRAWS:,} times; "
        f"{variance(*seed_counts(table.lines))}"
    )
    out.append(
        f"{bold(table)} Supported: exact McNemar of every run and image-resampling test all p < .05 after Holm's "
        f"correction; averages over sets by resampling alone; no row without one of its references. {HOLM}"
    )
    if table.name == "table1" and len(table.published):
        out.append(
            "Open and closed of published rows are by each paper's own definition of closed; `make audit` tells which. "
            "Compare overall accuracies only."
        )
    for dataset in table.datasets:
        settings = training_questions(table.runs, dataset)
        stored = baselines.stored(table.scale, dataset, **settings)
        which = f"{dataset_name(dataset)} (training file {settings['training_file']}, language {settings['language']})"
        new, n = int((~stored["nearest_question"]["image_in_training"]).sum()), len(stored["nearest_question"])
        if new:
            out.append(
                f"{which}: {new} of {n} test questions are on an image without a training question; there the "
                "nearest-question baseline is the most frequent answer, and left out if that is everywhere."
            )
        out.append(
            f"{which}: no method that answers with training answers can pass "
            f"{_in_words(stored['vocabulary_ceiling'])}; the most frequent answer, yes/no-looking questions apart, "
            f"scores {_in_words(stored['most_frequent_by_form'])}."
        )
    if any(line.leaks for line in table.lines):
        out.append("† trained on a file, knowledge or images that hold test answers; never shown under strict.")
    out += left_out(table)
    commits = stored_runs.commits(table.runs.values())
    listed = ", ".join(f"{commit[:12] or 'unknown'} ({len(ids)} runs)" for commit, ids in commits.items())
    out.append(f"Commit of the code that made the runs: {listed}.")
    return out


def left_out(table: Table) -> list[str]:
    """What the runs of each row cut or left out for length (`*_left_out`, `*_cut` of their metrics)."""
    found: dict[str, list[str]] = {}
    for line in (line for line in table.lines if line.kind == "row"):
        metrics = table.runs[line.run_ids[0]].metrics
        for key in (key for key in metrics if key.endswith(("_left_out", "_cut")) and metrics[key]):
            found.setdefault(key.replace("_", " "), []).append(
                f"{line.row} {metrics[key]} ({dataset_name(line.dataset)})"
            )
    return [f"Limits of length, {what}: row {'; row '.join(rows)}." for what, rows in found.items()]


def _in_words(frame: pd.DataFrame) -> str:
    scored = protocols.score(frame, None, protocols.PROTOCOLS["generate"])
    found = protocols.accuracy_table(scored).set_index(["definition", "split"])["accuracy"]["yes_no"]
    return f"{found['overall']:.2f} overall, {found['open']:.2f} open, {found['closed']:.2f} closed"
