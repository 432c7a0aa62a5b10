"""Stored maps by their former name; read `experiments.stored_maps`."""

from amif_lib.experiments.stored_maps import (
    EXAMPLE_MAPS,
    HARD_NEGATIVES,
    MAPS,
    PICTURE,
    SOFT_LABELS,
    VERSION,
    Maps,
    read,
    read_arrays,
    write,
    write_arrays,
)

__all__ = [
    "EXAMPLE_MAPS",
    "HARD_NEGATIVES",
    "MAPS",
    "PICTURE",
    "SOFT_LABELS",
    "VERSION",
    "Maps",
    "read",
    "read_arrays",
    "write",
    "write_arrays",
]
