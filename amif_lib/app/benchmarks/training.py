"""Training and answering at a scale's size on synthetic inputs: samples a second, operations a second, memory, hours.

The network, the losses, gradient caching, clipping and AdamW are those that training uses, on random weights and random
batches; what is left out is the data feed (`benchmarks.feed`), the exchange between processes and the collapse monitor of
every tenth step. Operations are
`flop_count`'s: what the objective needs, not what activation checkpointing computes again. The share of the card's rate is
of a large matrix product in the same number format, measured in the same run.

torch, transformers and accelerate are enough, with pydantic and PyYAML of the light install; no network, no data.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amif_lib.app import flop_count
from amif_lib.app.benchmarks import processor, synthetic
from amif_lib.core import progress
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.rows import RunSpec
from amif_lib.methods.amif.finetune import FineTuning
from amif_lib.methods.amif.network import AMiF, AMiFForVQA
from amif_lib.methods.amif.stages import Pretraining
from amif_lib.networks.ranking import rank_answers
from amif_lib.training import compiling
from amif_lib.training.micro_batch import MicroBatch

STAGES = ("stage1", "stage2", "finetune")
WARM_UP = 2  # steps before the clock starts: kernels are chosen, memory is allocated, blocks are compiled
ANSWERS = 121  # candidates of a ranked question: VQA-RAD's test answers


# Readings of stage 2's objective: the scale's own, and the one with the fewest passes through the network (one view, positives
# of images with their reports alone), on reports of 64 tokens.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": {},
    "cheapest": {
        "objective": {"image_image_views": "one", "pair_positives": "image_text", "text_positive": "none"},
        "data": {"text_length": 64},
    },
}


def lineage(scale: str, text_length: int = 0, objective: str = "default") -> dict[str, RunSpec]:
    """The scale's full model by stage, under one of `OBJECTIVES`; reports of `text_length` tokens where given."""
    settings = experiments.scale_settings(scale)
    changes = {name: dict(part) for name, part in OBJECTIVES[objective].items()}
    if text_length:
        changes["data"] = {"text_length": text_length}
    run = experiments.build_run(scale, changes, next(iter(settings["question_sets"])))
    return {each.stage: each for each in run.lineage()}


def precision(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


@contextlib.contextmanager
def number_format(device: str) -> Iterator[None]:
    """Mixed precision as training has it: bf16 on a GPU, fp32 elsewhere."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        yield


def now(device: str) -> float:
    """Seconds: of the clock, and of the processor where one thread of it does all the work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def cap_memory(gigabytes: float) -> None:
    """Let this process take no more of the GPU than that, as if it had no more; 0: all of it. Raises InputError without a GPU."""
    if not gigabytes:
        return
    if not torch.cuda.is_available():
        raise InputError("--memory-gb: PyTorch sees no GPU here; leave it out")
    whole = torch.cuda.get_device_properties(0).total_memory / 1e9
    if not 0 < gigabytes <= whole:
        raise InputError(f"--memory-gb {gigabytes:g}: give a number up to {whole:.0f}, what the GPU has")
    torch.cuda.set_per_process_memory_fraction(gigabytes / whole)


def matmul_rate(device: str, side: int = 0) -> float:
    """FLOP/s of a square matrix product in training's number format: the median of ten."""
    side = side or (8192 if device == "cuda" else 1024)
    a, b = (torch.randn(side, side, device=device, dtype=precision(device)) for _ in range(2))
    times = []
    for _ in range(12):
        start = now(device)
        a @ b
        times.append(now(device) - start)
    return 2 * side**3 / statistics.median(times[2:])


def build(run: RunSpec, device: str) -> nn.Module:
    """The module that a run trains, with random weights."""
    if run.stage == "finetune":
        tokens = flop_count.knowledge_tokens(run)
        ids = synthetic.texts(1, max(2, tokens), run.model.vocab_size, torch.Generator().manual_seed(0))[0, :tokens]
        owner = torch.arange(tokens) // flop_count.CANDIDATE_TOKENS
        lengths = run.data.question_length, run.data.answer_length
        return FineTuning(AMiFForVQA(run.model, run.knowledge, ids, owner, None, *lengths)).to(device)
    special = (synthetic.CLS, synthetic.SEP)
    teacher_dim = synthetic.TEACHER_DIM if run.teacher else 0
    return Pretraining(AMiF(run.model), run.objective, run.stage, run.seed, special, teacher_dim).to(device)


def train(
    run: RunSpec, device: str, steps: int, compiled: bool = False, done: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Time `steps` optimiser steps of a run on one synthetic batch; a batch that does not fit is computed in parts.

    Returns `stage, batch, rows_at_once, text_length, compiled, seconds_per_step, samples_per_second, tflop_per_sample,
    tflop_per_second, peak_memory_gb` (of the GPU; None on a CPU) and `first_loss, last_loss`.
    """
    torch.manual_seed(run.seed)
    module = build(run, device).train()
    if compiled:
        compiling.compile_blocks(module)
    size, answer = run.train.batch_size, min(flop_count.ANSWER_TOKENS, run.data.answer_length)
    batch = (synthetic.questions(run, size, answer) if run.stage == "finetune" else synthetic.studies(run, size)).to(
        torch.device(device)
    )
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=run.train.learning_rate, weight_decay=0.01, fused=True)
    micro = MicroBatch(module, size, run.stage)

    def losses(part: Any, last: bool) -> dict[str, torch.Tensor]:
        with number_format(device):
            out = module(part)
        out["total"].backward()
        return out

    times, totals = [], []
    for number in range(WARM_UP + steps):
        if number == WARM_UP and device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # a step that did not fit is no measure of those that do
        start = now(device)
        out = micro.step(batch, losses)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(now(device) - start)
        totals.append(float(out["total"]))
        done()
    seconds = statistics.median(times[WARM_UP:])
    flop = flop_count.sample_flop(run)
    return {
        "stage": run.stage,
        "batch": size,
        "rows_at_once": micro.rows,
        "text_length": run.data.text_length,
        "compiled": compiled,
        "seconds_per_step": seconds,
        "samples_per_second": size / seconds,
        "tflop_per_sample": flop / 1e12,
        "tflop_per_second": size * flop / seconds / 1e12,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
        "first_loss": totals[0],
        "last_loss": totals[-1],
    }


@torch.inference_mode()
def answer(run: RunSpec, device: str, questions: int, repeats: int) -> dict[str, Any]:
    """Time the answering of `questions` at once: encode, fuse, rank `ANSWERS` candidates exactly. Seconds a question."""
    torch.manual_seed(run.seed)
    model = build(run, device).model.eval()
    batch = synthetic.questions(run, questions, 2).to(torch.device(device))
    candidates = synthetic.answers(ANSWERS, run.model.vocab_size)
    times = []
    for _ in range(WARM_UP + repeats):
        start = now(device)
        with number_format(device):
            memory, mask = model.encode(batch.images, batch.ids, batch.mask)
        rank_answers(model.decoder, memory.float(), mask, candidates)
        times.append(now(device) - start)
    seconds = statistics.median(times[WARM_UP:])
    rate = {"seconds_per_question": seconds / questions, "questions_per_second": questions / seconds}
    return {"questions": questions, "candidates": ANSWERS, **rate}


def projected(
    rates: dict[str, float], scale: str, text_length: int = 0, objective: str = "default"
) -> list[dict[str, Any]]:
    """Hours of the scale's tables at measured rates (FLOP/s by stage), every distinct run once: `table, objective, stage, runs,
    tflop_per_second, hours`.

    `headline` is the full model with one fine-tuning, with reports of `text_length` tokens where given; a table has its
    question-only baselines too, and always the scale's own objective and reports. Answering and teachers are not in it.
    Under another of `OBJECTIVES` the headline alone is projected. Raises ImportError where the manifests cannot be read
    (pandas).
    """
    from amif_lib.app import cost_model
    from amif_lib.reporting import table_rows

    plans = {"headline": list(lineage(scale, text_length, objective).values())}
    for table in experiments.scale_settings(scale)["tables"] if objective == "default" else ():
        plans[table] = [each for run in table_rows.required_runs(table, scale) for each in run.lineage()]
    rows = []
    for table, runs in plans.items():
        distinct = {run.run_id: run for run in runs}
        for stage in STAGES:
            own = [run for run in distinct.values() if run.stage == stage]
            hours = sum(cost_model.training_flop(run) for run in own) / rates[stage] / 3600
            about = {"table": table, "objective": objective, "stage": stage, "runs": len(own)}
            rows.append(about | {"tflop_per_second": rates[stage] / 1e12, "hours": hours})
    return rows


BOUND_HOURS = {"default": 13, "cheapest": 9}  # of one H100, for the whole pre-training: what the kit aims at


def write_schedule(folder: Path, scale: str = "paper") -> Path:
    """`schedule.csv`: the operations of a scale's pre-training under each of `OBJECTIVES`, and the rate that `BOUND_HOURS` ask for.

    Arithmetic: no rate is measured. Columns `scale, objective, text_length, exaflop_stage1, exaflop_stage2, exaflop,
    bound_hours, tflop_per_second_for_bound`.
    """
    from amif_lib.app import cost_model

    rows = []
    for name, bound in BOUND_HOURS.items():
        runs = lineage(scale, 0, name)
        one, two = (cost_model.training_flop(runs[stage]) for stage in ("stage1", "stage2"))
        about = {"scale": scale, "objective": name, "text_length": runs["stage2"].data.text_length}
        flop = {"exaflop_stage1": one / 1e18, "exaflop_stage2": two / 1e18, "exaflop": (one + two) / 1e18}
        rows.append({**about, **flop, "bound_hours": bound, "tflop_per_second_for_bound": (one + two) / bound / 3.6e15})
    return _csv(folder / "schedule.csv", rows)


def machine(device: str) -> dict[str, str | int]:
    """Hardware and versions that the numbers hang on."""
    found: dict[str, str | int] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, {os.cpu_count()} cores"
    }
    found["precision"] = str(precision(device)).removeprefix("torch.")
    if device == "cpu":
        found["threads"] = torch.get_num_threads()
    for name in ("torch", "transformers", "accelerate"):
        found[name] = metadata.version(name)
    return found


def write(
    folder: Path,
    scale: str = "paper",
    device: str = "",
    steps: int = 5,
    batch: int = 0,
    text_length: int = 0,
    ways: tuple[bool, ...] = (False,),
    stages: tuple[str, ...] = STAGES,
    questions: tuple[int, ...] = (1, 64),
    objectives: tuple[str, ...] = ("default",),
) -> list[Path]:
    """Measure and write `training.csv`, `answering.csv` and, where it can be, `hours.csv`; returns the files.

    `ways` says for each round whether the blocks are compiled; `batch` and `text_length` of 0 are the scale's; `objectives`
    names some of `OBJECTIVES`, which differ in the pre-training alone.
    Raises InputError for an unknown scale or a device that is not there.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no GPU here; leave it out, or give cpu")
    plan = [(name, stage) for name in objectives for stage in stages if name == objectives[0] or stage != "finetune"]
    runs = {}
    for name in objectives:
        for stage, run in lineage(scale, text_length, name).items():
            own = run.model_copy(update={"train": run.train.model_copy(update={"batch_size": batch})}) if batch else run
            runs[name, stage] = own
    rate, here = matmul_rate(device), machine(device)
    bar = progress.bar(len(plan) * len(ways) * (WARM_UP + steps) + len(questions), "timing training and answering")
    trained, answered = [], []
    for name, stage in plan:
        for compiled in ways:
            with compiling.compiled_transport(compiled):
                found = train(runs[name, stage], device, steps, compiled, bar.step)
            found |= {"matmul_tflop_per_second": rate / 1e12}
            found |= {"share_of_matmul_rate": found["tflop_per_second"] / found["matmul_tflop_per_second"]}
            trained.append({"scale": scale, "objective": name, **found, **here})
            if device == "cuda":
                torch.cuda.empty_cache()
    for count in questions:
        answered.append({"scale": scale, **answer(runs[objectives[0], "finetune"], device, count, steps), **here})
        bar.step()
    bar.close()
    files = [_csv(folder / "training.csv", trained), _csv(folder / "answering.csv", answered)]
    if set(stages) == set(STAGES):
        best: dict[tuple[str, str], float] = {}
        for row in trained:
            key, found = (row["objective"], row["stage"]), row["tflop_per_second"] * 1e12
            best[key] = max(best.get(key, 0.0), found)
        rates = {name: {s: best.get((name, s), best.get((objectives[0], s))) for s in STAGES} for name in objectives}
        try:
            hours = [row | here for name in objectives for row in projected(rates[name], scale, text_length, name)]
        except ImportError as missing:
            print(f"hours are not projected: {missing}; install the light set of the README, or run it elsewhere with")
            for name in objectives:
                own = json.dumps(rates[name])
                length = f" --text-length {text_length}" if text_length else ""
                print(f"  python -m amif_lib.app.benchmark --scale {scale} --objective {name}{length} --rates '{own}'")
        else:
            files.append(_csv(folder / "hours.csv", hours))
    return files


def write_hours(
    folder: Path, rates: dict[str, float], scale: str, text_length: int = 0, objective: str = "default"
) -> Path:
    """`hours.csv` (`hours_cheapest.csv`) from rates that another machine measured."""
    name = "hours.csv" if objective == "default" else f"hours_{objective}.csv"
    return _csv(folder / name, projected(rates, scale, text_length, objective))


def _csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    from amif_lib.core.files import write_aside

    shown = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    with write_aside(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(shown[0]))
        writer.writeheader()
        writer.writerows(shown)
    return path
