"""The training loop of every stage and method, under Accelerate, on one process or many.

With several processes, `torchrun` starts `python -m amif_lib.training.loop --spec RUN` once per process.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from amif_lib import methods
from amif_lib.core import files, progress
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.load import pretraining_studies
from amif_lib.experiments import own_loss, stored
from amif_lib.experiments.identity import data_sets
from amif_lib.experiments.own_loss import Loss
from amif_lib.experiments.rows import load_spec
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.objectives import collapse
from amif_lib.objectives.distributed import agreed, gather_objects, rank, world_size
from amif_lib.training import checkpoint, predict
from amif_lib.training.batches import loader, seed_of, steps_of
from amif_lib.training.gradient_cache import GradientCache
from amif_lib.training.launch import REFUSED, asked
from amif_lib.training.prepare import Prepared, prepare

log = logging.getLogger(__name__)

WEIGHT_DECAY, BETAS, CLIP_NORM = 0.01, (0.9, 0.98), 1.0  # M3AE's
WARM_UP = 0.1  # share of the steps with a rising learning rate (point 49)
SAVE_EVERY = 120  # seconds
LINES = "metrics.jsonl"  # one line per step


def fit(spec: RunSpec, loss: Loss | None = None) -> Path:
    """Train a run in this process, from its last stored state if it was interrupted, unless it is finished.

    `loss` replaces the method's own, for a run of `own_loss.with_loss`. Returns the run's directory. Raises InputError
    for what the user can correct, before the first step, and if the training diverges.
    """
    if stored.is_finished(spec):
        return spec.directory
    stored.refuse_another(spec)
    own_loss.check(spec, loss)
    accelerator, folder, started = start(spec), spec.directory, time.time()
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(spec)
    if loss:
        own_loss.replace(prepared.module, loss)
    plan = steps_of(prepared.data, spec)
    steps = len(plan)
    optimizer, schedule = make_optimizer(prepared.module, spec, steps)
    torch.manual_seed(seed_of(spec, 1, rank()))  # dropout
    first_step, spent = checkpoint.restore(folder, prepared.module, optimizer, schedule)
    history, saved, unlogged = history_before(folder, first_step), time.time(), False
    module, optimizer = accelerator.prepare(prepared.module.train(), optimizer)  # wrapped in DDP if several processes
    cache = GradientCache(prepared.module, -(-spec.train.batch_size // world_size()))
    if rank() == 0:
        files.write_json(folder / "spec.json", spec.model_dump(mode="json"))
        if loss:
            files.write_text(folder / "loss.py", f"{spec.own_loss}\n")
    bar = progress.bar(steps - first_step, f"{spec.stage} {spec.run_id}", show=rank() == 0)

    def forward_backward(batch: Any) -> dict[str, Tensor]:
        """The named losses of a batch and their weighted sum `total`; fills the gradients of `total`."""
        losses = module(batch)
        losses["total"] = sum(weight * losses[name] for name, weight in prepared.module.weights.items())
        accelerator.backward(losses["total"])
        return losses

    remaining = plan[first_step:]
    feed = loader(prepared.data, [keys for _, _, keys in remaining], workers())
    for (epoch, step, _), batch in zip(remaining, feed, strict=True):
        losses = cache.step(batch.to(accelerator.device), forward_backward)
        norm = accelerator.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(prepared.module, "after_step"):  # updates weights without gradients, such as moving averages
            losses |= prepared.module.after_step()
        line = {"step": step, "epoch": epoch, "learning_rate": schedule.get_last_lr()[0], "gradient_norm": float(norm)}
        line |= over_processes(losses)
        schedule.step()

        if not math.isfinite(line["total"]):
            what = f"the loss is {line['total']} at step {step}"
            raise InputError(f"run {spec.run_id}: {what}; lower train.learning_rate")
        history.append(line)
        if rank() == 0 and not unlogged:
            try:
                with (folder / LINES).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:  # such as a full disk
                unlogged = True  # nothing follows a line that may be torn; `finish` writes all of them
                log.warning("the training continues, but writes no more lines of %s (%s)", LINES, error)
        bar.step(1, loss=line["total"])

        if step + 1 < steps and agreed(time.time() - saved > SAVE_EVERY):
            checkpoint.save(folder, prepared.module, optimizer, schedule, step + 1, spent + time.time() - started)
            saved = time.time()
    bar.close()

    if odd := [name for name, value in prepared.module.named_parameters() if not value.isfinite().all()]:
        raise InputError(f"run {spec.run_id}: {odd[0]} is not finite after the last step; lower train.learning_rate")
    finish(spec, prepared, history, steps, spent + time.time() - started)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return folder


# --- before the loop ---------------------------------------------------------------------------------------------


def start(spec: RunSpec) -> Accelerator:
    """Accelerate with the device at hand and the run's precision; on a CPU equal runs give bitwise equal results."""
    gpu = torch.cuda.is_available()
    # Else some gradients are summed in the order in which threads finish. A GPU's attention has no deterministic form.
    torch.use_deterministic_algorithms(not gpu, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time and changes no result
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # such as the gate of Table 4 row 5
    bf16 = spec.train.precision == "bf16" or (spec.train.precision == "auto" and gpu)  # point 50
    return Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not gpu, kwargs_handlers=[unused])


def make_optimizer(
    module: nn.Module, spec: RunSpec, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with linear warm-up and decay; no weight decay on norms, biases and position tables; modules that start
    at random learn `fusion_multiplier` times as fast."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays, loaded = parameter.ndim > 1 and "position_embedding" not in name, hasattr(parameter, "loaded")
            groups.setdefault((decays, loaded), []).append(parameter)
    rate, factor = spec.train.learning_rate, spec.train.fusion_multiplier
    settings = [
        {"params": group, "weight_decay": WEIGHT_DECAY * decays, "lr": rate if loaded else rate * factor}
        for (decays, loaded), group in groups.items()
    ]
    optimizer = torch.optim.AdamW(settings, betas=BETAS, fused=True)
    warm = max(1, round(WARM_UP * steps))

    def share(step: int) -> float:
        return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def workers() -> int:
    """How many processes decode and augment ahead; 0: this one does it."""
    few = min(8, (os.cpu_count() or 2) // world_size()) if torch.cuda.is_available() else 0
    return few if (given := asked("AMIF_WORKERS", least=0)) is None else given


# --- in the loop -------------------------------------------------------------------------------------------------


def over_processes(losses: dict[str, Tensor]) -> dict[str, float]:
    """The step's values by name, over all processes: counts (`skipped_...`) are summed, the others averaged."""
    counts = torch.tensor([name.startswith("skipped_") for name in losses])
    device = losses["total"].device
    values = torch.stack([value.detach().float().to(device) for value in losses.values()])  # (names,)
    if world_size() > 1:
        dist.all_reduce(values)  # one message for all values
    values = values.cpu()
    return dict(zip(losses, torch.where(counts, values, values / world_size()).tolist(), strict=True))


def history_before(folder: Path, first_step: int) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` before `first_step`; later ones are dropped from the file, to be trained again."""
    lines = map(json.loads, files.whole_lines(folder / LINES))
    kept = [line for line in lines if line["step"] < first_step]
    if rank() == 0:
        files.write_text(folder / LINES, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


# --- after the loop ----------------------------------------------------------------------------------------------


def finish(spec: RunSpec, prepared: Prepared, history: list[dict[str, Any]], steps: int, seconds: float) -> None:
    """Write weights, predictions and metrics; provenance comes last, since it marks the run as finished."""
    folder, started = spec.directory, time.time()
    metrics = {"stage": spec.stage, "steps": steps, "samples": steps * spec.train.batch_size}
    metrics |= {"train_time_s": round(seconds, 1)} | prepared.notes | summary(history, spec.train.epochs)
    if rank() == 0:
        methods.load(spec.method).save(prepared.module, prepared.tokenizer, folder / "model")
        files.write_text(folder / LINES, "".join(json.dumps(line) + "\n" for line in history))
    if spec.stage == "finetune":
        model, questions = prepared.module.model, prepared.questions
        predict.predict(model, questions, spec, folder)
        if not spec.data.blank_images:  # the same model, shown something else at test time only
            predict.predict(model, questions, spec, folder / stored.BLANK_TEST, "blank")
            found = predict.predict(model, questions, spec, folder / stored.SHUFFLED_TEST, "shuffled")
            metrics["shuffled_left_out"] = metrics["test_questions"] - found
        metrics["evaluation_time_s"] = round(time.time() - started, 1)
    if rank() == 0:
        manifests.mark(folder, {name for step in spec.trainings() for name in data_sets(step)})
        files.write_json(folder / "metrics.json", metrics)
        spent = seconds + time.time() - started
        files.write_json(folder / "provenance.json", stored.provenance(spec, world_size(), spent))
        checkpoint.remove(folder)
    gather_objects(None)  # no process continues before all is written


def summary(history: list[dict[str, Any]], epochs: int) -> dict[str, Any]:
    """Means over the last epoch and, if transport was monitored, the last verdict on whether its plans collapsed."""
    last = history[-max(1, len(history) // epochs) :]
    names = [name for name in last[0] if name not in ("step", "epoch") and all(name in line for line in last)]
    out: dict[str, Any] = {"last_epoch": {name: sum(line[name] for line in last) / len(last) for name in names}}
    watched = [{k.removeprefix("collapse/"): v for k, v in line.items() if "collapse/" in k} for line in history]
    if found := [each for each in watched if each]:
        out["collapse"] = found[-1] | {"verdict": collapse.verdict(found[-1])}
        log.info("transport: %s", out["collapse"]["verdict"])
    return out


def main() -> None:
    """Train the runs that `--spec` names, in this process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--spec", required=True, help="run file, or <scale>/<table>/<row>/<stage>")
    only = "compute only what a method computes once before a training, such as a teacher's embeddings"
    parser.add_argument("--extras", action="store_true", help=only)
    asked_for = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for spec in load_spec(asked_for.spec):
        if asked_for.extras:
            methods.load(spec.method).extras(spec, pretraining_studies(spec.data, spec.model.stored_side), {})
        else:
            fit(spec)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"\n{REFUSED}{error}\n")  # a line of its own, whatever other processes are writing
