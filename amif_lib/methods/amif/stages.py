"""What stage 1 and stage 2 of AMiF add up (sections 3.2 and 3.3).

Stage 1 is `GlobalAlignment`. Stage 2 aligns co-attended patches and words by optimal transport (Eq. 9-10) and tells pairs
from mined hard negatives (Eq. 11-13). Both see one global batch of N samples, of which this process holds B = N / P rows.

Shapes: p patches, t text tokens, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amif_lib.methods.amif.global_alignment import pick
from amif_lib.methods.amif.network import AMiF, initialise
from amif_lib.methods.amif.pair_classification import Pair, PairClassification
from amif_lib.methods.amif.settings import ObjectiveSpec
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks.tokenizers import content_mask
from amif_lib.objectives import collapse as monitor
from amif_lib.objectives import hard_negatives, masked_language, transport
from amif_lib.objectives.adaptive_transport import adaptive
from amif_lib.objectives.distributed import gather, pad_to_common_length


class Pretraining(PairClassification):
    """Stage 1 (global alignment) or stage 2 (local alignment and hard-negative mining) as one module.

    `forward` returns named, unweighted losses, `total`, and statistics; gradients reach only what the stage trains.
    """

    def __init__(
        self,
        amif: AMiF,
        objective: ObjectiveSpec,
        stage: str,
        seed: int,
        special_ids: tuple[int, int],
        teacher_dim: int = 0,
    ):
        super().__init__(amif, objective, teacher_dim)
        self.stage, self.seed, self.special_ids = stage, seed, special_ids
        o = objective
        uses_global = stage == "stage1" or o.weight_global > 0
        encoders = stage == "stage1" or o.stage2_trains == "all"
        fusion_used = stage == "stage2" and (
            o.weight_hard_negatives > 0 or (o.weight_local > 0 and o.transport_on == "fused") or o.weight_mlm > 0
        )
        per_alignment = amif.spec.projection_sharing == "alignment"
        self.mlm_head = None
        if stage == "stage2" and o.weight_mlm > 0:
            self.mlm_head = masked_language.MaskedLanguageHead(amif.spec.vocab_size, amif.spec.width)
            initialise(self.mlm_head, amif.spec.width)
        trained = {
            amif.image_encoder: encoders,
            amif.text_encoder: encoders,
            amif.image_projection: uses_global and (o.global_inter or (o.global_intra == "both" and not per_alignment)),
            amif.text_projection: uses_global and (o.global_inter or not per_alignment),
            amif.intra_image_projection: uses_global and o.global_intra == "both",
            amif.intra_text_projection: uses_global and o.global_intra != "none",
            amif.co_attention: fusion_used,
            amif.pair_head: stage == "stage2" and o.weight_hard_negatives > 0,
        }
        for module, trains in trained.items():
            if module is not None:
                module.requires_grad_(trains)
        amif.log_temperature.requires_grad_(o.learn_temperature and uses_global)

    def forward(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        return self.stage1(batch) if self.stage == "stage1" else self.stage2(batch)

    # --- stage 2: local-level alignment (Eq. 9-10) and hard-negative mining (Eq. 11-13) ------------------------------

    def stage2(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        o = self.objective
        needs_both = o.reads_both_views("stage2")
        with torch.set_grad_enabled(self._encoders_learn):
            text = self.amif.text_encoder(batch.ids, batch.mask)  # R_i: (B, t, d)
            if needs_both:
                both = self.encode_views(batch.views)  # V^(1), V^(2): (B, p+1, d)
                image = pick(torch.stack(both, 1), batch.view)  # V_i: (B, p+1, d)
            else:
                image = self.amif.image_encoder(pick(batch.views, batch.view))
                both = (image, image) if o.pairs_images or o.weight_global > 0 else None
        paired = both if both is None or o.image_image_views == "two" else (image, image)  # what a (V,V) pair is of
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        negatives = (
            self.mine(batch, image, paired, text) if o.weight_hard_negatives > 0 or self._contrasts_locally else {}
        )

        fused, attention = None, None
        if self._needs_positive_pair:
            weights = o.weight_local > 0 and o.marginals == "attention"
            *fused, attentions = self.amif.co_attention(image, text, None, batch.mask, "image_text", weights)
            attention = attentions[-1] if weights else None
        fused_negative = negative_text_mask = None
        if ("image_text" in negatives and "image_text" in o.pair_types) or self._contrasts_locally:
            negative_text, negative_text_mask = self._take(
                text, negatives["image_text"].index, batch.mask
            )  # R_m: (B, t', d)
            weights = self._contrasts_locally and o.marginals == "attention"
            *fused_negative, attentions = self.amif.co_attention(
                image, negative_text, None, negative_text_mask, "image_text", weights
            )
            negative_attention = attentions[-1] if weights else None

        if o.weight_local > 0:
            losses["local"] = self.local_loss(batch, image, text, fused, attention, stats)
            if self._contrasts_locally:
                valid = negatives["image_text"].valid.float()  # (B,)
                losses["local"] = losses["local"] - self._negative_cost(
                    batch, fused_negative, negative_attention, negatives["image_text"], valid
                )
        if o.weight_hard_negatives > 0:
            losses["hard_negatives"] = self.pair_loss(
                batch, image, paired, text, negatives, fused, fused_negative, negative_text_mask, stats
            )
        total = o.weight_local * losses.get("local", 0) + o.weight_hard_negatives * losses.get("hard_negatives", 0)
        if o.weight_mlm > 0:
            losses["mlm"] = self.mlm_loss(batch, image)
            total = total + o.weight_mlm * losses["mlm"]
        if o.weight_global > 0:
            kept = self.global_losses(batch, both[0][:, 0], both[1][:, 0], text[:, 0])
            losses["global"] = kept.pop("total")
            total = total + o.weight_global * losses["global"]
        losses["total"] = total
        return losses | stats

    @property
    def _needs_positive_pair(self) -> bool:
        o = self.objective
        pairs = o.weight_hard_negatives > 0 and "image_text" in o.pair_types and o.pair_positives != "none"
        return pairs or (o.weight_local > 0 and o.transport_on == "fused")

    def local_loss(
        self,
        batch: PretrainingBatch,
        image: Tensor,
        text: Tensor,
        fused: Pair | None,
        attention: Pair | None,
        stats: dict[str, Tensor],
    ) -> Tensor:
        """Eq. 9: mean over samples of the transport cost between image and text tokens."""
        x, y = fused if self.objective.transport_on == "fused" else (image, text)
        cost, plan, row_mask, column_mask, masses = self._transport(x, y, batch.ids, batch.mask, attention)
        if batch.step % 10 == 0:
            with torch.no_grad():
                found = monitor.collapse(x[:, -row_mask.shape[1] :], y, plan, row_mask, column_mask, cost, **masses)
            stats |= {f"collapse/{name}": torch.as_tensor(value) for name, value in found.items()}
        return transport.transport_cost(plan, cost).mean()

    def _transport(
        self, x: Tensor, y: Tensor, ids: Tensor, mask: Tensor, attention: Pair | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Cost and plan (B, p, t), masks (B, p) and (B, t), masses where they are not uniform."""
        o = self.objective
        drop = 1 if o.transport_tokens == "content" else 0  # image [CLS]
        x = x[:, drop:]  # (B, p, d)
        column_mask = content_mask(ids, mask, self.special_ids) if drop else mask
        row_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)  # (B, p)
        cost = transport.cosine_cost(x, y) if o.cost == "cosine" else transport.dot_cost(x, y)  # (B, p, t)
        masses = {}
        if o.marginals == "norm":
            masses = {"row_mass": transport.norm_mass(x, row_mask), "col_mass": transport.norm_mass(y, column_mask)}
        elif o.marginals == "attention":  # (B, h, p, t) of patches on words, (B, h, t, p) of words on patches
            on_words, on_patches = (weights.detach() for weights in attention)
            heard = (on_patches * mask[:, None, :, None]).sum((1, 2))[:, drop:]  # (B, p): padding asks nothing
            masses = {"row_mass": heard, "col_mass": on_words.sum((1, 2))}  # (B, t)
        if o.transport_solver == "exact":
            plan = transport.exact(cost, row_mask, column_mask, **masses)
        elif o.transport_solver == "adaptive":
            plan = adaptive(cost, row_mask, column_mask, o.transport_tolerance, **masses)
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
        return cost, plan, row_mask, column_mask, masses

    def _negative_cost(
        self,
        batch: PretrainingBatch,
        fused: Pair,
        attention: Pair | None,
        negatives: hard_negatives.Negatives,
        valid: Tensor,
    ) -> Tensor:
        index = negatives.index.clamp_min(0)
        ids = gather(pad_to_common_length(batch.ids))[index]
        mask = gather(pad_to_common_length(batch.mask))[index]
        cost, plan, *_ = self._transport(*fused, ids, mask, attention)
        return (transport.transport_cost(plan, cost) * valid).mean()

    # --- an addition: masked language modelling -------------------------------------------------------------------

    def mlm_loss(self, batch: PretrainingBatch, image: Tensor) -> Tensor:
        """Mean over the masked report tokens of the global batch of -log p(token | image, other tokens)."""
        encoder = self.amif.text_encoder
        with torch.set_grad_enabled(self._encoders_learn):
            text = encoder(batch.mlm_ids, batch.mask)  # (B, t, d)
        _, fused, _ = self.amif.co_attention(image, text, None, batch.mask, "image_text")  # (B, t, d)
        words = encoder.bert.embeddings.word_embeddings.weight  # (vocabulary, d)
        return masked_language.loss(self.mlm_head(fused[batch.mlm_chosen], words), batch.ids[batch.mlm_chosen])
