"""The prose claims about Figs. 4 and 5: does one row's map lie more on the known region than another row's?

The paper shows pictures only. What can be measured is the share of a map's mass inside the region it is asked about, on
generated data, whose regions are known: so it is shown, and never a verdict on the claim. No torch, no data.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import RunSpec
from amif_lib.reporting import map_files, map_scores
from amif_lib.reporting.map_files import MAPS
from amif_lib.reporting.table_rows import Selection
from amif_lib.reporting.table_tests import NOT_TESTED

MAP_OF = {"table2": ("stage2", "transport_plan"), "table4": ("finetune", "attention")}  # Fig. 4, Fig. 5
NOT_RUN, NO_MAPS = "not run", "no maps"


def replicate(record: dict[str, str], scale: str) -> dict[str, object]:
    """Mass inside the region of the claim's first row minus that of the second, in points: fields of `claims.Replication`.

    Questions (reports for Fig. 4) of all data sets are pooled, maps of several seeds averaged first; the 95% interval is
    from resampling images, the same for both rows. Raises InputError where the two rows' maps are of other questions.
    """
    (name, first), (_, second) = (record[cell].split(":") for cell in ("first", "second"))
    stage, kind = MAP_OF[name]
    asked = Selection.planned(name, scale)
    if name not in experiments.tables_of(scale):
        return {"replication": NOT_RUN}
    if lacking := [row for row in (first, second) if asked.only and row not in asked.only]:
        return {"replication": NOT_RUN, "note": f"without row {', '.join(lacking)}"}
    rows = {row.row: row for row in replace(asked, only=(first, second)).rows(name, scale) if not row.extra}
    runs = {row: _of_stage(rows[row].runs, stage) for row in (first, second)}
    if lacking := [row for row, own in runs.items() if results.missing(own)]:
        return {"replication": NOT_RUN, "note": f"without row {', '.join(lacking)}"}
    stored = {row: map_scores.with_maps(own, stage) for row, own in runs.items()}
    if not all(stored.values()):
        return {"replication": NO_MAPS, "note": "regions are known of demo data only"}
    mass = {row: _mass(own, kind) for row, own in stored.items()}
    sets = [data_set for data_set in mass[first] if data_set in mass[second]]
    if not sets:
        return {"replication": NO_MAPS, "note": "the two rows hold maps of different data sets"}
    for data_set in sets:
        if mass[first][data_set][0] != mass[second][data_set][0]:
            raise InputError(
                f"{name} rows {first} and {second}: their maps are of different questions of {data_set}; delete their {MAPS} "
                "and run the notebooks again"
            )
    values = np.stack([np.concatenate([mass[row][data_set][1] for data_set in sets]) for row in (first, second)])
    images = [f"{data_set}/{image}" for data_set in sets for image in mass[first][data_set][2]]
    drawn = map_scores.means(values, images)
    low, high = np.percentile(100 * (drawn[:, 0] - drawn[:, 1]), [2.5, 97.5])
    ours, theirs = 100 * values.mean(1)
    return {
        "replication": NOT_TESTED,
        "note": f"share of the {kind.replace('_', ' ')} inside the known region, {ours:.2f}% against {theirs:.2f}%, "
        f"{', '.join(sets)}; resampled are images alone",
        "compared": f"#{first} - #{second}",
        "ours": float(ours - theirs),
        "ci_low": float(low),
        "ci_high": float(high),
        "n_questions": len(images),
        "run_ids": " ".join(dict.fromkeys(run_id for own in stored.values() for run_id in own)),
    }


def _of_stage(tips: tuple[RunSpec, ...], stage: str) -> list[RunSpec]:
    return list({run.run_id: run for tip in tips for run in tip.lineage() if run.stage == stage}.values())


def _mass(runs: dict[str, RunSpec], kind: str) -> dict[str, tuple[list[tuple[str, str]], np.ndarray, list[str]]]:
    """By data set: questions with their labels, the mean over runs of the mass inside (n,), images."""
    found: dict[str, list[map_files.Maps]] = {}
    for run_id in runs:
        maps = map_files.read(paths.run_dir(run_id) / MAPS)
        found.setdefault(maps.data_set, []).append(maps)
    out = {}
    for data_set, stored in found.items():
        asked = [list(zip(maps.ids, maps.labels, strict=True)) for maps in stored]
        if any(each != asked[0] for each in asked):
            raise InputError(
                f"runs {' '.join(runs)}: maps of different questions of {data_set}; delete and remake them"
            )
        inside = [map_scores.score(maps.values[kind], maps.coverage)["mass"] for maps in stored]
        out[data_set] = (asked[0], np.mean(inside, axis=0), stored[0].image_ids)
    return out
