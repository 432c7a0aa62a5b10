"""Image and text encoders, from `transformers`: a CLIP-style ViT and a BERT. Both return all tokens, [CLS] first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel

from amif_lib.networks.lite0 import CHANNELS, STRIDE, Lite0
from amif_lib.networks.rows import in_rows
from amif_lib.networks.sizes import ModelSpec

# Form of the ViT (`model.image_form`): activation, whether a norm comes before the blocks, epsilon of the norms.
FORMS = {"clip": ("quick_gelu", True, 1e-5), "vit": ("gelu", False, 1e-6)}
FORMS["lite0"] = FORMS["clip"]  # the same ViT on the map of a frozen EfficientNet-lite0, one token per position


class ImageEncoder(nn.Module):
    """CLIP-style ViT (Radford et al., 2021). Its final layer norm applies to all tokens; in CLIP, to [CLS] alone."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        activation, norm_first, epsilon = FORMS[spec.image_form]
        self.trunk = Lite0() if spec.image_form == "lite0" else None
        side, patch, channels = spec.image_size, spec.patch_size, 3
        if self.trunk is not None:  # each position of the map is a patch
            side, patch, channels = spec.image_size // STRIDE, 1, CHANNELS
        sizes = CLIPVisionConfig(
            hidden_size=spec.width,
            intermediate_size=4 * spec.width,
            num_hidden_layers=spec.image_layers,
            num_attention_heads=spec.image_heads,
            image_size=side,
            patch_size=patch,
            num_channels=channels,
            hidden_act=activation,
            layer_norm_eps=epsilon,
        )
        whole = CLIPVisionModel(sizes)
        self.vit = getattr(whole, "vision_model", whole)  # older transformers wrap it once more
        if not norm_first:
            self.vit.pre_layrnorm = nn.Identity()

    @in_rows
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> tokens (B, 1 + p, d)."""
        if self.trunk is not None:
            images = self.trunk(images)  # (B, 3, H, W) -> (B, 1280, H/32, W/32)
        return self.vit.post_layernorm(self.vit(pixel_values=images).last_hidden_state)  # (B, 1 + p, d)


def initial_deviation(width: int) -> float:
    """BERT's 0.02 at width 768, scaled as 1 / sqrt(width): with 0.02 a narrow network starts almost constant."""
    return 0.02 * (768 / width) ** 0.5


def initialise(module: nn.Module, width: int) -> None:
    """BERT's initialisation, normal with zero biases: deviation 0.02 at width 768, larger for narrower networks."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=initial_deviation(width))
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def length_groups(mask: Tensor, most: int = 4, worth: float = 0.85) -> list[tuple[Tensor, int]]:
    """Divide texts, mask (B, T), into up to `most` groups of similar length: row indices (b,) and longest text of each.

    There is one group if several would leave more than the share `worth` of the B * T tokens to compute.
    """
    rows, width = mask.shape
    position = torch.arange(1, width + 1, device=mask.device)  # (T,)
    lengths, order = (mask * position).amax(1).clamp_min(1).sort(stable=True)  # (B,): up to the last real token
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
        sizes = BertConfig(
            vocab_size=spec.vocab_size,
            hidden_size=spec.width,
            intermediate_size=4 * spec.width,
            num_hidden_layers=spec.text_layers,
            num_attention_heads=spec.text_heads,
            max_position_embeddings=spec.text_positions,
            hidden_dropout_prob=spec.dropout,
            attention_probs_dropout_prob=spec.dropout,
            initializer_range=initial_deviation(spec.width),
        )
        self.bert = BertModel(sizes, add_pooling_layer=False)

    @in_rows
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids and mask (B, T) -> tokens (B, T, d). Texts of similar length are encoded together, to save padding."""
        groups, parts = length_groups(mask), []
        for rows, length in groups:
            few, real = ids[rows, :length], mask[rows, :length].long()  # (B, T) -> (b, length)
            tokens = self.bert(input_ids=few, attention_mask=real).last_hidden_state  # (b, length, d)
            parts.append(F.pad(tokens, (0, 0, 0, ids.shape[1] - length)))  # (b, length, d) -> (b, T, d)
        return torch.cat(parts)[torch.cat([rows for rows, _ in groups]).argsort()]  # (B, T, d)

    def embed(self, ids: Tensor) -> Tensor:
        """Word and position embeddings only, (B, M) -> (B, M, d): for prior knowledge (section 3.4.1, point 34)."""
        return self.bert.embeddings(input_ids=ids)
