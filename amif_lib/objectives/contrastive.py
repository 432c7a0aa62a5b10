r"""Global alignment: soft labels and the KL loss (paper section 3.2.1, Eq. 1-8).

Rows are queries (such as images), the B samples of one process; columns are candidates (such as reports), the N samples
of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Limits on the mean label mass of the positive: above NEARLY_ONE_HOT, soft labels add almost nothing to one-hot labels;
# below NEARLY_FLAT / N, the teacher hardly distinguishes the positive from the other columns.
NEARLY_ONE_HOT, NEARLY_FLAT = 0.9, 2.0


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of rows (..., B, e) and columns (..., N, e) -> (..., B, N), in fp32 whatever the autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().mT  # (..., B, N)


@torch.no_grad()
def soft_labels(similarity: Tensor, temperature: float, positive_weight: float, positive_index: Tensor) -> Tensor:
    r"""Soft labels from a teacher's cosine similarities (Eq. 5).

    .. math::
        H_{ij} = Q_{ij} + \lambda \cdot \mathbf{1}_{\{j = j^+(i)\}}, \qquad
        Q_{ij} = \frac{\exp(s_{ij} / \tau)}{\sum_{k=1}^{N} \exp(s_{ik} / \tau)}

    A row sums to :math:`1 + \lambda`, as Eq. 5 is printed. Compared with rows divided by this sum, the loss has
    :math:`1 + \lambda` times the gradient, and its minimum is :math:`(1 + \lambda) \log (1 + \lambda)` instead of 0.

    Parameters
    ----------
    similarity : Tensor, shape (B, N)
        Teacher's cosine similarities :math:`s_{ij}`.
    temperature : float
        Teacher's temperature :math:`\tau > 0`.
    positive_weight : float
        :math:`\lambda \ge 0`, added at each row's positive; if it is 0, the result is :math:`Q`.
    positive_index : LongTensor, shape (B,)
        Column :math:`j^+(i)` of each row's positive.

    Returns
    -------
    Tensor, shape (B, N)
        :math:`H`, fp32, without gradient.
    """
    q = torch.softmax(similarity.float() / temperature, dim=-1)  # (B, N)
    return q + positive_weight * F.one_hot(positive_index, q.shape[1])  # (B, N)


def soft_label_kl(logits: Tensor, targets: Tensor) -> Tensor:
    r"""KL divergence of the student's matching probabilities from the labels (Eq. 2 and each term of Eq. 6-7).

    .. math::
        \frac{1}{B} \sum_i \sum_{j=1}^{N} H_{ij} \left( \log H_{ij} - \log P_{ij} \right), \qquad
        P_i = \mathrm{softmax}(z_i), \qquad 0 \log 0 = 0

    :math:`H_i` need not sum to 1. With one-hot labels this is InfoNCE (van den Oord et al., 2018).

    Parameters
    ----------
    logits : Tensor, shape (B, N)
        :math:`z_{ij} = s_{ij} / \tau`, the student's cosine similarities over its temperature.
    targets : Tensor, shape (B, N)
        :math:`H`, not negative.

    Returns
    -------
    Tensor
        A scalar, fp32 whatever the input's type.
    """
    logits, targets = logits.float(), targets.float()
    log_p = torch.log_softmax(logits, dim=-1)  # (B, N)
    return (torch.xlogy(targets, targets) - targets * log_p).sum(dim=-1).mean()  # (B, N) -> (B,) -> scalar


@torch.no_grad()
def teacher_statistics(targets: Tensor, positive_index: Tensor) -> dict[str, float | str]:
    r"""How peaked a teacher's labels are: targets Q (B, N), with the positives in the columns positive_index (B,).

    ``mean_q_ii``: mean mass on the positive. ``effective_neighbours``: mean over rows of
    :math:`\exp(-\sum_j Q_{ij} \log Q_{ij})`, between 1 (one-hot) and N (flat). ``warn``: a sentence if the labels are
    close to one-hot, or if the teacher hardly distinguishes the pairs; else empty.
    """
    q = targets.double()
    on_positive = q.gather(1, positive_index.unsqueeze(1)).mean().item()  # (B, N) -> (B, 1) -> scalar
    neighbours = (-torch.xlogy(q, q).sum(dim=-1)).exp().mean().item()  # (B, N) -> (B,) -> scalar
    warn = ""
    if on_positive > NEARLY_ONE_HOT:
        warn = "soft labels close to one-hot: use a teacher not trained on these pairs, or a higher temperature"
    elif on_positive < NEARLY_FLAT / targets.shape[1]:
        warn = "the teacher hardly tells a pair from any other column: use a better one, or a lower temperature"
    return {"mean_q_ii": on_positive, "effective_neighbours": neighbours, "warn": warn}
