"""Masked language modelling (BERT, Devlin et al., 2019) and masked image modelling (MAE, He et al., 2022).

Shapes: B samples, t tokens, p patches, of which k are removed; only masked tokens and removed patches enter the losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_units(
    ids: Tensor, unit: Tensor, maskable: Tensor, draws: Tensor, share: float, mask_id: int, random_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask a share of the units of each text: 80% become [MASK], 10% random tokens, 10% stay the same (BERT).

    A unit is one token, or all tokens of an entity, which are masked together. ids (B, t); unit (B, t): for each token,
    the position of its unit's first token, whose draws are used for the whole unit; maskable (B, t): False for padding
    and special tokens; draws (B, t, 2), uniform in [0, 1): whether a unit is masked, and how; random_ids (B, t).
    Returns the ids that the model reads and which tokens it must predict, (B, t) each.
    """
    hide, how = draws.take_along_dim(unit[..., None], dim=1).unbind(-1)  # (B, t) each
    masked = (hide < share) & maskable  # (B, t)
    shown = torch.where(how < 0.8, mask_id, torch.where(how < 0.9, random_ids, ids))  # (B, t)
    return torch.where(masked, shown, ids), masked


def masked_language_loss(logits: Tensor, ids: Tensor, masked: Tensor, count: Tensor | float) -> Tensor:
    """Cross-entropy summed over the masked tokens and divided by `count`, their mean number per process.

    logits (b, vocabulary): of the b masked tokens only, in order; ids and masked (B, t). Returns a scalar.
    """
    return F.cross_entropy(logits.float(), ids[masked], reduction="sum") / count


def split_patches(draws: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Remove a share of the patches, those with the largest draws (B, p): positions kept (B, p - k), removed (B, k)."""
    order = draws.argsort(dim=1)  # (B, p)
    kept = draws.shape[1] - round(share * draws.shape[1])
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def patches(images: Tensor, size: int) -> Tensor:
    """Pixels of each patch, normalised by the patch's own mean and deviation: (B, 3, H, W) -> (B, p, 3 size^2)."""
    pixels = F.unfold(images, size, stride=size).transpose(1, 2).float()  # (B, p, 3 size^2)
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)  # (B, p, 1) each
    return (pixels - mean) / (variance + 1e-6).sqrt()


def masked_image_loss(predicted: Tensor, target: Tensor, removed: Tensor) -> Tensor:
    """Mean squared error on the removed patches: predicted and target (B, p, 3 size^2); removed (B, k): positions."""
    predicted, target = (x.take_along_dim(removed[..., None], dim=1) for x in (predicted, target))  # (B, k, 3 size^2)
    return F.mse_loss(predicted.float(), target)
