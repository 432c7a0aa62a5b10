"""Stage 1: global alignment of images, views and texts (section 3.2.1, Eq. 1-8), over one global batch of N samples.

Shapes: this process's B = N / P samples, V views, d width, e projection dimension, e' teacher dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.methods.amif.network import AMiF
from amif_lib.methods.amif.settings import ObjectiveSpec
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.objectives.contrastive import similarity, soft_label_kl, soft_labels
from amif_lib.objectives.distributed import gather, own_rows


class Stage1(nn.Module):
    """Aligns images, views and texts of a study, with the teacher's soft labels or with one-hot labels."""

    def __init__(self, amif: AMiF, objective: ObjectiveSpec):
        super().__init__()
        self.amif, self.objective = amif, objective
        self.weights = dict.fromkeys(global_loss_names(objective), 1.0)  # Eq. 8
        for untrained in (amif.co_attention, amif.pair_head):  # no loss of this stage reaches them (point 11)
            untrained.requires_grad_(False)

    def forward(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        """The losses of Eq. 6 and 7 (scalars), and `retrieval_…`: how often the positive has the highest similarity.

        `retrieval_t2t` compares each text with itself, and so is below 1 only if texts of a batch are equal.
        """
        views = self.amif.encode_views(batch.views)[:, :, 0]  # (B, V, p+1, d) -> [CLS] (B, V, d)
        text = self.amif.text_encoder(batch.ids, batch.mask)[:, 0]  # (B, t, d) -> [CLS] (B, d)
        return global_losses(self.amif, self.objective, batch, views, text)


class Side(NamedTuple):
    """One side of an alignment: this process's samples, as the student and as the teacher sees them."""

    student: Tensor  # (B, e), unit length
    teacher: Tensor  # (B, e'), unit length; one-hot labels do not read it


def global_loss_names(objective: ObjectiveSpec) -> tuple[str, ...]:
    """The names of the terms of Eq. 8 (Table 2's columns G-inter and G-intra)."""
    intra = {"none": (), "text": ("intra_text",), "both": ("intra_image", "intra_text")}
    return ("inter", *intra[objective.global_intra])


def global_losses(
    amif: AMiF, objective: ObjectiveSpec, batch: PretrainingBatch, views: Tensor, text: Tensor
) -> dict[str, Tensor]:
    """Eq. 1-7 from the [CLS] tokens of views (B, V, d) and text (B, d): losses and shares of right retrievals."""
    names = global_loss_names(objective)
    v, r = amif.image_projection(views), amif.text_projection(text)  # proj() of Eq. 1: (B, V, e), (B, e)
    soft = objective.labels == "soft"
    teacher_v, teacher_r = (batch.extras["teacher_views"], batch.extras["teacher_text"]) if soft else (v, r)
    image, report = Side(pick(v, batch.view), pick(teacher_v, batch.view)), Side(r, teacher_r)
    out: dict[str, Tensor] = {}

    def align(name: str, rows: Side, columns: Side) -> Tensor:
        """KL(H || P) of this process's rows against the columns of all processes."""
        logits, labels, positive = distributions(rows, columns, objective)  # (B, N), (B, N), (B,)
        out[f"retrieval_{name}"] = (logits.detach().argmax(1) == positive).float().mean()
        return soft_label_kl(logits, labels)

    out["inter"] = (align("i2t", image, report) + align("t2i", report, image)) / 2  # Eq. 6
    if "intra_image" in names:
        first, second = (Side(v[:, k], teacher_v[:, k]) for k in (0, 1))
        out["intra_image"] = (align("i1i2", first, second) + align("i2i1", second, first)) / 2  # Eq. 7
    if "intra_text" in names:
        out["intra_text"] = align("t2t", report, report)  # Eq. 7; s_ii = 1 stays in (point 3)
    return out


def distributions(rows: Side, columns: Side, objective: ObjectiveSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The student's logits (B, N), whose softmax is P, the labels H (B, N), and the column of each positive (B,)."""
    o = objective
    logits = similarity(rows.student, gather(columns.student)) / o.temperature  # s_ij / tau of Eq. 2: (B, N)
    samples = logits.shape[1]
    positive = torch.arange(samples, device=logits.device)[own_rows(samples)]  # j+(i), the row's own column: (B,)
    if o.labels == "one_hot":
        return logits, F.one_hot(positive, samples), positive  # with these labels the KL loss is InfoNCE
    similar = similarity(rows.teacher, gather(columns.teacher))  # (B, N)
    labels = soft_labels(similar, o.teacher_temperature, o.positive_weight, positive)  # Eq. 5: lambda enters here
    return logits, labels, positive


def pick(pairs: Tensor, which: Tensor) -> Tensor:
    """From each row the element `which`: (B, V, ...) and (B,) -> (B, ...)."""
    return pairs[torch.arange(len(pairs), device=pairs.device), which]
