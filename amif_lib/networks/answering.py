"""Question answering, the same for the networks of all methods: training loss, generation and ranking of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.data import images
from amif_lib.networks import pixels, tokenizers
from amif_lib.networks.ranking import rank_answers
from amif_lib.networks.rows import in_rows


class Answerer(nn.Module):
    """A network that answers questions about an image.

    A method's subclass defines `encode(images, ids, mask)`, which returns the memory (B, S, d), that is the tokens that
    the decoder attends to, and its mask (B, S). It has the attributes `decoder` (an `AnswerDecoder`), `spec`,
    `tokenizer`, `question_length` and `answer_length`.
    """

    @in_rows
    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, answers: Tensor, answer_mask: Tensor) -> Tensor:
        """Language-modelling loss of each answer (B,), summed over its tokens (section 3.4.2).

        images (B, 3, H, W), question ids and mask (B, t), answers and answer_mask (B, L).
        """
        memory, memory_mask = self.encode(images, ids, mask)  # (B, S, d), (B, S)
        return self.decoder.loss(answers, answer_mask, memory, memory_mask)

    def score(self, memory: Tensor, memory_mask: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
        """Log-likelihoods (B, K) of K answers, given as token ids; the memory is that of `encode`."""
        return rank_answers(self.decoder, memory, memory_mask, answers)

    def write(self, memory: Tensor, memory_mask: Tensor) -> list[str]:
        """B answers, generated greedily without candidates; the memory is that of `encode`."""
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        written = self.decoder.generate(memory, memory_mask, start, end, self.answer_length)  # (B, L)
        return [tokenizers.decode(self.tokenizer, ids) for ids in written]

    @torch.inference_mode()
    def answer(self, image: Image.Image | str | Path, question: str) -> str:
        """The answer to one question, generated greedily without candidates."""
        return self.write(*self.encode(*self.inputs(image, question)))[0]

    @torch.inference_mode()
    def rank(self, image: Image.Image | str | Path, question: str, candidates: Sequence[str]) -> pd.DataFrame:
        """Candidates, best first: answer, log_likelihood, probability among them. InputError unless a list of texts."""
        if isinstance(candidates, str) or not len(candidates):
            raise InputError(f"rank: candidates is {candidates!r}; give a list with at least one answer")
        memory, memory_mask = self.encode(*self.inputs(image, question))
        scores = self.score(memory, memory_mask, self.tokenize_answers(candidates))[0]  # (K,)
        frame = pd.DataFrame({"answer": [str(candidate) for candidate in candidates]})
        frame["log_likelihood"], frame["probability"] = scores.tolist(), scores.softmax(0).tolist()
        return frame.sort_values("log_likelihood", ascending=False, ignore_index=True)

    def tokenize_answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of each answer, [CLS] … [SEP], cut to the answer length."""
        return tokenizers.token_ids(self.tokenizer, [str(answer) for answer in answers], self.answer_length)

    def inputs(self, image: Image.Image | str | Path, question: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (1, 3, H, W), question ids and mask (1, t), on the model's device."""
        source, device = Path(image) if isinstance(image, str) else image, next(self.parameters()).device
        picture = images.as_stored(source, self.spec.stored_side)  # resized as training images are when stored
        ids, mask = tokenizers.encode(self.tokenizer, [question], self.question_length)
        return pixels.to_tensor(picture, self.spec.image_size)[None].to(device), ids.to(device), mask.to(device)
