"""Hard-negative mining and pair classification (section 3.3, Eq. 11-13), over one global batch of N samples.

This process holds B = N / P rows and mines for them among all N. Shapes: p patches, t text tokens, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amif_lib.methods.amif.global_alignment import GlobalAlignment, pick
from amif_lib.methods.amif.settings import ObjectiveSpec
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks.fusion import PAIR_TYPES, PairType
from amif_lib.objectives import contrastive, hard_negatives
from amif_lib.objectives.distributed import gather, own_rows, pad_to_common_length

Pair = tuple[Tensor, Tensor]  # co-attended tokens of both sides
Masks = tuple[Tensor | None, Tensor | None]


def negatives_drawn_from(objective: ObjectiveSpec, teacher: bool) -> str:
    """What hard negatives are drawn from: H off the diagonal, the teacher's Q (one-hot labels), or the student's P."""
    if objective.negative_distribution == "student" or not teacher:
        source = "student's P"
    else:
        source = "soft labels H" if objective.labels == "soft" else "teacher's Q"
    return f"{source}, highest {objective.negative_top_k}" if objective.negative_distribution == "top_k" else source


class PairClassification(GlobalAlignment):
    """Pairs with mined hard negatives (class 1) told from positive pairs (class 0)."""

    seed: int

    @property
    def _contrasts_locally(self) -> bool:
        return self.objective.weight_local > 0 and self.objective.local_contrast == "positives_minus_negatives"

    @property
    def _encoders_learn(self) -> bool:
        return torch.is_grad_enabled() and self.objective.stage2_trains == "all"

    @torch.no_grad()
    def mine(
        self, batch: PretrainingBatch, image: Tensor, both: Pair | None, text: Tensor
    ) -> dict[PairType, hard_negatives.Negatives]:
        """Indices into the global batch of each row's hard negatives, per pair type (Eq. 11).

        All N rows are drawn on every process from the same numbers, keyed by (seed, step), so that the draw does not
        depend on how rows are split over processes.
        """
        o = self.objective
        group, key = gather(batch.group), gather(batch.text_key)
        exclude = hard_negatives.duplicates(group, key) if o.exclude_duplicates else None  # (N, N)
        sides, temperature = self._similar_sides(batch, image, both, text)
        positive = torch.arange(len(group), device=group.device)
        out: dict[PairType, hard_negatives.Negatives] = {}
        rows = own_rows(len(group))
        for number, kind in enumerate(PAIR_TYPES):
            classified = o.weight_hard_negatives > 0 and kind in o.pair_types
            if not classified and not (kind == "image_text" and self._contrasts_locally):
                continue
            a, b = sides[kind]  # (N, e)
            targets = contrastive.soft_labels(
                contrastive.similarity(a, b), temperature, 0.0, positive
            )  # Q; lambda sits on the diagonal, never drawn
            barred = exclude
            if kind == "image_image" and o.same_view_negatives:
                label = gather(batch.view_label)  # (N, 2)
                label = label[:, 1] if o.image_image_views == "two" else pick(label, gather(batch.view))  # (N,)
                other_view = label[:, None] != label[None, :]  # (N, N)
                barred = other_view if exclude is None else exclude | other_view
            generator = torch.Generator().manual_seed(hash((self.seed, batch.step, number)) & 0x7FFFFFFF)
            drawn = hard_negatives.sample(
                targets,
                positive,
                barred,
                generator,
                temperature=o.negative_temperature,
                top_k=o.negative_top_k if o.negative_distribution == "top_k" else 0,
            )
            own_valid = drawn.valid[rows]
            out[kind] = hard_negatives.Negatives(drawn.index[rows], own_valid, int((~own_valid).sum()))
        return out

    def _similar_sides(
        self, batch: PretrainingBatch, image: Tensor, both: Pair | None, text: Tensor
    ) -> tuple[dict[PairType, Pair], float]:
        """Global embeddings (N, e) of both sides per pair type, whose similarity says what is a hard negative, and tau.

        The teacher's, or the student's where `negatives_drawn_from` says so.
        """
        o, project = self.objective, self.amif.project
        which = gather(batch.view)
        if not negatives_drawn_from(o, batch.teacher_text is not None).startswith("student"):
            views, texts = gather(batch.teacher_views), gather(batch.teacher_text)
            drawn = pick(views, which)  # (N, e)
            images = (views[:, 0], views[:, 1]) if o.image_image_views == "two" else (drawn, drawn)
            return {
                "image_text": (drawn, texts),
                "image_image": images,
                "text_text": (texts, texts),
            }, o.teacher_temperature
        texts = gather(project("text", text[:, 0], intra=True))
        sides = {
            "image_text": (gather(project("image", image[:, 0])), gather(project("text", text[:, 0]))),
            "text_text": (texts, texts),
        }
        if both is not None:
            sides["image_image"] = tuple(gather(project("image", x[:, 0], intra=True)) for x in both)
        return sides, o.temperature

    def _take(self, tokens: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (and mask) of global rows `index` (B,), with gradients to the process that owns them; -1 takes row 0."""
        index = index.clamp_min(0)
        everyone = gather(pad_to_common_length(tokens))  # (N, t', d)
        taken = everyone[index]  # (B, t', d)
        return taken, None if mask is None else gather(pad_to_common_length(mask, value=0))[index]

    def pair_loss(
        self,
        batch: PretrainingBatch,
        image: Tensor,
        both: Pair | None,
        text: Tensor,
        negatives: dict[PairType, hard_negatives.Negatives],
        fused: Pair | None,
        fused_negative: Pair | None,
        negative_text_mask: Tensor | None,
        stats: dict[str, Tensor],
    ) -> Tensor:
        """Eq. 13: cross-entropy of hard negatives (class 1) and positives (class 0), summed over pairs, mean over samples.

        The partner of a negative has the same view label (`mine`), and passes the same copy operation, as the positive's:
        else the pair is told by view type or by the artefact of copying.
        """
        o, co_attention = self.objective, self.amif.co_attention
        losses, correct = [], []

        def add(kind: PairType, negative: Pair, negative_masks: Masks, positive: Pair | None, masks: Masks) -> None:
            valid = negatives[kind].valid.float()  # (B,)
            for pair, label, pair_masks in ((negative, 1, negative_masks), (positive, 0, masks)):
                if pair is None:
                    continue
                logits = self.amif.pair_head(*pair, *pair_masks, kind).float()  # (B, 2)
                labels = torch.full((len(logits),), label, device=logits.device)
                losses.append((F.cross_entropy(logits, labels, reduction="none") * valid).mean())
                correct.append(((logits.argmax(1) == label) * valid).sum() / valid.sum().clamp_min(1))
            stats[f"skipped_{kind}"] = (1 - valid).sum()

        with_positive = {"per_type": o.pair_types, "image_text": ("image_text",), "none": ()}[o.pair_positives]
        if "image_text" in o.pair_types:
            positive = fused if "image_text" in with_positive else None
            add("image_text", fused_negative, (None, negative_text_mask), positive, (None, batch.mask))
            if o.negative_directions == "both":  # (V_m, R_i): the image of the mined text's sample
                other, _ = self._take(image, negatives["image_text"].index, None)
                pair = co_attention(other, text, None, batch.mask, "image_text")[:2]
                add("image_text", pair, (None, batch.mask), None, (None, None))
        if "image_image" in o.pair_types:
            partner, _ = self._take(both[1], negatives["image_image"].index, None)  # second view slot of sample n
            negative = co_attention(both[0], partner, None, None, "image_image")[:2]
            has_positive = "image_image" in with_positive
            positive = co_attention(both[0], both[1], None, None, "image_image")[:2] if has_positive else None
            add("image_image", negative, (None, None), positive, (None, None))
        if "text_text" in o.pair_types:
            first, first_mask, second, second_mask = self._text_sides(batch, text)
            partner, partner_mask = self._take(second, negatives["text_text"].index, second_mask)
            negative = co_attention(first, partner, first_mask, partner_mask, "text_text")[:2]
            has_positive = "text_text" in with_positive and o.text_positive != "none"
            positive = co_attention(first, second, first_mask, second_mask, "text_text")[:2] if has_positive else None
            add("text_text", negative, (first_mask, partner_mask), positive, (first_mask, second_mask))
        stats["pair_accuracy"] = torch.stack(correct).mean().detach()
        return torch.stack(losses).sum() if o.pair_reduction == "sum" else torch.stack(losses).mean()

    def _text_sides(self, batch: PretrainingBatch, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (B, t, d) and mask (B, t) of both sides of a report's (R,R) positive; the second is a negative's partner."""
        encode = self.amif.text_encoder
        with torch.set_grad_enabled(self._encoders_learn):
            if self.objective.text_positive == "halves":
                masks = batch.halves_mask.unbind(1)
                first, second = (encode(i, m) for i, m in zip(batch.halves_ids.unbind(1), masks, strict=True))
                return first, masks[0], second, masks[1]
            if self.objective.text_positive in ("copy", "shuffled"):
                return text, batch.mask, encode(batch.copy_ids, batch.mask), batch.mask
        return text, batch.mask, text, batch.mask
