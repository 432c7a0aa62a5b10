"""The state from which an interrupted training resumes: one file, replaced only by a complete new one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amif_lib.core import files
from amif_lib.core.errors import InputError
from amif_lib.objectives.distributed import gather_objects, rank, world_size

log = logging.getLogger(__name__)
STATE = "state.pt"  # in the run's folder


def save(folder: Path, module: nn.Module, optimizer: Any, schedule: Any, step: int, seconds: float) -> None:
    """Store what is needed to resume at `step`. If the disk is full, warn and keep the previous state."""
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    randoms = gather_objects((torch.get_rng_state(), gpu))
    if rank() != 0:
        return
    content = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    content |= {"step": step, "seconds": seconds, "random": randoms}  # each process has its own random state
    try:
        with files.atomic_write(folder / STATE) as aside:
            torch.save(content, aside)
    except (InputError, RuntimeError) as error:  # the latter is how torch says that a disk is full
        log.warning("the training continues, but its state could not be stored (%s)", error)


def restore(folder: Path, module: nn.Module, optimizer: Any, schedule: Any) -> tuple[int, float]:
    """Load the state that `save` stored; returns the next step and the seconds spent so far, (0, 0) without a state."""
    path = folder / STATE
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in {"module": module, "optimizer": optimizer, "schedule": schedule}.items():
        part.load_state_dict(state[name])
    stored = len(state["random"])
    if stored != world_size():
        log.warning("started with %d processes, resumed with %d: dropout draws will differ", stored, world_size())
    cpu, gpu = state["random"][rank() % stored]
    torch.set_rng_state(cpu)
    if gpu is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(gpu)
    log.info("continuing at step %d", state["step"])
    return state["step"], state["seconds"]


def remove(folder: Path) -> None:
    """Remove the state of a finished training, and the temporary file of a `save` that was killed."""
    for path in (folder / STATE, *folder.glob(f".{STATE}.*")):
        path.unlink(missing_ok=True)
