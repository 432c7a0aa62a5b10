"""Experiments as data: the rows of the tables as runs at a scale, from `specs/`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from amif_lib import methods
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import read_yaml
from amif_lib.core.settings import Strict
from amif_lib.experiments.run_spec import RunSpec, parse

SHARED = ("method", "model", "init", "data", "objective", "knowledge")  # what a run's stages have in common
OF_AMIF = ("objective", "knowledge", "teacher")  # sections of a scale's file that only AMiF reads


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`, key by key, recursing into mappings."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


class Row(Strict):
    """One row of a table: its names, the rows it is compared with, and its runs."""

    table: str
    row: str
    label: str
    paper_row: str = ""
    references: tuple[str, ...] = ()  # the rows that paired tests compare this one with, the paper's first
    extra: bool = False  # a row for comparison that the paper's table does not have
    runs: tuple[RunSpec, ...] = ()  # the fine-tunings: by question set, then by seed


def scale_settings(scale: str) -> dict[str, Any]:
    """`specs/scales/<scale>.yaml`: model sizes, data and budgets of a scale."""
    return _settings(paths.SPECS / "scales" / f"{scale}.yaml", f"SCALE={scale}")


def table_settings(table: str) -> dict[str, Any]:
    """`specs/<table>.yaml`: the rows of a table."""
    return _settings(paths.SPECS / f"{table}.yaml", f"table {table!r}")


def _settings(path: Path, what: str) -> dict[str, Any]:
    known = sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "prompts")  # specs/prompts.yaml is no table
    if path.stem not in known:
        raise InputError(f"{what}: unknown; choose one of {', '.join(known)}")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, _changed: int) -> dict[str, Any]:
    return read_yaml(path)  # a table of thirty rows would parse its scale's file hundreds of times


def build_run(
    scale: str, settings: dict[str, Any], question_set: str, seed: int = 0, pretrain_seed: int = 0
) -> RunSpec:
    """One fine-tuning with the pre-training before it, from a scale's settings and a row's changes.

    `settings` may hold `method`, `start` (a named initialisation of the scale), `pretraining` (`all` stages before
    fine-tuning, those up to the named one, or `none`) and the sections of `RunSpec`; `train` is given per stage, as
    `stage1`, `stage2` and `finetune`. In a scale's file, a question set may have its own data settings and `finetune`;
    `methods` has, for each method but AMiF, the sections that replace AMiF's `objective`, `teacher` and `knowledge`.
    Raises InputError for an unknown scale, start, question set or setting.
    """
    base, method = scale_settings(scale), settings.get("method", "amif")
    starts, start = base.get("starts", {}), settings.get("start", base.get("defaults", {}).get("start", ""))
    if start and start not in starts:
        raise InputError(f"scale {scale}: unknown start {start!r}; choose one of {', '.join(starts)}")
    of_set = dict(_known_set(scale, question_set) or {})
    if method != "amif":
        own = base.get("methods", {}).get(method, {})
        base = merge({name: value for name, value in base.items() if name not in OF_AMIF}, own)
    for changes in (starts.get(start, {}), {"finetune": of_set.pop("finetune", {})}, settings):
        base = merge(base, changes)
    shared = {"scale": scale} | {name: base[name] for name in SHARED if name in base}
    parent, soft = None, base.get("objective", {}).get("labels", "soft") == "soft"
    for stage in _pretraining(method, settings.get("pretraining", "all")):
        teacher = base.get("teacher") if soft or stage == "stage2" else None  # stage 2 mines with it anyway
        of_stage = {"stage": stage, "seed": pretrain_seed, "train": base.get(stage, {}), "teacher": teacher}
        parent = shared | of_stage | {"parent": parent}
    data = base["data"] | {"questions": question_set} | of_set | settings.get("data", {})
    of_stage = {"stage": "finetune", "seed": seed, "train": base.get("finetune", {}), "data": data}
    run = shared | of_stage | {"parent": parent}
    if parent is None and "teacher" in base.get("init", {}).values():
        run["teacher"] = base.get("teacher", {})
    return parse(run, f"specs, scale {scale}, {question_set}")


def _pretraining(method: str, until: str) -> list[str]:
    """The stages before fine-tuning: all of the method, those up to the named one, or none."""
    *stages, _ = methods.settings(method).STAGES
    parts = {"all": stages, **{stage: stages[: n + 1] for n, stage in enumerate(stages)}, "none": []}
    if until not in parts:
        raise InputError(f"pretraining: {until!r} is not one of {', '.join(parts)}")
    return parts[until]


def _known_set(scale: str, question_set: str) -> dict[str, Any] | None:
    """A question set's settings in a scale's file. Raises InputError if the scale has no such set."""
    known = scale_settings(scale)["question_sets"]
    if question_set not in known:
        what = f"{question_set!r} is not a question set of scale {scale}"
        raise InputError(f"DATASETS: {what}; choose from {', '.join(known)}")
    return known[question_set]


def rows(
    table: str,
    scale: str,
    question_sets: tuple[str, ...] = (),
    seeds: int = 1,
    pretrain_seeds: int | None = None,
    only: tuple[str, ...] = (),
) -> list[Row]:
    """The rows of a table as runs at a scale, in the paper's order.

    `question_sets` and `only` select (default: all that the scale names for this table); an unknown one is an
    InputError. `pretrain_seeds` is by default the table's own number of replicates, or one.
    """
    names = question_sets or sets_of(table, scale)
    for asked in names:
        _known_set(scale, asked)
    if pretrain_seeds is None:
        pretrain_seeds = table_settings(table).get("replicates", {}).get(scale, 1)
    if min(seeds, pretrain_seeds) < 1:
        raise InputError(f"SEEDS={seeds} PRETRAIN_SEEDS={pretrain_seeds}: each must be at least 1")
    listed = entries(table, scale)
    for asked in only:
        if asked not in listed:
            raise InputError(f"ROWS: {table} has no row {asked!r}; choose from {', '.join(listed)}")
    out = []
    for key, entry in listed.items():
        wanted = key in only if only else scale not in entry.get("on_request", ())
        own = [name for name in names if _has_set(entry, name)]
        if not (wanted and own):  # not asked for, or the row has none of the question sets asked for
            continue
        label, settings = f"{table} row {key}: {entry['label']}", entry.get("settings", {})
        runs = tuple(
            build_run(scale, settings, name, first * seeds + n, first).model_copy(update={"label": label})
            for name in own
            for first in range(pretrain_seeds)
            for n in range(seeds)  # fine-tunings of different pre-trainings have different seeds, too
        )
        about = {name: entry[name] for name in ("label", "paper_row", "extra") if name in entry}
        out.append(Row(table=table, row=key, references=tuple(entry.get("reference", ())), runs=runs, **about))
    return out


def is_judged(table: str) -> bool:
    """Whether a table names contrasts, the differences that a page may call findings."""
    return "contrasts" in table_settings(table)


def entries(table: str, scale: str) -> dict[str, dict[str, Any]]:
    """The rows that a table has at a scale, by name, with those that are run on request only.

    Rows of methods for which the scale has no settings are left out.
    """
    known = {"amif", *scale_settings(scale).get("methods", {})}
    of_known = [row for row in table_settings(table)["rows"] if row.get("settings", {}).get("method", "amif") in known]
    return {str(row["row"]): row for row in of_known if scale in row.get("scales", (scale,))}


def _has_set(entry: dict[str, Any], question_set: str) -> bool:
    """Whether a row is fine-tuned on a question set; a demo set counts as the real one that it imitates."""
    imitated = question_set.removeprefix("phantom_")
    return imitated in entry.get("question_sets", (imitated,))


def sets_of(table: str, scale: str) -> tuple[str, ...]:
    """The question sets of a table at a scale: for Table 1 all, for the others `ablation_sets` if the scale has it."""
    settings = scale_settings(scale)
    every = tuple(settings["question_sets"])
    return every if table == "table1" else tuple(settings.get("ablation_sets", every))


def tables_of(scale: str) -> tuple[str, ...]:
    """The tables that `make reproduce` runs at a scale."""
    return tuple(scale_settings(scale)["tables"])


def blank_image_run(run: RunSpec) -> RunSpec:
    """The question-only baseline of a run: the same model, trained and evaluated on blank images."""
    blank = run.data.model_copy(update={"blank_images": True})
    return run.model_copy(update={"data": blank, "label": "question-only baseline"})


def load_spec(spec: str) -> list[RunSpec]:
    """The runs of a notebook's `spec` parameter: a file of one run or several, or `<scale>/<table>[/<row>[/<stage>]]`.

    `demo/table4` is every fine-tuning of Table 4 at demo scale, `demo/table4/6/stage1` the stage-1 run behind row 6.
    """
    path = Path(spec)
    if path.suffix in (".yaml", ".yml", ".json"):
        content = read_yaml(path)
        return [parse(run, paths.shown(path)) for run in (content if isinstance(content, list) else [content])]
    parts = spec.split("/")
    if not 2 <= len(parts) <= 4:
        raise InputError(f"spec={spec!r}: give a .yaml or .json run file, or <scale>/<table>[/<row>[/<stage>]]")
    found = [run for row in rows(parts[1], parts[0], only=tuple(parts[2:3])) for run in row.runs]
    if len(parts) == 4:
        found = [step for run in found for step in run.trainings() if step.stage == parts[3]]
        if not found:
            raise InputError(f"spec={spec!r}: that row has no {parts[3]} run")
    return list({run.run_id: run for run in found}.values())
