"""For notebooks 00 to 05: the trained demo model, newly drawn phantom cases, batches, and plots."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from PIL import Image

from amif_lib import methods
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import images, manifests, regions
from amif_lib.data.load import pretraining_studies
from amif_lib.data.readers import mimic_cxr, vqa_rad
from amif_lib.data.records import Study
from amif_lib.experiments.rows import load_spec
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.experiments.stored import Run, is_finished, load_run
from amif_lib.methods.amif import settings, teacher_models
from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.methods.amif.teacher import Embeddings
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks import pixels, tokenizers
from amif_lib.phantom.generate import generate
from amif_lib.training.batches import PretrainingData, steps_of

ROW = "demo/table1/demo"  # the full model; its first training is on the first question set
MAKES = "make table1 DATASETS=phantom_vqa_rad"
SIZE = 96  # pixels, as in the demo's own sets


def trained(model: str = "") -> dict[str, Run]:
    """The runs of a full demo model, by stage: that of the id or folder `model`, else the committed one, else the
    user's own. Raises InputError, with the command that makes one, if there is none."""
    own = load_spec(ROW)[0]
    committed = [Run(path.parents[1]) for path in sorted(paths.reference("demo").glob("runs/*/model/config.json"))]
    found = [run for run in committed if run.spec.stage == "finetune"]
    if model:
        found = [load_run(model)]
    elif not found and is_finished(own):
        found = [load_run(own)]
    if not found or found[0].spec.stage != "finetune":
        raise InputError(f"no trained demo model found; this trains one, in about half an hour: {MAKES}")
    runs = {step.stage: Run(found[0].directory.parent / step.run_id) for step in found[0].spec.trainings()}
    for run in runs.values():
        if not (run.directory / "model" / "model.safetensors").is_file():
            raise InputError(f"{paths.shown(run.directory)}: no weights; this trains them: {MAKES}")
    return runs


def teacher_of(stage1: Run) -> teacher_models.Teacher:
    """The frozen teacher of a stage-1 run: the committed copy beside the run if there is one, else that of the data."""
    beside = stage1.directory.parent / settings.teacher_id(stage1.spec) / "model"
    return teacher_models.load_trained(
        stage1.spec.teacher, beside if beside.is_dir() else settings.cache(stage1.spec) / "fold0"
    )


def known_answers(network: AMiFForVQA) -> list[str]:
    """The prior knowledge of a model as texts: the answers of its training questions, the most frequent first."""
    ends = (network.knowledge_ids == network.tokenizer.sep_token_id).nonzero().flatten() + 1  # [SEP] ends an answer
    return [tokenizers.decode(network.tokenizer, part) for part in network.knowledge_ids.tensor_split(ends)[:-1]]


class DrawnSet(NamedTuple):
    """Studies or questions newly drawn by the phantom, with the findings that their images show."""

    records: list[Any]  # Study or Question
    pictures: dict[str, Image.Image]  # by image id
    findings: dict[str, dict[str, np.ndarray]]  # by image id: each finding, and where it is: (H, W) of booleans


def draw_studies(seed: int, number: int) -> DrawnSet:
    """Studies of one or two views with reports, sorted by findings; no model was trained on them."""
    drawn = _draw("mimic_cxr", seed, {"studies": number}, mimic_cxr.read)
    drawn.records.sort(key=lambda study: name_of(drawn, study))
    return drawn


def draw_questions(seed: int, number: int) -> DrawnSet:
    """Questions about `number` images, in the order of the images; no model was trained on them."""
    counts = {"train_images": 1, "test_images": number, "train_questions": 1, "test_questions": 4 * number}
    drawn = _draw("vqa_rad", seed, counts, vqa_rad.read)
    return drawn._replace(records=[question for question in drawn.records if question.split == "test"])


def _draw(kind: str, seed: int, counts: dict[str, int], read: Any) -> DrawnSet:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / kind
        generate(folder, kind, seed, SIZE, counts)
        records = read(folder, manifests.load(f"phantom_{kind}").layout)
        files = {image.image_id: image.path for record in records for image in record.images}
        about = json.loads((folder / "masks.json").read_text(encoding="utf-8"))
        pictures = {i: images.as_stored(path, SIZE) for i, path in files.items()}
        findings = {}
        for i in files:
            mask, areas = np.asarray(Image.open(folder / "masks" / f"{i}.png")), about["images"][i]["areas"]
            findings[i] = {each: mask == about["labels"][each] for each in about["findings"] if each in areas}
    return DrawnSet(records, pictures, findings)


def name_of(drawn: DrawnSet, study: Study) -> str:
    """Body part and findings of a study, in a few words."""
    part = "head" if study.images[0].view == "axial" else "chest"
    found = {finding for image in study.images for finding in drawn.findings[image.image_id]}
    return f"{part}: {', '.join(sorted(found)) or 'normal'}"


def naming(drawn: DrawnSet) -> list[tuple[Any, str, str, str]]:
    """The records whose text names a finding that its image shows: record, image id, finding, and its name there."""
    return [
        (record, image.image_id, label, word)
        for record in drawn.records
        for image in record.images
        for label in drawn.findings[image.image_id]
        if (word := regions.naming_word(record.text if isinstance(record, Study) else record.question, label))
    ]


def batch_of(drawn: DrawnSet, stage: Run, teach: teacher_models.Teacher) -> PretrainingBatch:
    """The drawn studies as one batch, as training makes it: augmented views, tokens, the teacher's vectors."""
    ids, studies = list(drawn.pictures), drawn.records
    with torch.no_grad():
        seen = teach.images([drawn.pictures[i].convert("RGB") for i in ids])  # (n, e)
        read = teach.texts([study.text for study in studies])  # (N, e)
    keys = [("image", i) for i in ids] + [("text", study.study_id) for study in studies]
    vectors = F.normalize(torch.cat([seen, read]), dim=-1)  # (n + N, e)
    known = Embeddings({key: row for row, key in enumerate(keys)}, vectors, {s.study_id: 0 for s in studies})
    tokenizer = tokenizers.load(stage.directory / "model")
    data = PretrainingData(studies, stage.spec, tokenizer, known, drawn.pictures)
    return data.collate([data[0, index, 1.0, len(studies)] for index in range(len(studies))])


def drawn_batch(spec: RunSpec, step: int) -> tuple[PretrainingBatch, list[Study]]:
    """The global batch of a step (-1: the last) of a stored pre-training, made again, with its studies."""
    studies = pretraining_studies(spec.data, spec.model.stored_side)
    extras = methods.load(spec.method).extras(spec, studies, {})
    data = PretrainingData(studies, spec, tokenizers.load(spec.directory / "model"), extras)
    _, _, keys = steps_of(data, spec)[step]
    return data.collate([data[key] for key in keys]), [studies[key[1]] for key in keys]


# --- pictures --------------------------------------------------------------------------------------------------------


def grey(view: torch.Tensor) -> np.ndarray:
    """A normalised view (3, H, W) as a picture again, (H, W) of 0 to 1."""
    return ((view * pixels.STD[:, None, None] + pixels.MEAN[:, None, None]).mean(0)).clamp(0, 1).numpy()


def matrix(axis: Axes, values: torch.Tensor, rows: Sequence[np.ndarray], columns: Sequence[str], **look: Any) -> Any:
    """A heat map with the number and picture of each row on the left and the name of each column below."""
    drawn = axis.imshow(values, **({"cmap": "magma", "vmin": 0} | look))
    for place, picture in enumerate(rows):
        corner = axis.inset_axes((-1.7, place - 0.48, 0.96, 0.96), transform=axis.transData)
        corner.imshow(picture, cmap="gray", vmin=0, vmax=1)
        corner.set(xticks=[], yticks=[])
        corner.set_ylabel(place, rotation=0, ha="right", va="center", fontsize="x-small")
        corner.spines[:].set_visible(False)
    axis.set(yticks=[], xlim=(-0.5, values.shape[1] - 0.5))
    axis.set_xticks(range(values.shape[1]), columns, rotation=90, fontsize="x-small")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return drawn


def overlay(
    axis: Axes, picture: np.ndarray | Image.Image, patches: torch.Tensor, region: Any = None, **look: Any
) -> None:
    """A map (n, n) over its picture; a white line surrounds `region`, booleans (H, W), if given."""
    axis.imshow(picture, cmap="gray", extent=(0, 1, 1, 0))
    axis.imshow(patches, extent=(0, 1, 1, 0), **({"cmap": "viridis", "alpha": 0.6, "interpolation": "nearest"} | look))
    if region is not None and region.any():
        side = (np.arange(len(region)) + 0.5) / len(region)
        axis.contour(side, side, region, levels=[0.5], colors="white", linewidths=1.2)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def bars(axis: Axes, values: Mapping[str, float], colour: str | Sequence[str]) -> None:
    """Horizontal bars with their names and numbers, the first at the top."""
    drawn = axis.barh(list(values), list(values.values()), color=colour)
    axis.bar_label(drawn, fmt="{:.2f}", fontsize="x-small", padding=2)
    axis.set(xticks=[], xlim=(0, 1.25 * max(values.values())))
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize="x-small")
    axis.spines["bottom"].set_visible(False)
