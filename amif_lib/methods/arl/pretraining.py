"""ARL's pre-training: alignment through knowledge, and three pretext tasks on the fused tokens.

Shapes: B = N / P samples of this process, p patches (+1 [CLS]), t text tokens, d width; E entities of k dimensions, of
which a text names e.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.methods.arl import masked_modelling
from amif_lib.methods.arl.network import Backbone
from amif_lib.methods.arl.settings import ObjectiveSpec
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks.encoders import initialise
from amif_lib.networks.fusion import Attention, FeedForward
from amif_lib.networks.pixels import keyed
from amif_lib.networks.rows import in_rows
from amif_lib.networks.tokenizers import content_mask
from amif_lib.objectives import hard_negatives
from amif_lib.objectives.contrastive import similarity
from amif_lib.objectives.distributed import gather, own_rows, world_size

TEXT_SHARE, IMAGE_SHARE = 0.15, 0.75  # shares that are masked: of word pieces and entities, and of patches
DECODER_BLOCKS = 4  # of masked image modelling
DRAWS = 2**31 + 1  # no sample has this number, so these random streams differ from those that draw samples


class Pretraining(nn.Module):
    """The network with the heads that only pre-training needs, and its four losses."""

    def __init__(self, backbone: Backbone, objective: ObjectiveSpec, seed: int, text_length: int):
        super().__init__()
        self.arl, self.seed, self.text_length = backbone, seed, text_length
        spec, dim, o = backbone.spec, backbone.knowledge.dim, objective
        weights = {"mlm": o.weight_mlm, "mim": o.weight_mim, "itm": o.weight_itm, "align": o.weight_align}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.image_align, self.text_align = (AlignmentHead(spec.width, dim) for _ in range(2))
        self.word_head = WordHead(spec.width, spec.vocab_size)
        self.patch_decoder = PatchDecoder(spec.width, spec.fusion_heads, spec.image_size, spec.patch_size, spec.dropout)
        self.match_head = nn.Linear(2 * spec.width, 2)
        initialise(self.match_head, spec.width)
        tokenizer = backbone.tokenizer
        self.special_ids, self.mask_id = (tokenizer.cls_token_id, tokenizer.sep_token_id), tokenizer.mask_token_id

    def forward(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        """The losses by name (scalars), and accuracies for the log."""
        arl, mask, out = self.arl, batch.mask, {}
        rows = torch.arange(len(batch.view), device=batch.view.device)  # (B,)
        images = batch.views[rows, batch.view]  # (B, V, 3, H, W) -> (B, 3, H, W)
        named = arl.link(batch.ids, mask)  # numbers (B, e), spans (B, e, t)
        entities = arl.entity_encoder()  # once per step: (E, k)
        image = arl.image_encoder(images) if self.weights.keys() & {"mlm", "itm", "align"} else None  # (B, p+1, d)
        text = arl.text_encoder(batch.ids, mask) if self.weights.keys() & {"mim", "itm", "align"} else None  # (B, t, d)
        if "align" in self.weights:
            shown, said = batch.extras["entities"], multi_hot(named[0], len(entities))  # (B, E) each
            of_image = alignment_loss(self.image_align(image[:, 0]), entities, shown)
            out["align"] = of_image + alignment_loss(self.text_align(text[:, 0]), entities, said)
        if "mlm" in self.weights:
            out |= self.masked_language(batch, image, entities, named)
        if "mim" in self.weights:
            out["mim"] = self.masked_image(batch, images, text, entities, named)
        if "itm" in self.weights:
            out |= self.matching(batch, image, text, entities, named)
        return out

    def masked_language(
        self, batch: PretrainingBatch, image: Tensor, entities: Tensor, named: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Predict masked tokens from the image (B, p+1, d), the other tokens and the entities that are not masked."""
        ids, masked = self.hide(batch, named[1])  # (B, t) each
        with torch.no_grad():
            # Masked tokens per process: the mean of gradients over processes is then that over the global batch.
            count = gather(masked.sum()[None]).sum().clamp_min(1) / world_size()
        text = self.arl.text_encoder(ids, batch.mask)  # (B, t, d)
        _, fused = self.arl.fuse(image, text, batch.mask, entities, without(named, masked))  # (B, t, d)
        words = self.arl.text_encoder.bert.embeddings.word_embeddings.weight
        logits = self.word_head(fused[masked], words)  # (masked tokens, vocabulary)
        right = (logits.argmax(-1) == batch.ids[masked]).sum() / count
        return {
            "mlm": masked_modelling.masked_language_loss(logits, batch.ids, masked, count),
            "mlm_accuracy": right.detach(),
        }

    @torch.no_grad()
    def hide(self, batch: PretrainingBatch, spans: Tensor) -> tuple[Tensor, Tensor]:
        """Mask each word piece, and each entity at all its mentions, with a probability of 15%; spans (B, e, t).

        Returns ids (B, t) and which of them are masked (B, t).
        """
        length, position = batch.ids.shape[1], torch.arange(batch.ids.shape[1], device=spans.device)  # (t,)
        first = spans.int().argmax(-1, keepdim=True)  # (B, e, 1): position of an entity's first token
        unit = torch.where(spans.any(1), (spans * first).sum(1), position)  # (B, t); spans do not overlap
        content = content_mask(batch.ids, batch.mask, self.special_ids)  # (B, t)
        # Drawn for the longest text, so that a sample's numbers do not depend on the length of its batch.
        draws, words = self.draws(batch, 0, self.text_length, 2), self.draws(batch, 1, self.text_length)
        random_ids = (words[:, :length] * len(self.arl.tokenizer)).long()  # (B, t)
        return masked_modelling.mask_units(
            batch.ids, unit, content, draws[:, :length], TEXT_SHARE, self.mask_id, random_ids
        )

    def masked_image(
        self, batch: PretrainingBatch, images: Tensor, text: Tensor, entities: Tensor, named: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Predict the patches that are removed before the encoder, from the output of half of the fusion's layers."""
        side = self.arl.spec.image_size // self.arl.spec.patch_size
        kept, removed = masked_modelling.split_patches(self.draws(batch, 2, side**2), IMAGE_SHARE)  # (B, p-k), (B, k)
        visible = self.arl.image_encoder.visible(images, kept)  # (B, 1 + p-k, d)
        half = (len(self.arl.fusion.image_stream) + 1) // 2
        fused, _ = self.arl.fuse(visible, text, batch.mask, entities, named, layers=half)  # (B, 1 + p-k, d)
        target = masked_modelling.patches(images, self.arl.spec.patch_size)  # (B, p, 3 size^2)
        return masked_modelling.masked_image_loss(self.patch_decoder(fused, kept), target, removed)

    def matching(
        self, batch: PretrainingBatch, image: Tensor, text: Tensor, entities: Tensor, named: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Predict whether text (B, t, d) and image belong together; half of the pairs have another sample's image."""
        partner, other = self.negatives(batch)  # (B,) each
        fused = self.arl.fuse(gather(image)[partner], text, batch.mask, entities, named)  # (B, p+1, d), (B, t, d)
        logits = self.match_head(self.arl.pool(*fused)).float()  # (B, 2)
        right = (logits.argmax(1) == other).float().mean()  # share of right answers
        return {"itm": F.cross_entropy(logits, other.long()), "itm_accuracy": right, "itm_others": other.float().mean()}

    @torch.no_grad()
    def negatives(self, batch: PretrainingBatch) -> tuple[Tensor, Tensor]:
        """For each text: the row in the global batch of its image (B,), and whether that is another sample's (B,).

        Another sample has another study, text and label; where there is none, a text keeps its own image.
        """
        label = gather(batch.extras["label"])  # (N,)
        exclude = hard_negatives.duplicates(gather(batch.group), gather(batch.text_key)) | (label[:, None] == label)
        own, stream = torch.arange(len(label), device=label.device), keyed(self.seed, batch.step, 3, DRAWS)
        drawn = hard_negatives.sample(torch.ones_like(exclude, dtype=torch.float), own, exclude, stream)  # (N,)
        other = (torch.rand(len(label), generator=stream) < 0.5).to(label.device) & drawn.valid  # (N,)
        rows = own_rows(len(label))
        return torch.where(other, drawn.index, own)[rows], other[rows]  # (N,) -> (B,)

    def draws(self, batch: PretrainingBatch, number: int, *shape: int) -> Tensor:
        """Uniform numbers (B, *shape) for this process's samples; they do not depend on the number of processes."""
        total = len(batch.ids) * world_size()
        drawn = torch.rand(total, *shape, generator=keyed(self.seed, batch.step, number, DRAWS))  # (N, ...)
        return drawn[own_rows(total)].to(batch.ids.device)  # (N, ...) -> (B, ...)


def without(named: tuple[Tensor, Tensor], masked: Tensor) -> tuple[Tensor, Tensor]:
    """`named` without the entities that a masked token names: numbers (B, e), spans (B, e, t); masked (B, t)."""
    numbers, spans = named
    return torch.where((spans & masked[:, None]).any(-1), -1, numbers), spans


def multi_hot(numbers: Tensor, entities: int) -> Tensor:
    """Entity numbers (B, e), padded with -1 -> 1 for each of all E entities that is among them, else 0: (B, E)."""
    return torch.zeros(len(numbers), entities + 1, device=numbers.device).scatter(1, numbers + 1, 1.0)[:, 1:]


def alignment_loss(features: Tensor, entities: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over all pairs of features (B, k) and entities (E, k); target (B, E) of 0 and 1."""
    return F.binary_cross_entropy_with_logits(similarity(features, entities), target)  # (B, E) -> scalar


class AlignmentHead(nn.Module):
    """Maps an encoder's [CLS] token to the space of entities; ends with a ReLU, as in the public code."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim), nn.ReLU())
        initialise(self, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, d) -> (B, k)


class WordHead(nn.Module):
    """BERT's head for masked language modelling; the output layer shares its weights with the word embeddings."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.transform, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        initialise(self, width)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.transform(x))), words, self.bias)  # (n, d) -> (n, vocabulary)


class PatchDecoder(nn.Module):
    """The decoder of a masked autoencoder (MAE), half as wide as the network: predicts all patches from those kept."""

    def __init__(self, width: int, heads: int, image_size: int, patch_size: int, dropout: float):
        super().__init__()
        half, self.side = width // 2, image_size // patch_size
        self.embed, self.pixels = nn.Linear(width, half), nn.Linear(half, 3 * patch_size**2)
        self.blocks = nn.ModuleList(
            nn.ModuleList([Attention(half, heads, dropout), FeedForward(half, dropout)]) for _ in range(DECODER_BLOCKS)
        )
        initialise(self, width)
        self.mask_token = nn.Parameter(torch.randn(half) * 0.02)
        self.register_buffer("positions", sine_positions(self.side, half), persistent=False)

    @in_rows
    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """tokens (B, 1 + p-k, d) of [CLS] and the patches at positions `kept` (B, p-k) -> (B, p, 3 size^2)."""
        x = self.embed(tokens)  # (B, 1 + p-k, d/2)
        everywhere = self.mask_token.to(x.dtype).expand(len(x), self.side**2, -1)  # (B, p, d/2)
        patches = everywhere.scatter(1, kept[..., None].expand(-1, -1, x.shape[-1]), x[:, 1:])  # (B, p, d/2)
        x = torch.cat([x[:, :1], patches + self.positions.to(x.dtype)], dim=1)  # (B, 1 + p, d/2)
        for attention, feed_forward in self.blocks:
            x = feed_forward(attention(x))  # (B, 1 + p, d/2)
        return self.pixels(x[:, 1:])  # (B, p, 3 size^2)


def sine_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the row and of the column, a quarter of the width each: (side^2, width)."""
    quarter = -(-width // 4)
    rate = 10_000 ** (-torch.arange(quarter) / quarter)  # (width/4,)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * rate for place in (row, column)]  # (side^2, width/4) each
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)[:, :width]
