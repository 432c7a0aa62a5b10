"""Stage 1: global-level alignment of images, views and texts (section 3.2.1, Eq. 1-8), over one global batch.

This process holds B = N / P of the N samples: features are gathered over the processes with their gradients, every process
compares its own rows with all N columns, and losses are means over rows. Shapes: t text tokens, d width, e projection or
teacher dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.distributed import gather, own_rows
from amif_lib.experiments import ObjectiveSpec
from amif_lib.model import AMiF
from amif_lib.objectives import contrastive


@dataclass
class PretrainingBatch:
    """B samples of the global batch. Augmentation and `view` are keyed by (seed, step, sample), never by process."""

    views: Tensor  # (B, 2, 3, H, W): two images of the study, or two augmented copies of its only one
    view: Tensor  # (B,): which of the two is V_i
    ids: Tensor  # (B, t): report tokens
    mask: Tensor  # (B, t)
    copy_ids: Tensor  # (B, t): the same report with tokens masked out, the text side's positive
    view_label: Tensor  # (B, 2): view name and kind of augmentation of each view, as a number
    group: Tensor  # (B,): case or study; equal numbers are never negatives of each other
    text_key: Tensor  # (B,): equal numbers mean identical text
    teacher_views: Tensor | None  # (B, 2, e): unit-length teacher embeddings of the two views
    teacher_text: Tensor | None  # (B, e)
    step: int

    def to(self, device: torch.device) -> PretrainingBatch:
        return PretrainingBatch(
            **{
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in vars(self).items()
            }
        )


class GlobalAlignment(nn.Module):
    """Images, views and texts of a study drawn together, by soft labels or one-hot ones."""

    def __init__(self, amif: AMiF, objective: ObjectiveSpec):
        super().__init__()
        self.amif, self.objective = amif, objective

    def stage1(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        first = self.amif.image_encoder(batch.views[:, 0])[:, 0]  # V^(1) -> [CLS]: (B, d)
        second = self.amif.image_encoder(batch.views[:, 1])[:, 0]  # (B, d)
        text = self.amif.text_encoder(batch.ids, batch.mask)[:, 0]  # (B, d)
        return self.global_losses(batch, first, second, text)

    def global_losses(self, batch: PretrainingBatch, first: Tensor, second: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Eq. 6-8 from [CLS] tokens (B, d): `inter`, `intra_image`, `intra_text`, their weighted sum `total`, statistics."""
        o = self.objective
        views = torch.stack([self.amif.image_projection(first), self.amif.image_projection(second)], dim=1)  # (B, 2, e)
        text = self.amif.text_projection(text)  # (B, e)
        t_views, t_text = batch.teacher_views, batch.teacher_text
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}

        if o.global_inter:
            choices = (
                [batch.view]
                if o.inter_view == "random"
                else [torch.zeros_like(batch.view), torch.ones_like(batch.view)]
            )
            parts = []
            for which in choices:
                chosen = pick(views, which)  # v_i: (B, e)
                teacher = None if t_views is None else pick(t_views, which)
                parts += [
                    self.align("i2t", chosen, text, teacher, t_text, stats),
                    self.align("t2i", text, chosen, t_text, teacher, stats),
                ]
            losses["inter"] = torch.stack(parts).mean()  # Eq. 6: half of each direction
        if o.global_intra == "both":
            t_first, t_second = (None, None) if t_views is None else t_views.unbind(1)
            losses["intra_image"] = (
                self.align("i1i2", views[:, 0], views[:, 1], t_first, t_second, stats)
                + self.align("i2i1", views[:, 1], views[:, 0], t_second, t_first, stats)
            ) / 2
        if o.global_intra in ("text", "both"):
            losses["intra_text"] = self.align(
                "t2t", text, text, t_text, t_text, stats, mask_diagonal=o.text_text_diagonal == "mask"
            )
        losses["total"] = torch.stack(list(losses.values())).sum()  # Eq. 8
        return losses | stats

    def align(
        self,
        name: str,
        rows: Tensor,
        columns: Tensor,
        t_rows: Tensor | None,
        t_columns: Tensor | None,
        stats: dict[str, Tensor],
        mask_diagonal: bool = False,
    ) -> Tensor:
        """KL(H || P) of this process's rows against the columns of all processes (Eq. 2-7)."""
        o = self.objective
        columns = gather(columns)  # (N, e)
        positive = _positives(len(rows), len(columns), rows.device)  # (B,)
        mask = F.one_hot(positive, len(columns)).bool() if mask_diagonal else None  # (B, N)
        logits = rows @ columns.T / (o.temperature * self.amif.log_temperature.exp())  # (B, N)
        if o.labels == "one_hot":
            targets = F.one_hot(positive, len(columns)).float()
        else:
            similarity = t_rows @ gather(t_columns).T  # (B, N)
            targets = contrastive.soft_labels(
                similarity,
                o.teacher_temperature,
                o.positive_weight,
                positive,
                renormalise=o.renormalise_labels,
                mask=mask,
            )
        with torch.no_grad():
            stats[f"retrieval_{name}"] = (logits.argmax(1) == positive).float().mean()
        return contrastive.soft_label_kl(logits, targets, mask=mask)


def pick(pairs: Tensor, which: Tensor) -> Tensor:
    """One of two per row: (B, 2, ...) and (B,) -> (B, ...)."""
    return pairs[torch.arange(len(pairs), device=pairs.device), which]


def _positives(rows: int, columns: int, device: torch.device) -> Tensor:
    """Column of each own row's positive in the global batch, (B,)."""
    return (
        torch.arange(columns, device=device)[own_rows(columns)]
        if columns != rows
        else torch.arange(rows, device=device)
    )
