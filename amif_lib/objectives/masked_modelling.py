r"""Masked language and image modelling: what is hidden, and the loss on what is hidden alone.

Language: BERT (Devlin et al., 2019), with whole units masked together, as in whole-word masking. Image: a masked
autoencoder (He et al., 2022), whose encoder never sees the patches that are removed.

Shapes: B samples, t tokens, p patches, k of them removed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_units(
    ids: Tensor, unit: Tensor, maskable: Tensor, draws: Tensor, share: float, mask_id: int, random_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Hide a share of the units of each text: 80% as [MASK], 10% as random tokens, 10% as they are.

    ids (B, t); unit (B, t): the position of the first token of each token's unit, whose draw holds for all of it;
    maskable (B, t): no padding or special token; draws (B, t, 2), uniform; random_ids (B, t), what may stand instead.
    Returns the ids that the model reads and which tokens it is to predict, (B, t) each.
    """
    hide, how = draws.take_along_dim(unit[..., None], dim=1).unbind(-1)  # (B, t) each
    masked = (hide < share) & maskable
    shown = torch.where(how < 0.8, mask_id, torch.where(how < 0.9, random_ids, ids))  # (B, t)
    return torch.where(masked, shown, ids), masked


def masked_language_loss(logits: Tensor, ids: Tensor, masked: Tensor, count: Tensor | float) -> Tensor:
    """Cross-entropy of the tokens to be predicted, over `count` (those of the global batch).

    logits (b, vocabulary) of the masked tokens alone, in order; ids and masked (B, t).
    """
    return F.cross_entropy(logits.float(), ids[masked], reduction="sum") / count


def split_patches(draws: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Which patches stay and which are removed, by rank of their draws (B, p) -> (B, p - k) and (B, k) positions."""
    order = draws.argsort(dim=1)  # (B, p)
    kept = draws.shape[1] - round(share * draws.shape[1])
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def patches(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) -> the pixels of their patches, row by row, each normalised by itself: (B, p, 3 size^2)."""
    pixels = F.unfold(images, size, stride=size).transpose(1, 2).float()  # (B, p, 3 size^2)
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)  # (B, p, 1) each
    return (pixels - mean) / (variance + 1e-6).sqrt()


def masked_image_loss(predicted: Tensor, target: Tensor, removed: Tensor) -> Tensor:
    """Mean squared error of the removed patches: predicted and target (B, p, 3 size^2), removed (B, k) positions."""
    predicted, target = (x.take_along_dim(removed[..., None], dim=1) for x in (predicted, target))  # (B, k, 3 size^2)
    return F.mse_loss(predicted.float(), target)
