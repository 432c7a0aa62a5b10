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
from amif_lib.data import check
from amif_lib.experiments import identity
from amif_lib.experiments.run_spec import RunSpec

# Rough needs of one training at a time, in GB: main memory, free disk, memory of one GPU (0: none needed).
NEEDS = {"demo": (2, 1, 0), "small": (4, 2, 0), "base": (32, 60, 22), "paper": (64, 200, 38)}
PACKAGES = ("torch", "transformers", "accelerate", "open_clip_torch", "jupyterlab", "papermill", "snakemake")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disk() -> float:
    """GB free where results go, or will go."""
    results = paths.results()
    return shutil.disk_usage(next(folder for folder in (results, *results.parents) if folder.exists())).free / 1e9


def gpus() -> dict[str, float]:
    """GPUs that torch can use, with their memory in GB; without a driver torch, which loads slowly, is not asked."""
    driver = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi")
    if not driver or importlib.util.find_spec("torch") is None:
        return {}
    import torch

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {f"{index}: {device.name}": device.total_memory / 1e9 for index, device in enumerate(devices)}


def versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def runs_of(scale: str) -> list[RunSpec]:
    """All runs of a scale's tables."""
    from amif_lib.app import jobs

    return list(jobs.make_plan(jobs.Request(scale)).runs.values())


def data_sets(scale: str) -> list[str]:
    """Names of the data sets that a scale's runs read."""
    return sorted({name for run in runs_of(scale) for name in identity.data_sets(run)})


def obstacles(scale: str, devices: dict[str, float]) -> list[str]:
    """Reasons why a scale cannot run on this machine with these GPUs, each with its remedy; [] if it can."""
    memory, disk, gpu = NEEDS[scale]
    packages = [name for name in PACKAGES if name not in versions()]
    out = [f"not installed: {', '.join(packages)} (make env)"] if packages else []
    total, free = psutil.virtual_memory().total / 1e9, free_disk()
    if total < memory:
        out.append(f"{total:.0f} GB of memory, about {memory} GB needed")
    if free < disk:
        out.append(f"{free:.0f} GB of disk free, about {disk} GB needed: set AMIF_RESULTS to a larger disk")
    if gpu and not any(size >= gpu for size in devices.values()):
        out.append(f"no GPU with {gpu} GB or more that torch can use")
    if absent := [name for name in data_sets(scale) if check.presence(name)[0] != "found"]:
        out.append(f"data sets not found: {', '.join(absent)} (make data SCALE={scale} fetches the open ones)")
    return out


def report() -> list[str]:
    """Lines about the machine, then for each scale whether it can run here and what it lacks; at most 25."""
    devices = gpus()
    memory, free = psutil.virtual_memory().total / 1e9, free_disk()
    gpu = ", ".join(f"GPU {name} ({size:.0f} GB)" for name, size in devices.items()) or "no GPU that torch can use"
    out = [
        f"this machine: {platform.system()}, {cores()} cores, {memory:.0f} GB of memory, {free:.0f} GB free, {gpu}",
        f"python {platform.python_version()}: {sys.executable}",
        f"data: {paths.shown(paths.data_root())} (DATA_ROOT)",
    ]
    for scale in NEEDS:
        reasons = obstacles(scale, devices)
        out.append(f"SCALE={scale}: not yet" if reasons else f"SCALE={scale}: yes, make reproduce SCALE={scale}")
        out += [f"  {reason}" for reason in reasons]
    return out


def main(all: bool = False) -> None:
    """Print the report; with `all` also versions and weights. Something missing is no failure: the exit status is 0."""
    print("\n".join(report()))
    if all:
        from amif_lib.app import weights

        print("packages: " + ", ".join(f"{name} {version}" for name, version in versions().items()))
        for scale in NEEDS:
            print(f"SCALE={scale} starts from weights: {', '.join(weights.of_scale(scale)) or 'none'}")
