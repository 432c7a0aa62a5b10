"""`make doctor`: what this machine has, what it can run, and what to do about what is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from amif_lib.core import paths
from amif_lib.experiments import rows as experiments

# Rough needs of one training at a time, in GB: main memory, free disk, memory of one GPU (0: none needed).
NEEDS = {"demo": (2, 1, 0), "small": (4, 2, 0), "base": (32, 60, 22), "paper": (64, 200, 38)}
PACKAGES = ("torch", "transformers", "accelerate", "open_clip_torch", "jupyterlab", "papermill", "snakemake")


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter, "" for those that are not installed."""
    found = dict.fromkeys(PACKAGES, "")
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> dict[str, float]:
    """GPUs that torch can use, with their memory in GB; torch, whose import takes seconds, is asked if a driver is."""
    driver = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi")
    if not driver or importlib.util.find_spec("torch") is None:
        return {}
    import torch

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {f"{index}: {device.name}": device.total_memory / 1e9 for index, device in enumerate(devices)}


@cache
def needs_of(scale: str) -> tuple[list[str], list[str]]:
    """Names of the data sets and of the pre-trained weights that a scale's runs read."""
    from amif_lib.app import jobs

    runs = jobs.make_plan(jobs.Request(scale)).runs.values()
    sources = {s for run in runs for s in (run.init.image, run.init.text, run.init.decoder, run.init.tokenizer)}
    sources |= {run.teacher.source for run in runs if run.teacher}
    data = {name for run in runs for name in experiments.data_sets(run)}
    return sorted(data), sorted(sources - {"random", "trained", "teacher"})


def obstacles(scale: str, devices: dict[str, float]) -> list[str]:
    """Why a scale cannot run here, each with its remedy; empty where it can."""
    from amif_lib.data import check

    memory, disk, gpu = NEEDS[scale]
    missing = [name for name, version in versions().items() if not version]
    out = [f"not installed: {', '.join(missing)} (make env)"] if missing else []
    total, free = psutil.virtual_memory().total / 1e9, shutil.disk_usage(paths.ROOT).free / 1e9
    if total < memory:
        out.append(f"{total:.0f} GB of memory, about {memory} GB needed")
    if free < disk:
        out.append(f"{free:.0f} GB of disk free, about {disk} GB needed: set AMIF_RESULTS to a larger disk")
    if gpu and not any(size >= gpu for size in devices.values()):
        out.append(f"no GPU with {gpu} GB or more that torch can use")
    if absent := [name for name in needs_of(scale)[0] if check.presence(name)[0] != "found"]:
        out.append(f"data sets not found: {', '.join(absent)} (make data SCALE={scale} fetches the open ones)")
    return out


def summary(devices: dict[str, float]) -> list[str]:
    """The machine, and what of each scale it can run, a line each."""
    memory, free = psutil.virtual_memory().total / 1e9, shutil.disk_usage(paths.ROOT).free / 1e9
    gpu = ", ".join(f"GPU {name} ({size:.0f} GB)" for name, size in devices.items()) or "no GPU that torch can use"
    out = [f"this machine: {platform.system()}, {cores()} cores, {memory:.0f} GB of memory, {free:.0f} GB free, {gpu}"]
    for scale in NEEDS:
        reasons = obstacles(scale, devices)
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        out.append(f"SCALE={scale}: " + (f"not yet: {reasons[0]}{more}" if reasons else "yes, make reproduce"))
        out[-1] += f" SCALE={scale}" if not reasons and scale != "demo" else ""
    return out


def main(all: bool = False) -> int:
    """Print the report, `all` of it or in short. Exit status 0: what is missing is an answer, not a failure."""
    devices = gpus()
    print("\n".join(summary(devices)))
    if not all:
        print("in full: make doctor ALL=1")
        return 0
    print(f"python {platform.python_version()}, {sys.executable}")
    print("packages: " + ", ".join(f"{name} {version}" for name, version in versions().items() if version))
    print(f"data: {paths.shown(paths.data_root())} (DATA_ROOT)")
    for scale in NEEDS:
        print("".join(f"SCALE={scale}: {reason}\n" for reason in obstacles(scale, devices)), end="")
        if sources := needs_of(scale)[1]:
            print(f"SCALE={scale}: weights that it starts from: {', '.join(sources)}")
    return 0
