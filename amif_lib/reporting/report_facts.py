"""What the report says beside tables and figures: settings, runs, provenance, cost, and the reproducibility checklist."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from amif_lib.data import manifests, redistribution
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.rows import RunSpec
from amif_lib.experiments.stored import Run
from amif_lib.reporting import layout
from amif_lib.reporting.table_notes import seed_counts
from amif_lib.reporting.table_rows import SCALE_NOTES, Selection
from amif_lib.reporting.table_tests import HOLM
from amif_lib.reporting.tables import Table
from amif_lib.scoring import statistics

# What was chosen while looking at test answers when the scale's settings were made.
CHOSEN = {
    "demo": "The demo's decoder depth, its width and its learning rates were chosen, among a few configurations, by the "
    "full model's accuracy on phantom_vqa_rad's test questions, seed 0; no ablation row was looked at. No epoch was chosen: "
    "the last one counts.",
    "small": "No setting and no epoch was chosen on test questions: the batch size of fine-tuning was chosen by training "
    "loss, and the last epoch counts.",
    "base": "No setting and no epoch was chosen on test questions by the kit.",
    "paper": "No setting and no epoch was chosen on test questions by the kit.",
}
STAGES = {"stage1": "stage 1", "stage2": "stage 2", "finetune": "fine-tuning"}


def as_html(frame: pd.DataFrame, kind: str = "numbers") -> Markup:
    """The frame as HTML, every cell escaped."""
    return Markup(layout.html(frame, kind)) if len(frame) else Markup('<p class="soft">None.</p>')


def statistics_of(runs: list[Run], key: str) -> Markup | None:
    """The `teacher` or `collapse` entry of the pre-training runs' metrics as one table, None where no run has one."""
    rows = []
    for run in runs:
        entry = run.metrics.get(key)
        if isinstance(entry, dict):
            plain = {
                name.replace("_", " "): _number(value)
                for name, value in entry.items()
                if isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
            }
            rows.append({"run": run.run_id, "stage": STAGES[run.spec.stage], **plain})
    if key == "teacher":  # both stages have the same one
        rows = list({tuple(list(row.items())[2:]): row for row in reversed(rows)}.values())[::-1]
    return as_html(pd.DataFrame(rows).fillna("")) if rows else None  # one table, whatever keys a run has


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in content.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _settings(run: RunSpec) -> dict[tuple[str, str], Any]:
    """`(stage, setting)` to value for a run and its ancestors, without names and seeds."""
    out = {}
    for spec in run.lineage():
        content = spec.model_dump(mode="json", exclude={"parent", "label", "scale", "stage", "seed"})
        read = {
            "stage1": ("model", "init", "data", "teacher", "objective", "train"),
            "stage2": ("objective", "train"),
            "finetune": ("data", "knowledge", "train"),
        }[spec.stage]  # the rest is as in stage 1
        if content["teacher"] and content["teacher"]["source"] != "trained":
            content["teacher"] = {"source": content["teacher"]["source"]}  # its sizes are its own
        for name, value in _flat({key: content[key] for key in read if content[key] is not None}).items():
            out["all" if name.startswith(("model.", "init.")) else spec.stage, name] = value
    return out


def settings_that_differ(scale: str) -> pd.DataFrame:
    """The full model's settings that differ from SCALE=paper: `setting, stage, SCALE=paper`, then one per start."""
    paper_sets = experiments.scale_settings("paper")["question_sets"]
    paper = _settings(experiments.build_run("paper", {}, next(iter(paper_sets))))
    of_sets = {
        row.label: [(run.data.questions, _settings(run)) for run in row.runs if run.seed == row.runs[0].seed]
        for row in Selection().rows("table1", scale)
        if not row.extra
    }
    ours = {label: found[0][1] for label, found in of_sets.items()}
    rows: dict[tuple[str, ...], list[str]] = {}
    for stage, name in dict.fromkeys(key for found in ours.values() for key in found):
        values = [_of_sets(found, (stage, name)) for found in of_sets.values()]
        theirs = _plain(paper.get((stage, name)))
        if any(value != theirs for value in values):
            rows.setdefault((name, theirs, *values), []).append(STAGES.get(stage, "all stages"))
    return pd.DataFrame(
        [[name, ", ".join(stages), *values] for (name, *values), stages in rows.items()],
        columns=["setting", "stage", "SCALE=paper", *ours],
    )


def _of_sets(found: list[tuple[str, dict[tuple[str, str], Any]]], key: tuple[str, str]) -> str:
    """A setting's value; of training, with the question sets that have another."""
    first = _plain(found[0][1].get(key))
    others = [f"{name}: {value}" for name, own in found[1:] if (value := _plain(own.get(key))) != first]
    return f"{first} ({', '.join(others)})" if others and key[1].startswith("train.") else first


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def run_table(runs: list[Run], folder: Path) -> Markup:
    """One line per run with a link, relative to `folder`, to its folder and to its executed notebooks."""
    rows = []
    for run in runs:
        link = quote(Path(os.path.relpath(run.directory, folder)).as_posix())
        notebooks = sorted(path.name for path in run.directory.glob("*.ipynb"))
        rows.append(
            {
                "run": f"\x03{link}/\x04{run.run_id}\x05",
                "stage": STAGES[run.spec.stage],
                "what": run.spec.label,
                "data": run.spec.data.questions or ", ".join(run.spec.data.pretrain),
                "seed": run.spec.seed,
                "commit": run.commit[:12],
                "executed notebook": " ".join(f"\x03{link}/{name}\x04{name}\x05" for name in notebooks),
            }
        )
    page = layout.html(pd.DataFrame(rows)) if rows else ""
    return Markup(page.replace("\x03", '<a href="').replace("\x04", '">').replace("\x05", "</a>"))


def provenance(runs: list[Run]) -> Markup:
    """Code, commit, versions and hardware, each distinct value with the number of runs that have it."""
    counts: dict[tuple[str, str], int] = {}
    for run in runs:
        for name, value in _flat(run.provenance).items():
            if name not in ("wall_time_s", "finished"):
                counts[name, _plain(value)] = counts.get((name, _plain(value)), 0) + 1
    rows = [{"provenance": name, "value": value, "runs": n} for (name, value), n in sorted(counts.items()) if value]
    return as_html(pd.DataFrame(rows), "words")


def cost(runs: list[Run]) -> pd.DataFrame:
    """Wall time of the teachers and by stage: number, total and longest, as h:mm:ss; `unknown` where one is not stored."""
    by_stage = {"teacher": list(teacher_times(runs).values())}
    for stage, name in STAGES.items():
        by_stage[name] = [run.provenance.get("wall_time_s") for run in runs if run.spec.stage == stage]
    rows = []
    for name, times in by_stage.items():
        if times:
            known = [float(t) for t in times if t is not None]
            total = _clock(sum(known)) if len(known) == len(times) else "unknown"
            rows.append({"stage": name, "runs": len(times), "total": total, "longest": _clock(max(known, default=0))})
    return pd.DataFrame(rows)


def teacher_times(runs: list[Run]) -> dict[str, float | None]:
    """Wall time in seconds of making each teacher, by its id, from the metrics of the pre-trainings that it taught."""
    taught = [run.metrics["teacher"] for run in runs if isinstance(run.metrics.get("teacher"), dict)]
    return {str(teacher.get("id", "")): teacher.get("wall_time_s") for teacher in taught}


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


# --- checklist ---


def checklist(scale: str, whole: list[Table], runs: list[Run]) -> list[tuple[str, str, str]]:
    """`(question, yes|no|partly|not applicable, answer)` after the NeurIPS reproducibility checklist, from what is known."""
    counts = [seed_counts(table.lines) for table in whole] or [(1, 1)]
    fine_tunings, pretrainings = (max(each) for each in zip(*counts, strict=True))
    names = sorted({name for run in runs for name in experiments.data_sets(run.spec)})
    licences = "; ".join(f"{manifests.load(n).title}: {manifests.load(n).licence.text}" for n in names)
    hidden = [n for n in names if redistribution.withheld([n], "images") or redistribution.withheld([n], "texts")]
    real = scale in ("base", "paper")
    hardware = sorted({_machine(run) for run in runs})
    times = [run.provenance.get("wall_time_s") for run in runs]
    taught = teacher_times(runs)
    known = [float(t) for t in times if t is not None]
    hours = f"{_clock(sum(known))} (h:mm:ss) of training and evaluation in {len(known)} of {len(runs)} runs"
    if taught:
        with_time = [t for t in taught.values() if t is not None]
        hours += f", and {_clock(sum(with_time))} for {len(with_time)} of {len(taught)} teachers, which runs share"
    all_known = None not in (*times, *taught.values())
    commits = sorted({str(run.provenance.get("commit", ""))[:12] for run in runs} - {""})
    several = max(fine_tunings, pretrainings) > 1
    spread = (
        f"Fine-tuning was repeated with up to {fine_tunings} seeds; the intervals hold their spread."
        if fine_tunings > 1
        else "One fine-tuning seed per pre-training."
        if pretrainings > 1
        else "One fine-tuning seed: the intervals do not hold the spread between trainings."
    )
    spread += (
        f" Pre-training was repeated with up to {pretrainings} seeds; the intervals hold its spread."
        if pretrainings > 1
        else " Pre-training was done once per setting: its spread is in no interval."
    )
    return [
        (
            "Claims",
            "yes" if real else "no",
            "Each prose claim of the paper is listed with two verdicts: the audit of the paper's own numbers, and the "
            "replication by these runs." + ("" if real else " At this scale no claim of the paper is tested."),
        ),
        (
            "Limitations",
            "yes",
            f"{SCALE_NOTES[scale][0].upper()}{SCALE_NOTES[scale][1:]}. Settings that "
            "differ from the paper's are listed. Ambiguities of the paper were decided by the kit's authors, not by the paper's.",
        ),
        ("Theory and proofs", "not applicable", "Nothing is proved."),
        (
            "Code",
            "yes",
            "All code that made these numbers is in the kit: make reproduce. Commit "
            f"{', '.join(commits) if commits else 'not recorded'}.",
        ),
        (
            "Data",
            "yes" if not hidden else "partly",
            f"{len(names)} data sets, each with a manifest (source, checksums, counts): {', '.join(names)}."
            + (
                f" Images or texts of {', '.join(hidden)} may not be passed on and are not in this page."
                if hidden
                else ""
            ),
        ),
        (
            "Splits",
            "partly" if scale == "demo" else "yes",
            f"The official splits, counted and checked for leaks before each run. {CHOSEN[scale]} The protocol paper takes "
            "the test answers as candidates, as the paper does, and strict@1 does not.",
        ),
        (
            "Hyper-parameters",
            "yes",
            "Every setting of every run is in its spec.json; those that differ from the paper are listed above. "
            + (
                "They follow the paper where it states them; there was no search per row."
                if real
                else "Sizes, epochs and rates are this scale's own, not the paper's; there was no search per row."
            ),
        ),
        (
            "Seeds and error bars",
            "yes" if several else "partly",
            f"95% intervals from resampling images {statistics.DRAWS:,} times (questions cluster by image). {spread} Paired "
            f"tests: exact McNemar per seed and image resampling. {HOLM}",
        ),
        (
            "Compute",
            "yes" if all_known else "partly",
            f"{hours}. Hardware: {'; '.join(hardware) or 'not recorded'}.",
        ),
        ("Licences", "yes", f"Code: MIT. Data: {licences or 'none used'}."),
        (
            "New assets",
            "yes",
            "The synthetic data are drawn by the kit and documented by data cards. Trained weights are not published here.",
        ),
        (
            "Human subjects and crowdsourcing",
            "not applicable",
            "None were involved; public data sets were used under their terms.",
        ),
        (
            "Broader impact",
            "yes",
            "Medical question answering can mislead: answers are wrong for a large part of the questions and carry the "
            "biases of small public data sets. Research only, not for clinical use.",
        ),
    ]


def _machine(run: Run) -> str:
    found = run.provenance.get("hardware") or {}
    gpus = ", ".join(found.get("gpus") or ())
    parts = [str(found.get("system", "")), f"{found['cpu_cores']} CPU cores" if found.get("cpu_cores") else "",
             f"{found['memory_gib']} GiB" if found.get("memory_gib") else "", gpus or "no GPU"]  # fmt: skip
    return ", ".join(part for part in parts if part) if found else "not recorded"
