"""How well stored patch maps point at the regions they are asked about: numbers where the paper has only pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored_maps
from amif_lib.experiments.rows import Row, RunSpec
from amif_lib.experiments.stored_maps import MAPS, Maps
from amif_lib.reporting.table_rows import Selection
from amif_lib.scoring.statistics import resampled_sums

MEASURES = ("pointing", "mass")
CENTRE = 0.25  # standard deviation of the Gaussian in the middle, in sides of the image
COLUMNS = ["table", "row", "label", "stage", "dataset", "map", "measure", "source", "value", "ci_low", "ci_high"]
COLUMNS += ["difference", "difference_low", "difference_high", "n", "n_images", "n_runs", "run_ids", "scale"]
Scores = dict[str, np.ndarray]  # by measure


def region_cells(coverage: np.ndarray) -> np.ndarray:
    """Coverage (n, s, s) -> booleans (n, s*s): cells that a region covers by half or more, or else the most covered.

    Raises InputError for a region that covers nothing at all.
    """
    flat = coverage.reshape(len(coverage), -1)
    if not (flat.max(1) > 0).all():
        raise InputError(f"region {int(np.argmin(flat.max(1)))} covers no cell; leave out what the image does not show")
    most = np.eye(flat.shape[1], dtype=bool)[flat.argmax(1)]
    return np.where((flat >= 0.5).any(1, keepdims=True), flat >= 0.5, most)


def score_all(values: np.ndarray, coverage: np.ndarray) -> Scores:
    """Scores of every map (n, s, s) on every region's coverage (m, s, s), (n, m) each.

    `pointing` (the pointing game): whether the map's highest cell belongs to the region; of equal cells the first in a
    fixed random order is the highest. `mass`: the share of the map's sum inside the region, each cell weighted by its
    coverage. Raises InputError where grids differ or a map is negative or not finite.
    """
    if values.shape[1:] != coverage.shape[1:] or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"maps {values.shape}, regions {coverage.shape}: grids must agree, maps be finite and >= 0")
    maps, regions = (each.reshape(len(each), -1).astype(float) for each in (values, coverage))  # (n, s*s), (m, s*s)
    order = np.random.default_rng(0).permutation(maps.shape[1]).argsort()
    highest = order[maps[:, order].argmax(1)]  # (n,)
    total = maps.sum(1, keepdims=True)
    return {
        "pointing": region_cells(coverage)[:, highest].T.astype(float),
        "mass": maps @ regions.T / np.where(total > 0, total, 1),
    }


def score(values: np.ndarray, coverage: np.ndarray) -> Scores:
    """`score_all` of n maps on their own regions, (n,) each."""
    return {measure: np.diagonal(each) for measure, each in score_all(values, coverage).items()}


def chance(coverage: np.ndarray) -> Scores:
    """What a map of independent random numbers scores on average on each region, exactly: (n,) each."""
    return {"pointing": region_cells(coverage).mean(1), "mass": coverage.reshape(len(coverage), -1).mean(1)}


def centre_prior(side: int) -> np.ndarray:
    """A Gaussian in the middle of the image, (s, s), sum 1."""
    axis = (np.arange(side) + 0.5) / side - 0.5
    bell = np.exp(-(axis**2) / (2 * CENTRE**2))
    return np.outer(bell, bell) / np.outer(bell, bell).sum()


def per_question(runs: Sequence[Maps], untrained: Maps | None, kind: str) -> dict[str, Scores]:
    """Scores of one kind of map, (n,) each: of the model (of several runs the mean) and of what it is compared with.

    Beside it: the same map of a network with random weights, the model's maps on the regions of all other images (on
    which a map of one fixed place scores as well), a Gaussian in the middle of the image, and a random map.
    """
    coverage, images = runs[0].coverage, np.asarray(runs[0].image_ids)
    each = [score_all(maps.values[kind], coverage) for maps in runs]
    everywhere = {measure: np.mean([scores[measure] for scores in each], axis=0) for measure in MEASURES}  # (n, n)
    out = {"model": {measure: np.diagonal(scores) for measure, scores in everywhere.items()}}
    if untrained is not None and kind in untrained.values:
        out["untrained"] = score(untrained.values[kind], coverage)
    other = images[:, None] != images[None]  # (n, n)
    if other.any(1).all():
        weights = other / other.sum(1, keepdims=True)
        out["another region"] = {measure: (scores * weights).sum(1) for measure, scores in everywhere.items()}
    out["centre"] = score(np.repeat(centre_prior(coverage.shape[1])[None], len(images), 0), coverage)
    return out | {"chance": chance(coverage)}


def means(values: np.ndarray, images: Sequence[str]) -> np.ndarray:
    """Means of K series (K, n) in bootstrap draws of images, the same draws for all -> (draws, K)."""
    return resampled_sums(values, images) / resampled_sums(np.ones((1, len(images))), images)


def summary(scores: dict[str, Scores], images: Sequence[str]) -> pd.DataFrame:
    """Mean of each source and measure, 95% interval from resampling images, and the model's lead over the source."""
    parts = []
    for measure in MEASURES:
        values = np.stack([own[measure] for own in scores.values()])  # (sources, n), the model first
        drawn, mean = means(values, images), values.mean(1)
        (low, high), lead = (np.percentile(each, [2.5, 97.5], axis=0) for each in (drawn, drawn[:, :1] - drawn))
        part = pd.DataFrame({"measure": measure, "source": list(scores), "value": mean, "ci_low": low, "ci_high": high})
        lead = pd.DataFrame({"difference": mean[0] - mean, "difference_low": lead[0], "difference_high": lead[1]})
        parts.append(part.join(lead[part["source"] != "model"]))
    return pd.concat(parts, ignore_index=True).assign(n=len(images), n_images=len(set(images)))


# --- over the tables' rows ---


@lru_cache(maxsize=32)
def rows_of(name: str, scale: str) -> tuple[Row, ...]:
    """The rows of a table with the runs of the scale's last plan. Kept, since expanding a table takes a second."""
    return tuple(Selection.planned(name, scale).rows(name, scale))


def with_maps(tips: Iterable[RunSpec], stage: str, file: str = MAPS) -> dict[str, RunSpec]:
    """Run id -> the runs of a stage behind these fine-tunings that hold maps (`file`), each once."""
    found = {run.run_id: run for tip in tips for run in tip.lineage() if run.stage == stage}
    return {run_id: run for run_id, run in found.items() if (paths.run_dir(run_id) / file).is_file()}


def table(scale: str, tables: Iterable[str]) -> pd.DataFrame:
    """Scores of every row of the tables whose runs hold maps: one line per row, data set, map, measure and source.

    `dataset` is the set of the questions, or of the reports of a stage-2 run, and `all` where a row has several. Rows
    that share runs repeat the same numbers. Raises InputError where no run holds maps.
    """
    known: dict[tuple[str, ...], pd.DataFrame] = {}
    parts = []
    for name, row, stage in ((n, row, s) for n in tables for row in rows_of(n, scale) for s in ("stage2", "finetune")):
        if ids := tuple(with_maps(row.runs, stage)):
            known[ids] = known[ids] if ids in known else _of_runs(ids, scale, stage)
            parts.append(known[ids].assign(table=name, row=row.row, label=row.label, stage=stage, scale=scale))
    if not parts:
        raise InputError(f"no run of SCALE={scale} holds maps; regions are known of demo data only")
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _of_runs(run_ids: Sequence[str], scale: str, stage: str) -> pd.DataFrame:
    of_run = {run_id: stored_maps.read(paths.run_dir(run_id) / MAPS) for run_id in run_ids}
    parts, pooled = [], {}
    for data_set in dict.fromkeys(maps.data_set for maps in of_run.values()):
        ids = [run_id for run_id, maps in of_run.items() if maps.data_set == data_set]
        file = stored_maps.untrained_path(scale, stage, data_set)
        untrained, own = stored_maps.read(file) if file.is_file() else None, [of_run[run_id] for run_id in ids]
        if any((maps.ids, maps.labels) != (own[0].ids, own[0].labels) for maps in (*own, untrained or own[0])):
            raise InputError(
                f"{data_set}: maps of runs {' '.join(ids)} are of different questions; delete and remake them"
            )
        images = [f"{data_set}/{image}" for image in own[0].image_ids]
        for kind in own[0].values:
            scores = per_question(own, untrained, kind)
            about = {"dataset": data_set, "map": kind, "n_runs": len(ids), "run_ids": " ".join(ids)}
            parts.append(summary(scores, images).assign(**about))
            pooled.setdefault(kind, []).append((scores, images))
    for kind, sets in pooled.items():
        if len(sets) > 1:
            sources = [source for source in sets[0][0] if all(source in scores for scores, _ in sets)]
            joined = {s: {m: np.concatenate([scores[s][m] for scores, _ in sets]) for m in MEASURES} for s in sources}
            about = {"dataset": "all", "map": kind, "n_runs": len(run_ids), "run_ids": " ".join(run_ids)}
            parts.append(summary(joined, [image for _, images in sets for image in images]).assign(**about))
    return pd.concat(parts, ignore_index=True)
