"""What a plan costs before anything starts: runs, time, GPU hours, GPU memory, disk and download, table by table.

`summary` counts, `page` prints, `within_budget` keeps the rows that a number of hours has room for. What a single run costs
is said by `cost_model`, from `flop_count`. Nothing here needs torch or data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from amif_lib.app import flop_count
from amif_lib.app.cost_model import (
    GB,
    SIDE_BY_SIDE,
    Basis,
    Work,
    basis,
    disk,
    downloads,
    prepared,
    teacher_work,
    training_flop,
    work,
)
from amif_lib.app.flop_count import evaluation_flop
from amif_lib.app.workflow.job import duration
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import identity
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.rows import Row, RunSpec
from amif_lib.experiments.run_spec import LEAKING_FILES
from amif_lib.methods.amif import teacher as teachers
from amif_lib.reporting import tables

__all__ = ["evaluation_flop", "expected", "page", "summary", "training_flop", "within_budget"]

SCALES = ("demo", "small", "base", "paper")
CARD = 80  # GB of memory of one GPU, to say how many a plan needs
FEW = 16  # samples at a time, to say what gradient caching needs


def is_extra(run: RunSpec) -> bool:
    """Whether a fine-tuning is no row of the paper's: the question-only baseline, or one on a leaking training file."""
    return run.data.blank_images or run.data.training_file in LEAKING_FILES


def notebooks(runs: Iterable[RunSpec]) -> set[str]:
    """Fine-tunings that differ in their question set alone are one notebook; a key for each."""
    own = ("questions", "training_file", "language", "allow_cross_language")
    runs = list(runs)
    by_set = [entry for run in runs for entry in experiments.scale_settings(run.scale)["question_sets"].values()]
    set_wise = {key for entry in by_set for key in entry.get("finetune", {})}  # such as epochs, of one set alone
    keys = set()
    for run in runs:
        if run.stage == "finetune":
            content = identity.settings_read(run) | {"parent": run.parent and run.parent.run_id, "extra": is_extra(run)}
            content["data"] = {key: value for key, value in content["data"].items() if key not in own}
            content["train"] = {key: value for key, value in content["train"].items() if key not in set_wise}
            keys.add(files.digest(content))
    return keys


def lineages(runs: Iterable[RunSpec]) -> dict[str, RunSpec]:
    """All runs behind these, each once, by run id."""
    return {step.run_id: step for run in runs for step in run.lineage()}


def _jobs(runs: dict[str, RunSpec]) -> dict[str, Work]:
    """Work of every training, teachers included, by run id."""
    out = {teachers.teacher_id(run): teacher_work(run) for run in runs.values() if run.teacher}
    return out | {name: work(run) for name, run in runs.items()}


def finished(name: str) -> bool:
    """Whether a run or teacher of this id is whole: `metrics.json` is written last."""
    return (paths.run_dir(name) / "metrics.json").is_file()


def summary(plan: dict[str, list[RunSpec]], scale: str, here: bool = True) -> pd.DataFrame:
    """One line per table, the headline's first, and a line `total`: what each adds to those before it.

    `plan` holds the fine-tunings that each table reads (`tables.required_runs`). Columns: `notebooks` (rows of the
    paper's, over all question sets) and `extra` (baselines, leaking training files) needed; runs by stage needed, of these
    `shared` with earlier tables, `new`, `finished`; of the new ones `flop`, `hours` (of machine time, as many trainings side
    by side as the scale's device takes), `hours_left` (without finished ones), `gpu_hours`, `gpu_memory` (peak over all
    GPUs together, bytes; `gpu_memory_few`: of one GPU, `FEW` samples at a time), `disk` and `download` (bytes). Without
    `here` this machine's runs are neither measured nor counted as finished.
    """
    known = basis(scale, here)
    seen: dict[str, Work] = {}
    stored: dict[tuple[str, ...], float] = {}
    fetched: dict[str, float | None] = {}
    lines, every = [], {}
    for table in sorted(plan, key=lambda name: name != "table1"):
        runs = lineages(plan[table])
        jobs = _jobs(runs)
        new = {name: job for name, job in jobs.items() if name not in seen}
        data = {key: size for key, size in prepared(runs.values()).items() if key not in stored}
        coming = {key: size for key, size in downloads(runs.values()).items() if key not in fetched}
        seen |= new
        stored |= data
        fetched |= coming
        every |= runs
        fresh = [run for name, run in runs.items() if name in new]
        line = {"table": table, **_counted(runs.values(), jobs), "shared": len(jobs) - len(new), "new": len(new)}
        lines.append(line | _costed(known, new, fresh, here) | _sizes(fresh, data, coming))
    whole = {"table": "total", **_counted(every.values(), seen), "shared": 0, "new": len(seen)}
    runs = list(every.values())
    lines.append(whole | _costed(known, seen, runs, here) | _sizes(runs, stored, fetched))
    out = pd.DataFrame(lines)
    out.attrs = {
        "scale": scale,
        "basis": known.text,
        "device": known.device,
        "cards": _cards(runs) if known.device == "gpu" else 0,
        "unknown": [name for name, size in fetched.items() if size is None],
    }
    return out


def _counted(runs: Iterable[RunSpec], jobs: dict[str, Any]) -> dict[str, int]:
    runs = list(runs)
    tips = [run for run in runs if run.stage == "finetune"]
    main = [run for run in tips if not is_extra(run)]
    stages = {stage: sum(run.stage == stage for run in runs) for stage in ("stage1", "stage2", "finetune")}
    books = {"notebooks": len(notebooks(main)), "extra": len(notebooks(run for run in tips if is_extra(run)))}
    return {**books, "teacher": len(jobs) - len(runs), **stages}


def _costed(known: Basis, jobs: dict[str, Work], runs: list[RunSpec], here: bool) -> dict[str, float]:
    seconds = {name: known.seconds(job) for name, job in jobs.items()}
    left = {name: spent for name, spent in seconds.items() if not (here and finished(name))}
    gpu = known.device == "gpu"
    return {
        "finished": len(seconds) - len(left),
        "flop": sum(sum(job.values()) for job in jobs.values()),
        "hours": _wall(known, seconds, runs) / 3600,
        "hours_left": _wall(known, left, runs) / 3600,
        "gpu_hours": sum(seconds.values()) / 3600 if gpu else 0.0,
        "gpu_memory": max(map(flop_count.gpu_memory, runs), default=0.0) if gpu else 0.0,
        "gpu_memory_few": max((flop_count.gpu_memory(r, 1, FEW) for r in runs), default=0.0) if gpu else 0.0,
    }


def _wall(known: Basis, seconds: dict[str, float], runs: list[RunSpec]) -> float:
    """Seconds on the clock: the jobs spread over those that run side by side, but no less than the longest chain."""
    chains = [
        sum(seconds.get(name, 0.0) for step in run.lineage() for name in (step.run_id, _teacher(step)))
        for run in runs
        if run.stage == "finetune"
    ]
    return max([sum(seconds.values()) / SIDE_BY_SIDE[known.device], *chains])


def _teacher(run: RunSpec) -> str:
    return teachers.teacher_id(run) if run.stage == "stage1" else ""


def _sizes(runs: Iterable[RunSpec], data: dict[Any, float], coming: dict[str, float | None]) -> dict[str, float]:
    return {"disk": sum(map(disk, runs)) + sum(data.values()), "download": sum(size or 0 for size in coming.values())}


def _cards(runs: Iterable[RunSpec]) -> int:
    """Fewest GPUs of `CARD` GB that every training fits on, its batch spread over them."""
    runs = list(runs)
    return next(
        (n for n in (1, 2, 4, 8, 16, 32, 64) if max(flop_count.gpu_memory(r, n) for r in runs) <= 0.95 * CARD * GB), 0
    )


# --- in words ------------------------------------------------------------------------------------------------------


def page(found: pd.DataFrame) -> str:
    """A `summary` for the terminal, with what its numbers rest on."""
    about, gpu = found.attrs, found.attrs["device"] == "gpu"
    rows = []
    for line in found.to_dict("records"):
        row = {
            "": line["table"],
            "notebooks": f"{line['notebooks']} + {line['extra']}",
            "stage 1": line["stage1"],
            "stage 2": line["stage2"],
            "fine-tune": line["finetune"],
            "shared": line["shared"],
            "new": line["new"],
            "done": line["finished"],
            "time": duration(3600 * line["hours"]),
            "to do": duration(3600 * line["hours_left"]),
        }
        if gpu:
            row |= {"GPU hours": f"{line['gpu_hours']:.0f}", "GPU memory": f"{line['gpu_memory'] / GB:.0f} GB"}
        rows.append(row | {"disk": _size(line["disk"]), "download": _size(line["download"])})
    text = [
        f"What this plan costs at SCALE={about['scale']}; time, disk and download are what a table adds to those above it.",
        tabulate(rows, headers="keys", disable_numparse=True, stralign="right", colalign=("left",)),
        "notebooks: fine-tunings over all question sets, + baselines and leaking training files. shared, new, done: runs, "
        "teachers included.",
        f"time: {about['basis']}; trainings at a time: {SIDE_BY_SIDE[about['device']]}; texts counted at their longest.",
    ]
    if gpu:
        cards = (
            f"{about['cards']} of {CARD} GB hold every run" if about["cards"] else f"no 64 of {CARD} GB hold every run"
        )
        few = max((line["gpu_memory_few"] for line in found.to_dict("records")), default=0.0)
        text.append(
            f"GPU memory: modelled, at the full batch, over all GPUs together; {cards}. One GPU that holds less computes fewer "
            f"samples at a time, by itself (AMIF_MICRO_BATCH), with the same objective: {few / GB:.0f} GB at {FEW}."
        )
        text.append("time is that of one GPU; n of them (AMIF_PROCESSES=n) take an n-th of it at best.")
    else:
        text.append("GPU: none needed.")
    text.append(
        "disk, download: modelled from the manifests' counts and sizes, what is here already included; approximate."
    )
    if about["unknown"]:
        text.append(f"download of unknown size, not counted: {', '.join(about['unknown'])}.")
    return "\n".join(text)


def _size(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.05 * GB else f"{size / 1e6:.0f} MB" if size else "-"


def expected(table: str) -> str:
    """Comment lines for the head of a table's specification: what the table costs by itself at each scale."""
    lines = ["# Expected cost by itself, with one seed (make plan says it for what is asked for, and what is shared):"]
    for scale in SCALES:
        if not (paths.SPECS / "scales" / f"{scale}.yaml").is_file() or table not in experiments.tables_of(scale):
            continue
        found = summary({table: tables.required_runs(table, scale, tables.Selection())}, scale, here=False)
        line, about = found.iloc[-1], found.attrs
        runs = int(line["new"])
        cost = f"{duration(3600 * line['hours'])} on two cores"
        if about["device"] == "gpu":
            cost = f"{line['gpu_hours']:.0f} GPU hours ({about['basis']})"
            cost += f", {line['gpu_memory'] / GB:.0f} GB of GPU memory in all ({line['gpu_memory_few'] / GB:.0f} at {FEW} samples at a time)"
        lines.append(
            f"#   {scale:<6} {runs} runs, {cost}, disk {_size(line['disk'])}, download {_size(line['download'])}"
        )
    return "\n".join(lines)


# --- a budget ------------------------------------------------------------------------------------------------------


def within_budget(
    rows: Sequence[Row], hours: float, scale: str, baselines: Sequence[RunSpec] = ()
) -> tuple[list[Row], list[tuple[Row, float]]]:
    """The rows that `hours` of machine time have room for, and those left out with the hours that each would add.

    Rows are taken in the order of the tables, the headline's first; one is kept where the runs that it adds to those kept,
    finished ones aside, still fit. `baselines` are runs that every table needs beside its rows: they count with the first
    row. Raises InputError for a budget that is no positive number.
    """
    if not hours > 0:
        raise InputError(f"BUDGET_HOURS={hours:g}: give a number of hours above 0, or leave it unset")
    known, paid, spent = basis(scale), set(), 0.0
    kept: list[Row] = []
    left_out: list[tuple[Row, float]] = []
    for row in sorted(rows, key=lambda row: row.table != "table1"):
        jobs = _jobs(lineages([*row.runs, *(baselines if not kept else ())]))
        adds = {name: known.seconds(job) for name, job in jobs.items() if name not in paid and not finished(name)}
        cost = sum(adds.values()) / 3600 / SIDE_BY_SIDE[known.device]
        if spent + cost <= hours:
            kept.append(row)
            paid |= set(adds)
            spent += cost
        else:
            left_out.append((row, cost))
    return kept, left_out
