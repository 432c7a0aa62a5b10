"""One folder per method: its settings, network, stages and maps. This registry finds a method by the name in a run."""

from __future__ import annotations

import importlib
from types import ModuleType

from amif_lib.core.errors import InputError

METHODS = {"amif": "amif_lib.methods.amif", "arl": "amif_lib.methods.arl", "mlip": "amif_lib.methods.mlip"}


def settings(method: str) -> ModuleType:
    """The method's settings module, without torch: `SECTIONS`, `STAGES` and `not_read(run)`."""
    return importlib.import_module(f"{_path(method)}.settings")


def load(method: str) -> ModuleType:
    """The method itself: `build`, `extras`, `save`, `model`, `zero_shot` and, if it has them, `maps`."""
    return importlib.import_module(_path(method))


def _path(method: str) -> str:
    if method not in METHODS:
        raise InputError(f"method {method!r}: unknown; choose one of {', '.join(METHODS)}")
    return METHODS[method]
