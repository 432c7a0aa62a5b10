"""The towers of an open_clip model as starting weights of the student's encoders (Table 4, row 2).

The image tower is open_clip's own ViT (`visual.*`) or a timm ViT (`visual.trunk.*`, BiomedCLIP's); the text tower is a Hugging
Face BERT (`text.transformer.*`, BiomedCLIP's). Both come out exactly: the student's encoder gives the tower's own features.
What differs in form is carried over: the patch bias of timm's ViT and other image statistics are folded into weights that
have the same effect. What has no counterpart (another activation, another number of heads, layer scale, open_clip's own
causal text transformer) is refused, and so is every tensor that would be left over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.methods.amif import teacher_models

PREFIX = "open_clip:"
# Form of the student's ViT (`model.image_form`): activation, whether a norm comes before the blocks, epsilon of the norms.
FORMS = {"clip": ("quick_gelu", True, 1e-5), "clip_gelu": ("gelu", True, 1e-5), "vit": ("gelu", False, 1e-6)}

BLOCK = {  # of open_clip's ViT and of timm's, to the names of transformers' CLIP
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attn.proj.": "self_attn.out_proj.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
OUTER = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "patch_bias",
    "norm_pre.weight": "pre_layrnorm.weight",
    "norm_pre.bias": "pre_layrnorm.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}


def image_state(source: str, form: str, heads: int) -> dict[str, Tensor]:
    """Weights of the image tower of `open_clip:SOURCE` by the names of transformers' `CLIPVisionModel`.

    Args:
        form: the student's `model.image_form`, which the tower's must be.
        heads: the student's `model.image_heads`; weights of another number of heads mean something else.

    Raises InputError where the tower is no plain ViT, or of another form than the student's.
    """
    visual = teacher_models.load_open_clip(source.removeprefix(PREFIX))[0].visual
    timm = hasattr(visual, "trunk")
    trunk = visual.trunk if timm else visual
    try:
        blocks = list(trunk.blocks if timm else trunk.transformer.resblocks)
        first = blocks[0]
        activation = _activation(first.mlp.act if timm else first.mlp.gelu)
        norm_first = not isinstance(trunk.norm_pre if timm else trunk.ln_pre, nn.Identity)
        epsilon, own_heads = (first.norm1 if timm else first.ln_1).eps, first.attn.num_heads
    except (AttributeError, IndexError):
        raise InputError(
            f"weights {source!r}: the image tower ({type(trunk).__name__}) is no plain ViT; name another"
        ) from None
    if (found := (activation, norm_first, epsilon)) != FORMS[form]:
        fitting = next((name for name, each in FORMS.items() if each == found), "")
        remedy = f"set model.image_form: {fitting}" if fitting else "the kit has no such form; name another model"
        raise InputError(
            f"weights {source!r}: the image tower has {activation}, {'a' if norm_first else 'no'} norm before its blocks and "
            f"epsilon {epsilon}, which is not model.image_form {form!r}; {remedy}"
        )
    _same_heads(source, "image", own_heads, heads)
    projection = () if timm else ("proj",)  # into the space of both towers: not the encoder's
    state = {}
    for name, value in trunk.state_dict().items():
        if name in projection or (timm and name.startswith("head.")):
            continue
        state |= _renamed(source, name, value.detach().clone())
    expected = visual.preprocess_cfg
    return _folded(state, expected["mean"], expected["std"])


def _renamed(source: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """One tensor of a ViT by the student's name; the joint query-key-value projection as three."""
    if name in OUTER:
        return {OUTER[name]: value[0, 0] if name == "cls_token" else value[0] if name == "pos_embed" else value}
    for prefix in ("transformer.resblocks.", "blocks."):
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            layer = f"encoder.layers.{number}."
            for joint, kind in (
                ("attn.in_proj_weight", "weight"),
                ("attn.in_proj_bias", "bias"),
                ("attn.qkv.weight", "weight"),
                ("attn.qkv.bias", "bias"),
            ):
                if rest == joint:
                    return {f"{layer}self_attn.{p}_proj.{kind}": v for p, v in zip("qkv", value.chunk(3), strict=True)}
            for old, new in BLOCK.items():
                if rest in (old + "weight", old + "bias"):
                    return {layer + new + rest.removeprefix(old): value}
    raise InputError(
        f"weights {source!r}: tensor {name} of the image tower has no counterpart in the student's; name another model"
    )


def _folded(state: dict[str, Tensor], mean: Any, std: Any) -> dict[str, Tensor]:
    """Image statistics other than the student's, and a bias of the patch embedding, as patch weights and positions of the same effect."""
    from amif_lib.data import images

    patches, positions = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
    if len(state[positions]) == 1 + round((len(state[positions]) - 1) ** 0.5) ** 2:
        bias = state.pop("patch_bias", None)
    else:  # no [CLS] token, or a grid that is not square
        raise InputError(
            f"open_clip: {len(state[positions])} positions are not [CLS] and a square of patches; name another model"
        )
    own_mean, own_std, mean, std = (
        torch.as_tensor(v, dtype=torch.float32) for v in (images.MEAN, images.STD, mean, std)
    )
    shift = torch.zeros(state[patches].shape[0])
    if bias is not None:
        shift += bias
    if not (torch.allclose(own_mean, mean, atol=1e-6) and torch.allclose(own_std, std, atol=1e-6)):
        # pixel = own_mean + own_std x, and the tower wants (pixel - mean) / std
        shift += (state[patches] * ((own_mean - mean) / std)[None, :, None, None]).sum((1, 2, 3))
        state[patches] = state[patches] * (own_std / std)[None, :, None, None]
    state[positions] = torch.cat([state[positions][:1], state[positions][1:] + shift])  # patches do not overlap
    return state


def text_state(source: str, heads: int) -> tuple[dict[str, Tensor], Any]:
    """Weights of the BERT in the text tower of `open_clip:SOURCE` by `BertModel`'s names, and the tower's tokenizer.

    Raises InputError where the text tower is no BERT of the student's kind.
    """
    model, _, tokenizer = teacher_models.load_open_clip(source.removeprefix(PREFIX))
    tower = getattr(model, "text", None)
    config = getattr(tower, "config", None)
    if getattr(config, "model_type", "") != "bert" or not hasattr(tokenizer, "tokenizer"):
        raise InputError(
            f"weights {source!r}: the text tower is no BERT (open_clip's own is causal, with norms before its blocks) and cannot "
            "be the student's text encoder; set init.text to a BERT, or teacher.towers: student for a teacher that the kit trains"
        )
    if config.hidden_act != "gelu" or config.layer_norm_eps != 1e-12 or config.type_vocab_size != 2:
        raise InputError(
            f"weights {source!r}: a BERT with {config.hidden_act}, epsilon {config.layer_norm_eps} and {config.type_vocab_size} "
            "token types; the student's has gelu, 1e-12 and 2; name another model"
        )
    _same_heads(source, "text", config.num_attention_heads, heads)
    state = tower.transformer.state_dict()
    left = ("pooler.", "embeddings.position_ids", "embeddings.token_type_ids")
    return {
        name: value.detach().clone() for name, value in state.items() if not name.startswith(left)
    }, tokenizer.tokenizer


def fit_text(state: dict[str, Tensor], theirs: Any, ours: Any, words: Tensor, positions: Tensor) -> list[str]:
    """Fit word rows to the student's vocabulary, by piece, and positions to its table, in place; says what was changed.

    `words` (V, d) and `positions` (P, d) are the student's own tables: a piece or position that the tower lacks keeps its row.
    """
    changed, name = [], "embeddings.word_embeddings.weight"
    known, own = theirs.get_vocab(), ours.get_vocab()
    if state[name].shape[1] != words.shape[1]:  # of another width: refused, with the sizes, when it is loaded
        return changed
    if known != own or state[name].shape != words.shape:
        table = words.detach().clone()
        shared = [piece for piece in own if piece in known]
        table[[own[piece] for piece in shared]] = state[name][[known[piece] for piece in shared]]
        state[name] = table
        changed.append(f"vocabulary: rows of {len(shared)} of {len(own)} pieces")
    name = "embeddings.position_embeddings.weight"
    if len(state[name]) != len(positions):
        table, kept = positions.detach().clone(), min(len(positions), len(state[name]))
        table[:kept] = state[name][:kept]
        changed.append(f"positions {len(state[name])} -> {len(positions)}")
        state[name] = table
    return changed


def refuse_left_over(state: dict[str, Tensor], module: nn.Module, source: str) -> None:
    """Raise InputError where a tensor of the tower has no place in the student's encoder, e.g. a layer more."""
    own = module.state_dict()
    if left := [name for name in state if name not in own]:
        raise InputError(
            f"weights {source!r}: {len(left)} of the tower's {len(state)} tensors have no place in the model ({left[0]} …): it has "
            "fewer layers than the tower; change the `model` section of the run"
        )


def _activation(module: nn.Module) -> str:
    """`gelu` (exact), `quick_gelu`, or the class's name for any other."""
    name = type(module).__name__
    exact = name == "GELU" and getattr(module, "approximate", "none") == "none"
    return "gelu" if exact else {"QuickGELU": "quick_gelu"}.get(name, name)


def _same_heads(source: str, tower: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise InputError(
            f"weights {source!r}: the {tower} tower has {found} attention heads, the model {wanted}; set model.{tower}_heads: {found}"
        )
