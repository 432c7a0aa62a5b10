"""Models that can be a teacher: open_clip's and Hugging Face's CLIP, and a small open_clip model that the kit trains.

Each is given as (model, preprocess, tokenizer): `model.encode_image(pixels)` and `model.encode_text(tokenizer(texts))` give
vectors (B, e); `model.visual.preprocess_cfg` says which pixels it expects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from amif_lib.core.errors import InputError
from amif_lib.methods.amif.settings import TeacherSpec
from amif_lib.networks import sizes
from amif_lib.networks.pretrained import load_open_clip

if TYPE_CHECKING:
    from amif_lib.data.records import Study
    from amif_lib.data.store import Pictures

HF_CLIP, LOCAL = "hf-clip:", "local-dir:"
REMEDY = (
    "fetch it where there is a network, set HF_HOME to that cache, or give teacher.source: {kind}FOLDER for a folder that "
    "holds it"
)


def load(source: str) -> tuple[Any, Any, Any]:
    """A frozen model by what `teacher.source` says: `hf-clip:REPO_OR_FOLDER`, else open_clip's own forms."""
    return load_hf_clip(source) if source.startswith(HF_CLIP) else load_open_clip(source)


def load_hf_clip(source: str) -> tuple[Any, Any, Any]:
    """A Hugging Face CLIPModel (hub id or folder after `hf-clip:`) with its image processor and tokenizer, behind the same interface."""
    from torch import nn
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from amif_lib.networks import pretrained, tokenizers

    name = source.removeprefix(HF_CLIP)
    folder = pretrained.find(name)
    if (kind := pretrained.config(folder).get("model_type")) != "clip":
        raise InputError(
            f"teacher {source!r}: its config.json is a {kind!r}, no 'clip'; name a CLIPModel's folder or hub id"
        )
    try:
        clip = CLIPModel(CLIPConfig.from_pretrained(folder))
        processor = CLIPImageProcessor.from_pretrained(folder)
    except Exception as error:  # of many kinds: no config, one of another architecture
        raise InputError(
            f"teacher {source!r} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:120]}); "
            + REMEDY.format(kind=HF_CLIP)
        ) from None
    state = {key: value for key, value in pretrained.read_state(folder).items() if not key.endswith("position_ids")}
    pretrained.load_into(clip, state, source)
    tokenizer, length = tokenizers.load(folder), clip.config.text_config.max_position_embeddings

    class Wrapped(nn.Module):
        """CLIPModel by open_clip's method names."""

        def __init__(self) -> None:
            super().__init__()
            self.clip = clip
            crop = processor.crop_size["height"] if processor.do_center_crop else processor.size["height"]
            expected = {"size": crop, "mean": processor.image_mean, "std": processor.image_std}
            self.visual = SimpleNamespace(preprocess_cfg=expected)

        def encode_image(self, pixels: Any) -> Any:
            return self.clip.get_image_features(pixel_values=pixels).pooler_output

        def encode_text(self, ids: Any) -> Any:  # attention is causal: padding after the last token changes nothing
            return self.clip.get_text_features(input_ids=ids).pooler_output

    def preprocess(image: Any) -> Any:
        return processor(image, return_tensors="pt")["pixel_values"][0]

    def tokenize(texts: list[str]) -> Any:
        return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")[
            "input_ids"
        ]

    return Wrapped().eval(), preprocess, tokenize


def small_open_clip(spec: TeacherSpec, tokenizer: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The small open_clip model that the kit trains, untrained, and its `model_cfg`; a BERT's configuration goes to `folder`.

    `towers: student` gives it the student's own kinds of encoder, a CLIP ViT with QuickGELU and a BERT as in BiomedCLIP, so
    that a run can start from them (`init.image: teacher`).
    """
    import open_clip
    from transformers import BertConfig

    from amif_lib.networks.encoders import initial_deviation

    heads = spec.heads or max(spec.width // 32, 1)
    vision = {
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "width": spec.width,
        "layers": spec.layers,
        "head_width": spec.width // heads,
    }
    text = {
        "context_length": spec.text_length,
        "vocab_size": len(tokenizer),
        "hf_tokenizer_name": "tokenizer of this folder",
        "width": spec.width,
        "heads": heads,
        "layers": spec.layers,
        "pool_type": "eos",
        "eos_id": tokenizer.sep_token_id,
        "pad_id": tokenizer.pad_token_id,
    }
    config: dict[str, Any] = {"embed_dim": spec.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if spec.towers == "open_clip":
        return open_clip.CLIP(**config), config
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.width,
        intermediate_size=4 * spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=heads,
        max_position_embeddings=spec.text_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=initial_deviation(spec.width),
    )
    bert.save_pretrained(folder)
    text = {key: text[key] for key in ("context_length", "vocab_size", "hf_tokenizer_name")} | {
        "hf_model_name": ".",  # this folder, wherever it is moved to
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
    }
    config = {"embed_dim": spec.embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    own = {**config, "text_cfg": {**text, "hf_model_name": str(folder)}}
    return open_clip.CustomTextCLIP(**own), {**config, "custom_text": True}


def train_open_clip(
    studies: Sequence[Study], spec: TeacherSpec, folder: Path, pictures: Pictures
) -> tuple[Any, Any, Any]:
    """Train a small CLIP (InfoNCE, one-hot) and save it as an open_clip folder: config, safetensors, tokenizer."""
    import numpy as np
    import open_clip
    import torch
    from safetensors.torch import save_file

    from amif_lib.core import progress
    from amif_lib.networks import pixels, tokenizers
    from amif_lib.training.batches import ImageCache

    torch.manual_seed(spec.seed)
    tokenizer = tokenizers.train([study.text for study in studies], 4000, folder)
    model, config = small_open_clip(spec, tokenizer, folder)
    ids = torch.tensor(
        tokenizer([s.text for s in studies], truncation=True, max_length=spec.text_length, padding="max_length")[
            "input_ids"
        ]
    )
    cache = ImageCache(pictures, spec.image_size, sizes.stored_side(spec.image_size))
    steps = spec.epochs * (len(studies) // spec.batch_size)
    if steps == 0:
        raise InputError(
            f"teacher.batch_size: {spec.batch_size} exceeds the {len(studies)} studies to train on; lower it"
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.learning_rate, total_steps=steps, pct_start=0.1)
    loss_function = open_clip.ClipLoss()
    bar = progress.bar(steps, f"teacher {folder.name.removeprefix('.')}")
    for epoch in range(spec.epochs):
        order = np.random.default_rng((spec.seed, epoch)).permutation(len(studies))
        for start in range(0, len(order) - spec.batch_size + 1, spec.batch_size):
            rows = order[start : start + spec.batch_size]
            rngs = [np.random.default_rng((spec.seed, epoch, int(row))) for row in rows]
            batch = torch.stack(
                [
                    pixels.augment(
                        cache[studies[row].images[rng.integers(len(studies[row].images))].image_id],
                        spec.image_size,
                        "light",
                        pixels.keyed(spec.seed, epoch, int(row)),
                    )
                    for row, rng in zip(rows, rngs, strict=True)
                ]
            )  # (B, 3, H, W)
            features = model(batch, ids[rows])
            loss = loss_function(*features[:3])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)  # log 100, as CLIP
            bar.step(loss=loss.item())
    bar.close()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": config, "preprocess_cfg": {"resize_mode": "squash", "interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return load_open_clip(f"local-dir:{folder}")
