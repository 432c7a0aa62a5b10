"""Image and text encoders, from `transformers`: a CLIP-style ViT and a BERT. Both return all tokens, [CLS] first."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerBase

from amif_lib.core.errors import InputError
from amif_lib.networks import hub, open_clip_towers, tokenizers
from amif_lib.networks.rows import in_rows
from amif_lib.networks.sizes import ModelSpec


class ImageEncoder(nn.Module):
    """CLIP-style ViT (Radford et al., 2021). The final layer norm applies to every token, as CLIP's applies to [CLS]."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.form = spec.image_form
        activation, norm_first, epsilon = open_clip_towers.FORMS[self.form]
        whole = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=spec.width,
                intermediate_size=4 * spec.width,
                num_hidden_layers=spec.image_layers,
                num_attention_heads=spec.image_heads,
                image_size=spec.image_size,
                patch_size=spec.patch_size,
                hidden_act=activation,
                layer_norm_eps=epsilon,
            )
        )
        self.vit = getattr(whole, "vision_model", whole)  # older transformers wrap it once more
        if not norm_first:
            self.vit.pre_layrnorm = nn.Identity()

    @in_rows
    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W), normalised -> tokens (B, 1 + patches, d)."""
        return self.vit.post_layernorm(self.vit(pixel_values=images).last_hidden_state)

    def load(self, source: str) -> hub.LoadReport:
        """Load a CLIP checkpoint (hub id or folder, or `open_clip:SOURCE`), its position embeddings interpolated to this resolution."""
        tower = source.startswith(open_clip_towers.PREFIX)
        if tower:
            state = open_clip_towers.image_state(source, self.form, self.vit.config.num_attention_heads)
            open_clip_towers.refuse_left_over(state, self.vit, source)
        else:
            folder = hub.find(source)
            self._refuse_other_activation(source, folder)
            state = hub.clip_vision_state(hub.read_state(folder))
        name = "embeddings.position_embedding.weight"
        changed = []
        if name in state:
            fitted = interpolate_positions(state[name], self.vit.embeddings.position_embedding.weight.shape[0])
            if fitted.shape != state[name].shape:
                changed.append(f"{name} {state[name].shape[0]} -> {fitted.shape[0]}")
            state[name] = fitted
        return hub.load_into(self.vit, state, source, changed=changed)

    def _refuse_other_activation(self, source: str, folder: Path) -> None:
        """A checkpoint's weights fit another activation as well, and then mean something else."""
        if not (folder / "config.json").is_file():
            return
        content = hub.config(folder)
        found = content.get("vision_config", content).get("hidden_act", "quick_gelu")
        if found != self.vit.config.hidden_act:
            raise InputError(
                f"weights {source!r}: its ViT has {found}, model.image_form {self.form!r} has {self.vit.config.hidden_act}; set "
                f"model.image_form: {'clip_gelu' if found == 'gelu' else 'clip'}"
            )


def initial_deviation(width: int) -> float:
    """BERT's 0.02 at width 768, scaled as 1 / sqrt(width): with a fixed 0.02 a narrow network starts almost constant."""
    return 0.02 * (768 / width) ** 0.5


def interpolate_positions(table: Tensor, positions: int) -> Tensor:
    """Bicubic interpolation of a ViT's position table (1 + n*n, d) to another square grid (1 + m*m, d)."""
    if table.shape[0] == positions:
        return table
    old, new = round((table.shape[0] - 1) ** 0.5), round((positions - 1) ** 0.5)
    grid = table[1:].T.reshape(1, -1, old, old)  # (n*n, d) -> (1, d, n, n)
    grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])  # (1, d, m, m) -> (1 + m*m, d)


def length_groups(mask: Tensor, most: int = 4, worth: float = 0.85) -> list[tuple[Tensor, int]]:
    """Rows of a batch of texts in up to `most` groups of like length: (row indices (b,), longest text) of each.

    One group, where that would not bring the tokens computed below the share `worth` of those of the whole batch.
    """
    rows, width = mask.shape
    place = torch.arange(1, width + 1, device=mask.device)
    lengths, order = (mask * place).amax(1).clamp_min(1).sort(stable=True)  # (B,): up to the last real token
    size = -(-rows // most)
    longest = lengths[size - 1 :: size].tolist() + ([int(lengths[-1])] if rows % size else [])
    groups = list(zip(order.split(size), longest, strict=True))
    if sum(len(own) * length for own, length in groups) > worth * rows * width:
        return [(torch.arange(rows, device=mask.device), width)]
    return groups


class TextEncoder(nn.Module):
    """BERT encoder (Devlin et al., 2019) without a pooler; starts from a ClinicalBERT at paper scale."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.bert = BertModel(
            BertConfig(
                vocab_size=spec.vocab_size,
                hidden_size=spec.width,
                intermediate_size=4 * spec.width,
                num_hidden_layers=spec.text_layers,
                num_attention_heads=spec.text_heads,
                max_position_embeddings=spec.text_positions,
                hidden_dropout_prob=spec.dropout,
                attention_probs_dropout_prob=spec.dropout,
                initializer_range=initial_deviation(spec.width),
            ),
            add_pooling_layer=False,
        )

    @in_rows
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids and mask (B, T) -> tokens (B, T, d). Texts of like length run together, so that padding costs little."""
        groups = length_groups(mask)
        if len(groups) == 1:
            return self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        parts = []
        for rows, length in groups:
            own = ids[rows, :length], mask[rows, :length].long()  # (b, T) -> (b, length)
            tokens = self.bert(input_ids=own[0], attention_mask=own[1]).last_hidden_state  # (b, length, d)
            parts.append(F.pad(tokens, (0, 0, 0, ids.shape[1] - length)))  # (b, length, d) -> (b, T, d)
        return torch.cat(parts)[torch.cat([rows for rows, _ in groups]).argsort()]  # (B, T, d)

    def embed(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Word and position embeddings only, (B, M) -> (B, M, d): how the answer vocabulary enters (section 3.4.1).

        `positions` (B, M) count from 0 on where not given.
        """
        return self.bert.embeddings(input_ids=ids, position_ids=positions)

    def load(self, source: str, tokenizer: PreTrainedTokenizerBase | None = None) -> hub.LoadReport:
        """Load a BERT or DistilBERT checkpoint (hub id or folder, or `open_clip:SOURCE`), word rows in the order of `tokenizer`."""
        if source.startswith(open_clip_towers.PREFIX):
            state, theirs = open_clip_towers.text_state(source, self.bert.config.num_attention_heads)
            own = self.bert.embeddings
            words, positions = own.word_embeddings.weight, own.position_embeddings.weight
            changed = open_clip_towers.fit_text(state, theirs, tokenizer or theirs, words, positions)
            open_clip_towers.refuse_left_over(state, self.bert, source)
            return hub.load_into(self.bert, state, source, changed=changed)
        state = hub.bert_state(hub.read_state(hub.find(source)))
        changed = (
            tokenizers.fit_rows(state, source, tokenizer, self.bert.embeddings.word_embeddings.weight)
            if tokenizer
            else []
        )
        return hub.load_into(self.bert, state, source, changed=changed)
