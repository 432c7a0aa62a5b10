"""How cost grows: seconds over batch size, candidates, answer length, image size, processes and corpus size.

Trainings and rankings are those of a scale's network on synthetic inputs, one thread each, processor time; where several
processes work together, forward and backward alone, by the clock. The corpus is generated in MedICaT's layout, a JSON Lines
file and a folder of image names, and read, tokenised and cut into an epoch's batches as training does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from amif_lib.app.benchmarks import synthetic, training
from amif_lib.app.benchmarks.feed import machine, one_thread
from amif_lib.core import paths, progress
from amif_lib.core.files import write_aside
from amif_lib.data.readers import medicat
from amif_lib.experiments.rows import RunSpec
from amif_lib.networks import tokenizers
from amif_lib.networks.ranking import rank_answers
from amif_lib.objectives.distributed import own_rows
from amif_lib.training.batches import global_batches
from amif_lib.training.launch import free_port

# What each curve runs over.
RANGES: dict[str, tuple[int, ...]] = {
    "batch size": (8, 16, 32, 64, 128),
    "image size": (64, 96, 128, 192, 256),
    "candidates": (32, 128, 512, 2048, 3225),
    "answer length": (2, 4, 8, 16, 32),
    "processes": (1, 2, 4),
    "corpus size": (1_000, 10_000, 100_000, 500_000),
}
UNITS = {
    "batch size": "samples",
    "image size": "pixels a side",
    "candidates": "answers",
    "answer length": "tokens",
    "processes": "processes, 32 samples in all",
    "corpus size": "studies",
}
WORDS = 25  # in a generated caption; MedICaT's mean is not known here


def write(scale: str, ranges: dict[str, Sequence[int]] = RANGES, repeats: int = 3, network: str = "demo") -> Path:
    """Measure all curves with the network of the scale `network`; writes and returns the CSV.

    Columns `curve, x, unit, what, seconds` and the machine's.
    """
    target = paths.scale_dir(scale) / "benchmarks" / "growth.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    runs = training.lineage(network)
    bar = progress.bar(sum(map(len, ranges.values())), "timing how cost grows")
    rows: list[dict[str, Any]] = []
    for curve, values in ranges.items():
        for x in values:
            found = CURVES[curve](runs, x, repeats)
            rows += [
                {"curve": curve, "x": x, "unit": UNITS[curve], "what": what, "seconds": seconds}
                for what, seconds in found.items()
            ]
            bar.step()
    bar.close()
    frame = pd.DataFrame(rows).assign(network=network, **machine())
    with write_aside(target) as aside:
        frame.to_csv(aside, index=False)
    return target


def median(act: Callable[[], object], repeats: int) -> float:
    """Processor seconds of one call, of `repeats` after one that is not counted."""
    act()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        act()
        times.append(time.process_time() - start)
    return float(np.median(times))


def step(run: RunSpec, repeats: int) -> float:
    """Seconds of an optimiser step."""
    with one_thread():
        return float(training.train(run, "cpu", repeats)["seconds_per_step"])


def over_batch_size(runs: dict[str, RunSpec], x: int, repeats: int) -> dict[str, float]:
    return {
        f"{stage}, a step": step(
            run.model_copy(update={"train": run.train.model_copy(update={"batch_size": x})}), repeats
        )
        for stage, run in runs.items()
    }


def over_image_size(runs: dict[str, RunSpec], x: int, repeats: int) -> dict[str, float]:
    """Steps of 8 samples."""
    out = {}
    for stage in ("stage1", "stage2"):
        model = runs[stage].model.model_copy(update={"image_size": x})
        train = runs[stage].train.model_copy(update={"batch_size": 8})
        out[f"{stage}, a step"] = step(runs[stage].model_copy(update={"model": model, "train": train}), repeats)
    return out


def _ranked(run: RunSpec, candidates: list[list[int]], repeats: int) -> float:
    torch.manual_seed(0)
    model = training.build(run, "cpu").model.eval()
    batch = synthetic.questions(run, 4, 2)
    with torch.inference_mode(), one_thread():
        memory, mask = model.encode(batch.images, batch.ids, batch.mask)
        return median(lambda: rank_answers(model.decoder, memory, mask, candidates), repeats) / 4


def over_candidates(runs: dict[str, RunSpec], x: int, repeats: int) -> dict[str, float]:
    run = runs["finetune"]
    answers = synthetic.more_answers(x, run.model.vocab_size)
    return {"ranking, a question": _ranked(run, answers, repeats)}


def over_answer_length(runs: dict[str, RunSpec], x: int, repeats: int) -> dict[str, float]:
    run = runs["finetune"]
    g = torch.Generator().manual_seed(x)
    answers = synthetic.texts(121, x + 1, run.model.vocab_size, g).tolist()  # without common beginnings
    return {"ranking, a question": _ranked(run, answers, repeats)}


def over_processes(runs: dict[str, RunSpec], x: int, repeats: int) -> dict[str, float]:
    """Clock seconds of a step of one global batch of 32 samples, shared by x processes of one thread each."""
    out = {}
    for stage in ("stage1", "stage2"):
        with tempfile.TemporaryDirectory() as folder:
            spec, found = Path(folder) / "run.json", Path(folder) / "seconds.json"
            train = runs[stage].train.model_copy(update={"batch_size": 32})
            spec.write_text(runs[stage].model_copy(update={"train": train}).model_dump_json(), encoding="utf-8")
            launcher = ["torch.distributed.run", "--nproc_per_node", str(x), "--master_addr", "127.0.0.1"]
            launcher += ["--master_port", str(free_port()), "-m"]
            subprocess.run(
                [sys.executable, "-m", *launcher, __name__, str(spec), str(found), str(repeats)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
                timeout=600,
            )
            out[f"{stage}, forward and backward"] = json.loads(found.read_text(encoding="utf-8"))
    return out


def generate_corpus(folder: Path, count: int) -> list[str]:
    """Write `count` figures in MedICaT's layout to `folder`, image files empty; returns the first 2,000 captions."""
    rng = random.Random(count)
    words = [f"{rng.choice(('opac', 'nodul', 'effus', 'fract', 'mass', 'lesion'))}{i}" for i in range(20_000)]
    (folder / "figures").mkdir(parents=True)
    captions = []
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            caption = " ".join(words[min(int(rng.paretovariate(0.7)), len(words)) - 1] for _ in range(WORDS))
            record = {"pdf_hash": f"{number // 3:08x}", "fig_uri": f"{number}.jpg", "radiology": True}
            file.write(json.dumps(record | {"s2_caption": caption}) + "\n")
            (folder / "figures" / f"{number // 3:08x}_{number}.jpg").touch()
            captions += [caption] if number < 2000 else []
    return captions


def over_corpus_size(runs: dict[str, RunSpec], x: int, repeats: int) -> dict[str, float]:
    """The data side, once each: reading the records, tokenising the reports, an epoch's batches of 256."""
    seconds = {}

    def timed(what: str, act: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = act()
        seconds[what] = time.process_time() - start
        return found

    with tempfile.TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        captions = generate_corpus(folder / "set", x)
        tokenizer = tokenizers.train(captions, 4000, folder / "tokenizer")
        layout = {"annotations": "records.jsonl", "images": "figures"}
        studies = timed("reading records", lambda: medicat.read(folder / "set", layout))
        texts = [study.text for study in studies]
        timed("tokenising reports", lambda: tokenizer(texts, truncation=True, max_length=64))
        timed("an epoch's batches", lambda: global_batches(len(studies), min(256, x), 0, 0, None, drop_last=True))
    return seconds


CURVES: dict[str, Callable[[dict[str, RunSpec], int, int], dict[str, float]]] = {
    "batch size": over_batch_size,
    "image size": over_image_size,
    "candidates": over_candidates,
    "answer length": over_answer_length,
    "processes": over_processes,
    "corpus size": over_corpus_size,
}


def main() -> None:
    """One of several processes of `over_processes`: times steps of its share of a global batch."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("repeats", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run = RunSpec.model_validate_json(given.spec.read_text(encoding="utf-8"))
    size = run.train.batch_size
    whole = synthetic.studies(run, size)
    rows = own_rows(size)
    part = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in vars(whole).items()}
    module = DistributedDataParallel(training.build(run, "cpu").train(), find_unused_parameters=True)
    times = []
    for _ in range(training.WARM_UP + given.repeats):
        dist.barrier()
        start = time.perf_counter()
        module(type(whole)(**part))["total"].backward()
        module.zero_grad()
        dist.barrier()
        times.append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        given.out.write_text(json.dumps(float(np.median(times[training.WARM_UP :]))), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
