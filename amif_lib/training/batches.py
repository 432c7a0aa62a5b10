"""From records to batches. All random draws are keyed by (seed, stage, step, sample), never by process or worker."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amif_lib import methods
from amif_lib.core.errors import InputError
from amif_lib.data import store
from amif_lib.data.records import Question, Study
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.methods.batch import PretrainingBatch, QuestionBatch
from amif_lib.networks import pixels
from amif_lib.networks.tokenizers import token_ids
from amif_lib.objectives.distributed import rank, world_size

FIXED_VIEWS = 2  # augmentations per image (in pre-training: per slot) for a frozen encoder, which sees each only once
TOKEN_DROP = 0.15  # share of report tokens masked out in a text copy (point 17)
SampleKey = tuple[int, int, float, int]  # of a sample: step, index, weight (0: a filler), size of the global batch
Steps = list[tuple[int, int, list[SampleKey]]]  # for each step: epoch, step, this process's samples


def stream(spec: RunSpec) -> tuple[int, int]:
    """The key of a run's random streams: its seed and its stage's number, so that no stage repeats another's draws."""
    number = methods.settings(spec.method).STAGES.index(spec.stage)
    return spec.seed, 2 if spec.stage == "finetune" else number + (number >= 2)  # 2 is always fine-tuning's


def seed_of(spec: RunSpec, *more: int) -> int:
    """A seed for torch's global generator, from the run's `stream` and the numbers `more`."""
    return int(np.random.SeedSequence((*stream(spec), *more)).generate_state(1)[0])


def view_draws(spec: RunSpec, image_id: str, slot: int, *key: int) -> torch.Generator:
    """The random stream that augments a view; for a frozen encoder that of one of the image's `FIXED_VIEWS`."""
    own = pixels.keyed(*stream(spec), *key)
    if spec.model.image_form != "lite0":
        return own
    which = int(torch.randint(FIXED_VIEWS, (1,), generator=own))
    return pixels.keyed(*stream(spec), zlib.crc32(image_id.encode()), slot, which)


class ImageCache:
    """A run's stored images by id; decoded ones are kept in memory, up to `bound_bytes`."""

    def __init__(self, spec: RunSpec, names: Sequence[str], bound_bytes: int = 1 << 30):
        self.stored, self.decoded, self.room = store.pictures(names, spec.model.stored_side), {}, bound_bytes

    def __getitem__(self, image_id: str) -> Image.Image:
        if image_id in self.decoded:
            return self.decoded[image_id]
        picture = self.stored[image_id]
        size = picture.width * picture.height * len(picture.mode)  # `L` or `RGB`
        if size <= self.room:
            self.decoded[image_id], self.room = picture, self.room - size
        return picture


# --- which samples make up which step ----------------------------------------------------------------------------


def global_batches(
    total: int, size: int, key: Sequence[int], folds: Sequence[int] | None = None, drop_last: bool = True
) -> list[list[int]]:
    """Indices of every global batch of an epoch, shuffled by `key`. With `folds` a batch holds samples of one fold.
    Raises InputError if there are too few samples for one batch."""
    rng = np.random.default_rng(tuple(key))
    fold_of = np.zeros(total, dtype=int) if folds is None else np.asarray(folds)
    batches = []
    for fold in np.unique(fold_of):
        order = rng.permutation(np.flatnonzero(fold_of == fold))
        end = len(order) - len(order) % size if drop_last else len(order)
        batches += [order[start : start + size].tolist() for start in range(0, end, size)]
    if not batches:
        raise InputError(f"train.batch_size: {size} exceeds the {total} samples (per fold of the teacher); lower it")
    return [batches[i] for i in rng.permutation(len(batches))]


def steps_of(data: PretrainingData | QuestionData, spec: RunSpec) -> Steps:
    """Every step of a run, with the samples of this process."""
    steps: Steps = []
    for epoch in range(spec.train.epochs):
        key, drop_last = (*stream(spec), epoch), spec.stage != "finetune"
        for batch in global_batches(len(data), spec.train.batch_size, key, data.folds, drop_last):
            keys = [(len(steps), index, weight, len(batch)) for index, weight in share(batch)]
            steps.append((epoch, len(steps), keys))
    return steps


def share(batch: Sequence[int]) -> list[tuple[int, float]]:
    """This process's samples of a global batch with their weights: 1, or 0 for fillers that make all shares equal."""
    each = -(-len(batch) // world_size())
    own = list(batch[rank() * each : (rank() + 1) * each])
    return [(index, 1.0) for index in own] + [(batch[0], 0.0)] * (each - len(own))


# --- samples -----------------------------------------------------------------------------------------------------


class PretrainingData(Dataset):
    """Studies as training samples: two views, tokens, and what the method's `extras`, if any, add (section 3.1).

    `extras.of(study, images of its views)` gives tensors by name; `extras.folds` gives each study's fold by its id.
    """

    def __init__(self, studies: Sequence[Study], spec: RunSpec, tokenizer: Any, extras: Any = None, images: Any = None):
        if not studies:
            raise InputError("data.pretrain: no studies; name at least one pre-training set")
        self.studies, self.spec, self.extras = list(studies), spec, extras
        self.folds = [extras.folds[study.study_id] for study in studies] if extras else None
        self.images = images or ImageCache(spec, spec.data.pretrain)  # pictures by id, by default the stored ones
        self.both_views = spec.objective.reads_both_views(spec.stage)
        texts = [study.text for study in studies]
        self.tokens = token_ids(tokenizer, texts, spec.data.text_length)
        self.pad, self.mask_token = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.special = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id])
        self.group = pd.factorize(np.array([study.group_id for study in studies]))[0].tolist()
        self.text_key = pd.factorize(np.array([" ".join(text.lower().split()) for text in texts]))[0].tolist()
        names = sorted({picture.view for study in studies for picture in study.images})
        self.view_number = {name: number for number, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        step, index, _, _ = key
        study, spec = self.studies[index], self.spec
        generator = pixels.keyed(*stream(spec), step, index)

        several = len(study.images) > 1
        pair = torch.randperm(len(study.images), generator=generator)[:2].sort().values.tolist() if several else [0, 0]
        view = int(torch.randint(2, (1,), generator=generator))  # which of the two is V_i
        slots = (0, 1) if self.both_views else (view,)  # the draws above are the same in both cases
        pictures = [study.images[pair[slot]] for slot in slots]
        strength = "light" if several else "strong"  # point 44
        views = []
        for slot, picture in zip(slots, pictures, strict=True):
            draws = view_draws(spec, picture.image_id, slot, step, index, 1 + slot)
            views.append(pixels.augment(self.images[picture.image_id], spec.model.image_size, strength, draws))

        tokens = torch.tensor(self.tokens[index])
        dropped = (torch.rand(len(tokens), generator=generator) < TOKEN_DROP) & ~torch.isin(tokens, self.special)
        return {
            "views": torch.stack(views),  # (V, 3, H, W)
            "view": view if self.both_views else 0,
            "tokens": tokens,  # (t,)
            "copy": torch.where(dropped, self.mask_token, tokens),  # (t,)
            "view_label": [2 * self.view_number[picture.view] + several for picture in pictures],
            "group": self.group[index],
            "text_key": self.text_key[index],
            "step": step,
            "extras": self.extras.of(study, pictures) if self.extras else {},
        }

    def collate(self, samples: list[dict[str, Any]]) -> PretrainingBatch:
        """Samples of one step -> a batch."""
        ids, mask = pad([sample["tokens"] for sample in samples], self.pad)  # (B, t), (B, t)
        copy_ids, _ = pad([sample["copy"] for sample in samples], self.pad)  # (B, t)
        views = torch.stack([sample["views"] for sample in samples])  # (B, V, 3, H, W)
        names = ("view", "view_label", "group", "text_key")
        numbers = {name: torch.tensor([sample[name] for sample in samples]) for name in names}  # (B,); labels (B, V)
        numbers["extras"] = {name: torch.stack([s["extras"][name] for s in samples]) for name in samples[0]["extras"]}
        return PretrainingBatch(views, ids=ids, mask=mask, copy_ids=copy_ids, step=samples[0]["step"], **numbers)


class QuestionData(Dataset):
    """Questions as fine-tuning or evaluation samples. `blank` replaces every image by the same grey one."""

    folds = None

    def __init__(
        self, questions: Sequence[Question], spec: RunSpec, tokenizer: Any, blank: bool = False, augment: str = "none"
    ):
        self.questions, self.spec, self.augment = list(questions), spec, augment
        self.blank = blank or spec.data.blank_images
        self.images = ImageCache(spec, (spec.data.questions,))
        self.pad = tokenizer.pad_token_id
        self.tokens = token_ids(tokenizer, [q.question for q in questions], spec.data.question_length)
        self.answers = token_ids(tokenizer, [q.answer for q in questions], spec.data.answer_length)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        step, index, weight, total = key
        sample = {"tokens": self.tokens[index], "answer": self.answers[index], "weight": weight, "total": total}
        if not self.blank:
            name = self.questions[index].image_id
            draws = view_draws(self.spec, name, 0, step, index)
            sample["image"] = pixels.augment(self.images[name], self.spec.model.image_size, self.augment, draws)
        return sample

    def collate(self, samples: list[dict[str, Any]]) -> QuestionBatch:
        """Samples of one step -> a batch."""
        ids, mask = pad([sample["tokens"] for sample in samples], self.pad)  # (B, t), (B, t)
        answers, answer_mask = pad([sample["answer"] for sample in samples], self.pad)  # (B, a), (B, a)
        weight = torch.tensor([sample["weight"] for sample in samples])  # (B,)
        if self.blank:
            pictures = pixels.blank(self.spec.model.image_size)[None]  # (1, 3, H, W)
        else:
            pictures = torch.stack([sample["image"] for sample in samples])  # (B, 3, H, W)
        return QuestionBatch(pictures, ids, mask, answers, answer_mask, weight, samples[0]["total"])


def loader(dataset: Any, keys: Sequence[Sequence[SampleKey]], workers: int) -> DataLoader:
    """A batch per list of keys; `workers` processes decode and augment ahead (0: in this process)."""
    return DataLoader(
        dataset,
        batch_sampler=keys,
        collate_fn=dataset.collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the loader draws a seed for its workers; dropout's stream must not move by that
    )


def pad(rows: Sequence[Any], value: int) -> tuple[Tensor, Tensor]:
    """Token lists of different length -> ids and mask (B, longest)."""
    rows = [torch.as_tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)  # (B, longest)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1])[None] < lengths[:, None]  # (B, longest) both
