"""Models that can be a teacher: open_clip's, a Hugging Face CLIP, and a small one that the kit trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from amif_lib.core import progress
from amif_lib.core.errors import InputError
from amif_lib.data.records import Study
from amif_lib.methods.amif.settings import TeacherSpec
from amif_lib.networks import pixels, pretrained, tokenizers
from amif_lib.networks.encoders import initial_deviation

HF_CLIP = "hf-clip:"
BATCH, LENGTH, DIM, VOCABULARY = (
    64,
    64,
    64,
    4000,
)  # of the model that the kit trains: batch, tokens of a text, e, pieces


@dataclass
class Teacher:
    """A frozen model of images and texts."""

    network: nn.Module
    preprocess: Callable[[Image.Image], Tensor]  # -> (3, H, W)
    tokenize: Callable[[list[str]], Tensor]  # -> (b, t)
    encode_image: Callable[[Tensor], Tensor]  # (b, 3, H, W) -> (b, e)
    encode_text: Callable[[Tensor], Tensor]  # (b, t) -> (b, e)

    def embed_images(self, pictures: Any, ids: Sequence[str]) -> np.ndarray:
        """Unit-length vectors (n, e) of pictures, by their ids in `pictures`."""

        def pixels_of(some: Sequence[str]) -> Tensor:
            return torch.stack([self.preprocess(pictures[name].convert("RGB")) for name in some])  # (b, 3, H, W)

        return self._embed(ids, pixels_of, self.encode_image)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-length vectors (n, e) of texts."""
        return self._embed(texts, self.tokenize, self.encode_text)

    @torch.inference_mode()
    def _embed(
        self, samples: Sequence[str], inputs: Callable[..., Tensor], encode: Callable[..., Tensor]
    ) -> np.ndarray:
        device, parts = "cuda" if torch.cuda.is_available() else "cpu", []
        self.network.to(device)
        for start in range(0, len(samples), BATCH):
            found = encode(inputs(samples[start : start + BATCH]).to(device)).float()  # (b, e)
            parts.append(F.normalize(found, dim=-1).cpu())
        return torch.cat(parts).numpy()


def load(source: str) -> Teacher:
    """The model that `teacher.source` names: `hf-clip:REPO_OR_FOLDER`, or a form that open_clip knows."""
    if source.startswith(HF_CLIP):
        return _hugging_face_clip(source.removeprefix(HF_CLIP))
    model, preprocess, tokenize = pretrained.load_open_clip(source)
    return Teacher(model, preprocess, tokenize, model.encode_image, model.encode_text)


def _hugging_face_clip(source: str) -> Teacher:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = pretrained.find(source)
    if (kind := pretrained.config(folder).get("model_type")) != "clip":
        raise InputError(f"teacher {HF_CLIP}{source}: its config.json is a {kind!r}, no 'clip'; name a CLIPModel")
    clip, processor = CLIPModel(CLIPConfig.from_pretrained(folder)).eval(), CLIPImageProcessor.from_pretrained(folder)
    pretrained.load_into(clip, pretrained.read_state(folder), source)
    tokenizer, length = tokenizers.load(folder), clip.config.text_config.max_position_embeddings
    return Teacher(
        clip,
        lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0],
        lambda texts: tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")[
            "input_ids"
        ],
        lambda images: clip.get_image_features(pixel_values=images).pooler_output,
        # Attention is causal: padding after the last token changes nothing.
        lambda ids: clip.get_text_features(input_ids=ids).pooler_output,
    )


def small_clip(spec: TeacherSpec, tokenizer: Any, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model that the kit trains, untrained, and its open_clip configuration; the BERT's goes to `folder`.

    Its towers are of the student's kinds, a CLIP ViT with QuickGELU and a BERT, so that a run can start from them.
    """
    import open_clip
    from transformers import BertConfig

    sizes = {"hidden_size": spec.width, "intermediate_size": 4 * spec.width, "num_hidden_layers": spec.layers}
    sizes |= {"num_attention_heads": spec.width // 32, "max_position_embeddings": LENGTH, "vocab_size": len(tokenizer)}
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    bert = BertConfig(**sizes, **dropout, initializer_range=initial_deviation(spec.width))
    bert.save_pretrained(folder)
    text = {
        "context_length": LENGTH,
        "vocab_size": len(tokenizer),
        "hf_tokenizer_name": "tokenizer of this folder",
        "hf_model_name": ".",  # this folder, wherever it is moved to
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
    }
    vision = {"image_size": spec.image_size, "patch_size": spec.patch_size, "width": spec.width, "layers": spec.layers}
    config = {"embed_dim": DIM, "quick_gelu": True, "vision_cfg": vision | {"head_width": 32}, "text_cfg": text}
    model = open_clip.CustomTextCLIP(**config | {"text_cfg": text | {"hf_model_name": str(folder)}})
    return model, config | {"custom_text": True}


def train(studies: Sequence[Study], spec: TeacherSpec, folder: Path, pictures: Any) -> None:
    """Train a small CLIP on the CPU (InfoNCE with one-hot labels) and save it as an open_clip folder.

    Args:
        pictures: stored images by id (`data.store.pictures`).
    """
    import open_clip

    steps = spec.epochs * (len(studies) // BATCH)
    if steps == 0:
        raise InputError(
            f"teacher: a batch of {BATCH} exceeds the {len(studies)} studies to train on; name a larger set"
        )
    torch.manual_seed(0)
    texts = [study.text for study in studies]
    tokenizer = tokenizers.train(texts, VOCABULARY, folder)
    model, config = small_clip(spec, tokenizer, folder)
    ids = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.learning_rate, total_steps=steps, pct_start=0.1)
    loss_function = open_clip.ClipLoss()
    bar = progress.bar(steps, f"teacher {folder.name.removeprefix('.')}")
    for epoch in range(spec.epochs):
        order = torch.randperm(len(studies), generator=pixels.keyed(0, epoch))
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            batch = torch.stack([_view(studies[row], pictures, spec.image_size, epoch, row) for row in rows.tolist()])
            loss = loss_function(*model(batch, ids[rows])[:3])  # images (B, 3, H, W), tokens (B, t)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)  # log 100, as CLIP
            bar.step(loss=loss.item())
    bar.close()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {"resize_mode": "squash", "interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _view(study: Study, pictures: Any, size: int, epoch: int, row: int) -> Tensor:
    """One of the study's images, slightly varied, (3, size, size)."""
    generator = pixels.keyed(0, epoch, row)
    image = study.images[int(torch.randint(len(study.images), (), generator=generator))]
    return pixels.augment(pictures[image.image_id], size, "light", generator)
