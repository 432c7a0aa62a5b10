"""What stage 1 and stage 2 of AMiF add up (sections 3.2 and 3.3).

Stage 1 is `GlobalAlignment`. Stage 2 aligns co-attended patches and words by optimal transport (Eq. 9-10) and tells pairs
from mined hard negatives (Eq. 11-13). Both see one global batch of N samples, of which this process holds B = N / P rows.

Shapes: p patches, t text tokens, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amif_lib.distributed import gather, own_rows, pad_to_common_length
from amif_lib.experiments import ObjectiveSpec
from amif_lib.fusion import PairType
from amif_lib.model import AMiF, pair_stream_masks
from amif_lib.objectives import contrastive, hard_negatives, monitor, transport
from amif_lib.objectives.global_alignment import GlobalAlignment, PretrainingBatch, pick
from amif_lib.tokenizers import content_mask


class Pretraining(GlobalAlignment):
    """Stage 1 (global alignment) or stage 2 (local alignment and hard-negative mining) as one module.

    `forward` returns named, unweighted losses, `total`, and statistics; gradients reach only what the stage trains.
    """

    def __init__(self, amif: AMiF, objective: ObjectiveSpec, stage: str, seed: int, special_ids: tuple[int, int]):
        super().__init__(amif, objective)
        self.stage, self.seed, self.special_ids = stage, seed, special_ids
        o = objective
        uses_global = stage == "stage1" or o.weight_global > 0
        encoders = stage == "stage1" or o.stage2_trains == "all"
        fusion_used = stage == "stage2" and (
            o.weight_hard_negatives > 0 or (o.weight_local > 0 and o.transport_on == "fused")
        )
        trained = {
            amif.image_encoder: encoders,
            amif.text_encoder: encoders,
            amif.image_projection: uses_global and (o.global_inter or o.global_intra == "both"),
            amif.text_projection: uses_global,
            amif.co_attention: fusion_used,
            amif.pair_head: stage == "stage2" and o.weight_hard_negatives > 0,
        }
        for module, trains in trained.items():
            module.requires_grad_(trains)
        amif.log_temperature.requires_grad_(o.learn_temperature and uses_global)

    def forward(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        return self.stage1(batch) if self.stage == "stage1" else self.stage2(batch)

    # --- stage 2: local-level alignment (Eq. 9-10) and hard-negative mining (Eq. 11-13) ------------------------------

    def stage2(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        o = self.objective
        mines_images = o.weight_hard_negatives > 0 and "image_image" in o.pair_types
        needs_both = mines_images or o.weight_global > 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and o.stage2_trains == "all"):
            text = self.amif.text_encoder(batch.ids, batch.mask)  # R_i: (B, t, d)
            if needs_both:
                both = [self.amif.image_encoder(batch.views[:, k]) for k in (0, 1)]  # V^(1), V^(2): (B, p+1, d)
                image = pick(torch.stack(both, 1), batch.view)  # V_i: (B, p+1, d)
            else:
                both, image = None, self.amif.image_encoder(pick(batch.views, batch.view))
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        negatives = (
            self.mine(batch, image, both, text) if o.weight_hard_negatives > 0 or self._contrasts_locally else {}
        )

        fused = (
            self.amif.co_attention(image, text, None, batch.mask, "image_text")[:2]
            if self._needs_positive_pair
            else None
        )
        fused_negative = negative_text_mask = None
        if ("image_text" in negatives and "image_text" in o.pair_types) or self._contrasts_locally:
            negative_text, negative_text_mask = self._take(
                text, negatives["image_text"].index, batch.mask
            )  # R_m: (B, t', d)
            fused_negative = self.amif.co_attention(image, negative_text, None, negative_text_mask, "image_text")[:2]

        if o.weight_local > 0:
            losses["local"] = self.local_loss(batch, image, text, fused, stats)
            if self._contrasts_locally:
                valid = negatives["image_text"].valid.float()  # (B,)
                losses["local"] = losses["local"] - self._negative_cost(
                    batch, fused_negative, negatives["image_text"], valid
                )
        if o.weight_hard_negatives > 0:
            losses["hard_negatives"] = self.pair_loss(
                batch, image, both, text, negatives, fused, fused_negative, negative_text_mask, stats
            )
        total = o.weight_local * losses.get("local", 0) + o.weight_hard_negatives * losses.get("hard_negatives", 0)
        if o.weight_global > 0:
            kept = self.global_losses(batch, both[0][:, 0], both[1][:, 0], text[:, 0])
            losses["global"] = kept.pop("total")
            total = total + o.weight_global * losses["global"]
        losses["total"] = total
        return losses | stats

    @property
    def _contrasts_locally(self) -> bool:
        return self.objective.weight_local > 0 and self.objective.local_contrast == "positives_minus_negatives"

    @property
    def _needs_positive_pair(self) -> bool:
        o = self.objective
        pairs = o.weight_hard_negatives > 0 and "image_text" in o.pair_types and o.pair_positives != "none"
        return pairs or (o.weight_local > 0 and o.transport_on == "fused")

    @torch.no_grad()
    def mine(
        self, batch: PretrainingBatch, image: Tensor, both: list[Tensor] | None, text: Tensor
    ) -> dict[PairType, hard_negatives.Negatives]:
        """Indices into the global batch of each row's hard negatives, per pair type (Eq. 11).

        All N rows are drawn on every process from the same numbers, keyed by (seed, step), so that the draw does not
        depend on how rows are split over processes.
        """
        o = self.objective
        group, key = gather(batch.group), gather(batch.text_key)
        exclude = hard_negatives.duplicates(group, key) if o.exclude_duplicates else None  # (N, N)
        t_views, t_text = (None if t is None else gather(t) for t in (batch.teacher_views, batch.teacher_text))
        wanted: list[PairType] = [
            kind
            for kind in ("image_text", "image_image", "text_text")
            if (o.weight_hard_negatives > 0 and kind in o.pair_types)
            or (kind == "image_text" and self._contrasts_locally)
        ]
        which = gather(batch.view)
        if o.negative_distribution == "student" or t_text is None:
            s_text = gather(self.amif.text_projection(text[:, 0]))  # (N, e)
            s_views = None
            if both is not None:
                s_views = torch.stack([gather(self.amif.image_projection(x[:, 0])) for x in both], 1)  # (N, 2, e)
            chosen = gather(self.amif.image_projection(image[:, 0])) if s_views is None else pick(s_views, which)
            sides = {"image_text": (chosen, s_text), "text_text": (s_text, s_text)}
            if s_views is not None:
                sides["image_image"] = (s_views[:, 0], s_views[:, 1])
            temperature = o.temperature
        else:
            sides = {
                "image_text": (pick(t_views, which), t_text),
                "image_image": (t_views[:, 0], t_views[:, 1]),
                "text_text": (t_text, t_text),
            }
            temperature = o.teacher_temperature
        out: dict[PairType, hard_negatives.Negatives] = {}
        rows = own_rows(len(group))
        for number, kind in enumerate(("image_text", "image_image", "text_text")):
            if kind not in wanted:
                continue
            a, b = sides[kind]
            positive = torch.arange(len(group), device=a.device)
            targets = contrastive.soft_labels(
                a @ b.T, temperature, 0.0, positive
            )  # Q; lambda sits on the diagonal, never drawn
            barred = exclude
            if kind == "image_image" and o.same_view_negatives:
                label = gather(batch.view_label)[:, 1]  # (N,)
                other_view = label[:, None] != label[None, :]  # (N, N)
                barred = other_view if exclude is None else exclude | other_view
            generator = torch.Generator().manual_seed(hash((self.seed, batch.step, number)) & 0x7FFFFFFF)
            drawn = hard_negatives.sample(
                targets,
                positive,
                barred,
                generator,
                temperature=o.negative_temperature,
                top_k=5 if o.negative_distribution == "top_k" else 0,
            )
            own_valid = drawn.valid[rows]
            out[kind] = hard_negatives.Negatives(drawn.index[rows], own_valid, int((~own_valid).sum()))
        return out

    def _take(self, tokens: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (and mask) of global rows `index` (B,), with gradients to the process that owns them; -1 takes row 0."""
        index = index.clamp_min(0)
        everyone = gather(pad_to_common_length(tokens))  # (N, t', d)
        taken = everyone[index]  # (B, t', d)
        return taken, None if mask is None else gather(pad_to_common_length(mask, value=0))[index]

    def local_loss(
        self,
        batch: PretrainingBatch,
        image: Tensor,
        text: Tensor,
        fused: tuple[Tensor, Tensor] | None,
        stats: dict[str, Tensor],
    ) -> Tensor:
        """Eq. 9: mean over samples of the transport cost between image and text tokens."""
        x, y = fused if self.objective.transport_on == "fused" else (image, text)
        cost, plan, row_mask, column_mask = self._transport(x, y, batch.ids, batch.mask)
        if batch.step % 10 == 0:
            with torch.no_grad():
                found = monitor.collapse(x[:, -row_mask.shape[1] :], y, plan, row_mask, column_mask, cost)
            stats |= {f"collapse/{name}": torch.as_tensor(value) for name, value in found.items()}
        return transport.transport_cost(plan, cost).mean()

    def _transport(self, x: Tensor, y: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        o = self.objective
        if o.transport_tokens == "content":
            x, column_mask = x[:, 1:], content_mask(ids, mask, self.special_ids)  # image [CLS] dropped: (B, p, d)
        else:
            column_mask = mask
        row_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)  # (B, p)
        cost = transport.cosine_cost(x, y) if o.cost == "cosine" else transport.dot_cost(x, y)  # (B, p, t)
        masses = {}
        if o.marginals == "norm":
            masses = {"row_mass": transport.norm_mass(x, row_mask), "col_mass": transport.norm_mass(y, column_mask)}
        if o.transport_solver == "exact":
            plan = transport.exact(cost, row_mask, column_mask, **masses)
        else:
            plan = transport.ipot(
                cost,
                row_mask,
                column_mask,
                beta=o.transport_beta,
                iterations=o.transport_iterations,
                differentiable=o.plan_gradient == "unrolled",
                **masses,
            )
        return cost, plan, row_mask, column_mask

    def _negative_cost(
        self, batch: PretrainingBatch, fused: tuple[Tensor, Tensor], negatives: hard_negatives.Negatives, valid: Tensor
    ) -> Tensor:
        index = negatives.index.clamp_min(0)
        ids = gather(pad_to_common_length(batch.ids))[index]
        mask = gather(pad_to_common_length(batch.mask))[index]
        cost, plan, _, _ = self._transport(*fused, ids, mask)
        return (transport.transport_cost(plan, cost) * valid).mean()

    def pair_loss(
        self,
        batch: PretrainingBatch,
        image: Tensor,
        both: list[Tensor] | None,
        text: Tensor,
        negatives: dict[PairType, hard_negatives.Negatives],
        fused: tuple[Tensor, Tensor] | None,
        fused_negative: tuple[Tensor, Tensor] | None,
        negative_text_mask: Tensor | None,
        stats: dict[str, Tensor],
    ) -> Tensor:
        """Eq. 13: cross-entropy of hard negatives (class 1) and positives (class 0), summed over pair types, mean over samples.

        The partner of a negative has the same view label (`mine`), and passes the same copy operation, as the positive's:
        else the pair is told by view type or by the artefact of copying.
        """
        o = self.objective
        losses, correct = [], []

        def add(
            kind: PairType,
            negative: tuple | None,
            positive: tuple | None,
            valid: Tensor,
            masks: tuple,
            negative_masks: tuple,
        ) -> None:
            for pair, label, pair_masks in ((negative, 1, negative_masks), (positive, 0, masks)):
                if pair is None:
                    continue
                logits = self.amif.pair_head(*pair, *pair_masks).float()  # (B, 2)
                labels = torch.full((len(logits),), label, device=logits.device)
                losses.append((F.cross_entropy(logits, labels, reduction="none") * valid).mean())
                correct.append(((logits.argmax(1) == label) * valid).sum() / valid.sum().clamp_min(1))
            stats[f"skipped_{kind}"] = (1 - valid).sum()

        with_positive = {"per_type": o.pair_types, "image_text": ("image_text",), "none": ()}[o.pair_positives]
        if "image_text" in o.pair_types:
            valid = negatives["image_text"].valid.float()
            add(
                "image_text",
                fused_negative,
                fused if "image_text" in with_positive else None,
                valid,
                (None, batch.mask),
                (None, negative_text_mask),
            )
            if o.negative_directions == "both":  # (V_m, R_i): the image of the mined text's sample
                other, _ = self._take(image, negatives["image_text"].index, None)
                add(
                    "image_text",
                    self.amif.co_attention(other, text, None, batch.mask, "image_text")[:2],
                    None,
                    valid,
                    (None, batch.mask),
                    (None, batch.mask),
                )
        if "image_image" in o.pair_types:
            valid = negatives["image_image"].valid.float()
            partner, _ = self._take(both[1], negatives["image_image"].index, None)  # second view slot of sample n
            negative = self.amif.co_attention(both[0], partner, None, None, "image_image")[:2]
            positive = (
                self.amif.co_attention(both[0], both[1], None, None, "image_image")[:2]
                if "image_image" in with_positive
                else None
            )
            add("image_image", negative, positive, valid, (None, None), (None, None))
        if "text_text" in o.pair_types:
            valid = negatives["text_text"].valid.float()
            copied = text
            if o.text_positive == "copy":
                with torch.set_grad_enabled(torch.is_grad_enabled() and o.stage2_trains == "all"):
                    copied = self.amif.text_encoder(batch.copy_ids, batch.mask)  # (B, t, d)
            partner, partner_mask = self._take(copied, negatives["text_text"].index, batch.mask)
            masks = pair_stream_masks("text_text", batch.mask, batch.mask)
            negative_masks = pair_stream_masks("text_text", batch.mask, partner_mask)
            negative = self.amif.co_attention(text, partner, *negative_masks, "text_text")[:2]
            positive = (
                self.amif.co_attention(text, copied, *masks, "text_text")[:2] if "text_text" in with_positive else None
            )
            add("text_text", negative, positive, valid, masks, negative_masks)
        stats["pair_accuracy"] = torch.stack(correct).mean().detach()
        return torch.stack(losses).sum()
