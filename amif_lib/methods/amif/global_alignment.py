"""Stage 1: global-level alignment of images, views and texts (section 3.2.1, Eq. 1-8), over one global batch.

This process holds B = N / P of the N samples: features are gathered over the processes with their gradients, every process
compares its own rows with all N columns (and those of the queue, where there is one), and losses are means over rows.
Shapes: t text tokens, d width, e projection or teacher dimension, K = N columns and the queue's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.methods.amif.network import AMiF
from amif_lib.methods.amif.settings import ObjectiveSpec
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.objectives import contrastive
from amif_lib.objectives.distributed import gather, own_rows, world_size
from amif_lib.objectives.feature_queue import FeatureQueue


class GlobalAlignment(nn.Module):
    """Images, views and texts of a study drawn together, by soft labels or one-hot ones."""

    def __init__(self, amif: AMiF, objective: ObjectiveSpec, teacher_dim: int = 0):
        super().__init__()
        self.amif, self.objective = amif, objective
        self.queue: FeatureQueue | None = None
        if objective.queue:
            dim = amif.spec.projection_dim
            shapes = {"image": (2, dim), "text": (dim,), "view": ()}
            if amif.spec.projection_sharing == "alignment":
                shapes |= {"intra_image": (2, dim), "intra_text": (dim,)}
            if objective.copies_texts:
                shapes["copy"] = (dim,)
            if objective.labels == "soft":
                shapes |= {"teacher_image": (2, teacher_dim), "teacher_text": (teacher_dim,)}
            self.queue = FeatureQueue(objective.queue, shapes)

    def encode_views(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Both views (B, 2, 3, H, W) in one pass of the encoder -> tokens of the first and of the second, (B, p+1, d) each."""
        return self.amif.image_encoder(views.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)

    def stage1(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        if self.objective.reads_both_views("stage1"):
            first, second = (view[:, 0] for view in self.encode_views(batch.views))  # V^(1), V^(2) -> [CLS]: (B, d)
        else:  # V_i stands for both: (B, 3, H, W) -> [CLS]: (B, d)
            first = second = self.amif.image_encoder(pick(batch.views, batch.view))[:, 0]
        text = self.amif.text_encoder(batch.ids, batch.mask)[:, 0]  # (B, d)
        return self.global_losses(batch, first, second, text)

    def global_losses(self, batch: PretrainingBatch, first: Tensor, second: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Eq. 6-8 from [CLS] tokens (B, d): `inter`, `intra_image`, `intra_text`, their weighted sum `total`, statistics."""
        o = self.objective
        own = self.features(batch, first, second, text)
        columns = {name: gather(x) for name, x in own.items()}  # (N, ...)
        if self.queue is not None:
            columns = self.queue(columns)  # (K, ...)
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}

        def side(name: str, view: int | str | None = None) -> Side:
            """One modality's own rows and all columns, with the teacher's; of images, the first (0), second or drawn view."""
            teacher = "teacher_image" if "image" in name else "teacher_text"
            key = name if name in own else name.removeprefix("intra_")  # shared projections

            def of(features: dict[str, Tensor], key: str) -> Tensor | None:
                x = features.get(key)
                if view is None or x is None:
                    return x
                return pick(x, features["view"].long()) if view == "drawn" else x[:, view]

            return Side(of(own, key), of(columns, key), of(own, teacher), of(columns, teacher))

        if o.global_inter:
            text_side = side("text")
            parts = []
            for view in ["drawn"] if o.inter_view == "random" else [0, 1]:
                chosen = side("image", view)  # v_i
                parts += [self.align("i2t", chosen, text_side, stats), self.align("t2i", text_side, chosen, stats)]
            losses["inter"] = torch.stack(parts).mean()  # Eq. 6: half of each direction
        if o.global_intra == "both":
            one, two = side("intra_image", 0), side("intra_image", 1)
            losses["intra_image"] = (self.align("i1i2", one, two, stats) + self.align("i2i1", two, one, stats)) / 2
        if o.global_intra in ("text", "both"):
            second_side = side("copy" if o.copies_texts else "intra_text")
            losses["intra_text"] = self.align(
                "t2t", side("intra_text"), second_side, stats, mask_diagonal=o.text_text_diagonal == "mask"
            )
        losses["total"] = torch.stack(list(losses.values())).sum()  # Eq. 8
        return losses | stats

    def features(self, batch: PretrainingBatch, first: Tensor, second: Tensor, text: Tensor) -> dict[str, Tensor]:
        """What alignments compare, by name: projections (B, 2, e) of both views' [CLS] tokens (B, d), of the text's (B, e), teacher's."""
        o, project = self.objective, self.amif.project
        out = {}
        for prefix in ("", "intra_") if self.amif.spec.projection_sharing == "alignment" else ("",):
            views = [project("image", view, intra=prefix != "") for view in (first, second)]
            out |= {f"{prefix}image": torch.stack(views, 1), f"{prefix}text": project("text", text, intra=prefix != "")}
        if o.copies_texts:
            copied = self.amif.text_encoder(batch.copy_ids, batch.mask)[:, 0]  # (B, d)
            out["copy"] = project("text", copied, intra=True)
        if batch.teacher_views is not None and o.labels == "soft":
            out |= {"teacher_image": batch.teacher_views, "teacher_text": batch.teacher_text}
        return out | {"view": batch.view}

    def align(
        self, name: str, rows: Side, columns: Side, stats: dict[str, Tensor], mask_diagonal: bool = False
    ) -> Tensor:
        """KL(H || P) of this process's rows against the columns of all processes (Eq. 2-7)."""
        o = self.objective
        own, everyone = rows.own, columns.everyone  # (B, e), (K, e)
        positive = _positives(len(own), own.device)  # (B,)
        mask = F.one_hot(positive, len(everyone)).bool() if mask_diagonal else None  # (B, K)
        logits = contrastive.similarity(own, everyone) / (o.temperature * self.amif.log_temperature.exp())  # (B, K)
        if o.labels == "one_hot":
            targets = F.one_hot(positive, len(everyone)).float()
        else:
            targets = contrastive.soft_labels(
                contrastive.similarity(rows.teacher_own, columns.teacher_everyone),  # (B, K)
                o.teacher_temperature,
                o.positive_weight,
                positive,
                renormalise=o.renormalise_labels,
                mask=mask,
            )
        with torch.no_grad():
            stats[f"retrieval_{name}"] = (logits.argmax(1) == positive).float().mean()
        return contrastive.soft_label_kl(logits, targets, mask=mask)


class Side(NamedTuple):
    """One side of an alignment."""

    own: Tensor  # (B, e): this process's samples
    everyone: Tensor  # (K, e): all processes' and the queue's
    teacher_own: Tensor | None  # (B, e')
    teacher_everyone: Tensor | None  # (K, e')


def pick(pairs: Tensor, which: Tensor) -> Tensor:
    """One of two per row: (B, 2, ...) and (B,) -> (B, ...)."""
    return pairs[torch.arange(len(pairs), device=pairs.device), which]


def _positives(rows: int, device: torch.device) -> Tensor:
    """Column of each own row's positive in the global batch, (B,)."""
    return torch.arange(rows * world_size(), device=device)[own_rows(rows * world_size())]
