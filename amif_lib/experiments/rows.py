"""Experiments as data: the tables' rows as runs at a scale, and what identifies a run.

A `RunSpec` holds all that determines a result, including the runs it starts from (`parent`, `teacher`), so that `run_id`
is a hash of one JSON text: equal runs of different tables share a directory.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import digest, read_yaml
from amif_lib.experiments import identity
from amif_lib.experiments.run_spec import (
    DataSpec,
    InitSpec,
    KnowledgeSpec,
    ModelSpec,
    ObjectiveSpec,
    RunSpec,
    Stage,
    Strict,
    TeacherSpec,
    TrainSpec,
)

if TYPE_CHECKING:
    from amif_lib.data.manifests import Manifest

__all__ = [
    "DataSpec",
    "InitSpec",
    "KnowledgeSpec",
    "ModelSpec",
    "ObjectiveSpec",
    "Row",
    "RunSpec",
    "Stage",
    "Strict",
    "TeacherSpec",
    "TrainSpec",
]


def _identity(spec: RunSpec) -> dict[str, Any]:
    """What determines the result: the settings that the stage reads, the parent's identity and the data."""
    return {
        **identity.settings_read(spec),
        "parent": run_id(spec.parent) if spec.parent else None,
        "manifests": {name: manifest_digest(name) for name in data_sets(spec)},
    }


def data_sets(spec: RunSpec) -> list[str]:
    """Names of the manifests whose data a run reads."""
    reads_texts = spec.init.tokenizer == "trained" or spec.init.vocabulary == "seen"
    own = spec.data.tokenizer_questions if reads_texts else ()
    if spec.stage == "finetune":
        names = {spec.data.questions, *own}
        if (reads_texts and spec.parent is None) or spec.trains_towers:
            names |= {*spec.data.pretrain, *spec.data.decontaminate_against}
        if spec.trains_towers:
            names |= {*spec.teacher.data}
    else:
        names = {
            *spec.data.pretrain,
            *spec.data.decontaminate_against,
            *own,
            *(spec.teacher.data if spec.teacher else ()),
        }
    return sorted(names - {""})


def run_id(spec: RunSpec) -> str:
    """Twelve hexadecimal digits that name the run's directory; equal runs of different tables share it."""
    return digest(_identity(spec))


DATA_KEYS = ("name", "version", "reader", "layout", "files", "trees", "splits", "generator")


def manifest_digest(name: str) -> str:
    """Digest of what a data manifest says about the data itself (checksums, counts, generator), not about licences.

    Of a set with alternative forms, the form that lies on this machine counts: other files give other results.
    """
    content = _manifest(name)
    if "alternatives" in content:
        from amif_lib.data import manifests

        form = manifests.load(name)
        form = _reference_form(form) if paths.from_reference() else manifests.as_found(form)
        if form.version != content["version"]:
            other = next(each for each in content["alternatives"] if each["version"] == form.version)
            content = {**content, "trees": [], **other}
    return digest({key: content[key] for key in DATA_KEYS if key in content})


def _reference_form(manifest: Manifest) -> Manifest:
    """The form of a set that the reference results were made with, whatever lies on this machine."""
    for path in sorted(paths.reference().glob("*/plan.json")):
        version = read_yaml(path).get("forms", {}).get(manifest.name)
        for other in manifest.alternatives:
            if other.version == version:
                return manifest.model_copy(update={"version": other.version})
    return manifest


@lru_cache
def _manifest(name: str) -> dict[str, Any]:
    path = paths.MANIFESTS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in paths.MANIFESTS.glob("*.yaml"))
        raise InputError(f"data set {name!r} has no manifest {paths.shown(path)}; known: {', '.join(known)}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def parse(content: dict[str, Any], where: str) -> RunSpec:
    """Validate a run specification; `where` names its origin in error messages."""
    try:
        return RunSpec.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole)"
        hint = (
            f"unknown key; known: {', '.join(_known_keys(first['loc']))}"
            if first["type"] == "extra_forbidden"
            else first["msg"]
        )
        raise InputError(f"{where}: {field}: {hint}") from None


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = RunSpec
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), RunSpec)
    return list(model.model_fields)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`, key by key, recursing into mappings."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


# --- scales and tables -------------------------------------------------------------------------------------------


class Row(Strict):
    """One row of a table: what it is called, what it changes, and the runs it stands for."""

    table: str
    row: str
    label: str
    settings: dict[str, Any]
    paper_row: str = ""
    references: tuple[str, ...] = ()  # the rows that paired tests compare this one with, the paper's first
    extra: bool = False  # not a row of the paper's, beside the others for comparison
    runs: tuple[RunSpec, ...] = ()  # the fine-tunings: by question set, then by seed

    @property
    def notebooks(self) -> list[tuple[RunSpec, ...]]:
        """The fine-tunings that one notebook makes: those of all question sets with one seed."""
        sets = len({run.data.questions for run in self.runs})
        repetitions = len(self.runs) // sets if sets else 0
        return [self.runs[seed::repetitions] for seed in range(repetitions)]


def scale_settings(scale: str) -> dict[str, Any]:
    """`specs/<scale>.yaml`: model sizes, data and budgets of a scale."""
    path = paths.SPECS / "scales" / f"{scale}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise InputError(f"SCALE={scale}: unknown; choose one of {', '.join(known)}")
    return copy.deepcopy(_read_once(path, path.stat().st_mtime_ns))  # callers take it apart


def table_settings(table: str) -> dict[str, Any]:
    path = paths.SPECS / f"{table}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in paths.SPECS.glob("*.yaml"))
        raise InputError(f"table {table!r}: no specification {paths.shown(path)}; known: {', '.join(known)}")
    return copy.deepcopy(_read_once(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=64)
def _read_once(path: Path, _changed: int) -> Any:
    return read_yaml(path)  # a table of thirty rows would parse its scale's file hundreds of times


def build_run(
    scale: str, settings: dict[str, Any], question_set: str, seed: int = 0, pretrain_seed: int = 0
) -> RunSpec:
    """One fine-tuning with its whole lineage, from a scale's settings and a row's changes.

    `settings` may hold `start` (a named initialisation of the scale), `pretraining` (`both`, `stage1` or `none`) and the
    sections of `RunSpec`, of which `train` is given per stage as `stage1`, `stage2` and `finetune`. A scale's question set
    may hold data settings and a `finetune` of its own.
    """
    base = scale_settings(scale)
    starts = base.pop("starts", {})
    defaults = base.pop("defaults", {})
    sets = base.pop("question_sets")
    changes = dict(settings)
    start = changes.pop("start", defaults.get("start", ""))
    if start:
        if start not in starts:
            raise InputError(f"scale {scale}: unknown start {start!r}; choose one of {', '.join(starts)}")
        base = merge(base, starts[start])
    pretraining = changes.pop("pretraining", "both")
    if pretraining not in ("both", "stage1", "none"):
        raise InputError(f"pretraining: {pretraining!r} is not one of both, stage1, none")
    base = merge(base, changes)
    if question_set not in sets:
        raise InputError(
            f"DATASETS: {question_set!r} is not a question set of scale {scale}; choose from {', '.join(sets)}"
        )
    stages = {name: base.pop(name, {}) for name in ("stage1", "stage2", "finetune")}
    of_set = dict(sets[question_set] or {})
    own_training = of_set.pop("finetune", {})  # of this set alone, before a start's; a row's own change goes before it
    stages["finetune"] = merge(merge(stages["finetune"], own_training), changes.get("finetune", {}))
    for name, content in stages.items():  # also of a stage that this row does not run
        if unknown := sorted(set(content) - set(TrainSpec.model_fields)):
            known = ", ".join(TrainSpec.model_fields)
            raise InputError(f"specs, scale {scale}: {name}.{unknown[0]}: unknown key; known: {known}")

    common = {key: base[key] for key in ("model", "init", "data", "objective", "knowledge") if key in base}
    parent: dict[str, Any] | None = None
    for stage in {"both": ("stage1", "stage2"), "stage1": ("stage1",), "none": ()}[pretraining]:
        needs_teacher = True if stage == "stage2" else common.get("objective", {}).get("labels", "soft") == "soft"
        parent = merge(
            common,
            {
                "stage": stage,
                "scale": scale,
                "seed": pretrain_seed,
                "train": stages[stage],
                "teacher": base.get("teacher") if needs_teacher else None,
                "parent": parent,
            },
        )
    own = merge(common, {"data": merge({"questions": question_set}, of_set)})
    own = merge(own, changes)  # a row may change the training file of its question set
    for name in ("stage1", "stage2", "finetune", "teacher"):
        own.pop(name, None)
    if parent is None and "teacher" in own.get("init", {}).values():
        own["teacher"] = base.get("teacher", {})
    return parse(
        merge(own, {"stage": "finetune", "scale": scale, "seed": seed, "train": stages["finetune"], "parent": parent}),
        f"specs, scale {scale}, {question_set}",
    )


def rows(
    table: str,
    scale: str,
    question_sets: tuple[str, ...] = (),
    seeds: int = 1,
    pretrain_seeds: int = 1,
    only: tuple[str, ...] = (),
) -> list[Row]:
    """The rows of a table as runs at a scale, in the paper's order.

    `question_sets` and `only` select (default: all that the scale names); an unknown one is an error.
    """
    content = table_settings(table)
    names = tuple(scale_settings(scale)["question_sets"])
    for asked in question_sets:
        if asked not in names:
            raise InputError(
                f"DATASETS: {asked!r} is not a question set of scale {scale}; choose from {', '.join(names)}"
            )
    if min(seeds, pretrain_seeds) < 1:
        raise InputError(f"SEEDS={seeds} PRETRAIN_SEEDS={pretrain_seeds}: at least 1 each")
    listed = _listed(content, scale)
    for asked in only:
        if asked not in listed:
            raise InputError(f"ROWS: {table} has no row {asked!r}; choose from {', '.join(listed)}")
    out = []
    for key, entry in listed.items():
        if (only and key not in only) or (not only and scale in entry.get("on_request", ())):
            continue
        own = [name for name in question_sets or names if _has_set(entry, name)]
        if not own:  # a row of other question sets than those asked for
            continue
        settings = entry.get("settings", {})
        runs = tuple(
            build_run(scale, settings, name, seed=seed, pretrain_seed=pretrain_seed)
            for name in own
            for pretrain_seed in range(pretrain_seeds)
            for seed in range(seeds)
        )
        runs = tuple(run.model_copy(update={"label": f"{table} row {key}: {entry['label']}"}) for run in runs)
        out.append(
            Row(
                table=table,
                row=key,
                label=entry["label"],
                settings=settings,
                paper_row=str(entry.get("paper_row", "")),
                references=tuple(str(row) for row in entry.get("reference", ())),
                extra=entry.get("extra", False),
                runs=runs,
            )
        )
    return out


def row_names(table: str, scale: str) -> list[str]:
    """The rows that a table has at a scale, those included that are run on request only."""
    return list(_listed(table_settings(table), scale))


def _listed(content: dict[str, Any], scale: str) -> dict[str, dict[str, Any]]:
    return {str(entry["row"]): entry for entry in content["rows"] if scale in entry.get("scales", (scale,))}


def _has_set(entry: dict[str, Any], question_set: str) -> bool:
    """Whether a row is fine-tuned on a question set; a demo set counts as the real one that it imitates."""
    return question_set.removeprefix("phantom_") in entry.get("question_sets", (question_set.removeprefix("phantom_"),))


def tables_of(scale: str) -> tuple[str, ...]:
    """The tables that `make reproduce` runs at a scale."""
    return tuple(scale_settings(scale)["tables"])


def blank_image_run(run: RunSpec) -> RunSpec:
    """The question-only baseline of a run: the same model, trained and evaluated on blank images."""
    blank = run.data.model_copy(update={"blank_images": True})
    return run.model_copy(update={"data": blank, "label": f"question-only baseline, {run.data.questions}"})


def load_spec(spec: str) -> list[RunSpec]:
    """What a notebook's `spec` parameter means: a file of a run or of a list of runs, or `<scale>/<table>[/<row>[/<stage>]]`.

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
        if parts[3] not in ("stage1", "stage2", "finetune"):
            raise InputError(f"spec={spec!r}: {parts[3]!r} is not one of stage1, stage2, finetune")
        found = [run for tip in found for run in tip.lineage() if run.stage == parts[3]]
        if not found:
            raise InputError(f"spec={spec!r}: that row has no {parts[3]} run")
    return list({run.run_id: run for run in found}.values())
