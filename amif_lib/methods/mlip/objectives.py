"""MLIP's contrasts and cluster assignments: pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(similarity: Tensor, temperature: float, positive_index: Tensor) -> Tensor:
    r"""InfoNCE (van den Oord et al., 2018) in one direction (Eq. 4); :math:`\log N` if all similarities agree.

    .. math::
        -\frac{1}{B} \sum_i \log \frac{\exp(s_{i j^+(i)} / \tau)}{\sum_{k=1}^{N} \exp(s_{ik} / \tau)}

    similarity (B, N); positive_index (B,): the column of each row's positive. Returns a scalar, fp32.
    """
    return F.cross_entropy(similarity.float() / temperature, positive_index)


def token_info_nce(similarity: Tensor, temperature: float, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""InfoNCE between the tokens of one sample, in both directions, weighted (Eq. 11).

    .. math::
        -\frac{1}{2B} \sum_{i=1}^{B} \sum_{j=1}^{n} w_i^j \left(
        \log \frac{\exp(s_i^{jj} / \tau)}{\sum_k \exp(s_i^{jk} / \tau)} +
        \log \frac{\exp(s_i^{jj} / \tau)}{\sum_k \exp(s_i^{kj} / \tau)} \right)

    The paper also divides by n; its weights, like those here, already sum to 1.

    Parameters
    ----------
    similarity : Tensor, shape (B, n, n)
        Cosine similarities :math:`s_i^{jk}` of token j and the vector that is paired with token k (z of Eq. 10).
    temperature : float
        :math:`\tau > 0`.
    weights : Tensor, shape (B, n)
        :math:`w_i^j \ge 0`, 0 at padding.
    mask : BoolTensor, shape (B, n), optional
        True at a real token; None where all are real.

    Returns
    -------
    Tensor
        A scalar, fp32 whatever the input's type.
    """
    logits = similarity.float() / temperature  # (B, n, n)
    if mask is not None:  # a padded token remains its own candidate: without any, its loss would be NaN
        padding = ~(mask[:, None] & mask[:, :, None]) & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        logits = logits.masked_fill(padding, -torch.inf)
    own = logits.diagonal(dim1=1, dim2=2)  # (B, n)
    losses = logits.logsumexp(2) + logits.logsumexp(1) - 2 * own  # (B, n)
    return (weights * losses).sum(1).mean() / 2  # (B, n) -> (B,) -> scalar


@torch.no_grad()
def sinkhorn_assignments(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    r"""Soft assignments of samples to prototypes, each used equally often (SwAV, Caron et al., 2020; u of Eq. 17).

    N times the plan between N samples and C prototypes with uniform masses, cost :math:`-s` and regularisation
    :math:`\epsilon`, by a few of Sinkhorn's iterations. Prototypes are scaled first, samples last.

    Parameters
    ----------
    scores : Tensor, shape (N, C)
        :math:`s`, cosine similarities of all samples of the global batch with the prototypes.
    epsilon : float
        :math:`\epsilon > 0`.
    iterations : int
        > 0; SwAV has 3.

    Returns
    -------
    Tensor, shape (N, C)
        fp32, without gradient; **each row sums to 1**, each column to N / C in the limit.
    """
    log_plan = scores.float() / epsilon  # (N, C); exp(1 / 0.05) would overflow in fp16
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(dim=0, keepdim=True)  # (N, C) - (1, C)
        log_plan = log_plan - log_plan.logsumexp(dim=1, keepdim=True)  # (N, C) - (N, 1)
    return log_plan.exp()
