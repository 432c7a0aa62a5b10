"""AMiF, top to bottom: the pre-training network (Fig. 2 a) and the Med-VQA network on top of it (Fig. 2 b, Fig. 3).

Shapes: B samples, p image patches (+1 [CLS]), t text tokens, M knowledge tokens, d = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.methods.amif.patch_maps import patch_maps, word_positions
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks import pretrained, tokenizers
from amif_lib.networks.answering import Answerer
from amif_lib.networks.decoder import AnswerDecoder
from amif_lib.networks.encoders import ImageEncoder, TextEncoder, initialise
from amif_lib.networks.fusion import CoAttention, GatedCrossAttention
from amif_lib.networks.sizes import ModelSpec
from amif_lib.networks.tokenizers import content_mask


class Backbone(nn.Module):
    """The part that fine-tuning takes over from pre-training: two encoders and co-attention (Fig. 2 a and b)."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.image_encoder = ImageEncoder(spec)
        self.text_encoder = TextEncoder(spec)
        self.co_attention = CoAttention(spec.width, spec.fusion_layers, spec.fusion_heads, spec.dropout)
        initialise(self.co_attention, spec.width)


class AMiF(Backbone):
    """The pre-training network: the backbone, the projections of stage 1 and the pair head of stage 2."""

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.image_projection = Projection(spec.width, spec.projection_dim)
        self.text_projection = Projection(spec.width, spec.projection_dim)
        self.pair_head = PairHead(spec.width)

    def encode_views(self, views: Tensor) -> Tensor:
        """All views in one pass of the encoder: (B, V, 3, H, W) -> tokens (B, V, p+1, d)."""
        return self.image_encoder(views.flatten(0, 1)).unflatten(0, views.shape[:2])

    def word_maps(
        self, images: Tensor, ids: Tensor, mask: Tensor, real: Tensor, places: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Maps (B, n, n) of one word per text, see `patch_maps`; images (B, 3, H, W); ids, mask and real (B, t)."""
        image, text = self.image_encoder(images), self.text_encoder(ids, mask)  # (B, p+1, d), (B, t, d)
        image, text, attentions = self.co_attention(image, text, None, mask, "image_text", return_weights=True)
        return patch_maps(image, text, real, places, attentions)

    def save(self, folder: Path) -> None:
        """Write weights and `config.json`."""
        pretrained.save(self.state_dict(), {"architecture": "AMiF", "model": self.spec.model_dump()}, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> AMiF:
        """Load from a folder written by `save`; every tensor must match. Returned in evaluation mode."""
        with torch.random.fork_rng():  # random weights, replaced below, must not advance the caller's random stream
            amif = cls(ModelSpec(**pretrained.config(folder)["model"]))
        pretrained.load_into(amif, pretrained.read_state(folder), str(folder))
        return amif.eval()


class Projection(nn.Module):
    """proj() of Eq. 1: maps to the space that both modalities share, with unit length: a dot product is a cosine."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(width, dim)  # point 4
        initialise(self, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x).float(), dim=-1)  # (..., d) -> (..., e), fp32


class PairHead(nn.Module):
    """LH of Eq. 12: classifies a pair of co-attended representations as hard negative (1) or positive (0)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(2 * width, 2)  # one head for all kinds of pairs, without poolers (points 15 and 17)
        initialise(self, width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.linear(torch.cat([a[:, 0], b[:, 0]], dim=-1))  # (B, S, d), (B, T, d) -> (B, 2d) -> (B, 2)


class AMiFForVQA(Answerer):
    """AMiF with the gated knowledge fusion decoder: answers questions about an image.

    `knowledge_ids` (M,) of the prior knowledge are stored with the weights. `source: none` leaves out the gated module.
    """

    def __init__(
        self,
        spec: ModelSpec,
        knowledge: KnowledgeSpec,
        knowledge_ids: Tensor,
        tokenizer: Any = None,
        question_length: int = 32,
        answer_length: int = 32,
    ):
        super().__init__()
        self.spec, self.knowledge, self.tokenizer = spec, knowledge, tokenizer
        self.question_length, self.answer_length = question_length, answer_length
        self.register_buffer("knowledge_ids", knowledge_ids)
        self.amif = Backbone(spec)  # without the heads of pre-training
        self.gated_cross_attention = None
        if knowledge.source != "none":
            self.gated_cross_attention = GatedCrossAttention(spec.width, spec.fusion_heads, spec.dropout)
            initialise(self.gated_cross_attention, spec.width)
        layers, heads = (spec.decoder_layers, spec.decoder_cross_layers), (spec.text_heads, spec.text_positions)
        self.decoder = AnswerDecoder(spec.vocab_size, spec.width, *layers, *heads, spec.dropout)
        initialise(self.decoder, spec.width)

    def encode(self, images: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W), question ids and mask (B, t) -> F'_i (B, p+1+t, d) and its mask (B, p+1+t)."""
        return self.encode_with_maps(images, ids, mask)[:2]

    def encode_with_maps(
        self, images: Tensor, ids: Tensor, mask: Tensor, return_weights: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """As `encode`, and by name: fused `image` and `text` tokens, `attentions` (see `CoAttention`) and `gate`."""
        image = self.amif.image_encoder(images).expand(len(ids), -1, -1)  # V_i: (B, p+1, d); one blank image serves all
        text = self.amif.text_encoder(ids, mask)  # R_i: (B, t, d)
        image, text, attentions = self.amif.co_attention(image, text, None, mask, "image_text", return_weights)
        joint = torch.cat([image, text], dim=1)  # F_i (point 31): (B, p+1+t, d)
        joint_mask = torch.cat([mask.new_ones(image.shape[:2]), mask], dim=1)  # (B, p+1+t)
        gate = None
        if self.gated_cross_attention is not None:
            prior = self.amif.text_encoder.embed(self.knowledge_ids[None])  # embeddings only (point 34): (1, M, d)
            prior = self.gated_cross_attention.encode_knowledge(prior)  # F_p, once per batch: (1, M, d)
            joint, gate = self.gated_cross_attention(joint, prior, use_gate=self.knowledge.gate)  # F'_i: (B, p+1+t, d)
        return joint, joint_mask, {"image": image, "text": text, "attentions": attentions, "gate": gate}

    @torch.inference_mode()
    def explain(self, image: Image.Image | str | Path, question: str, word: str) -> dict[str, Tensor]:
        """Patch maps (n, n) of one word of the question: `attention`, `transport_plan` and `gate` (see `patch_maps`).

        Raises InputError if the question does not contain the word.
        """
        pictures, ids, mask = self.inputs(image, question)
        real = content_mask(ids, mask, (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id))  # (1, t)
        found = self.word_maps(pictures, ids, mask, real, [word_positions(self.tokenizer, ids[0].tolist(), word)])
        return {name: values[0] for name, values in found.items()}

    def word_maps(
        self, images: Tensor, ids: Tensor, mask: Tensor, real: Tensor, places: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """As `AMiF.word_maps`, and the gate's."""
        inside = self.encode_with_maps(images, ids, mask, return_weights=True)[2]
        gate = inside["gate"] if self.knowledge.gate else None
        return patch_maps(inside["image"], inside["text"], real, places, inside["attentions"], gate)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors), `config.json` and the tokenizer to `folder`."""
        lengths = {"question_length": self.question_length, "answer_length": self.answer_length}
        content = {"model": self.spec.model_dump(), "knowledge": self.knowledge.model_dump(), **lengths}
        pretrained.save(self.state_dict(), {"architecture": "AMiFForVQA"} | content, Path(folder))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> AMiFForVQA:
        """Load from a folder that `save_pretrained` wrote or a hub id, else InputError. Returned in evaluation mode."""
        folder = Path(source) if Path(source).is_dir() else pretrained.find(str(source))
        content = pretrained.config(folder)
        remedy = "give the model/ folder of a fine-tuning by this version of the kit"
        if (found := content.pop("architecture", None)) != "AMiFForVQA":
            raise InputError(f"{folder / 'config.json'}: architecture is {found!r}; {remedy}")
        try:
            spec, prior = ModelSpec(**content.pop("model")), KnowledgeSpec(**content.pop("knowledge"))
        except (KeyError, TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise InputError(f"{folder / 'config.json'}: {' '.join(str(error).split())}; {remedy}") from None
        state = pretrained.read_state(folder)
        model = cls(spec, prior, state["knowledge_ids"], tokenizers.load(folder), **content)  # the two lengths
        pretrained.load_into(model, state, str(source))
        return model.eval()
