r"""Global alignment: soft labels and the KL loss (paper section 3.2.1, Eq. 1-8).

Rows are queries (say, images), columns are the candidates of the global batch (say, reports). A process may hold a
block of :math:`B` rows of the :math:`N` columns; every row is treated on its own, so a block of rows gives exactly
those rows of the whole.

References
----------
.. [1] Zou, Y. and Yin, Z. "Alignment, Mining and Fusion: Representation Alignment with Hard Negative Mining and
       Selective Knowledge Fusion for Medical Visual Question Answering", section 3.2.1.
.. [2] van den Oord, A., Li, Y. and Vinyals, O. (2018). Representation learning with contrastive predictive coding.
       arXiv:1807.03748 (InfoNCE).
.. [3] Hinton, G., Vinyals, O. and Dean, J. (2015). Distilling the knowledge in a neural network. arXiv:1503.02531.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from amif_lib.core.errors import InputError

# A teacher that puts this much of a row's mass on the positive is a one-hot label in disguise ...
NEARLY_ONE_HOT = 0.9
# ... and one that puts less than this many times 1/N there hardly tells the positive from any other column.
NEARLY_FLAT = 2.0


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of rows (B, e) and columns (K, e) -> (B, K), in fp32 whatever the caller's autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T  # (B, K)


@torch.no_grad()
def soft_labels(
    similarity: Tensor,
    temperature: float,
    positive_weight: float,
    positive_index: Tensor,
    *,
    renormalise: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Soft labels from a teacher's cosine similarities (Eq. 5 of [1]_).

    .. math::
        H_{ij} = Q_{ij} + \lambda \cdot \mathbf{1}_{\{j = j^+(i)\}}, \qquad
        Q_{ij} = \frac{\exp(s_{ij} / \tau)}{\sum_{k=1}^{N} \exp(s_{ik} / \tau)}

    Eq. 5 as printed makes a row sum to :math:`1 + \lambda`. The KL loss of such a row has :math:`1 + \lambda` times
    the gradient of the renormalised row's, and a minimum of :math:`(1 + \lambda) \log (1 + \lambda)` instead of 0.

    Parameters
    ----------
    similarity : Tensor, shape (B, N)
        Teacher's cosine similarities :math:`s_{ij}`; rows may be a block of the global batch.
    temperature : float
        Teacher's temperature :math:`\tau > 0`.
    positive_weight : float
        :math:`\lambda \ge 0`, added at each row's positive.
    positive_index : LongTensor, shape (B,)
        Column :math:`j^+(i)` of each row's positive.
    renormalise : bool
        Divide each row by its sum, so that it is a distribution.
    mask : BoolTensor, shape (B, N), optional
        True removes the column from the softmax (the diagonal of text-text alignment, where :math:`s_{ii} = 1`
        whatever the text). A removed positive gets no :math:`\lambda`. A row without any column left is zero.

    Returns
    -------
    Tensor, shape (B, N)
        :math:`H`, fp32, without gradient.

    Raises
    ------
    InputError
        If a shape, the temperature or the weight cannot be used.
    """
    _check_rows(similarity, positive_index, mask)
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; soft labels need a value above 0")
    if not positive_weight >= 0:
        raise InputError(f"positive_weight is {positive_weight}; lambda of Eq. 5 must not be negative")
    logits = similarity.float() / temperature
    if mask is not None:
        logits = logits.masked_fill(mask, -torch.inf)
    labels = torch.softmax(logits, dim=-1)
    if mask is not None:
        labels = labels.masked_fill(mask, 0.0)  # also turns the NaN of a row without columns into 0
    labels = labels + positive_weight * one_hot_labels(positive_index, similarity.shape[1], mask=mask)
    if renormalise:
        labels = _normalise_rows(labels)
    return labels


def one_hot_labels(positive_index: Tensor, columns: int, *, mask: Tensor | None = None) -> Tensor:
    """Labels of plain InfoNCE [2]_: 1 at the positive, 0 elsewhere.

    Parameters
    ----------
    positive_index : LongTensor, shape (B,)
        Column of each row's positive.
    columns : int
        :math:`N`, size of the global batch.
    mask : BoolTensor, shape (B, N), optional
        True removes the column; a row whose positive is removed is zero and adds nothing to the loss.

    Returns
    -------
    Tensor, shape (B, N)
        fp32.
    """
    labels = torch.zeros(positive_index.shape[0], columns, device=positive_index.device)  # (B, N)
    labels.scatter_(1, positive_index.unsqueeze(1), 1.0)
    return labels if mask is None else labels.masked_fill(mask, 0.0)


def soft_label_kl(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Literal["mean", "none", "sum"] = "mean",
) -> Tensor:
    r"""KL divergence of the student's matching probabilities from the labels (Eq. 2 and each term of Eq. 6-7 of [1]_).

    .. math::
        \mathrm{KL}(H_i \| P_i) = \sum_{j=1}^{N} H_{ij} \left( \log H_{ij} - \log P_{ij} \right), \qquad
        P_i = \mathrm{softmax}(z_i), \qquad 0 \log 0 = 0

    :math:`H_i` need not sum to 1. With one-hot labels this is InfoNCE [2]_, the cross-entropy of the positive; with
    soft labels it is knowledge distillation [3]_.

    Parameters
    ----------
    logits : Tensor, shape (B, N)
        :math:`z_{ij} = s_{ij} / \tau`, the student's cosine similarities over its temperature.
    targets : Tensor, shape (B, N)
        :math:`H`, not negative; `soft_labels` or `one_hot_labels`.
    mask : BoolTensor, shape (B, N), optional
        True removes the column from both :math:`H` and :math:`P`. A row without any column left counts as 0.
    reduction : {"mean", "none", "sum"}
        Over rows. "mean" divides by B: means over equal blocks of the batch average to the whole batch's mean.

    Returns
    -------
    Tensor
        fp32 whatever the input's type; a scalar, or shape (B,) with "none".

    Raises
    ------
    InputError
        If shapes differ or the reduction is unknown.
    """
    if logits.ndim != 2 or targets.shape != logits.shape:
        raise InputError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must have one shape (B, N)")
    if mask is not None and mask.shape != logits.shape:
        raise InputError(f"mask {tuple(mask.shape)} must have the logits' shape {tuple(logits.shape)}")
    if reduction not in ("mean", "none", "sum"):
        raise InputError(f"reduction is {reduction!r}; known: mean, none, sum")
    logits, targets = logits.float(), targets.float()
    if mask is None:
        log_p = torch.log_softmax(logits, dim=-1)
    else:
        targets = targets.masked_fill(mask, 0.0)
        log_p = torch.log_softmax(logits.masked_fill(mask, -torch.inf), dim=-1)
        log_p = log_p.masked_fill(mask, 0.0)  # 0 * -inf is NaN, in the value and in the gradient
    rows = (torch.xlogy(targets, targets) - targets * log_p).sum(dim=-1)  # (B, N) -> (B,)
    if reduction == "none":
        return rows
    return rows.mean() if reduction == "mean" else rows.sum()


@torch.no_grad()
def teacher_statistics(targets: Tensor, positive_index: Tensor) -> dict[str, float | str]:
    r"""How peaked a teacher's labels are: neither one-hot in disguise nor flat.

    Parameters
    ----------
    targets : Tensor, shape (B, N)
        :math:`Q`, that is `soft_labels` with `positive_weight` 0 and without a mask. Rows are divided by their sum.
    positive_index : LongTensor, shape (B,)
        Column of each row's positive.

    Returns
    -------
    dict
        ``mean_q_ii``, mean mass on the positive; ``effective_neighbours``, mean over rows of
        :math:`\exp(-\sum_j Q_{ij} \log Q_{ij})`, between 1 (one-hot) and N (flat); ``warn``, a sentence where
        :math:`\overline{Q_{ii}} > 0.9` (soft labels say no more than one-hot ones; typical of a teacher that was fitted
        on these very pairs) or :math:`< 2 / N` (the teacher hardly knows the pairs), else the empty string.
    """
    _check_rows(targets, positive_index, None)
    columns = targets.shape[1]
    q = _normalise_rows(targets.double())
    on_positive = q.gather(1, positive_index.unsqueeze(1)).mean().item()  # (B, N) -> (B, 1) -> scalar
    neighbours = (-torch.xlogy(q, q).sum(dim=-1)).exp().mean().item()  # (B, N) -> (B,) -> scalar
    warn = ""
    if on_positive > NEARLY_ONE_HOT:
        warn = (
            f"mean Q_ii is {on_positive:.3f} (above {NEARLY_ONE_HOT}): the soft labels are close to one-hot; use a "
            "teacher that was not trained on these pairs, or a higher teacher temperature"
        )
    elif on_positive < NEARLY_FLAT / columns:
        warn = (
            f"mean Q_ii is {on_positive:.2g} (below {NEARLY_FLAT:g}/N = {NEARLY_FLAT / columns:.2g}): the teacher "
            "hardly tells a pair from any other column; use a better teacher, or a lower teacher temperature"
        )
    return {"mean_q_ii": on_positive, "effective_neighbours": neighbours, "warn": warn}


def _normalise_rows(labels: Tensor) -> Tensor:
    """Each row divided by its sum; a zero row stays zero."""
    total = labels.sum(dim=-1, keepdim=True)  # (B, N) -> (B, 1)
    return labels / torch.where(total > 0, total, 1.0)


def _check_rows(matrix: Tensor, positive_index: Tensor, mask: Tensor | None) -> None:
    if matrix.ndim != 2 or positive_index.shape != matrix.shape[:1]:
        raise InputError(
            f"a (B, N) matrix and a (B,) positive_index are needed, got {tuple(matrix.shape)} and "
            f"{tuple(positive_index.shape)}"
        )
    if mask is not None and mask.shape != matrix.shape:
        raise InputError(f"mask {tuple(mask.shape)} must have the matrix' shape {tuple(matrix.shape)}")
