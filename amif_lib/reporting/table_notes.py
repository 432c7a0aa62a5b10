"""What a reader must know to read a table: question sets, rows that are not there, variance, baselines, code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from amif_lib.reporting.table_rows import SCALE_NOTES, dataset_name, real_name
from amif_lib.reporting.table_tests import HOLM, lacking_references
from amif_lib.scoring import baselines, protocols, statistics

if TYPE_CHECKING:
    from amif_lib.reporting.tables import Table


def question_sets(table: Table) -> str:
    """The question sets in words, with their numbers of test questions."""
    whole = table.cells[table.cells["split"] == "overall"].groupby("dataset", sort=False)["n_questions"].first()
    listed = ", ".join(f"{dataset_name(name)} ({whole[name]} test questions)" for name in table.datasets)
    return f"Question set{'s' if len(table.datasets) > 1 else ''}: {listed}."


def not_run(table: Table) -> str:
    """Which rows of the paper's table this selection leaves out, as a sentence; empty where none is (or for Table 1)."""
    if table.name == "table1":  # other people's methods, of which there are no runs
        return ""
    run = {row.paper_row for row in table.rows}
    lacking = [row for row in dict.fromkeys(table.published["row"]) if row not in run]
    which = f"row{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
    return f"Part of the table: without the paper's {which}." if lacking else ""


def variance(table: Table) -> str:
    """Which variance the intervals hold, by the seeds that were run."""
    own, first = table.seed_counts
    if own == first == 1:
        return "one training per cell, so the interval holds the choice of test images and no spread between trainings."
    if first == 1:
        return (
            f"crossed with {own} fine-tunings (SEEDS) of one pre-training: it holds the spread between fine-tunings, not "
            "that between pre-trainings. ± is the standard deviation over the runs."
        )
    crossed = f"crossed with {first} pre-trainings (PRETRAIN_SEEDS)"
    if own == 1:
        return f"{crossed}, each fine-tuned once: it holds the spread between whole trainings. ± is its standard deviation."
    return (
        f"{crossed}, drawn first, and {own} fine-tunings (SEEDS) of each: it holds the spread between both. ± is the "
        "standard deviation over all runs."
    )


def bold(table: Table) -> str:
    """What a bold cell says, as a sentence."""
    if table.name == "table1":
        return "Bold: better than every baseline below, with the paired tests' support; not a comparison with published rows."
    return "Bold: better than each of the row's references, with the paired tests' support."


def one_training(table: Table) -> str:
    """What the tests of rows that were trained once are about; empty where every row has several runs."""
    if min(len(line.answers) for line in table.lines if line.kind == "row") > 1:
        return ""
    about = "With one training of a row the tests are about these trained models, not about the methods"
    if table.scale in ("base", "paper"):
        return f"{about}: such comparisons are not judged, and none with a reference is bold. Give SEEDS=3."
    return f"{about}: another training may come out otherwise."


def two_definitions(table: Table) -> list[str]:
    """What Table 1's open and closed columns count, method by method, as far as the printed figures tell."""
    from amif_lib.reporting import audit

    found, out = audit.open_share(), []
    for dataset in map(real_name, table.datasets):
        nearest = found[found["data_set"] == dataset].set_index("row")["nearest"]
        own, others = nearest.get(audit.OURS, ""), nearest.drop(audit.OURS, errors="ignore")
        unlike = int((others != own).sum())
        if own and unlike:
            out.append(
                f"The paper's Table 1 mixes two definitions on {dataset_name(dataset)}: by the open share that its "
                f"figures imply, AMiF counts as closed by {own}, {unlike} of {len(others)} other methods by another "
                "definition. Open and closed figures of these cannot be compared, overall ones can."
            )
    return out


def notes(table: Table) -> list[str]:
    """What a reader must know to read the numbers, one paragraph each, plain text."""
    out = [f"Scale: {SCALE_NOTES[table.scale]}."]
    out += [f"Protocol {p.title}: {p.note}" for p in (protocols.PROTOCOLS["paper"], protocols.PROTOCOLS["strict"])]
    out.append(
        f"Accuracy in percent with a 95% interval from resampling images {statistics.DRAWS:,} times; {variance(table)}"
    )
    out.append(
        f"{bold(table)} Supported: exact McNemar of every run and image-resampling test all p < .05 after Holm's correction; "
        f"averages over sets by resampling alone. {HOLM}"
    )
    if once := one_training(table):
        out.append(once)
    if lost := lacking_references(table.lines):
        listed = "; ".join(f"row {row} without {', '.join(names)}" for row, names in lost.items())
        out.append(f"Never bold here, because references are not in this selection and so not tested: {listed}.")
    if table.name == "table1":
        out += two_definitions(table)
    for dataset in table.datasets:
        settings = table.question_settings(dataset)
        stored = baselines.stored(table.scale, dataset, **settings)
        which = f"{dataset_name(dataset)} (training file {settings['training_file']}"
        which += ")" if settings["language"] == "en" else f", language {settings['language']})"
        ceiling, by_form = (_in_words(stored[name]) for name in ("vocabulary_ceiling", "most_frequent_by_form"))
        new = int((~stored["nearest_question"]["image_in_training"]).sum())
        if new == len(stored["nearest_question"]):
            out.append(
                f"{which}: no test question is on an image with a training question, so that the nearest-question baseline "
                "would be the most frequent answer again; it is left out."
            )
        elif new:
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
    scored = protocols.score(frame, None, protocols.PROTOCOLS["generate"])
    found = protocols.accuracy_table(scored).set_index(["definition", "split"])["accuracy"]
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
