"""AMiF, top to bottom: the pre-training network (Fig. 2 a) and the Med-VQA network on top of it (Fig. 2 b, Fig. 3).

Shapes: B samples, p image patches (+1 [CLS]), t text tokens, M knowledge tokens, d = width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.methods.amif import knowledge as prior_knowledge
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks import pretrained, tokenizers
from amif_lib.networks.decoder import AnswerDecoder
from amif_lib.networks.encoders import ImageEncoder, TextEncoder, initial_deviation
from amif_lib.networks.fusion import PAIR_TYPES, CoAttention, GatedCrossAttention, PairType
from amif_lib.networks.sizes import ModelSpec

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image


class Projection(nn.Module):
    """proj() of Eq. 1: to a shared space, with unit length, so that a dot product is a cosine."""

    def __init__(self, width: int, dim: int, form: str):
        super().__init__()
        self.layers = (
            nn.Linear(width, dim)
            if form == "linear"
            else nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x).float(), dim=-1)  # (..., d) -> (..., projection_dim), fp32


class PairHead(nn.Module):
    """LH of Eq. 12: is a pair of co-attended representations a hard negative (class 1) or a positive (class 0)?"""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.pooling = spec.pair_pooling
        self.poolers = (
            nn.ModuleList(nn.Sequential(nn.Linear(spec.width, spec.width), nn.Tanh()) for _ in range(2))
            if spec.pair_pooler == "tanh"
            else None
        )
        if spec.pair_head == "shared":
            self.linear = nn.Linear(2 * spec.width, 2)
        else:
            self.linear = nn.ModuleDict({kind: nn.Linear(2 * spec.width, 2) for kind in PAIR_TYPES})

    def forward(
        self, a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, kind: PairType = "image_text"
    ) -> Tensor:
        """a (B, S, d), b (B, T, d), a pair of the given kind -> logits (B, 2)."""
        pooled = [self._pool(a, a_mask), self._pool(b, b_mask)]  # 2 x (B, d)
        if self.poolers is not None:
            pooled = [pooler(x) for pooler, x in zip(self.poolers, pooled, strict=True)]
        head = self.linear[kind] if isinstance(self.linear, nn.ModuleDict) else self.linear
        return head(torch.cat(pooled, dim=-1))  # (B, 2d) -> (B, 2)

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling == "cls":
            return x[:, 0]  # (B, S, d) -> (B, d)
        weights = torch.ones_like(x[..., :1]) if mask is None else mask[..., None].to(x.dtype)
        return (x * weights).sum(1) / weights.sum(1)  # (B, S, d) -> (B, d)


class AMiF(nn.Module):
    """What pre-training trains: two encoders, two projections, co-attention, pair head."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.image_encoder = ImageEncoder(spec)
        self.text_encoder = TextEncoder(spec)
        self.image_projection = Projection(spec.width, spec.projection_dim, spec.projection)
        self.text_projection = Projection(spec.width, spec.projection_dim, spec.projection)
        own = spec.projection_sharing == "alignment"  # of multi-view and text-text alignment
        self.intra_image_projection = Projection(spec.width, spec.projection_dim, spec.projection) if own else None
        self.intra_text_projection = Projection(spec.width, spec.projection_dim, spec.projection) if own else None
        self.log_temperature = nn.Parameter(torch.zeros(()), requires_grad=False)  # log(tau / tau_0); trained if asked
        self.co_attention = CoAttention(
            spec.width,
            spec.fusion_layers,
            spec.fusion_heads,
            spec.dropout,
            spec.co_attention,
            spec.same_modality_pairs,
        )
        self.pair_head = PairHead(spec)
        for module in (self.image_projection, self.text_projection, self.co_attention, self.pair_head):
            initialise(module, spec.width)
        for module in (self.intra_image_projection, self.intra_text_projection):
            if module is not None:
                initialise(module, spec.width)

    def project(self, modality: Literal["image", "text"], cls: Tensor, intra: bool = False) -> Tensor:
        """proj() of Eq. 1, or with `intra` of Eq. 3 or 4: [CLS] tokens (..., d) -> (..., e) of unit length."""
        own = getattr(self, f"intra_{modality}_projection") if intra else None
        return (getattr(self, f"{modality}_projection") if own is None else own)(cls)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json`."""
        _save(self, {"architecture": "AMiF", "model": self.spec.model_dump()}, folder)

    def load(self, folder: Path) -> pretrained.LoadReport:
        """Load weights written by `save`; every tensor must match."""
        return pretrained.load_into(self, pretrained.read_state(folder), str(folder))


def initialise(module: nn.Module, width: int) -> None:
    """BERT's initialisation, normal with zero biases: deviation 0.02 at width 768, larger for narrower networks."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=initial_deviation(width))
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


class AMiFForVQA(nn.Module):
    """AMiF with the gated knowledge fusion decoder: answers questions about an image.

    `knowledge_ids` (M,) are the tokens of the answer vocabulary and `knowledge_answer` (M,) says which answer each token
    belongs to; both travel with the weights, and so does a frozen embedding of them. An empty vocabulary bypasses the
    gated module.
    """

    def __init__(
        self,
        spec: ModelSpec,
        knowledge: KnowledgeSpec,
        knowledge_ids: Tensor,
        knowledge_answer: Tensor,
        tokenizer: Any = None,
        question_length: int = 32,
        answer_length: int = 32,
    ):
        super().__init__()
        self.spec, self.knowledge, self.tokenizer = spec, knowledge, tokenizer
        self.question_length, self.answer_length = question_length, answer_length
        self.amif = AMiF(spec)
        projections = ("image_projection", "text_projection", "intra_image_projection", "intra_text_projection")
        for unused in (*projections, "pair_head", "log_temperature"):
            delattr(self.amif, unused)  # pre-training only
        self.register_buffer("knowledge_ids", knowledge_ids)
        self.register_buffer("knowledge_answer", knowledge_answer)
        if knowledge.source != "none" and knowledge.embedder == "frozen":
            unset = torch.full((len(knowledge_ids), spec.width), torch.nan)  # see freeze_knowledge
            self.register_buffer("knowledge_embedding", unset)
        self.gated_cross_attention = (
            GatedCrossAttention(
                spec.width, spec.fusion_heads, spec.dropout, spec.gate_input, pre_norm=spec.gated_norm == "pre"
            )
            if knowledge.source != "none"
            else None
        )
        self.decoder = AnswerDecoder(
            spec.vocab_size,
            spec.width,
            spec.decoder_layers,
            spec.decoder_cross_layers,
            spec.text_heads,
            spec.text_positions,
            spec.dropout,
            spec.decoder_cross_placement,
            tied=spec.decoder_output == "tied",
        )
        initialise(self.decoder, spec.width)
        self.decoder.untie()
        if self.gated_cross_attention is not None:
            initialise(self.gated_cross_attention, spec.width)

    # --- the road from image and question to F' ---

    def encode(self, images: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W), question ids and mask (B, t) -> F'_i (B, p+1+t, d) and its mask (B, p+1+t)."""
        return self.encode_with_maps(images, ids, mask)[:2]

    def encode_with_maps(
        self, images: Tensor, ids: Tensor, mask: Tensor, return_weights: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """As `encode`, with named intermediates: fused image and text tokens, attention weights, gate."""
        image = self.amif.image_encoder(images)  # V_i: (B, p+1, d); one blank image may serve a whole batch
        image = image.expand(len(ids), -1, -1)
        text = self.amif.text_encoder(ids, mask)  # R_i: (B, t, d)
        image_fused, text_fused, attentions = self.amif.co_attention(
            image, text, None, mask, "image_text", return_weights
        )
        joint = torch.cat([image_fused, text_fused], dim=1)  # F_i: (B, p+1+t, d)
        joint_mask = torch.cat([mask.new_ones(image.shape[:2]), mask], dim=1)  # (B, p+1+t)
        maps: dict[str, Any] = {"image": image_fused, "text": text_fused, "attentions": attentions, "gate": None}
        if self.gated_cross_attention is not None:
            joint, maps["gate"] = self.gated_cross_attention(
                joint, self.knowledge_tokens(), use_gate=self.knowledge.gate
            )
        return joint, joint_mask, maps

    def knowledge_tokens(self) -> Tensor:
        """F_p (1, M, d): the answer vocabulary, embedded and encoded once per batch."""
        if self.knowledge.embedder == "frozen":
            embedded = self.knowledge_embedding[None]  # (1, M, d)
        else:
            embedded = prior_knowledge.embed(
                self.amif.text_encoder, self.knowledge_ids, self.knowledge_answer, self.knowledge
            )  # (1, M, d)
        if self.knowledge.form == "pooled":
            embedded = prior_knowledge.pool(embedded, self.knowledge_answer)  # (1, A, d)
        return self.gated_cross_attention.encode_knowledge(embedded)

    def freeze_knowledge(self) -> None:
        """Embed the knowledge by the text encoder as it is now, once and for all, where the embedder is 'frozen'."""
        if hasattr(self, "knowledge_embedding"):
            self.knowledge_embedding.copy_(
                prior_knowledge.encode_frozen(
                    self.amif.text_encoder, self.knowledge_ids, self.knowledge_answer, self.knowledge
                )
            )

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, answers: Tensor, answer_mask: Tensor) -> Tensor:
        """Language-modelling loss of each answer (B,), summed over its tokens."""
        memory, memory_mask = self.encode(images, ids, mask)
        return self.decoder.loss(answers, answer_mask, memory, memory_mask)

    # --- one image, one question: what a notebook calls ---

    def answer(self, image: Image.Image | str | Path, question: str) -> str:
        """Free generation: the answer the decoder writes by itself (greedy)."""
        memory, memory_mask = self.encode(*self.inputs(image, question))
        tokenizer = self.tokenizer
        ids = self.decoder.generate(
            memory, memory_mask, tokenizer.cls_token_id, tokenizer.sep_token_id, self.answer_length
        )
        return tokenizers.decode(tokenizer, ids[0])

    def rank(self, image: Image.Image | str | Path, question: str, candidates: Sequence[str]) -> pd.DataFrame:
        """Candidate answers by log-likelihood: columns answer, log_likelihood, probability (over these candidates)."""
        import pandas as pd

        from amif_lib.networks.ranking import rank_answers

        if isinstance(candidates, str):
            raise InputError(f"rank: candidates is the text {candidates!r}; give a list of answers")
        candidates = [str(candidate) for candidate in candidates]
        if not candidates:
            raise InputError("rank: candidates is empty; give at least one answer")
        with torch.inference_mode():
            memory, memory_mask = self.encode(*self.inputs(image, question))
            scores = rank_answers(self.decoder, memory, memory_mask, self.tokenize_answers(candidates))[0]  # (K,)
        frame = pd.DataFrame(
            {"answer": list(candidates), "log_likelihood": scores.tolist(), "probability": scores.softmax(0).tolist()}
        )
        return frame.sort_values("log_likelihood", ascending=False, ignore_index=True)

    def explain(self, image: Image.Image | str | Path, question: str, word: str) -> dict[str, Tensor]:
        """Patch maps (n, n) for one word of the question, summed or averaged over its word pieces.

        - `attention`: cross-attention of the word to the patches in the last co-attention layer, mean over heads and word
          pieces. The share of the image's [CLS] is left out and the rest scaled to sum 1; absent without co-attention.
        - `transport_plan`: mass between the patches and the word; its sum is the word's share of the question's content
          tokens ([CLS] of both sides and [SEP] take no part).
        - `gate`: mean over channels of the gate at the patch, in (0, 1), whichever the word; absent without knowledge.

        Raises InputError when the word is not in the question.
        """
        from amif_lib.methods.amif.explain import patch_maps

        return patch_maps(self, image, question, word)

    def tokenize_answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of each answer, [CLS] … [SEP], cut to the answer length."""
        return self.tokenizer(list(answers), truncation=True, max_length=self.answer_length)["input_ids"]

    def inputs(self, image: Image.Image | str | Path, question: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (1, 3, H, W), question ids and mask (1, t), on the model's device."""
        from amif_lib.data import images
        from amif_lib.networks import pixels

        source = Path(image) if isinstance(image, str) else image
        picture = images.as_stored(source, self.spec.stored_side)  # the original with the pixels that training saw
        ids, mask = tokenizers.encode(self.tokenizer, [question], self.question_length)
        image = pixels.to_tensor(picture, self.spec.image_size)[None]  # (1, 3, H, W)
        device = self.knowledge_ids.device
        return image.to(device), ids.to(device), mask.to(device)

    # --- files ---

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors), `config.json` and the tokenizer to `folder`."""
        content = {
            "architecture": "AMiFForVQA",
            "model": self.spec.model_dump(),
            "knowledge": self.knowledge.model_dump(),
            "question_length": self.question_length,
            "answer_length": self.answer_length,
        }
        _save(self, content, Path(folder))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> AMiFForVQA:
        """Load from a folder written by `save_pretrained`, or from a hub id. Returned in evaluation mode."""
        folder = pretrained.find(str(source))
        content = pretrained.config(folder)
        if content.get("architecture") != "AMiFForVQA":
            raise InputError(
                f"{folder / 'config.json'}: architecture is {content.get('architecture')!r}; give the model/ folder "
                "of a fine-tuning run"
            )
        try:
            spec, prior = ModelSpec(**content["model"]), KnowledgeSpec(**content["knowledge"])
            lengths = content["question_length"], content["answer_length"]
        except (KeyError, TypeError, ValidationError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{folder / 'config.json'}: {reason}; save the model again with this kit") from None
        state = pretrained.read_state(folder)
        model = cls(
            spec,
            prior,
            torch.zeros_like(state["knowledge_ids"]),
            torch.zeros_like(state["knowledge_answer"]),
            tokenizers.load(folder),
            *lengths,
        )
        pretrained.load_into(model, state, str(source))
        return model.eval()


def _save(module: nn.Module, content: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / "model.safetensors.part"
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, aside)
    aside.replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
