r"""Hard negative mining: which other sample of the batch is paired with a sample (paper section 3.3, Eq. 11).

"A negative pair with higher similarity has a higher chance of being chosen": for row :math:`i` the negative is drawn
from its soft labels without the positive and without exact duplicates,

.. math::
    p(m \mid i) = \frac{H_{im}^{1/T}}{\sum_{k \in A_i} H_{ik}^{1/T}}, \qquad
    m \in A_i = \{ k : k \ne j^+(i),\ k \text{ not excluded},\ H_{ik} > 0 \}.

A one-hot :math:`H` has no mass off the positive, so the rule is 0/0 there. `sample` then finds no allowed negative and
says so; with one-hot labels the caller passes another distribution instead: the teacher's :math:`Q`, or without a
teacher the student's :math:`P` (as ALBEF [2]_ does).

References
----------
.. [1] Zou, Y. and Yin, Z. "Alignment, Mining and Fusion ...", section 3.3.
.. [2] Li, J. et al. (2021). Align before fuse: vision and language representation learning with momentum distillation.
       NeurIPS 34.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amif_lib.core.errors import InputError


class Negatives(NamedTuple):
    """Mined negatives of a block of rows."""

    index: Tensor  # (B,) long, column of the negative; -1 where the row has none
    valid: Tensor  # (B,) bool, the row has a negative
    skipped: int  # number of rows without one


@torch.no_grad()
def sample(
    targets: Tensor,
    positive_index: Tensor,
    exclude: Tensor | None,
    generator: torch.Generator | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    uniform: Tensor | None = None,
) -> Negatives:
    """Draw one hard negative per row from its labels off the positive, without gradient.

    The draw inverts the row's cumulative distribution at one uniform number. Row i therefore depends on its own labels
    and its own number only, however the batch is split: to mine the same negatives on several processes, pass each of
    them its rows' share of the same numbers as `uniform`.

    Parameters
    ----------
    targets : Tensor, shape (B, N)
        Not negative; :math:`H` of Eq. 5 (or :math:`Q`, or :math:`P`). Rows may be a block of the global batch and need
        not sum to 1.
    positive_index : LongTensor, shape (B,)
        Column of each row's positive; never drawn.
    exclude : BoolTensor, shape (B, N), optional
        True columns are never drawn: see `duplicates`.
    generator : torch.Generator, optional
        Source of the uniform numbers, on its own device; the default generator where None.
    temperature : float
        T in the module's formula. Soft labels at the paper's temperature are nearly flat over 256 columns; T below 1
        sharpens them.
    top_k : int
        If positive, draw uniformly from the row's k highest allowed columns instead; `temperature` plays no part then.
    uniform : Tensor, shape (B,), optional
        Numbers in [0, 1) to use instead of the generator's.

    Returns
    -------
    Negatives
        On the targets' device.

    Raises
    ------
    InputError
        If a shape or setting cannot be used, or targets are negative or not finite.
    """
    _check(targets, positive_index, exclude, temperature, top_k, uniform)
    weights = targets.double()
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InputError("hard-negative targets hold negative or non-finite values; check the features before")
    weights = weights.scatter(1, positive_index.unsqueeze(1), 0.0)  # the positive is no negative
    if exclude is not None:
        weights = weights.masked_fill(exclude.bool(), 0.0)
    if top_k:
        order = weights.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)  # (B, N): 0 for the row's highest
        weights = ((rank < top_k) & (weights > 0)).double()
    else:
        highest = weights.amax(dim=1, keepdim=True)  # (B, N) -> (B, 1); dividing first keeps small T from underflow
        weights = (weights / torch.where(highest > 0, highest, 1.0)) ** (1.0 / temperature)
    cumulative = weights.cumsum(dim=1)
    total = cumulative[:, -1:].clone()  # (B, N) -> (B, 1)
    valid = total.squeeze(1) > 0  # (B, 1) -> (B,)
    # Dividing by the last entry makes it exactly 1, which is above every uniform number.
    cumulative = cumulative / torch.where(total > 0, total, 1.0)
    if uniform is None:
        device = generator.device if generator is not None else targets.device
        uniform = torch.rand(len(targets), generator=generator, dtype=torch.float64, device=device)
    uniform = uniform.to(targets.device, torch.float64).unsqueeze(1)  # (B,) -> (B, 1)
    # The first column whose cumulative mass exceeds the number; a column of zero mass never is the first.
    index = torch.searchsorted(cumulative, uniform, right=True).squeeze(1)  # (B, 1) -> (B,)
    index = torch.where(valid, index, -1)
    return Negatives(index, valid, int((~valid).sum()))


def duplicates(
    group_ids: Tensor | None,
    text_ids: Tensor | None,
    row_group_ids: Tensor | None = None,
    row_text_ids: Tensor | None = None,
) -> Tensor:
    """Which columns are false negatives of a row: the same study, article or case, or the very same text.

    Parameters
    ----------
    group_ids, text_ids : LongTensor, shape (N,), or None
        Of the global batch: equal numbers, equal group (study, article, case) or equal text. None leaves that criterion
        out; one of the two is needed.
    row_group_ids, row_text_ids : LongTensor, shape (B,), optional
        Of the rows at hand, where they are a block of the batch; by default the rows are the whole batch.

    Returns
    -------
    BoolTensor, shape (B, N)
        (N, N) by default. True on a sample's own column as well.

    Raises
    ------
    InputError
        If both are None or lengths differ.
    """
    same: Tensor | None = None
    for columns, rows in ((group_ids, row_group_ids), (text_ids, row_text_ids)):
        if columns is None:
            continue
        rows = columns if rows is None else rows
        equal = rows.unsqueeze(1) == columns.unsqueeze(0)  # (B, 1), (1, N) -> (B, N)
        if same is not None and same.shape != equal.shape:
            raise InputError(
                f"group ids compare as {tuple(same.shape)} and text ids as {tuple(equal.shape)}; pass "
                "both for the same rows and columns"
            )
        same = equal if same is None else same | equal
    if same is None:
        raise InputError("group_ids and text_ids are both None; pass at least one")
    return same


def _check(
    targets: Tensor,
    positive_index: Tensor,
    exclude: Tensor | None,
    temperature: float,
    top_k: int,
    uniform: Tensor | None,
) -> None:
    if targets.ndim != 2 or positive_index.shape != targets.shape[:1]:
        raise InputError(
            f"targets (B, N) and positive_index (B,) are needed, got {tuple(targets.shape)} and "
            f"{tuple(positive_index.shape)}"
        )
    if exclude is not None and exclude.shape != targets.shape:
        raise InputError(f"exclude {tuple(exclude.shape)} must have the targets' shape {tuple(targets.shape)}")
    if uniform is not None and uniform.shape != positive_index.shape:
        raise InputError(f"uniform {tuple(uniform.shape)} must have one number per row, {tuple(positive_index.shape)}")
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; sampling needs a value above 0")
    if top_k < 0:
        raise InputError(f"top_k is {top_k}; use 0 to draw from the whole row")
