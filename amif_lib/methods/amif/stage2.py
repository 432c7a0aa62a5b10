"""Stage 2: local alignment by optimal transport (Eq. 9-10), and mining of hard negatives (Eq. 11-13).

Shapes: this process's B = N / P samples, V views, p patches (+1 [CLS]), t text tokens, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.methods.amif.network import AMiF
from amif_lib.methods.amif.settings import ObjectiveSpec
from amif_lib.methods.amif.stage1 import pick
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks.fusion import PAIR_TYPES, PairType
from amif_lib.networks.pixels import keyed
from amif_lib.networks.tokenizers import content_mask
from amif_lib.objectives import collapse, contrastive, hard_negatives, transport
from amif_lib.objectives.distributed import gather, own_rows, pad_to_common_length
from amif_lib.objectives.hard_negatives import Negatives

LOOK_EVERY = 10  # steps between two measurements of collapse, which are for the log only
MINING = 2**31  # no sample has this number, so mining's random stream differs from those that draw samples


class Stage2(nn.Module):
    """Aligns patches and words of a study, and learns to distinguish its pairs from hard negatives."""

    def __init__(self, amif: AMiF, objective: ObjectiveSpec, seed: int, special_ids: tuple[int, int]):
        super().__init__()
        self.amif, self.objective, self.seed = amif, objective, seed
        self.special_ids = special_ids  # [CLS] and [SEP]
        o = objective
        weights = {"local": o.weight_local, "hard_negatives": o.weight_hard_negatives}  # Table 3 (point 9)
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}

    def forward(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        """The losses of Eq. 9 and 13 (scalars), and statistics for the log."""
        amif, mask, out = self.amif, batch.mask, {}
        text = amif.text_encoder(batch.ids, mask)  # R_i: (B, t, d)
        views = amif.encode_views(batch.views)  # (B, V, p+1, d)
        image = pick(views, batch.view)  # V_i: (B, p+1, d)
        fused = amif.co_attention(image, text, None, mask, "image_text")[:2]  # (B, p+1, d), (B, t, d)

        if "local" in self.weights:
            x, y = fused[0][:, 1:], fused[1]  # (B, p, d), (B, t, d), co-attended (point 29)
            words = content_mask(batch.ids, mask, self.special_ids)  # (B, t): without [CLS] and [SEP] (point 24)
            cost, plan = self.cost_and_plan(x, y, words)  # Eq. 10
            out["local"] = transport.transport_cost(plan, cost).mean()  # Eq. 9, on positives only (point 28)
            if batch.step % LOOK_EVERY == 0:
                found = collapse.collapse(x, y, plan, None, words, cost)
                out |= {f"collapse/{name}": torch.tensor(value) for name, value in found.items()}

        if "hard_negatives" in self.weights:
            copy = amif.text_encoder(batch.copy_ids, mask)  # R_i with tokens dropped (point 17): (B, t, d)
            pairs = {
                "image_text": (image, text, None, mask),
                "image_image": (*views.unbind(1), None, None),  # point 18
                "text_text": (text, copy, mask, mask),
            }
            mined, losses = self.mine(batch, views, text), []  # Eq. 11
            for kind, (a, b, a_mask, b_mask) in pairs.items():
                m, valid, _ = mined[kind]
                negative = amif.co_attention(a, take(b, m), a_mask, take(b_mask, m), kind)[:2]
                losses.append(self.classify(negative, 1, valid))  # Eq. 12
                positive = fused if kind == "image_text" else amif.co_attention(a, b, a_mask, b_mask, kind)[:2]
                losses.append(self.classify(positive, 0, valid))  # point 16
                out[f"skipped_{kind}"] = (~valid).sum()
            loss, right = torch.stack(losses).unbind(1)  # (6,) each: a negative and a positive per kind of pair
            out["hard_negatives"] = loss.sum()  # Eq. 13: sum over the six of means over samples (point 22)
            judged = 2 * sum(each.valid.sum() for each in mined.values())
            out["pair_accuracy"] = right.detach().sum() / judged.clamp_min(1)
        return out

    def cost_and_plan(self, patches: Tensor, words: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, p, d) and words (B, t, d), of which `real` (B, t) take part -> cost and plan, (B, p, t) each."""
        cost = transport.cosine_cost(patches, words)  # Eq. 10 (point 23): (B, p, t)
        return cost, transport.ipot(cost, None, real)

    @torch.no_grad()
    def mine(self, batch: PretrainingBatch, views: Tensor | None, text: Tensor | None) -> dict[PairType, Negatives]:
        """Eq. 11: for each kind of pair, draw a negative from the global batch for each of this process's rows.

        The probabilities are the teacher's Q without its diagonal. Without a teacher they are the student's P (point
        19); only then are views (B, V, p+1, d) and text (B, t, d) read. Every process draws for all N rows with the
        same random numbers, so that the result does not depend on the number of processes.
        """
        o, amif = self.objective, self.amif
        if "teacher_text" in batch.extras:
            v, r, tau = batch.extras["teacher_views"], batch.extras["teacher_text"], o.teacher_temperature
        else:
            v, r, tau = amif.image_projection(views[:, :, 0]), amif.text_projection(text[:, 0]), o.temperature
        v, r = gather(v), gather(r)  # (N, V, e), (N, e)
        sides = {"image_text": (pick(v, gather(batch.view)), r), "image_image": v.unbind(1), "text_text": (r, r)}
        same = hard_negatives.duplicates(gather(batch.group), gather(batch.text_key))  # (N, N), point 20
        label = gather(batch.view_label)[:, 1]  # (N,): of the second view, which a mined image replaces
        other_view = label[:, None] != label  # (N, N): the kind of view alone would reveal such a pair (point 21)
        diagonal, rows = torch.arange(len(r), device=r.device), own_rows(len(r))
        mined = {}
        for number, kind in enumerate(PAIR_TYPES):
            # H without lambda: it only adds to the diagonal, which is never drawn.
            q = contrastive.soft_labels(contrastive.similarity(*sides[kind]), tau, 0.0, diagonal)  # (N, N)
            exclude = same | other_view if kind == "image_image" else same
            stream = keyed(self.seed, batch.step, number, MINING)
            drawn = hard_negatives.sample(q, diagonal, exclude, stream)
            mined[kind] = Negatives(*(each[rows] for each in drawn))  # (N, ...) -> (B, ...)
        return mined

    def classify(self, pair: tuple[Tensor, Tensor], label: int, valid: Tensor) -> Tensor:
        """Eq. 12 and a term of Eq. 13: cross-entropy of the label (1: hard negative) and how many are right, (2,).

        `pair` has both sides (B, S, d) and (B, T, d). Rows that are not `valid` (B,) have loss 0.
        """
        logits = self.amif.pair_head(*pair).float()  # (B, 2)
        losses = F.cross_entropy(logits, torch.full_like(valid, label, dtype=torch.long), reduction="none")  # (B,)
        right = ((logits.argmax(1) == label) * valid).sum()
        return torch.stack([(losses * valid).mean(), right])


def take(tokens: Tensor | None, index: Tensor) -> Tensor | None:
    """Rows `index` (B,) of the global batch; gradients go to the process of a row: (B, t, ...) -> (B, t', ...).

    An index of -1 (no negative) reads row 0, to be left out as not valid.
    """
    return None if tokens is None else gather(pad_to_common_length(tokens))[index.clamp_min(0)]
