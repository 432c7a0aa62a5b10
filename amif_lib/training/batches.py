"""From records to batches. Everything random is keyed by (seed, step, sample), never by process or worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amif_lib.core.errors import InputError
from amif_lib.data import images, store
from amif_lib.data.records import Question, Study
from amif_lib.experiments.rows import RunSpec
from amif_lib.methods.amif.teacher import Embeddings
from amif_lib.methods.batch import PretrainingBatch, QuestionBatch
from amif_lib.networks import pixels
from amif_lib.objectives.distributed import rank, world_size


class ImageCache:
    """Prepared images by id, decoded, kept in memory up to a bound: small sets are decoded once.

    `size` is the side of the model's square input, `side` the short side of what is kept, both in pixels.
    """

    def __init__(self, pictures: store.Pictures, size: int, side: int, bound_bytes: int = 1 << 30):
        self.pictures, self.size, self.side, self.room = pictures, size, side, bound_bytes
        self.kept: dict[str, Image.Image] = {}
        self.tensors: dict[str, Tensor] = {}

    def __getitem__(self, image_id: str) -> Image.Image:
        if image_id in self.kept:
            return self.kept[image_id]
        image = images.shrink(self.pictures[image_id], self.side)
        need = image.width * image.height * (1 if image.mode == "L" else 4)  # as Pillow holds them
        if need <= self.room:
            self.kept[image_id], self.room = image, self.room - need
        return image

    def tensor(self, image_id: str) -> Tensor:
        """The image as the model sees it without augmentation, (3, size, size)."""
        if image_id in self.tensors:
            return self.tensors[image_id]
        tensor = pixels.to_tensor(images.shrink(self.pictures[image_id], self.side), self.size)
        if tensor.nbytes <= self.room:
            self.tensors[image_id], self.room = tensor, self.room - tensor.nbytes
        return tensor


def _cache(spec: RunSpec, names: Sequence[str]) -> ImageCache:
    side = spec.model.stored_side
    return ImageCache(store.pictures(names, side), spec.model.image_size, side)


def global_batches(
    total: int,
    size: int,
    seed: int,
    epoch: int,
    folds: Sequence[int] | None = None,
    drop_last: bool = True,
    sources: Sequence[str] | None = None,
) -> list[list[int]]:
    """Indices of every global batch of an epoch, shuffled by (seed, epoch).

    With `folds` a batch holds samples of one fold. With `sources`, the data set of each sample, an epoch of about the same
    length draws equally from each set. Raises InputError where no full batch can be made.
    """
    rng = np.random.default_rng((seed, epoch))
    fold_of = np.zeros(total, dtype=int) if folds is None else np.asarray(folds)
    batches = []
    for fold in np.unique(fold_of):
        members = np.flatnonzero(fold_of == fold)
        order = rng.permutation(members) if sources is None else balanced(members, np.asarray(sources)[members], rng)
        end = len(order) - len(order) % size if drop_last else len(order)
        batches += [order[start : start + size].tolist() for start in range(0, end, size)]
    if not batches:
        raise InputError(
            f"train.batch_size: {size} exceeds the {total} samples there are (per fold of the teacher); lower it"
        )
    return [batches[i] for i in rng.permutation(len(batches))]


def balanced(members: np.ndarray, sources: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of about as many samples as there are, the same number from each source, spread evenly over it.

    A small source is gone through several times, each time in a new order, a large one in part. Where two passes meet, a
    batch may hold a sample twice; mining treats it as a duplicate.
    """
    names = np.unique(sources)
    each = -(-len(members) // len(names))
    drawn, places = [], []
    for name in names:
        own = members[sources == name]
        passes = [rng.permutation(own) for _ in range(-(-each // len(own)))]
        drawn.append(np.concatenate(passes)[:each])
        places.append((np.arange(each) + rng.random(each)) / each)  # in [0, 1), rising
    return np.concatenate(drawn)[np.argsort(np.concatenate(places), kind="stable")]


def share(batch: Sequence[int]) -> tuple[list[int], list[float]]:
    """This process's part of a global batch, and a weight per row: 0 on rows that only fill up an uneven split."""
    each = -(-len(batch) // world_size())
    own = list(batch[rank() * each : (rank() + 1) * each])
    filler = each - len(own)
    return own + [batch[0]] * filler, [1.0] * len(own) + [0.0] * filler


class PretrainingData(Dataset):
    """Studies as training samples: two views, tokens, teacher embeddings (section 3.1)."""

    def __init__(self, studies: Sequence[Study], spec: RunSpec, tokenizer: Any, embeddings: Embeddings | None):
        if not studies:
            raise InputError("data.pretrain: no studies; name at least one pre-training set")
        self.studies, self.spec, self.embeddings = list(studies), spec, embeddings
        self.cache = _cache(spec, spec.data.pretrain)
        self.both_views = spec.objective.reads_both_views(spec.stage)
        self.tokens = tokenizer([s.text for s in studies], truncation=True, max_length=spec.data.text_length)[
            "input_ids"
        ]
        self.pad, self.mask_token = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        strengths = ("strong", "light", "none")
        self.view_number = {
            f"{view} {strength}": i
            for i, (view, strength) in enumerate(
                (v, s) for v in sorted({p.view for study in studies for p in study.images}) for s in strengths
            )
        }
        self.group = _numbers([s.group_id for s in studies])
        self.text_key = _numbers([" ".join(s.text.lower().split()) for s in studies])
        balanced_merge = spec.data.merge == "balanced"
        self.sources = [s.data_set for s in studies] if balanced_merge else None
        self.folds = None if embeddings is None else [embeddings.folds[s.study_id] for s in studies]

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        step, index = key
        study, data = self.studies[index], self.spec.data
        rng = np.random.default_rng((self.spec.seed, step, index))
        several = len(study.images) > 1
        chosen = sorted(rng.choice(len(study.images), 2, replace=False).tolist()) if several else [0, 0]
        strength = data.augment_multi_view if several else data.augment_single_view
        pictures = [study.images[k] for k in chosen]
        size = self.spec.model.image_size
        view = int(rng.integers(2))  # which one is V_i
        slots = (0, 1) if self.both_views else (view,)  # V of them
        views = [
            pixels.augment(
                self.cache[pictures[k].image_id],
                size,
                strength,
                pixels.keyed(self.spec.seed, step, index, 2 + k),  # the same, whether the other is made
            )
            for k in slots
        ]
        pictures = [pictures[k] for k in slots]
        tokens = np.array(self.tokens[index])
        ends = (tokens == self.special[0]) | (tokens == self.special[1])
        dropped = (rng.random(len(tokens)) < self.spec.objective.token_drop) & ~ends
        out = {
            "views": torch.stack(views),  # (V, 3, H, W)
            "view": slots.index(view),
            "tokens": tokens,
            "copy": np.where(dropped, self.mask_token, tokens),
            "view_label": [self.view_number[f"{p.view} {strength}"] for p in pictures],
            "group": self.group[index],
            "text_key": self.text_key[index],
            "step": step,
        }
        if self.embeddings is not None:
            out["extras"] = self.embeddings.of(study, pictures)
        return out

    def collate(self, samples: list[dict[str, Any]]) -> PretrainingBatch:
        ids, mask = pad([s["tokens"] for s in samples], self.pad)
        copy_ids, _ = pad([s["copy"] for s in samples], self.pad)
        extras = [s.get("extras", {}) for s in samples]
        numbers = {
            name: torch.tensor([s[name] for s in samples]) for name in ("view", "view_label", "group", "text_key")
        }
        return PretrainingBatch(
            views=torch.stack([s["views"] for s in samples]),
            ids=ids,
            mask=mask,
            copy_ids=copy_ids,
            step=samples[0]["step"],
            extras={name: torch.stack([e[name] for e in extras]) for name in extras[0]},
            **numbers,
        )


class QuestionData(Dataset):
    """Questions as fine-tuning or evaluation samples. `blank` replaces every image by the same grey one."""

    def __init__(
        self,
        questions: Sequence[Question],
        spec: RunSpec,
        tokenizer: Any,
        blank: bool | None = None,
        augment: str = "none",
    ):
        self.questions, self.spec, self.augment = list(questions), spec, augment
        self.blank = spec.data.blank_images if blank is None else blank
        self.cache = _cache(spec, (spec.data.questions,))
        self.pad = tokenizer.pad_token_id
        self.tokens = tokenizer([q.question for q in questions], truncation=True, max_length=spec.data.question_length)[
            "input_ids"
        ]
        self.answers = tokenizer([q.answer for q in questions], truncation=True, max_length=spec.data.answer_length)[
            "input_ids"
        ]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, key: tuple[int, int, float, int]) -> dict[str, Any]:
        step, index, weight, total = key
        size = self.spec.model.image_size
        if self.blank:
            image = None
        elif self.augment == "none":
            image = self.cache.tensor(self.questions[index].image_id)
        else:
            generator = pixels.keyed(self.spec.seed, step, index)
            image = pixels.augment(self.cache[self.questions[index].image_id], size, self.augment, generator)
        return {
            "image": image,
            "tokens": self.tokens[index],
            "answer": self.answers[index],
            "weight": weight,
            "total": total,
        }

    def collate(self, samples: list[dict[str, Any]]) -> QuestionBatch:
        ids, mask = pad([s["tokens"] for s in samples], self.pad)
        answers, answer_mask = pad([s["answer"] for s in samples], self.pad)
        pictures = (
            pixels.blank(self.spec.model.image_size)[None] if self.blank else torch.stack([s["image"] for s in samples])
        )
        return QuestionBatch(
            pictures, ids, mask, answers, answer_mask, torch.tensor([s["weight"] for s in samples]), samples[0]["total"]
        )


def loader(dataset: Any, keys: Sequence[Sequence[tuple]], workers: int) -> DataLoader:
    """Batches in the given order of sample keys; `workers` processes decode and augment ahead (0: in this process)."""
    return DataLoader(
        dataset,
        batch_sampler=_Listed(keys),
        collate_fn=dataset.collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        generator=torch.Generator(),  # its seed for workers, which draw by sample, is not taken from dropout's draws
    )


class _Listed:
    def __init__(self, batches: Sequence[Sequence[tuple]]):
        self.batches = batches

    def __iter__(self) -> Iterator[Sequence[tuple]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def pad(rows: Sequence[Any], value: int) -> tuple[Tensor, Tensor]:
    """Token lists of different length -> ids and mask (B, longest)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row)
        mask[i, : len(row)] = True
    return ids, mask


def _numbers(names: Sequence[str]) -> list[int]:
    """Equal names -> equal integers."""
    seen: dict[str, int] = {}
    return [seen.setdefault(name, len(seen)) for name in names]
