"""The teacher of the soft labels: a frozen CLIP-style model, its embeddings of every image and text, cached once.

At base and paper scale the teacher is BiomedCLIP by hub id; Table 5 puts others in its place (`TeacherSpec.source`), of
which a run sees the same: a table of embeddings by sample id. Where no weights can be had the kit trains a small open_clip
model itself, in open_clip's own folder format: on a separate draw of the phantom (demo), or cross-fitted by case (small),
since a teacher fitted on the student's own pairs gives labels close to one-hot. Embeddings of different folds live in
different spaces, so a batch is drawn from one fold.

A teacher with `noise` is no other model: its embeddings are those of the teacher without, degraded (`embedding_files.with_noise`),
written as a file of embeddings and read as any such file is.

`python -m amif_lib.methods.amif.teacher --spec RUN.json` fills the cache of a run's teacher.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import PREPARED, exclusive, writing
from amif_lib.data import manifests
from amif_lib.data.records import Study
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.rows import RunSpec
from amif_lib.methods.amif import embedding_files
from amif_lib.methods.amif.teacher_embeddings import (
    INDEX,
    SHARDS,
    Embeddings,
    embed,
    read,
    weights_digest,
    write_index,
    write_vectors,
)
from amif_lib.methods.amif.teacher_models import HF_CLIP, load, load_open_clip, train_open_clip
from amif_lib.networks import sizes

if TYPE_CHECKING:
    from amif_lib.data.store import Pictures
    from amif_lib.methods.amif.settings import TeacherSpec

log = logging.getLogger(__name__)

METRICS = "metrics.json"
DEGRADED = "embeddings.parquet"  # what a teacher with noise is read from


def teacher_id(spec: RunSpec) -> str:
    """Directory name of a run's teacher: hash of the teacher and of the data it embeds.

    "" for a run that uses none: a pre-training without teacher, or a fine-tuning that does not start from its towers.
    """
    if not (spec.teacher and (spec.stage != "finetune" or spec.trains_towers)):
        return ""
    data = spec.data
    content = {
        "stored_side": stored_side(spec),
        "teacher": spec.teacher.model_dump(mode="json"),
        "pretrain": data.pretrain,
        "sections": data.report_sections,
        "figures": data.medicat_figures,
        "max_studies": data.max_studies,
        "decontaminate_against": data.decontaminate_against,
        "decontaminate_absent": data.decontaminate_absent,
        "repeated_articles": data.repeated_articles,
        "manifests": {
            name: manifests.data_digest(name)
            for name in sorted({*data.pretrain, *data.decontaminate_against, *spec.teacher.data})
        },
    }
    if data.single_view_studies != "augment":
        content["single_view_studies"] = data.single_view_studies
    return files.digest(content)


def without_noise(spec: RunSpec) -> RunSpec:
    """The run with the teacher whose embeddings its degraded teacher is made from."""
    return spec.model_copy(update={"teacher": spec.teacher.model_copy(update={"noise": 0.0})})


def teacher_ids(spec: RunSpec) -> list[str]:
    """What must be made for a run's teacher, in this order: for one with noise that without first; [] without teacher."""
    own = teacher_id(spec)
    return [teacher_id(without_noise(spec)), own] if own and spec.teacher.noise else [own] if own else []


def stored_side(spec: RunSpec) -> int:
    """Short side of the prepared images that a run's teacher reads, pixels: the student's, if that is enough for it."""
    external = 224  # what open_clip's models of the field are trained at
    own = spec.teacher.image_size if spec.teacher.source == "trained" else external
    return max(spec.model.stored_side, sizes.stored_side(own))


def cache(spec: RunSpec) -> Path:
    """Folder of a teacher's weights, tokenizer, embeddings and the ids they are of: beside the data, like all that names records."""
    return manifests.derived_folder(spec.data.pretrain[0]) / "teachers" / teacher_id(spec)


def _is_made(folder: Path) -> bool:
    """Whether a cache is whole, and no run folder describes another one."""
    if not all((folder / name).exists() for name in (SHARDS, INDEX, METRICS, "spec.json")):
        return False
    public = paths.run_dir(folder.name) / METRICS
    return not public.exists() or _content(public) == _content(folder / METRICS)


def _content(metrics: Path) -> dict[str, Any]:
    """What a teacher's metrics say of it; how long it took is no difference between two."""
    found = json.loads(metrics.read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name != "wall_time_s"}


def _publish(folder: Path) -> None:
    """Put a cache's metrics and settings, which name no record, into the run folder, where they are not there yet."""
    public = paths.run_dir(folder.name)
    if (public / METRICS).exists():
        return
    beside = public.with_name(f"{public.name}.part{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name in (METRICS, "spec.json"):
        shutil.copyfile(folder / name, beside / name)
    shutil.rmtree(public, ignore_errors=True)
    beside.replace(public)


def ensure(spec: RunSpec, studies: Sequence[Study] | None = None) -> Path:
    """The teacher's cache, with its embeddings of the run's studies; trained and embedded now if absent.

    `results/runs/<teacher_id>/` holds what names no record: `metrics.json` and `spec.json`. Where it is there and the
    cache is gone (or another's), both are made again; a cache that another results folder has made is taken as it is. Of
    several processes one makes it and the others wait.
    """
    folder = cache(spec)
    if not (_is_made(folder) and (paths.run_dir(folder.name) / METRICS).exists()):
        with writing(folder.parent, PREPARED):
            pass
        with exclusive(folder.with_name(f".{folder.name}.lock"), f"teacher {folder.name}"):
            if not _is_made(folder):
                _make(folder, spec, list(studies) if studies is not None else student_studies(spec))
            _publish(folder)
    _refuse_changed(spec, folder)
    return folder


def same_model(spec: RunSpec, weights: str) -> list[Path]:
    """Shards of other caches whose vectors are this teacher's: of a model with these `weights` (`weights_digest`), which saw
    images of the same size, made by code that embeds as the present. Its source is not asked: a folder may be overwritten.
    """
    found = []
    for home in dict.fromkeys(manifests.derived_folder(name) / "teachers" for name in spec.data.pretrain):
        for folder in sorted(path for path in home.glob("[!.]*") if path.name != teacher_id(spec)):
            try:
                made = _content(folder / METRICS)
            except (OSError, ValueError):  # damaged: `ensure` makes it again when it is asked for
                continue
            if (made.get("weights"), made.get("stored_side")) == (weights, stored_side(spec)):
                found += [folder / SHARDS]
    return found


def _refuse_changed(spec: RunSpec, folder: Path) -> None:
    """Raise InputError where the file of embeddings is another than the one that the cache was made from."""
    source = spec.teacher.source
    if spec.teacher.noise:
        return  # made of the teacher without noise, for which this is asked
    if source.startswith(embedding_files.PREFIX) and (path := embedding_files.located(source)).is_file():
        made = json.loads((folder / METRICS).read_text(encoding="utf-8"))["file_sha256"]
        if manifests.sha256(path) != made:
            raise InputError(
                f"{paths.shown(path)}: changed since teacher {folder.name} was made of it; give the new file another name, or "
                f"remove what was made of the old one: python -m amif_lib clean --runs {folder.name}"
            )


def _make(folder: Path, spec: RunSpec, studies: list[Study]) -> None:
    from amif_lib.data import store
    from amif_lib.data.load import load_studies

    started = time.time()
    aside = folder.with_name(f"{folder.name}.part")  # an interrupted job goes on there
    for other in folder.parent.glob(f"{folder.name}.part*"):
        if other != aside:
            shutil.rmtree(other)
    aside.mkdir(exist_ok=True)
    teacher, side = spec.teacher, stored_side(spec)
    pictures = store.pictures(spec.data.pretrain, side)
    whole, own_metrics, models = {0: list(range(len(studies)))}, {}, {}
    if teacher.noise:
        clean_folder = ensure(without_noise(spec), studies)
        clean = read(clean_folder)
        folds = {
            k: [i for i, s in enumerate(studies) if clean.folds[s.study_id] == k] for k in set(clean.folds.values())
        }
        write_degraded(clean, teacher.noise, teacher.seed, aside / DEGRADED)
        embeddings = from_file(aside / DEGRADED, studies, clean.folds)
        own_metrics = {"noise": teacher.noise, "degraded_from": clean_folder.name}
    elif teacher.source.startswith(embedding_files.PREFIX):
        folds, path = whole, embedding_files.located(teacher.source)
        embeddings = from_file(path, studies, {study.study_id: 0 for study in studies})
        own_metrics = {"file_sha256": manifests.sha256(path)}
    elif teacher.source != "trained":
        folds, models = whole, {0: load(teacher.source)}
    elif teacher.cross_fit:
        fold_of = assign_folds(studies, teacher.cross_fit)
        folds = {k: [i for i, s in enumerate(studies) if fold_of[s.group_id] == k] for k in range(teacher.cross_fit)}
        models = {
            k: _trained([s for s in studies if fold_of[s.group_id] != k], teacher, aside / f"fold{k}", pictures)
            for k in folds
        }
    else:
        if overlap := set(teacher.data) & set(spec.data.pretrain):
            raise InputError(
                f"teacher.data: {', '.join(sorted(overlap))} is also the student's; a teacher fitted on the student's own "
                "pairs gives labels close to one-hot: name another set, or set teacher.cross_fit to 2 or more"
            )
        own = [study for name in teacher.data for study in load_studies(name, stored_side=side, **reading(spec))]
        folds = whole
        models = {0: _trained(own, teacher, aside / "fold0", store.pictures(teacher.data, side))}
    if models:
        others: list[Path] = []
        if len(models) == 1:  # else a content has a vector of each fold's model
            own_metrics["weights"] = weights_digest(models[0][0])
            others = same_model(spec, own_metrics["weights"])
        embeddings = embed(studies, folds, models, pictures, aside / SHARDS, others)
    else:
        write_vectors(aside / SHARDS, embeddings)
    metrics = describe(embeddings, studies, folds, spec)
    metrics |= {
        "source": teacher.source,
        "trained_on": list(teacher.data),
        "cross_fit": teacher.cross_fit,
        "studies": len(studies),
        "stored_side": side,
        **own_metrics,
        "wall_time_s": round(time.time() - started, 1),
    }
    _write(aside, embeddings, metrics, spec)
    shutil.rmtree(paths.run_dir(folder.name), ignore_errors=True)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)  # in one step, for others that read it
    aside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    log.info(
        "teacher %s: mean Q_ii %.3f, effective neighbours %.1f, held-out retrieval %.3f",
        folder.name,
        metrics["mean_q_ii"],
        metrics["effective_neighbours"],
        metrics["held_out_retrieval_at_1"],
    )
    if metrics["warn"]:
        log.warning("teacher %s: %s", folder.name, metrics["warn"])


def reading(spec: RunSpec) -> dict[str, Any]:
    """The run's settings that `datasets.load_studies` takes."""
    names = ("report_sections", "medicat_figures", "max_missing_images", "most_bad_images", "decontaminate_absent")
    return {name: getattr(spec.data, name) for name in names}


def student_studies(spec: RunSpec) -> list[Study]:
    """The pre-training studies of a run, all sets concatenated, decontaminated, without undecodable images (and single views, if asked)."""
    from amif_lib.data.load import pretraining_studies

    return pretraining_studies(spec.data, spec.model.stored_side)


def assign_folds(studies: Sequence[Study], folds: int) -> dict[str, int]:
    """Fold of each case (group id): cases in a fixed shuffled order, dealt out in turn. No case is in two folds."""
    import hashlib

    groups = sorted({study.group_id for study in studies}, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    return {group: number % folds for number, group in enumerate(groups)}


def _trained(studies: list[Study], teacher: TeacherSpec, folder: Path, pictures: Pictures) -> tuple[Any, Any, Any]:
    """The open_clip model of `folder`, trained now unless an interrupted job has finished it."""
    if not folder.is_dir():
        aside = folder.with_name(f".{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        from amif_lib.training.determinism import deterministic

        with deterministic():
            train_open_clip(studies, teacher, aside, pictures)
        aside.replace(folder)
    return load_open_clip(f"local-dir:{folder}")


def write_degraded(clean: Embeddings, noise: float, seed: int, path: Path) -> None:
    """A teacher's embeddings with noise (`embedding_files.with_noise`) as a file of embeddings."""
    parts = {
        kind: dict(zip(ids, embedding_files.with_noise(ids, vectors.numpy(), noise, seed, kind), strict=True))
        for kind, ids, vectors in (
            ("image", list(clean.images), clean.image_vectors),
            ("text", list(clean.studies), clean.text_vectors),
        )
    }
    embedding_files.write(path, parts["image"], parts["text"])


def from_file(path: Path, studies: Sequence[Study], folds: dict[str, int]) -> Embeddings:
    """Embeddings of the studies from a file of embeddings (`embedding_files.read`)."""
    import torch

    images = list(dict.fromkeys(picture.image_id for study in studies for picture in study.images))
    texts = list(dict.fromkeys(study.study_id for study in studies))
    image_vectors, text_vectors = map(torch.from_numpy, embedding_files.read(path, images, texts))
    index = [{name: i for i, name in enumerate(ids)} for ids in (images, texts)]
    return Embeddings(*index, image_vectors, text_vectors, {name: folds[name] for name in texts})


def towers_source(spec: RunSpec) -> str:
    """What `init.image: teacher` and `init.text: teacher` stand for: a source that `open_clip_towers` reads, trained now if absent."""
    source = spec.teacher.source
    if source.startswith(HF_CLIP):
        return source.removeprefix(HF_CLIP)
    return "open_clip:" + (f"local-dir:{ensure(spec) / 'fold0'}" if source == "trained" else source)


def describe(
    embeddings: Embeddings, studies: Sequence[Study], folds: dict[int, list[int]], spec: RunSpec
) -> dict[str, Any]:
    """How sharp and how good the labels are, on batches like stage 1's: mean Q_ii, effective neighbours, retrieval."""
    import numpy as np
    import torch

    from amif_lib.objectives import contrastive

    size = spec.train.batch_size
    rows = []
    for fold, members in folds.items():
        order = np.random.default_rng((0, fold)).permutation(members)
        for start in range(0, len(order) - size + 1, size):
            batch = [studies[i] for i in order[start : start + size]]
            image = embeddings.image_vectors[[embeddings.images[s.images[0].image_id] for s in batch]]  # (N, e)
            text = embeddings.text_vectors[[embeddings.studies[s.study_id] for s in batch]]
            similarity = image @ text.T  # (N, N)
            positive = torch.arange(size)
            labels = contrastive.soft_labels(similarity, spec.objective.teacher_temperature, 0.0, positive)
            found = contrastive.teacher_statistics(labels, positive)
            found["retrieval"] = float((similarity.argmax(1) == positive).float().mean())
            rows.append(found)
    if not rows:
        raise InputError(
            f"train.batch_size: {size} exceeds the studies of a fold ({min(map(len, folds.values()))}); lower it"
        )
    numbers = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if isinstance(rows[0][key], float)}
    return {
        "mean_q_ii": numbers["mean_q_ii"],
        "effective_neighbours": numbers["effective_neighbours"],
        "held_out_retrieval_at_1": numbers["retrieval"],
        "chance_retrieval_at_1": 1 / size,
        "batch_size": size,
        "warn": next((row["warn"] for row in rows if row.get("warn")), ""),
    }


def _write(folder: Path, embeddings: Embeddings, metrics: dict[str, Any], spec: RunSpec) -> None:
    write_index(folder, embeddings)
    (folder / "spec.json").write_text(spec.teacher.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m amif_lib.methods.amif.teacher",
        description="Fill the embedding cache of a run's teacher.",
        epilog=f"teacher.source: file:PATH, for models with code of their own. {embedding_files.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--spec", required=True, help="run file or <scale>/<table>/<row>/stage1")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for spec in experiments.load_spec(arguments.spec):
        ensure(spec)


if __name__ == "__main__":
    main()
