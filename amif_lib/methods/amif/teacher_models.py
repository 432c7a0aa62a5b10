"""Models that can be a teacher: open_clip's, a Hugging Face CLIP, and a small CLIP that the kit trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amif_lib.core import progress
from amif_lib.core.errors import InputError
from amif_lib.data.records import Study
from amif_lib.methods.amif.settings import HF_CLIP, TeacherSpec
from amif_lib.networks import pixels, pretrained, tokenizers
from amif_lib.networks.encoders import ImageEncoder, TextEncoder
from amif_lib.networks.sizes import ModelSpec

BATCH = 64
LENGTH, DIM, VOCABULARY = 64, 64, 4000  # of the model that the kit trains: tokens of a text, e, vocabulary


class Teacher(NamedTuple):
    """A frozen model, as two functions."""

    images: Callable[[list[Image.Image]], Tensor]  # -> (b, e)
    texts: Callable[[list[str]], Tensor]  # -> (b, e)


@torch.inference_mode()
def embed(encode: Callable[[Any], Tensor], samples: Iterable[Any], total: int) -> np.ndarray:
    """Unit-length vectors (n, e) of `total` samples, by one of a teacher's functions, `BATCH` samples at a time."""
    samples, parts, bar = iter(samples), [], progress.bar(total, "teacher embeddings")
    while few := list(islice(samples, BATCH)):
        parts.append(encode(few).float().cpu())  # (b, e)
        bar.step(len(few))
    bar.close()
    return F.normalize(torch.cat(parts), dim=-1).numpy()  # (n, e)


def load(source: str) -> Teacher:
    """The model that `teacher.source` names: `hf-clip:ID_OR_FOLDER`, or as in `load_open_clip`; else InputError."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not source.startswith(HF_CLIP):
        model, preprocess, tokenize = pretrained.load_open_clip(source)
        model.to(device)
        return Teacher(
            lambda pictures: model.encode_image(torch.stack([preprocess(p) for p in pictures]).to(device)),
            lambda texts: model.encode_text(tokenize(texts).to(device)),
        )
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel  # here: imports torchvision, which takes seconds

    folder = pretrained.find(source.removeprefix(HF_CLIP))
    if (kind := pretrained.config(folder).get("model_type")) != "clip":
        raise InputError(f"teacher {source}: config.json has model_type {kind!r}, not 'clip'; name a CLIPModel")
    clip, processor = CLIPModel(CLIPConfig.from_pretrained(folder)).eval(), CLIPImageProcessor.from_pretrained(folder)
    pretrained.load_into(clip, pretrained.read_state(folder), source)
    tokenizer, length = tokenizers.load(folder), clip.config.text_config.max_position_embeddings
    clip.to(device)
    return Teacher(
        lambda pictures: clip.get_image_features(**processor(pictures, return_tensors="pt").to(device)).pooler_output,
        # No attention mask: attention is causal, so padding after the last token changes nothing.
        lambda texts: clip.get_text_features(_padded(tokenizer, texts, length).to(device)).pooler_output,
    )


def _padded(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]


class SmallCLIP(nn.Module):
    """The teacher that the kit trains: encoders of the student's architecture, and a projection of each [CLS]."""

    def __init__(self, spec: TeacherSpec, vocabulary: int, padding: int):
        super().__init__()
        sizes = {"width": spec.width, "image_size": spec.image_size, "patch_size": spec.patch_size, "dropout": 0.0}
        sizes |= {"text_positions": LENGTH, "vocab_size": vocabulary, "fusion_heads": spec.width // 32}
        for side in ("image", "text"):
            sizes |= {f"{side}_layers": spec.layers, f"{side}_heads": spec.width // 32}
        self.image_encoder, self.text_encoder = ImageEncoder(ModelSpec(**sizes)), TextEncoder(ModelSpec(**sizes))
        self.image_projection, self.text_projection = nn.Linear(spec.width, DIM), nn.Linear(spec.width, DIM)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # as CLIP starts
        self.padding = padding

    def encode_image(self, images: Tensor) -> Tensor:
        return self.image_projection(self.image_encoder(images)[:, 0])  # (B, 3, H, W) -> (B, e)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.text_projection(self.text_encoder(ids, ids != self.padding)[:, 0])  # (B, t) -> (B, e)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """InfoNCE, mean of both directions (CLIP): images (B, 3, H, W), ids (B, t) -> scalar."""
        image, text = F.normalize(self.encode_image(images), dim=-1), F.normalize(self.encode_text(ids), dim=-1)
        logits = self.log_scale.exp() * image @ text.T  # (B, B)
        own = torch.arange(len(ids))  # (B,): columns of the positives
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train(studies: Sequence[Study], spec: TeacherSpec, folder: Path, pictures: Any) -> None:
    """Train a small CLIP on the CPU; `pictures` are the studies' images by id.

    Writes weights and tokenizer to `folder`, and each encoder, from which a run can start, to its `image/` and `text/`.
    Raises InputError if there are fewer studies than one batch.
    """
    steps = spec.epochs * (len(studies) // BATCH)
    if steps == 0:
        raise InputError(f"teacher: {len(studies)} studies to train on, a batch has {BATCH}; name a larger set")
    torch.manual_seed(0)
    texts = [study.text for study in studies]
    tokenizer = tokenizers.train(texts, VOCABULARY, folder)
    model, ids = SmallCLIP(spec, len(tokenizer), tokenizer.pad_token_id), _padded(tokenizer, texts, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.learning_rate, total_steps=steps, pct_start=0.1)
    bar = progress.bar(steps, f"teacher {folder.name.removeprefix('.')}")
    for epoch in range(spec.epochs):
        order = torch.randperm(len(studies), generator=pixels.keyed(0, epoch))
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            views = []
            for row in rows.tolist():
                draws, of_study = pixels.keyed(0, epoch, row), studies[row].images
                name = of_study[int(torch.randint(len(of_study), (), generator=draws))].image_id
                views.append(pixels.augment(pictures[name], spec.image_size, "light", draws))
            loss = model(torch.stack(views), ids[rows])  # images (B, 3, H, W), tokens (B, t)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.log_scale.clamp_(0, 4.6052)  # log 100, as CLIP
            bar.step(loss=loss.item())
    bar.close()
    for name, tower in (("image", model.image_encoder.vit), ("text", model.text_encoder.bert)):
        tower.config.save_pretrained(folder / name)
        save_file(tower.state_dict(), folder / name / "model.safetensors")
    tokenizer.save_pretrained(folder / "text")
    save_file(model.state_dict(), folder / "model.safetensors")


def load_trained(spec: TeacherSpec, folder: Path) -> Teacher:
    """The model that `train` wrote to `folder`."""
    tokenizer = tokenizers.load(folder)
    model = SmallCLIP(spec, len(tokenizer), tokenizer.pad_token_id).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return Teacher(
        lambda pictures: model.encode_image(torch.stack([pixels.to_tensor(p, spec.image_size) for p in pictures])),
        lambda texts: model.encode_text(_padded(tokenizer, texts, LENGTH)),
    )
