"""MLIP's pre-training: contrast of whole images and reports, of their tokens with knowledge, and of categories.

Shapes: B = N / P samples of this process, p patches (+1 [CLS]), t text tokens, n = t - 1 of them after [CLS]; w width,
d dimensions of the shared space; E entities of k dimensions, e of them for a text, of which the first stands for "no
entity"; C prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.data.knowledge_graph import KnowledgeGraph
from amif_lib.data.records import Study, StudyImage
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.methods.entities import EntityEncoder, linked
from amif_lib.methods.mlip.network import MLIP, KnowledgeAttention, TuckerFusion, attend
from amif_lib.methods.mlip.objectives import info_nce, sinkhorn_assignments, token_info_nce
from amif_lib.methods.mlip.settings import ObjectiveSpec
from amif_lib.networks.encoders import initialise
from amif_lib.networks.pixels import keyed
from amif_lib.networks.tokenizers import content_mask
from amif_lib.objectives import hard_negatives
from amif_lib.objectives.contrastive import similarity
from amif_lib.objectives.distributed import gather, own_rows, pad_to_common_length

TAU_GLOBAL, TAU_LOCAL, TAU_KNOWLEDGE, TAU_CATEGORY = 0.07, 0.1, 0.1, 0.2  # tau 1 to 4
MARGIN, SWAP_MARGIN, ALPHA, SWAPPED = 0.2, 0.2, 0.5, 0.5  # G of Eq. 18; G', alpha and gamma of Eq. 19
QUANTILES = (0.1, 0.9)  # the weights of tokens are clipped to these quantiles
MOMENTUM = 0.995  # of `divergence: momentum`
DRAWS = 2**31 + 3  # no sample has this number, so these random streams differ from those that draw samples


@dataclass
class Knowledge:
    """The knowledge graph of a run and TransE's vectors of its E entities. Batches hold none of it."""

    graph: KnowledgeGraph
    table: Tensor  # (E, k)
    folds: dict[str, int]  # by study: 0 for all, since a batch may mix any studies

    def of(self, study: Study, shown: Sequence[StudyImage]) -> dict[str, Tensor]:
        """What a batch needs of a study: nothing, since entities are found in the batch's tokens."""
        return {}


class Pretraining(nn.Module):
    """The network with the parts that only pre-training needs, and its five losses (Eq. 20)."""

    def __init__(self, mlip: MLIP, objective: ObjectiveSpec, knowledge: Knowledge, tokenizer: Any, C: int, seed: int):
        super().__init__()
        self.mlip, self.graph, self.tokenizer, self.seed = mlip, knowledge.graph, tokenizer, seed
        self.update, self.weight_divergence = objective.divergence, objective.weight_divergence  # lambda 0
        o, width, dim = objective, mlip.spec.width, mlip.spec.projection_dim
        weights = {"global": o.weight_global, "local": o.weight_local, "category": o.weight_category}
        weights |= {"itm": o.weight_itm, "swap": o.weight_swap}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}  # Eq. 20
        self.number_of = {entity: number for number, entity in enumerate(self.graph.entities)}
        entities, k = knowledge.table.shape
        triples = torch.from_numpy(self.graph.triples)
        self.entity_encoder = EntityEncoder(entities, triples, k, dropout=mlip.spec.dropout)
        self.entity_encoder.table.weight.data.copy_(knowledge.table)
        self.entity_projection = nn.Linear(k, dim)
        self.image_knowledge, self.text_knowledge = (KnowledgeAttention(dim) for _ in range(2))
        self.topic_norm, self.fusion_norm = nn.LayerNorm(dim), nn.LayerNorm(dim, elementwise_affine=False)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(C, dim), dim=1))  # J
        for part in (self.entity_projection, self.image_knowledge, self.text_knowledge):
            initialise(part, width)
        with torch.no_grad():  # as long as an entity's vector is on average: a longer one would dominate z
            length = self.entity_projection(self.entity_encoder()).norm(dim=1).mean()
        self.no_entity = nn.Parameter(length * unit(torch.randn(dim)))
        self.tucker = TuckerFusion(dim).requires_grad_(False)  # no loss reaches it: Sinkhorn's u has no gradient
        self.divergence = nn.ModuleDict()  # o_v and o_t
        self.cosines: dict[str, Tensor] = {}  # s of Eq. 7 at the step that is running
        if o.reads_both_views("pretrain"):
            for side in ("image", "text"):
                self.divergence[side] = copy.deepcopy(self.encoder(side)).requires_grad_(False)
            self.divergence["image"].trunk = mlip.image_encoder.trunk  # frozen, so both share one

    def encoder(self, side: str) -> nn.Module:
        """The encoder of a side, f_v (`image`) or f_t (`text`)."""
        return self.mlip.image_encoder if side == "image" else self.mlip.text_encoder

    def forward(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        """The losses by name (scalars), and `retrieval_…` for the log: how often the positive is the most similar."""
        mlip, out = self.mlip, {}
        rows = torch.arange(len(batch.view), device=batch.view.device)
        image = mlip.image_encoder(batch.views[rows, batch.view])  # (B, V, 3, H, W) -> (B, p+1, w)
        text = mlip.text_encoder(batch.ids, batch.mask)  # (B, t, w)
        patches, patch_weights = mlip.image_projection(image)  # Eq. 3a and 9: (B, p+1, d), (B, p)
        tokens, token_weights = mlip.text_projection(text, batch.mask)  # Eq. 3b and 9: (B, t, d), (B, n)
        v, t = unit(patches[:, 0]), unit(tokens[:, 0])  # v* and t*: (B, d) each
        p, s, words = patches[:, 1:], tokens[:, 1:], self.words(batch)  # (B, p, d), (B, n, d), (B, n)
        if "global" in self.weights:
            out |= self.global_contrast(batch, image, text, v, t)
        if self.weights.keys() & {"local", "category"}:
            e, known = self.entities(batch)  # (B, e, d), (B, e)
        if "local" in self.weights:
            z = self.image_knowledge(p, e, known)  # Eq. 10: (B, p, d)
            of_image = token_info_nce(similarity(unit(p), unit(z)), TAU_LOCAL, clipped(patch_weights))  # Eq. 11
            z = self.text_knowledge(s, e, known)  # (B, n, d)
            of_text = token_info_nce(similarity(unit(s), unit(z)), TAU_LOCAL, clipped(token_weights, words), words)
            out["local"] = (of_image + of_text) / 2  # Eq. 12
        if "category" in self.weights:
            out["category"] = self.category_contrast(p, s, words, e, known)
        if "itm" in self.weights:
            other, valid = self.others(batch, 0)  # (B,) each
            hinge = F.relu(MARGIN - (v * t).sum(1) + (gather(v)[other] * t).sum(1))  # Eq. 18: (B, d) -> (B,)
            out["itm"] = (hinge * valid).mean()
        if "swap" in self.weights:
            out["swap"] = self.text_swapping(batch, v, t, p, s, words)
        return out

    def words(self, batch: PretrainingBatch) -> Tensor:
        """Which tokens after [CLS] are words: (B, n). In a text without words, [SEP] counts as one."""
        special = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        words = content_mask(batch.ids, batch.mask, special)[:, 1:]  # (B, t) -> (B, n)
        return words | (batch.mask[:, 1:] & ~words.any(1, keepdim=True))

    # --- whole images and reports ------------------------------------------------------------------------------------

    def global_contrast(
        self, batch: PretrainingBatch, image: Tensor, text: Tensor, v: Tensor, t: Tensor
    ) -> dict[str, Tensor]:
        """Eq. 8, from the encoders' tokens of image (B, p+1, w) and text (B, t, w), and from v* and t* (B, d)."""
        out: dict[str, Tensor] = {}

        def contrast(name: str, rows: Tensor, columns: Tensor) -> Tensor:
            """Eq. 4: this process's rows (B, d) against the columns of all processes."""
            cosines = similarity(rows, gather(columns))  # (B, N)
            positive = torch.arange(cosines.shape[1], device=rows.device)[own_rows(cosines.shape[1])]  # (B,)
            out[f"retrieval_{name}"] = (cosines.detach().argmax(1) == positive).float().mean()
            return info_nce(cosines, TAU_GLOBAL, positive)

        out["global"] = (contrast("i2t", v, t) + contrast("t2i", t, v)) / 2
        if self.divergence:
            rows = torch.arange(len(batch.view), device=v.device)
            with torch.no_grad():  # Eq. 6: "Stop Gradient" in Figure 2
                other_image = self.divergence["image"](batch.views[rows, 1 - batch.view])  # (B, p+1, w)
                other_text = self.divergence["text"](batch.ids, batch.mask)  # (B, t, w)
                pairs = {"image": (image, other_image), "text": (text, other_text)}
                self.cosines = {side: self.cosine(*pair) for side, pair in pairs.items()}
            v_aug = unit(self.mlip.image_projection(other_image)[0][:, 0])  # (B, d)
            t_aug = unit(self.mlip.text_projection(other_text, batch.mask)[0][:, 0])  # (B, d)
            augmented = (contrast("i2t_divergence", v, t_aug) + contrast("t2i_divergence", t, v_aug)) / 2
            out["global"] = out["global"] + self.weight_divergence * augmented
        return out

    def cosine(self, tokens: Tensor, others: Tensor) -> Tensor:
        """s of Eq. 7: mean cosine of two encoders' [CLS] over the global batch, cut to [0, 1]; tokens (B, n, w)."""
        return gather(F.cosine_similarity(tokens[:, 0].float(), others[:, 0].float())).mean().clamp(0, 1)

    @torch.no_grad()
    def after_step(self) -> dict[str, Tensor]:
        """Update the divergence encoders (Eq. 7), which no gradient reaches; called after each step of the optimiser.

        Returns for the log s and `gap`: the norm of the difference of both encoders' weights over that of the weights.
        """
        out: dict[str, Tensor] = {}
        for side, s in self.cosines.items():
            encoder, other = self.encoder(side), self.divergence[side]  # theta_f, theta_o
            share = {"similarity": float(s), "inverse": 1 - float(s), "momentum": 1 - MOMENTUM}[self.update]
            for own, new in zip(other.state_dict().values(), encoder.state_dict().values(), strict=True):
                own.lerp_(new, share) if own.is_floating_point() else own.copy_(new)  # buffers too
            pairs = zip(encoder.parameters(), other.parameters(), strict=True)
            pairs = [pair for pair in pairs if pair[0].requires_grad]  # without a frozen trunk, which both share
            apart, size = sum((a - b).square().sum() for a, b in pairs), sum(a.square().sum() for a, _ in pairs)
            out |= {f"similarity_{side}": s, f"gap_{side}": (apart / size).sqrt()}
        return out

    # --- knowledge and categories ------------------------------------------------------------------------------------

    def entities(self, batch: PretrainingBatch) -> tuple[Tensor, Tensor]:
        """The entities that each report names, in the shared space (B, e, d), and which are not padding (B, e).

        The first is a learned vector that stands for "no entity", since a report may name none.
        """
        numbers, _ = linked(self.graph.linker, self.number_of, self.tokenizer, batch.ids, batch.mask)  # (B, e - 1)
        e = self.entity_projection(self.entity_encoder())[numbers]  # (E, k) -> (E, d) -> (B, e - 1, d)
        none = self.no_entity.to(e.dtype).expand(len(e), 1, -1)  # (B, 1, d)
        return torch.cat([none, e], dim=1), F.pad(numbers >= 0, (1, 0), value=True)  # -1 is padding

    def category_contrast(self, p: Tensor, s: Tensor, words: Tensor, e: Tensor, known: Tensor) -> Tensor:
        """Eq. 13-17 from patches (B, p, d), tokens (B, n, d), of which `words` take part, and entities (B, e, d)."""
        topics = self.topic_norm(attend(p, s, words))  # Eq. 13: (B, p, d)
        found = self.topic_norm(attend(topics, p))  # (B, p, d)
        t, v = topics.mean(1), found.mean(1)  # (B, d) each
        prototypes = unit(self.prototypes)  # J: (C, d)
        with torch.no_grad(), torch.autocast(p.device.type, enabled=False):
            query, e = unit(self.tucker(v.float(), t.float())), unit(e)  # Q of Eq. 14: (B, d), (B, e, d)
            mixed = F.scaled_dot_product_attention(query[:, None], e, e, known[:, None], scale=1 / TAU_KNOWLEDGE)
            fused = unit(self.fusion_norm(query + mixed[:, 0]))  # vkt of Eq. 15: (B, d)
            scores = gather(fused @ prototypes.T)  # (N, C)
            u = sinkhorn_assignments(scores)[own_rows(len(scores))]  # (N, C) -> (B, C)
        return category_loss(v, t, prototypes, u)

    # --- matching ----------------------------------------------------------------------------------------------------

    def text_swapping(
        self, batch: PretrainingBatch, v: Tensor, t: Tensor, p: Tensor, s: Tensor, words: Tensor
    ) -> Tensor:
        """Eq. 19: hinge loss, in samples whose text is swapped, of the right text's relevance over the other text's."""
        other, swapped = self.others(batch, 1, SWAPPED)  # (B,) each
        t_, s_, words_ = (gather(x)[other] for x in (t, pad_to_common_length(s), pad_to_common_length(words)))
        hinge = F.relu(SWAP_MARGIN - relevance(v, t, p, s, words) + relevance(v, t_, p, s_, words_))  # (B,)
        return (hinge * swapped).mean()

    @torch.no_grad()
    def others(self, batch: PretrainingBatch, number: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """For each own row another sample of the global batch (B,), and whether the row uses it (B,): a random share.

        The other sample has another study and another text; a row for which there is none does not use it.
        """
        exclude = hard_negatives.duplicates(gather(batch.group), gather(batch.text_key))  # (N, N)
        own, stream = torch.arange(len(exclude), device=exclude.device), keyed(self.seed, batch.step, number, DRAWS)
        drawn = hard_negatives.sample(exclude.logical_not(), own, exclude, stream)  # (N,)
        used = (torch.rand(len(own), generator=stream) < share).to(own.device) & drawn.valid  # (N,)
        rows = own_rows(len(own))
        return torch.where(drawn.valid, drawn.index, own)[rows], used[rows]


def unit(x: Tensor) -> Tensor:
    """x (..., d) divided by its length, fp32."""
    return F.normalize(x.float(), dim=-1)


def category_loss(v: Tensor, t: Tensor, prototypes: Tensor, u: Tensor) -> Tensor:
    """Eq. 16 and 17, with a minus sign that the paper lacks: v, t (B, d), unit prototypes (C, d), targets u (B, C)."""
    of_image, of_text = (similarity(unit(x), prototypes) / TAU_CATEGORY for x in (v, t))  # (B, C) each
    return (F.cross_entropy(of_image, u) + F.cross_entropy(of_text, u)) / 2


def relevance(v: Tensor, t: Tensor, p: Tensor, s: Tensor, words: Tensor) -> Tensor:
    """r_ts of Eq. 19a: v*, t* (B, d), patches (B, p, d), tokens (B, n, d), of which `words` (B, n) count -> (B,)."""
    of_text = attend(p, s, words).mean(1)  # CA(v, t): (B, p, d) -> (B, d)
    of_image = (attend(s, p) * words[..., None]).sum(1)  # CA(t, v): (B, n, d) -> (B, d); its length does not matter
    return (v * t).sum(1) + ALPHA * (unit(of_text) * unit(of_image)).sum(1)


def clipped(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """w of Eq. 11 (B, n): attention clipped to its quantiles over a sample's real tokens; 0 at padding, sum 1."""
    w = attention.float() if mask is None else attention.float().masked_fill(~mask, torch.nan)  # (B, n)
    low, high = w.nanquantile(torch.tensor(QUANTILES, device=w.device), dim=1, keepdim=True)  # (B, 1) each
    w = w.clamp(low, high).nan_to_num(0.0)  # (B, n)
    return w / w.sum(1, keepdim=True)  # (B, n)
