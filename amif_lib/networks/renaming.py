"""Renames the tensors of public checkpoints to the names in the modules that they are loaded into."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

# fmt: off
# Pairs of old and new text in the names of tensors, replaced in this order.
FIRST_BERTS = ((".gamma", ".weight"), (".beta", ".bias"))
DECODER = (  # from BERT's names to those of `AnswerDecoder`
    ("embeddings.word_embeddings", "word_embeddings"), ("embeddings.position_embeddings", "position_embeddings"),
    ("embeddings.token_type_embeddings", "token_type_embeddings"), ("embeddings.LayerNorm", "embedding_norm"),
    ("cls.predictions.transform.dense", "head_transform"), ("cls.predictions.transform.LayerNorm", "head_norm"),
    ("cls.predictions.bias", "head_bias"), ("encoder.layer.", "layers."), (".crossattention.", ".cross_attention."),
    (".attention.", ".self_attention."), ("attention.self.", "attention."),
    ("attention.output.dense", "attention.output"), ("attention.output.LayerNorm", "attention.norm"),
    (".intermediate.dense", ".feed_forward.inner"), (".output.dense", ".feed_forward.output"),
    (".output.LayerNorm", ".feed_forward.norm"),
)
TIMM = (  # from timm's ViT to transformers' CLIP
    ("norm.weight", "post_layernorm.weight"), ("norm.bias", "post_layernorm.bias"), ("blocks.", "encoder.layers."),
    ("attn.proj", "self_attn.out_proj"), (".norm", ".layer_norm"), ("norm_pre", "pre_layrnorm"),
    ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding.weight"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
)
# fmt: on


def renamed(state: dict[str, Tensor], pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The same tensors with every (old, new) of `pairs` replaced in their names, in this order."""
    return {reduce(lambda name, pair: name.replace(*pair), pairs, name): value for name, value in state.items()}


def clip_from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a timm ViT as those of transformers' CLIP vision model."""
    out = {}
    for name, value in renamed(state, TIMM).items():
        if ".attn.qkv." in name:
            for part, each in zip("qkv", value.chunk(3), strict=True):  # (3d, d) -> 3 x (d, d)
                out[name.replace("attn.qkv.", f"self_attn.{part}_proj.")] = each
        else:
            out[name] = value
    out["embeddings.class_embedding"] = out["embeddings.class_embedding"].flatten()  # (1, 1, d) -> (d,)
    positions = out["embeddings.position_embedding.weight"][0]  # (1, 1 + n*n, d) -> (1 + n*n, d)
    bias = out.pop("embeddings.patch_embedding.bias", 0)  # (d,): CLIP has none, so it is added to patches' positions
    out["embeddings.position_embedding.weight"] = torch.cat([positions[:1], positions[1:] + bias])
    return out
