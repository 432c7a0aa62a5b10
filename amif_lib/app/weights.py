"""Pre-trained weights and tokenizers that a scale's runs load; `make data` fetches them, so that they train offline."""

from __future__ import annotations

import importlib.util
import sys

from amif_lib.app import doctor
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments.identity import settings_read

STARTS = ("init.image", "init.text", "init.decoder", "init.tokenizer")


def of_scale(scale: str) -> list[str]:
    """What a scale's runs load, by the names that `networks.pretrained` reads."""
    sources = set()
    for run in doctor.runs_of(scale):
        read = settings_read(run)
        sources |= {value for name, value in read.items() if name in STARTS}
        teacher = read.get("teacher.source", "trained")
        sources.add(teacher if teacher.startswith(("trained", "file:")) else run.teacher.weights)
    return sorted(sources - {"random", "trained", "teacher"})


def fetch(scale: str, dry_run: bool) -> int:
    """Fetch into the cache HF_HOME what is not there yet, and print a line for each; exit status 1 if one failed."""
    failed, sources = 0, of_scale(scale)
    if sources and not dry_run and importlib.util.find_spec("torch") is None:
        raise InputError(f"weights of SCALE={scale} are fetched with torch, which is not installed; run `make env`")
    for source in sources:
        said = f"weights {source}"
        try:
            if source.startswith("file:"):
                said += ": read from DATA_ROOT, not fetched (see amif_lib/data/vectors.py)"
            elif not dry_run:
                _fetch(source)
                said += ": here"
            print(said, flush=True)
        except InputError as error:
            failed = 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    return failed


def _fetch(source: str) -> None:
    from amif_lib.networks import pretrained

    if source.startswith(pretrained.OPEN_CLIP):  # which of its files are elsewhere is known when it is loaded
        pretrained.load_open_clip(source.removeprefix(pretrained.OPEN_CLIP))
    elif not paths.of_setting(source).is_file():  # else a .pth file
        pretrained.find(source)
