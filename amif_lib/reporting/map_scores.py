"""How well stored patch maps find the regions that their words name; the paper shows only pictures.

One measure for attention, transport plan and gate: the share of a map that is inside the region of the named finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import norm

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored_maps
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.experiments.stored_maps import MAPS, Maps
from amif_lib.reporting.table_rows import planned_rows

TABLES = ("table2", "table4")  # the ablations of stage 2 and of fine-tuning, whose rows are scored
COLUMNS = ["table", "row", "label", "stage", "map", "inside", "area", "elsewhere", "lead", "low", "high"]
COLUMNS += ["n", "n_images", "n_runs", "n_scores", "run_ids", "scale"]


def normalised(values: np.ndarray) -> np.ndarray:
    """Maps (n, s, s) with sum 1; InputError where one is negative, not finite or nothing but 0."""
    total = values.sum((1, 2), keepdims=True)
    if not (np.isfinite(values).all() and (values >= 0).all() and (total > 0).all()):
        raise InputError("maps must be finite, >= 0 and somewhere above 0; delete them and make them again")
    return values / total


def mass_inside(values: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Share of each map (n, s, s) inside each region, given as coverage of each cell (m, s, s): (n, m)."""
    return normalised(values).reshape(len(values), -1) @ coverage.reshape(len(coverage), -1).T


def score(values: np.ndarray, coverage: np.ndarray, images: Sequence[str]) -> dict[str, float]:
    """Mean share of n maps inside the region of their own image and of other images: values and coverage (n, s, s).

    `inside`: in the own region. `area`: the region's share of the image, which a constant map has inside. `elsewhere`:
    the share of the same map inside the regions of all other images, which is as large if a map always looks at the
    same place. `lead`: inside minus elsewhere. `error`: the lead's standard error over images, each with its maps and
    regions (infinitesimal jackknife; Efron, Journal of the Royal Statistical Society B 54, 1992).
    """
    share = mass_inside(values, coverage)  # (n, n): share of map i inside region j
    names, place = np.unique(images, return_inverse=True)
    if len(names) < 2:
        raise InputError("maps are all of one image, so that no other region can be compared; store maps of several")
    own, other = np.diagonal(share), place[:, None] != place  # (n,), (n, n)
    inside, elsewhere = own.mean(), share[other].mean()
    pairs = np.where(other, share - elsewhere, 0) / other.sum()  # (n, n)
    moves = (own - inside) / len(own) - pairs.sum(0) - pairs.sum(1)  # (n,): the lead, per unit of a question's weight
    by_image, count = np.bincount(place, moves), len(names)  # (C,)
    error = np.sqrt(count / (count - 1) * (by_image**2).sum())
    means = {"inside": inside, "area": coverage.mean(), "elsewhere": elsewhere, "lead": inside - elsewhere}
    return {name: float(value) for name, value in means.items()} | {"error": error, "n": len(own), "n_images": count}


# --- over the tables' rows ---


def with_maps(finetunings: Iterable[RunSpec], stage: str) -> list[str]:
    """The ids of a stage's runs that have maps, among the trainings behind these fine-tunings; each once."""
    ids = dict.fromkeys(run.run_id for each in finetunings for run in each.trainings() if run.stage == stage)
    return [run_id for run_id in ids if (paths.run_dir(run_id) / MAPS).is_file()]


def table(scale: str) -> pd.DataFrame:
    """One line per row, stage and kind of map of the rows of `TABLES` that have maps with regions, columns `COLUMNS`.

    Rows with the same runs are listed once. `low` and `high`: simultaneous 95% intervals of the lead for all `n_scores`
    lines (Bonferroni). Raises InputError if no run has maps with regions.
    """
    lines, known = [], set()
    for name in TABLES:
        for row, stage in product(planned_rows(name, scale), ("stage2", "finetune")):
            ids = tuple(with_maps(row.runs, stage))
            if ids not in known:
                known.add(ids)
                about = {"table": name, "row": row.row, "label": row.label, "stage": stage, "scale": scale}
                about |= {"n_runs": len(ids), "run_ids": " ".join(ids)}
                lines += [about | found for found in _of_runs(ids)]
    if not lines:
        raise InputError(f"no run of SCALE={scale} holds maps; regions are known of demo data only")
    out = pd.DataFrame(lines).assign(n_scores=len(lines))
    half = norm.isf(0.025 / len(lines)) * out["error"]
    return out.assign(low=out["lead"] - half, high=out["lead"] + half)[COLUMNS]


def _of_runs(run_ids: Sequence[str]) -> list[dict[str, object]]:
    """`score` of each kind of map, over the questions of all data sets; maps of several runs of a set are averaged."""
    sets: dict[str, list[Maps]] = {}
    for maps in (stored_maps.read(paths.run_dir(run_id) / MAPS) for run_id in run_ids):
        if maps.coverage.any():
            sets.setdefault(maps.data_set, []).append(maps)
    for name, runs in sets.items():
        if len({(*maps.ids, *maps.labels) for maps in runs}) > 1:
            raise InputError(f"{name}: runs {' '.join(run_ids)}: maps of different questions; delete and remake them")
    first = [runs[0] for runs in sets.values()]
    images = [f"{maps.data_set}/{image}" for maps in first for image in maps.image_ids]
    found = []
    for kind in first[0].values if first else ():
        of_sets = [np.mean([normalised(maps.values[kind]) for maps in runs], axis=0) for runs in sets.values()]
        coverage = np.concatenate([maps.coverage for maps in first])
        found.append({"map": kind} | score(np.concatenate(of_sets), coverage, images))
    return found
