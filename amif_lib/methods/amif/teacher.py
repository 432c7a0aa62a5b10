"""The teacher of the soft labels: embeddings of every image and text, by a frozen model or from a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import store, vectors
from amif_lib.data.load import load_studies
from amif_lib.data.records import Study, StudyImage
from amif_lib.data.vectors import Key
from amif_lib.methods.amif import teacher_models
from amif_lib.methods.amif.settings import cache, stored_side, teacher_id
from amif_lib.objectives import contrastive

log = logging.getLogger(__name__)
FILE = "file:"  # teacher.source of a file of embeddings


@dataclass
class Embeddings:
    """The teacher's embeddings of a run's studies."""

    rows: dict[Key, int]
    vectors: Tensor  # (n, e), unit length
    folds: dict[str, int]  # by study; vectors of different folds are of different models, so not comparable
    metrics: dict[str, Any] = field(default_factory=dict)  # summary of the soft labels, see `describe`

    def of(self, study: Study, shown: Sequence[StudyImage]) -> dict[str, Tensor]:
        """Vectors of a study for a batch: those of the images `shown` as its V views (V, e), and its text's (e,)."""
        views = [self.rows["image", image.image_id] for image in shown]
        return {"teacher_views": self.vectors[views], "teacher_text": self.vectors[self.rows["text", study.study_id]]}


def embeddings(spec: Any, studies: Sequence[Study]) -> Embeddings:
    """The embeddings of a run's studies by its teacher, computed now if they are not stored yet.

    Writes `metrics.json` and `spec.json`, which hold no record ids, to `results/runs/<teacher_id>/`. Raises InputError
    if the teacher or its file of embeddings cannot be used.
    """
    teacher = spec.teacher
    from_file = teacher.source.startswith(FILE)
    path = paths.of_setting(teacher.source.removeprefix(FILE)) if from_file else _embedded(spec, studies)
    keys = [("image", image.image_id) for study in studies for image in study.images]
    keys = list(dict.fromkeys([*keys, *(("text", study.study_id) for study in studies)]))
    found = vectors.read(path, keys)  # (n, e)
    rows = {key: row for row, key in enumerate(keys)}
    out = Embeddings(rows, torch.from_numpy(found), assign_folds(studies, teacher.cross_fit))
    out.metrics = describe(out, studies, spec) | {"studies": len(studies), "stored_side": stored_side(spec)}
    if from_file:
        out.metrics["file_sha256"] = files.sha256(path)
    _publish(spec, out.metrics)
    return out


def towers(spec: Any) -> tuple[str, str]:
    """The sources of `init.image: teacher` and `init.text: teacher`, in the form that `networks.pretrained` reads."""
    if spec.teacher.source != "trained":
        return spec.teacher.weights, spec.teacher.weights
    with _locked(spec) as folder:
        _models(spec, folder, [], {})
    return str(folder / "fold0" / "image"), str(folder / "fold0" / "text")


@contextlib.contextmanager
def _locked(spec: Any) -> Iterator[Path]:
    """The folder of the teacher's weights and vectors, to which one process at a time may write."""
    folder = cache(spec)
    lock = folder.with_name(f".{folder.name}.lock")
    with files.writing(folder, files.PREPARED), files.exclusive(lock, f"teacher {folder.name}"):
        yield folder


def _embedded(spec: Any, studies: Sequence[Study]) -> Path:
    """The file of all vectors, made if absent. Its name follows the digests in the names of the store's files."""
    state = [store.ensure(name, spec.model.stored_side).stem.rpartition("-")[2] for name in spec.data.pretrain]
    path = cache(spec) / f"embeddings-{files.digest(state)}.parquet"
    if path.is_file():
        return path
    with _locked(spec) as folder:
        if path.is_file():  # another process has made it meanwhile
            return path
        pictures, made = store.pictures(spec.data.pretrain, stored_side(spec)), {}
        folds = assign_folds(studies, spec.teacher.cross_fit)
        for fold, model in _models(spec, folder, studies, folds).items():
            own = [study for study in studies if folds[study.study_id] == fold]
            names = dict.fromkeys(image.image_id for study in own for image in study.images)
            names = [name for name in names if ("image", name) not in made]
            images = teacher_models.embed(model.images, (pictures[name].convert("RGB") for name in names), len(names))
            texts = teacher_models.embed(model.texts, (study.text for study in own), len(own))  # (n, e)
            made |= {("image", name): row for name, row in zip(names, images, strict=True)}
            made |= {("text", study.study_id): row for study, row in zip(own, texts, strict=True)}
        vectors.write(path, list(made), np.stack(list(made.values())))
    return path


def _models(
    spec: Any, folder: Path, studies: Sequence[Study], folds: dict[str, int]
) -> dict[int, teacher_models.Teacher]:
    """The frozen model by fold: the named one, one trained on `teacher.data`, or each trained on all other folds."""
    teacher, side = spec.teacher, stored_side(spec)
    if teacher.source != "trained":
        return {0: teacher_models.load(teacher.source)}
    if not teacher.cross_fit and (overlap := set(teacher.data) & set(spec.data.pretrain)):
        what = f"{', '.join(sorted(overlap))} is also the student's, which makes labels close to one-hot"
        raise InputError(f"teacher.data: {what}; name another set, or set teacher.cross_fit to 2 or more")
    models = {}
    for fold in range(max(teacher.cross_fit, 1)):
        own, aside = folder / f"fold{fold}", folder / f".fold{fold}"
        if not own.is_dir():
            if teacher.cross_fit:
                names, training = spec.data.pretrain, [s for s in studies if folds[s.study_id] != fold]
            else:
                names, training = teacher.data, [s for n in teacher.data for s in load_studies(n, stored_side=side)]
            shutil.rmtree(aside, ignore_errors=True)  # left by a training that was interrupted
            teacher_models.train(training, teacher, aside, store.pictures(names, side))
            aside.replace(own)
        models[fold] = teacher_models.load_trained(teacher, own)
    return models


def assign_folds(studies: Sequence[Study], folds: int) -> dict[str, int]:
    """Fold by study: cases, in a fixed shuffled order, are assigned to the folds in turn. No case is in two folds."""
    cases = sorted({study.group_id for study in studies}, key=lambda case: hashlib.sha256(case.encode()).hexdigest())
    of_case = {case: number % max(folds, 1) for number, case in enumerate(cases)}
    return {study.study_id: of_case[study.group_id] for study in studies}


def describe(embeddings: Embeddings, studies: Sequence[Study], spec: Any) -> dict[str, Any]:
    """How peaked and how good soft labels are: means over batches of stage 1's size. InputError if there is none."""
    size, rows = spec.train.batch_size, []
    positive = torch.arange(size)
    for fold in sorted(set(embeddings.folds.values())):
        members = [study for study in studies if embeddings.folds[study.study_id] == fold]
        order = np.random.default_rng((0, fold)).permutation(len(members))
        for start in range(0, len(order) - size + 1, size):
            pairs = [embeddings.of(members[i], members[i].images[:1]) for i in order[start : start + size]]
            image = torch.cat([pair["teacher_views"] for pair in pairs])  # (N, e)
            similarity = image @ torch.stack([pair["teacher_text"] for pair in pairs]).T  # (N, N)
            labels = contrastive.soft_labels(similarity, spec.objective.teacher_temperature, 0.0, positive)
            retrieved = float((similarity.argmax(1) == positive).float().mean())
            rows.append(contrastive.teacher_statistics(labels, positive) | {"held_out_retrieval_at_1": retrieved})
    if not rows:
        raise InputError(f"train.batch_size: {size} exceeds the studies of a fold of the teacher; lower it")
    frame = pd.DataFrame(rows)
    warn = next((text for text in frame.pop("warn") if text), "")
    return frame.mean().to_dict() | {"chance_retrieval_at_1": 1 / size, "batch_size": size, "warn": warn}


def _publish(spec: Any, metrics: dict[str, Any]) -> None:
    """Write metrics and settings to the run folder. InputError if those there are of another version of the file."""
    folder, source = paths.run_dir(teacher_id(spec)), spec.teacher.source
    if (folder / "metrics.json").is_file():
        made = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if made.get("file_sha256") != metrics.get("file_sha256"):
            what = f"the file changed since teacher {folder.name} was made; rename it, or delete {paths.shown(folder)}"
            raise InputError(f"teacher.source {source}: {what}")
        return
    files.write_json(folder / "spec.json", spec.teacher.model_dump(mode="json"))
    files.write_json(folder / "metrics.json", metrics)
    log.info("teacher %s: mean Q_ii %.3f. %s", folder.name, metrics["mean_q_ii"], metrics["warn"])
