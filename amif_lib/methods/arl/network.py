"""ARL's network: two encoders, the entities of a knowledge graph, fusion of all three, and answers.

Shapes: B samples, p image patches (+1 [CLS]), t text tokens, d width; E entities of k dimensions, e of them in a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.data.knowledge_graph import KnowledgeGraph
from amif_lib.methods.arl.settings import KnowledgeSpec
from amif_lib.methods.entities import EntityEncoder, linked
from amif_lib.networks import pretrained, tokenizers
from amif_lib.networks.answering import Answerer
from amif_lib.networks.decoder import AnswerDecoder
from amif_lib.networks.encoders import ImageEncoder, TextEncoder, initialise
from amif_lib.networks.fusion import Attention, FeedForward, TransformerLayer
from amif_lib.networks.rows import in_rows
from amif_lib.networks.sizes import ModelSpec

ENTITY_HEADS = 4


class KnowledgeLayer(TransformerLayer):
    """A text layer of the fusion. The text's entities attend to each other and to the image, then join their tokens."""

    def __init__(self, width: int, heads: int, dropout: float, dim: int):
        super().__init__(width, heads, dropout)
        self.entity_self_attention = Attention(dim, ENTITY_HEADS, dropout)
        self.entity_cross_attention = Attention(dim, ENTITY_HEADS, dropout)
        self.entity_feed_forward = FeedForward(dim, dropout)
        self.image_to_entity, self.entity_to_text = nn.Linear(width, dim), nn.Linear(dim, width)
        self.injection, self.injection_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.dropout = dropout

    def with_entities(
        self, text: Tensor, image: Tensor, mask: Tensor, z: Tensor, known: Tensor, spans: Tensor
    ) -> tuple[Tensor, Tensor]:
        """text (B, t, d), image (B, p+1, d), entities z (B, e, k) -> text (B, t, d) and entities (B, e, k).

        `known` (B, e) is False for padding; `spans` (B, e, t) marks the tokens that name each entity.
        """
        z = self.entity_self_attention(z, mask=known)  # (B, e, k)
        z = self.entity_cross_attention(z, self.image_to_entity(image))  # (B, e, k)
        text = self.self_attention(text, mask=mask)  # (B, t, d)
        text = self.cross_attention(text, image)  # (B, t, d)
        named = spans.transpose(1, 2).to(z.dtype) @ self.entity_to_text(z)  # (B, t, e) @ (B, e, d) -> (B, t, d)
        mixed = F.dropout(self.injection(text + named), self.dropout, self.training)  # (B, t, d)
        return self.feed_forward(self.injection_norm(text + mixed)), self.entity_feed_forward(z)  # (B, t, d), (B, e, k)


class KnowledgeFusion(nn.Module):
    """Co-attention of image and text in L layers; each stream attends to the other's output of the layer before."""

    def __init__(self, spec: ModelSpec, knowledge: KnowledgeSpec):
        super().__init__()
        sizes, layers = (spec.width, spec.fusion_heads, spec.dropout), range(spec.fusion_layers)
        self.inject = knowledge.inject
        self.image_stream = nn.ModuleList(TransformerLayer(*sizes) for _ in layers)
        text_layer, dim = (KnowledgeLayer, [knowledge.dim]) if self.inject else (TransformerLayer, [])
        self.text_stream = nn.ModuleList(text_layer(*sizes, *dim) for _ in layers)
        self.image_linear, self.text_linear = (nn.Linear(spec.width, spec.width) for _ in range(2))
        self.type_embedding = nn.Embedding(2, spec.width)  # of text and image
        initialise(self, spec.width)

    @in_rows
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        mask: Tensor,
        z: Tensor,
        numbers: Tensor,
        spans: Tensor,
        layers: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fuse image (B, p+1, d) and text (B, t, d) by the first `layers` (default: all); shapes stay the same.

        mask (B, t); z (B, e, k): vectors of the text's entities; numbers (B, e): which they are, -1 is padding; spans
        (B, e, t): the tokens that name them.
        """
        types = self.type_embedding.weight
        image, text = self.image_linear(image) + types[1], self.text_linear(text) + types[0]
        known = numbers >= 0  # (B, e)
        spans = spans & known[..., None]  # (B, e, t)
        known[:, 0] = True  # an entity that no token reads, if a text names none: a softmax over none would be NaN
        streams = list(zip(self.image_stream, self.text_stream, strict=True))[:layers]
        for image_layer, text_layer in streams:
            before = image  # the text layer, too, reads the other side's tokens before this layer
            image = image_layer(image, text, None, mask)  # (B, p+1, d)
            if self.inject:
                text, z = text_layer.with_entities(text, before, mask, z, known, spans)  # (B, t, d), (B, e, k)
            else:
                text = text_layer(text, before, mask, None)  # (B, t, d)
        return image, text


class MaskableEncoder(ImageEncoder):
    """An image encoder that can be shown some patches only."""

    @in_rows
    def visible(self, images: Tensor, kept: Tensor) -> Tensor:
        """Images (B, 3, H, W) and the positions of the patches that are kept (B, m) -> tokens (B, 1 + m, d)."""
        x = self.vit.embeddings(images if self.trunk is None else self.trunk(images))  # (B, 1 + p, d)
        x = torch.cat([x[:, :1], x[:, 1:].take_along_dim(kept[..., None], dim=1)], dim=1)  # (B, 1 + m, d)
        x = self.vit.encoder(inputs_embeds=self.vit.pre_layrnorm(x)).last_hidden_state  # (B, 1 + m, d)
        return self.vit.post_layernorm(x)


class Backbone(nn.Module):
    """The part that fine-tuning takes over from pre-training: encoders, entities, fusion and both poolers."""

    def __init__(self, spec: ModelSpec, knowledge: KnowledgeSpec, graph: KnowledgeGraph, tokenizer: Any):
        super().__init__()
        self.spec, self.knowledge, self.graph, self.tokenizer = spec, knowledge, graph, tokenizer
        self.image_encoder = MaskableEncoder(spec)
        self.text_encoder = TextEncoder(spec)
        triples = torch.from_numpy(np.asarray(graph.triples))
        self.entity_encoder = EntityEncoder(len(graph.entities), triples, knowledge.dim, dropout=spec.dropout)
        self.fusion = KnowledgeFusion(spec, knowledge)
        self.image_pooler, self.text_pooler = (nn.Linear(spec.width, spec.width) for _ in range(2))
        self.number_of = {entity: number for number, entity in enumerate(graph.entities)}

    def link(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which entities the texts (B, t) name, and where: numbers (B, e) and spans (B, e, t)."""
        return linked(self.graph.linker, self.number_of, self.tokenizer, ids, mask)

    def fuse(
        self,
        image: Tensor,
        text: Tensor,
        mask: Tensor,
        entities: Tensor,
        named: tuple[Tensor, Tensor],
        layers: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply `KnowledgeFusion`, given the vectors of all `entities` (E, k) and the result of `link`, `named`."""
        numbers, spans = named
        z = F.pad(entities, (0, 0, 0, 1))[numbers]  # (E + 1, k), whose last row, index -1, is zero -> (B, e, k)
        return self.fusion(image, text, mask, z, numbers, spans, layers)

    def pool(self, image: Tensor, text: Tensor) -> Tensor:
        """One vector for each pair of fused sides: (B, p+1, d), (B, t, d) -> (B, 2d)."""
        return torch.cat([self.text_pooler(text[:, 0]).tanh(), self.image_pooler(image[:, 0]).tanh()], dim=-1)

    def config(self) -> dict[str, Any]:
        """The content of `config.json`: the sizes and the knowledge graph."""
        graph = {"entities": self.graph.entities, "relations": self.graph.relations, "words": self.graph.words}
        graph |= {"triples": np.asarray(self.graph.triples).tolist()}
        return {"model": self.spec.model_dump(), "knowledge": self.knowledge.model_dump(), "graph": graph}


def stored_graph(folder: Path) -> KnowledgeGraph:
    """The knowledge graph that a stored network was trained with. Raises InputError if `folder` has none."""
    content = pretrained.config(folder).get("graph")
    if not isinstance(content, dict):
        raise InputError(f"{folder / 'config.json'}: no knowledge graph; give the model/ folder of a run of ARL")
    entities, relations = tuple(content["entities"]), tuple(content["relations"])
    return KnowledgeGraph(entities, relations, np.array(content["triples"]), content["words"])


class ARLForVQA(Answerer):
    """ARL with an answer head: the kit's answer decoder on all fused tokens, or ARL's own classifier."""

    def __init__(
        self,
        backbone: Backbone,
        question_length: int = 32,
        answer_length: int = 32,
        classes: Sequence[Sequence[int]] | None = None,
    ):
        super().__init__()
        self.spec, self.tokenizer, self.arl = backbone.spec, backbone.tokenizer, backbone
        self.question_length, self.answer_length = question_length, answer_length
        spec = self.spec
        if classes is None:
            layers, heads = (spec.decoder_layers, spec.decoder_cross_layers), (spec.text_heads, spec.text_positions)
            self.decoder = AnswerDecoder(spec.vocab_size, spec.width, *layers, *heads, spec.dropout)
            initialise(self.decoder, spec.width)
        else:
            self.decoder = Classifier(spec.width, classes)

    def encode(self, images: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W), question ids and mask (B, t) -> fused tokens (B, p+1+t, d) and their mask."""
        image = self.arl.image_encoder(images).expand(len(ids), -1, -1)  # (B, p+1, d); one blank image serves all
        text = self.arl.text_encoder(ids, mask)  # (B, t, d)
        entities = self.arl.entity_encoder()  # (E, k)
        image, text = self.arl.fuse(image, text, mask, entities, self.arl.link(ids, mask))
        return torch.cat([image, text], dim=1), torch.cat([mask.new_ones(image.shape[:2]), mask], dim=1)

    @in_rows
    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, answers: Tensor, answer_mask: Tensor) -> Tensor:
        """Loss of each answer (B,): language-modelling loss (decoder) or binary cross-entropy over the classes.

        Arguments as for `Answerer.forward`. Raises InputError if the classifier has no class for an answer.
        """
        if not isinstance(self.decoder, Classifier):
            return super().forward(images, ids, mask, answers, answer_mask)
        right = self.decoder.number([row[real].tolist() for row, real in zip(answers, answer_mask, strict=True)])
        logits = self.logits(self.encode(images, ids, mask)[0])  # (B, A)
        target = F.one_hot(right.to(logits.device), logits.shape[1]).float()  # (B, A)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)

    def logits(self, memory: Tensor) -> Tensor:
        """Logits of the A classes from the fused tokens: (B, p+1+t, d) -> (B, A)."""
        patches = (self.spec.image_size // self.spec.patch_size) ** 2
        return self.decoder(self.arl.pool(memory, memory[:, patches + 1 :])).float()

    def score(self, memory: Tensor, memory_mask: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
        """Log-likelihoods (B, K) of K answers, given as token ids; memory is the result of `encode`."""
        if not isinstance(self.decoder, Classifier):
            return super().score(memory, memory_mask, answers)
        return F.logsigmoid(self.logits(memory))[:, self.decoder.number(answers)]  # (B, A) -> (B, K)

    def write(self, memory: Tensor, memory_mask: Tensor) -> list[str]:
        """B answers, generated by the decoder or the most likely classes; memory is the result of `encode`."""
        if not isinstance(self.decoder, Classifier):
            return super().write(memory, memory_mask)
        best = self.logits(memory).argmax(1)  # (B,)
        return [tokenizers.decode(self.tokenizer, self.decoder.classes[i]) for i in best.tolist()]

    def save_pretrained(self, folder: Path) -> None:
        """Write weights, `config.json` and the tokenizer to `folder`."""
        content = {"architecture": "ARLForVQA", "question_length": self.question_length}
        content |= {"answer_length": self.answer_length, "classes": getattr(self.decoder, "classes", None)}
        pretrained.save(self.state_dict(), content | self.arl.config(), folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> ARLForVQA:
        """Load from a folder written by `save_pretrained`, else InputError. Returned in evaluation mode."""
        content, tokenizer = pretrained.config(folder), tokenizers.load(folder)
        if content.get("architecture") != "ARLForVQA":
            found = content.get("architecture")
            raise InputError(f"{folder / 'config.json'}: architecture is {found!r}; give a fine-tuning of ARL")
        spec, knowledge = ModelSpec(**content["model"]), KnowledgeSpec(**content["knowledge"])
        lengths = {name: content[name] for name in ("question_length", "answer_length", "classes")}
        model = cls(Backbone(spec, knowledge, stored_graph(folder), tokenizer), **lengths)
        pretrained.load_into(model, pretrained.read_state(folder), str(folder))
        return model.eval()


class Classifier(nn.Module):
    """ARL's own head: one output for each of A answers, given as token ids."""

    def __init__(self, width: int, classes: Sequence[Sequence[int]]):
        super().__init__()
        self.classes = [list(each) for each in dict.fromkeys(map(tuple, classes))]
        self.number_of = {tuple(each): number for number, each in enumerate(self.classes)}
        joint = 2 * width
        layers = (nn.Linear(joint, joint), nn.LayerNorm(joint), nn.GELU(), nn.Linear(joint, len(self.classes)))
        self.layers = nn.Sequential(*layers)
        initialise(self, width)

    def forward(self, joint: Tensor) -> Tensor:
        return self.layers(joint)  # (B, 2d) -> (B, A)

    def number(self, answers: Sequence[Sequence[int]]) -> Tensor:
        """The class numbers (K,) of answers given as token ids. Raises InputError if an answer is not a class."""
        try:
            return torch.tensor([self.number_of[tuple(answer)] for answer in answers])
        except KeyError:
            remedy = "set objective.answer_head: decoder"
            raise InputError(f"an answer is none of the classifier's {len(self.classes)} classes; {remedy}") from None
