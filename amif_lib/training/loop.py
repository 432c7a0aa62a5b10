"""One training loop for stage 1, stage 2 and fine-tuning, under Accelerate, on one process or many.

`run_spec(spec)` trains a run and fills its directory; `python -m amif_lib.training.loop --spec RUN.json` is the same as a program
that `accelerate launch` or `torchrun` starts once per process. A run that was cut off continues from its last training state.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from amif_lib.core import files, progress
from amif_lib.core.errors import InputError
from amif_lib.data import redistribution
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import RunSpec
from amif_lib.objectives import collapse as monitor
from amif_lib.objectives.distributed import agreed, gather_objects, rank, world_size
from amif_lib.training import compiling, predict
from amif_lib.training.batches import global_batches, loader, share
from amif_lib.training.determinism import deterministic
from amif_lib.training.launch import FEWER_ROWS, asked_workers
from amif_lib.training.micro_batch import MicroBatch, TooManyRows
from amif_lib.training.prepare import Prepared, prepare

log = logging.getLogger(__name__)

WEIGHT_DECAY, BETAS, CLIP_NORM = 0.01, (0.9, 0.98), 1.0  # M3AE's
DISTRIBUTED = {"find_unused_parameters": True}  # some settings leave weights out, such as the gate of Table 4 row 5


def epoch_batches(prepared: Prepared, spec: RunSpec, epoch: int) -> list[list[int]]:
    """Sample indices of every global batch of an epoch."""
    return global_batches(
        len(prepared.data),
        spec.train.batch_size,
        spec.seed,
        epoch,
        prepared.folds,
        drop_last=spec.stage != "finetune",
        sources=getattr(prepared.data, "sources", None),
    )


def epoch_keys(prepared: Prepared, spec: RunSpec, first_step: int) -> Iterator[tuple[int, int, list[tuple]]]:
    """(epoch, step, this process's sample keys) of every step from `first_step` on."""
    step = 0
    for epoch in range(spec.train.epochs):
        for batch in epoch_batches(prepared, spec, epoch):
            if step >= first_step:
                own, weights = share(batch)
                keys = [
                    (step, i) if spec.stage != "finetune" else (step, i, w, len(batch))
                    for i, w in zip(own, weights, strict=True)
                ]
                yield epoch, step, keys
            step += 1


def total_steps(prepared: Prepared, spec: RunSpec) -> int:
    steps = len(epoch_batches(prepared, spec, 0)) * spec.train.epochs
    return min(steps, spec.train.max_steps) if spec.train.max_steps else steps


def make_optimizer(
    module: nn.Module, spec: RunSpec, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with warm-up; no decay on norms, biases and embeddings' positions; a factor on modules that start at random."""
    t = spec.train
    fresh = ("co_attention", "pair_head", "gated_cross_attention", "decoder", "projection", "mlm_head")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, any(part in name for part in fresh)), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": WEIGHT_DECAY if decays else 0.0,
                "lr": t.learning_rate * (t.fusion_multiplier if new else 1),
            }
            for (decays, new), parameters in groups.items()
        ],
        betas=BETAS,
        fused=True,
    )
    warm = max(1, round(t.warmup * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return (steps - step) / max(1, steps - warm)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def across_processes(out: dict[str, torch.Tensor], device: torch.device) -> dict[str, float]:
    """The step's numbers by name, in one message: counts add up over processes, the rest are means of equal shares."""
    counts = torch.tensor([name.startswith("skipped_") for name in out])
    values = torch.stack([value.detach().float().to(device) for value in out.values()])  # (names,)
    if world_size() > 1:
        dist.all_reduce(values)
    values = values.cpu()
    return dict(zip(out, torch.where(counts, values, values / world_size()).tolist(), strict=True))


def forward_and_backward(accelerator: Any, module: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    """Losses of a batch with gradients, exchanged with no other process: to see whether it fits into memory."""
    with accelerator.autocast():
        out = module(batch)
    add_total(module, out)["total"].backward()
    return out


def add_total(module: nn.Module, out: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The named losses with what is minimised: their sum with the module's weights."""
    out["total"] = sum(weight * out[name] for name, weight in module.weights.items())
    return out


def to_come(spec: RunSpec, module: nn.Module) -> int:
    """Bytes that a first step without other processes does not need yet: AdamW's moments, and tokens gathered from them."""
    moments = sum(8 * p.numel() for p in module.parameters() if p.requires_grad)
    if spec.stage == "finetune":
        return moments
    tokens = (spec.model.image_size // spec.model.patch_size) ** 2 + 1 + spec.data.text_length
    others = spec.train.batch_size - spec.train.batch_size // world_size()
    return moments + others * tokens * spec.model.width * 4 * 2  # fp32, and its gradient


@deterministic()
def run_spec(spec: RunSpec) -> Path:
    """Train a run to its end (from its last state, if it was cut off) and return its directory. Finished runs are left alone."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    if results.is_finished(spec):
        return spec.directory
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    if spec.train.precision == "fp16" and not on_gpu:
        raise InputError("train.precision: 'fp16' needs a GPU; set it to auto, fp32 or bf16")
    precision = {"auto": "bf16" if on_gpu else "no", "fp32": "no"}.get(spec.train.precision, spec.train.precision)
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=not on_gpu,
        kwargs_handlers=[DistributedDataParallelKwargs(**DISTRIBUTED)],
    )
    started = time.time()
    folder = spec.directory
    results.refuse_another(spec)
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(spec)
    steps = total_steps(prepared, spec)
    optimizer, schedule = make_optimizer(prepared.module, spec, steps)
    torch.manual_seed(spec.seed + 1000 * rank())  # dropout
    first_step, spent = restore(folder / "state", prepared.module, optimizer, schedule)
    if compiling.asked():
        compiling.compile_blocks(prepared.module)
    module, optimizer = accelerator.prepare(prepared.module, optimizer)
    module.train()
    micro = MicroBatch(prepared.module, -(-spec.train.batch_size // world_size()), spec.stage)
    if accelerator.is_main_process:
        write_json(folder / "spec.json", spec.model_dump(mode="json"))
        keep_lines(folder / "metrics.jsonl", first_step)
    bar = progress.bar(steps - first_step, f"{spec.stage} {spec.run_id}", show=accelerator.is_main_process)
    history, saved = [], time.time()
    plan = [item for item in epoch_keys(prepared, spec, first_step) if item[1] < steps]
    workers = asked_workers()
    if workers is None:
        workers = min(8, (os.cpu_count() or 2) // world_size()) if on_gpu else 0

    def losses(part: Any, last: bool) -> dict[str, torch.Tensor]:
        """Losses of a part of a batch, its gradients added to those of the parts before it; the last one's are exchanged."""
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            out = add_total(prepared.module, module(part))
            accelerator.backward(out["total"])
        return out

    for (epoch, step, _), batch in zip(
        plan, loader(prepared.data, [keys for _, _, keys in plan], workers), strict=True
    ):
        batch = batch.to(accelerator.device)
        if on_gpu and world_size() > 1 and step == first_step:
            micro.find(
                batch,
                lambda part: forward_and_backward(accelerator, prepared.module, part),
                to_come(spec, prepared.module),
            )
        out = micro.step(batch, losses)
        norm = accelerator.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        line = {"step": step, "epoch": epoch, "learning_rate": schedule.get_last_lr()[0], "gradient_norm": float(norm)}
        schedule.step()
        line |= across_processes(out, accelerator.device)
        if not math.isfinite(line["total"]):
            raise InputError(
                f"run {spec.run_id}: the loss is {line['total']} at step {step}; lower train.learning_rate"
            )
        history.append(line)
        if accelerator.is_main_process:
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        bar.step(1, loss=line["total"])
        if step + 1 < steps and agreed(time.time() - saved > 120):
            store(
                folder / "state",
                accelerator.unwrap_model(module),
                optimizer,
                schedule,
                step + 1,
                spent + time.time() - started,
            )
            saved = time.time()
    bar.close()
    accelerator.wait_for_everyone()
    finish(
        spec,
        prepared,
        accelerator.unwrap_model(module),
        read_lines(folder / "metrics.jsonl") or history,
        spent + time.time() - started,
        steps,
    )
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return folder


def finish(
    spec: RunSpec,
    prepared: Prepared,
    module: nn.Module,
    history: list[dict[str, Any]],
    seconds: float,
    steps: int,
) -> None:
    """Write weights, predictions and metrics; provenance comes last, since it says that the run is whole."""
    folder, main = spec.directory, rank() == 0
    metrics: dict[str, Any] = {
        "stage": spec.stage,
        "steps": steps,
        "samples": steps * spec.train.batch_size,
        "train_time_s": round(seconds, 1),
        **prepared.notes,
    }
    last = history[-max(1, len(history) // spec.train.epochs) :]
    metrics["last_epoch"] = {
        name: sum(line[name] for line in last) / len(last)
        for name in last[0]
        if name not in ("step", "epoch") and all(name in line for line in last)
    }
    watched = [line for line in history if any(name.startswith("collapse/") for name in line)]
    if watched:
        metrics["collapse"] = {
            name.removeprefix("collapse/"): watched[-1][name] for name in watched[-1] if name.startswith("collapse/")
        }
        metrics["collapse"]["verdict"] = monitor.verdict(metrics["collapse"])
        if main:
            log.info("transport: %s", metrics["collapse"]["verdict"])
    evaluated = time.time()
    if spec.stage == "finetune":
        model = module.model
        if main:
            model.save_pretrained(folder / "model")
        predict.predict(model, prepared.questions, spec, folder)
        if not spec.data.blank_images:  # the same model, blanked at test time only
            predict.predict(model, prepared.questions, spec, folder / "blank_test", blank=True)
        metrics["evaluation_time_s"] = round(time.time() - evaluated, 1)
    elif main:
        module.amif.save(folder / "model")
        prepared.tokenizer.save_pretrained(folder / "model")
    if main:
        redistribution.mark(spec)
        write_json(folder / "metrics.json", metrics)
        spent = seconds + time.time() - evaluated
        write_json(folder / "provenance.json", results.provenance(spec, world_size(), spent))
        shutil.rmtree(folder / "state", ignore_errors=True)


# --- training state ----------------------------------------------------------------------------------------------


def store(folder: Path, module: nn.Module, optimizer: Any, schedule: Any, step: int, seconds: float) -> None:
    """Save what a cut-off run needs to go on; each process its own random state. Written aside, then renamed."""
    randoms = gather_objects(torch.get_rng_state())
    on_gpu = torch.cuda.is_available()
    gpu_randoms = gather_objects(torch.cuda.get_rng_state() if on_gpu else None)
    if rank() == 0:
        aside = folder.with_suffix(".part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        torch.save(
            {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step,
                "seconds": seconds,
                "random": randoms,
                "gpu_random": gpu_randoms,
            },
            aside / "training_state.pt",
        )
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)


def restore(folder: Path, module: nn.Module, optimizer: Any, schedule: Any) -> tuple[int, float]:
    """Load a state written by `store`: the next step and the seconds spent; (0, 0) where there is none."""
    path = folder / "training_state.pt"
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if len(state["random"]) != world_size():
        log.warning(
            "continuing a run of %d processes with %d: dropout draws differ from an uninterrupted run",
            len(state["random"]),
            world_size(),
        )
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    own = rank() % len(state["random"])
    torch.set_rng_state(state["random"][own])
    if torch.cuda.is_available() and state.get("gpu_random", [None])[own] is not None:
        torch.cuda.set_rng_state(state["gpu_random"][own])
    log.info("continuing at step %d", state["step"])
    return state["step"], state["seconds"]


def keep_lines(path: Path, steps: int) -> None:
    """Drop lines of steps that will be trained again."""
    kept = [line for line in read_lines(path) if line["step"] < steps]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def write_json(path: Path, content: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m amif_lib.training.loop", description="Train one run; start it once per process."
    )
    parser.add_argument("--spec", required=True, help="run file, or <scale>/<table>/<row>/<stage>")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for spec in experiments.load_spec(arguments.spec):
        try:
            run_spec(spec)
        except TooManyRows as error:  # for whoever started the processes, to start them again
            files.write_text(spec.directory / FEWER_ROWS, f"{error.fewer}\n")
            raise


if __name__ == "__main__":
    main()
