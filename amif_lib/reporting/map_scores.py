"""How well stored patch maps point at the regions they are asked about: numbers where the paper has only pictures.

A cell belongs to the region if the region covers half of it or more; where no cell is covered so far, the most covered
one alone does. With k the number of the region's cells, a map scores

- `pointing`: whether its highest cell belongs to the region (the pointing game);
- `iou`: intersection over union of its k highest cells and the region's;
- `mass`: the share of its sum that lies inside, cells counted by how far they are covered.

Equal cells are put in a fixed random order. Beside each map stand an untrained model of the same size, the same map
scored on the regions of all other images (which a map that always looks at the same place passes as well), a Gaussian
in the middle of the image, and what a map of random numbers scores on average. No torch, no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments.rows import Row, RunSpec
from amif_lib.reporting import map_files
from amif_lib.reporting.map_files import MAPS, Maps
from amif_lib.reporting.table_rows import Selection
from amif_lib.scoring.statistics import DRAWS

MEASURES = ("pointing", "iou", "mass")
SOURCES = ("model", "untrained", "another region", "centre", "chance")
COLUMNS = ("table", "row", "label", "stage", "dataset", "map", "measure", "source", "value", "ci_low", "ci_high")
COLUMNS += ("difference", "difference_low", "difference_high", "n", "n_images", "n_runs", "run_ids", "scale")
CENTRE = 0.25  # standard deviation of the Gaussian, in sides of the image


def region_cells(coverage: np.ndarray) -> np.ndarray:
    """Which cells belong to each region: coverage (n, s, s) -> (n, s*s) of booleans, at least one in each row."""
    flat = coverage.reshape(len(coverage), -1)
    if not (flat.max(1) > 0).all():
        raise InputError(
            f"region {int(np.argmin(flat.max(1)))} covers no cell; only regions that the image shows count"
        )
    cells = flat >= 0.5
    alone = ~cells.any(1)
    cells[alone, flat[alone].argmax(1)] = True
    return cells


def score(values: np.ndarray, coverage: np.ndarray) -> dict[str, np.ndarray]:
    """`pointing`, `iou` and `mass` of n maps (n, s, s) on their own regions' coverage (n, s, s), each (n,)."""
    return {name: np.diagonal(each).copy() for name, each in score_all(values, coverage).items()}


def score_all(values: np.ndarray, coverage: np.ndarray) -> dict[str, np.ndarray]:
    """The same of every map (rows) on every region (columns): (n, m) each."""
    if values.shape[1:] != coverage.shape[1:] or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(
            f"maps {values.shape} on regions {coverage.shape}: the grids must agree and maps be finite and not negative"
        )
    cells, maps = region_cells(coverage), values.reshape(len(values), -1).astype(float)  # (m, c), (n, c)
    noise = np.random.default_rng(0).permutation(maps.shape[1])
    order = np.lexsort((np.broadcast_to(noise, maps.shape), -maps), axis=1)  # (n, c): cells from highest to lowest
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(maps.shape[1])[None], axis=1)
    k = cells.sum(1)  # (m,)
    common = np.stack([(cells & (own < k[:, None])).sum(1) for own in rank])  # (n, m)
    total = maps.sum(1, keepdims=True)
    return {
        "pointing": cells[:, order[:, 0]].T.astype(float),
        "iou": common / (2 * k - common),
        "mass": maps @ coverage.reshape(len(coverage), -1).T / np.where(total > 0, total, 1),
    }


@lru_cache(maxsize=4096)  # few sizes, asked for again by every run
def _chance_iou(count: int, size: int) -> float:
    common = np.arange(size + 1)
    return float((hypergeom.pmf(common, count, size, size) * common / (2 * size - common)).sum())


def chance(coverage: np.ndarray) -> dict[str, np.ndarray]:
    """What a map of independent random numbers scores on average on each region, exactly: (n,) each."""
    cells = region_cells(coverage)
    count, k = cells.shape[1], cells.sum(1)
    iou = [_chance_iou(count, int(size)) for size in k]
    return {"pointing": k / count, "iou": np.array(iou), "mass": coverage.reshape(len(coverage), -1).mean(1)}


def centre_prior(side: int) -> np.ndarray:
    """A Gaussian in the middle of the image, (s, s), sum 1."""
    axis = (np.arange(side) + 0.5) / side - 0.5
    bell = np.exp(-(axis**2) / (2 * CENTRE**2))
    return np.outer(bell, bell) / np.outer(bell, bell).sum()


def per_question(runs: Sequence[Maps], untrained: Maps | None, name: str) -> dict[str, dict[str, np.ndarray]]:
    """Scores by source and measure, (n,) each, of one map (`attention`, …); of several runs (seeds) the mean."""
    first = runs[0]
    everywhere = [score_all(maps.values[name], first.coverage) for maps in runs]
    pooled = {measure: np.mean([each[measure] for each in everywhere], axis=0) for measure in MEASURES}  # (n, n)
    images = np.asarray(first.image_ids)
    other = images[:, None] != images[None]  # (n, n)
    side = first.coverage.shape[1]
    out = {"model": {measure: np.diagonal(each) for measure, each in pooled.items()}}
    if untrained is not None and name in untrained.values:
        out["untrained"] = score(untrained.values[name], first.coverage)
    if other.any(1).all():
        shares = other / other.sum(1, keepdims=True)
        out["another region"] = {measure: (each * shares).sum(1) for measure, each in pooled.items()}
    out["centre"] = score(np.repeat(centre_prior(side)[None], len(first), 0), first.coverage)
    out["chance"] = chance(first.coverage)
    return out


@lru_cache(maxsize=32)
def _weights(count: int) -> np.ndarray:
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(float)


def means(values: np.ndarray, images: Sequence[str]) -> np.ndarray:
    """Means of K series (K, n) over bootstrap draws of images, the same draws for all -> (draws, K)."""
    names, index = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in values])  # (K, C)
    weights = _weights(len(names))
    return weights @ sums.T / (weights @ np.bincount(index, minlength=len(names)))[:, None]


def summary(scores: dict[str, dict[str, np.ndarray]], images: Sequence[str]) -> list[dict[str, object]]:
    """Mean of each source and measure with its 95% interval from resampling images, and the model's lead over the source."""
    keys = [(source, measure) for source in scores for measure in MEASURES]
    values = np.stack([scores[source][measure] for source, measure in keys])  # (K, n)
    drawn = means(values, images)
    rows = []
    for place, (source, measure) in enumerate(keys):
        model = keys.index(("model", measure))
        low, high = np.percentile(drawn[:, place], [2.5, 97.5])
        row = {"measure": measure, "source": source, "value": values[place].mean(), "ci_low": low, "ci_high": high}
        if source != "model":
            lead = np.percentile(drawn[:, model] - drawn[:, place], [2.5, 97.5])
            row |= {"difference": values[model].mean() - values[place].mean()}
            row |= {"difference_low": lead[0], "difference_high": lead[1]}
        rows.append(row | {"n": len(images), "n_images": len(set(images))})
    return rows


# --- over the tables' rows -------------------------------------------------------------------------------------------


def table(scale: str, tables: Iterable[str]) -> pd.DataFrame:
    """Scores of every row of the tables whose runs hold maps: one line per row, data set, map, measure and source.

    `dataset` is the set of the questions, or of the reports of a stage-2 run, and `all` where a row has several. Rows that
    share runs repeat the same numbers. Raises InputError where no run holds maps.
    """
    known: dict[tuple[str, ...], list[dict[str, object]]] = {}
    lines: list[dict[str, object]] = []
    for name in tables:
        for row in rows_of(name, scale):
            for stage in ("stage2", "finetune"):
                runs = with_maps(row.runs, stage)
                if not runs:
                    continue
                ids = tuple(runs)
                if ids not in known:
                    known[ids] = _of_runs(runs, stage)
                about = {"table": name, "row": row.row, "label": row.label, "stage": stage, "scale": scale}
                lines += [about | line for line in known[ids]]
    if not lines:
        raise InputError(f"no run of SCALE={scale} holds maps; regions are known of demo data only")
    return pd.DataFrame(lines).reindex(columns=list(COLUMNS))


@lru_cache(maxsize=32)
def rows_of(name: str, scale: str) -> tuple[Row, ...]:
    """The rows of a table with the runs that the scale's last plan asked for. Kept, since expanding a table takes a second."""
    return tuple(Selection.planned(name, scale).rows(name, scale))


def with_maps(tips: Iterable[RunSpec], stage: str, file: str = MAPS) -> dict[str, RunSpec]:
    """Run id -> the runs of a stage behind these fine-tunings that hold maps (with regions, unless `file` says so), each once."""
    found = {run.run_id: run for tip in tips for run in tip.lineage() if run.stage == stage}
    return {run_id: run for run_id, run in found.items() if (paths.run_dir(run_id) / file).is_file()}


def untrained_file(spec: RunSpec, data_set: str) -> Path:
    """Maps of a model of the same size with random weights: one file per scale, stage and data set."""
    return untrained_path(spec.scale, spec.stage, data_set)


def untrained_path(scale: str, stage: str, data_set: str) -> Path:
    """The same by the names of scale and stage."""
    return paths.scale_source(scale) / "maps" / f"untrained_{stage}_{data_set}.npz"


def _of_runs(runs: dict[str, RunSpec], stage: str) -> list[dict[str, object]]:
    groups: dict[str, list[tuple[str, Maps]]] = {}
    for run_id in runs:
        maps = map_files.read(paths.run_dir(run_id) / MAPS)
        groups.setdefault(maps.data_set, []).append((run_id, maps))
    spec, lines = next(iter(runs.values())), []
    everything: dict[str, list[tuple[dict[str, dict[str, np.ndarray]], list[str]]]] = {}
    for data_set, members in groups.items():
        stored = [maps for _, maps in members]
        for run_id, maps in members:
            if maps.ids != stored[0].ids or maps.labels != stored[0].labels:
                raise InputError(
                    f"run {run_id}: its maps are of other questions than run {members[0][0]}'s; remake them"
                )
        file = untrained_file(spec, data_set)
        untrained = map_files.read(file) if file.is_file() else None
        if untrained is not None and (untrained.ids, untrained.labels) != (stored[0].ids, stored[0].labels):
            raise InputError(
                f"{paths.shown(file)}: of other questions than run {members[0][0]}'s; delete it and remake it"
            )
        about = {"dataset": data_set, "n_runs": len(members), "run_ids": " ".join(run_id for run_id, _ in members)}
        for name in stored[0].values:
            scores = per_question(stored, untrained, name)
            lines += [about | {"map": name} | row for row in summary(scores, stored[0].image_ids)]
            images = [f"{data_set}/{image}" for image in stored[0].image_ids]
            everything.setdefault(name, []).append((scores, images))
    about = {"dataset": "all", "n_runs": len(runs), "run_ids": " ".join(runs)}
    for name, parts in everything.items() if len(groups) > 1 else ():
        sources = [source for source in SOURCES if all(source in scores for scores, _ in parts)]
        pooled = {
            source: {measure: np.concatenate([scores[source][measure] for scores, _ in parts]) for measure in MEASURES}
            for source in sources
        }
        lines += [about | {"map": name} | row for row in summary(pooled, [i for _, images in parts for i in images])]
    return lines
