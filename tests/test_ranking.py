"""rank_answers against scoring each candidate on its own, for our decoder and a Hugging Face decoder."""

from __future__ import annotations

import pytest
import torch
import transformers

from amif_lib.core.errors import InputError
from amif_lib.networks import ranking
from amif_lib.networks.decoder import AnswerDecoder
from amif_lib.networks.ranking import rank_answers

CLS, SEP, VOCABULARY, WIDTH = 2, 3, 60, 32


def make(kind: str = "ours") -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "bert":
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
        decoding = {"is_decoder": True, "add_cross_attention": True, "initializer_range": 0.3}
        return transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=VOCABULARY, **sizes, **decoding)).eval()
    decoder = AnswerDecoder(VOCABULARY, WIDTH, layers=3, cross_layers=2, heads=4, positions=40, dropout=0.1)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder.eval()


@pytest.fixture(scope="module", params=["ours", "bert"])
def decoder(request):
    return make(request.param)


@pytest.fixture(scope="module")
def memory():
    torch.manual_seed(1)
    return torch.randn(3, 7, WIDTH), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])


def answers(count: int, seed: int = 5, letters: int = 4, longest: int = 7) -> list[list[int]]:
    """Answers over few tokens: many share beginnings, many begin others, many are there twice."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest, (count,), generator=generator).tolist()
    return [[CLS, *torch.randint(4, 4 + letters, (n,), generator=generator).tolist(), SEP] for n in lengths]


def alone(decoder, memory, mask, sequence) -> float:
    """One question, one candidate, no padding, no mask, summed in float64."""
    real = memory[mask.bool()][None]  # (1, s, d)
    logits = decoder(input_ids=torch.tensor([sequence[:-1]]), encoder_hidden_states=real).logits[0].double()
    return sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits, sequence[1:], strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("nodes", "at_once"), [(256, 1024), (9, 1024), (20, 20)])
def test_equals_each_candidate_alone(decoder, memory, monkeypatch, nodes, at_once):
    monkeypatch.setattr(ranking, "MOST_NODES", nodes)
    monkeypatch.setattr(ranking, "at_once", lambda device: (at_once, 2**20))
    lists = [*answers(8, 2, VOCABULARY - 4, 12), *answers(9), [CLS, 7, SEP], [CLS, SEP]]
    lists += [[CLS, 7, SEP, 8, SEP], [9, 7, SEP], list(lists[0]), list(lists[3])]  # another start token; duplicates
    got = rank_answers(decoder, *memory, lists)
    assert got.shape == (3, len(lists)) and got.dtype == torch.float32
    expected = torch.tensor([[alone(decoder, m, k, c) for c in lists] for m, k in zip(*memory, strict=True)])
    assert expected.std() > 1  # the candidates differ, so that agreement means something
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert torch.equal(got[:, 0], got[:, -2]) and torch.equal(got[:, 3], got[:, -1])


@torch.no_grad()
def test_thousands_of_answers_in_bounded_memory(memory, monkeypatch):
    decoder, lists = make(), answers(3225, letters=40, longest=12)
    tokens, logits, plain = [], [], decoder.project
    hook = decoder.word_embeddings.register_forward_hook(lambda module, inputs, out: tokens.append(inputs[0].numel()))
    monkeypatch.setattr(decoder, "project", lambda x: logits.append(x.shape[:-1].numel()) or plain(x))
    monkeypatch.setattr(ranking, "at_once", lambda device: (450, 100 * VOCABULARY))
    got = rank_answers(decoder, *memory, lists)
    hook.remove()
    assert max(tokens) <= 450 and len(tokens) > 10 and max(logits) <= 100
    for column in range(0, len(lists), 400):
        expected = [alone(decoder, m, k, lists[column]) for m, k in zip(*memory, strict=True)]
        assert got[:, column].tolist() == pytest.approx(expected, abs=1e-4)


def test_memory_padding_never_changes_a_result(decoder, memory):
    lists, (states, mask) = answers(23), memory
    plain = rank_answers(decoder, states, mask, lists)
    garbage = torch.where(mask.bool()[..., None], states, torch.full_like(states, float("nan")))
    torch.testing.assert_close(rank_answers(decoder, garbage, mask, lists), plain, atol=1e-4, rtol=0)
    longer = torch.cat([states, 50 * torch.randn(3, 9, WIDTH)], 1)  # (3, 16, d)
    padded = torch.cat([mask, torch.zeros(3, 9, dtype=mask.dtype)], 1).bool()  # a boolean mask means the same
    torch.testing.assert_close(rank_answers(decoder, longer, padded, lists), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([], "empty"),
        ([[CLS, 5, SEP], [CLS]], r"candidates\[1\] is \[2\]"),
        ([[CLS, *[5] * 40, SEP]], r"candidates\[0\] is .*41 tokens at most"),
        ([[CLS, 5, SEP], [CLS, VOCABULARY, SEP]], r"candidates\[1\] is \[2, 60, 3\].*ids below 60"),
        ([[CLS, -1, SEP]], "-1"),
    ],
)
def test_unusable_candidates_are_refused(memory, lists, message):
    with pytest.raises(InputError, match=message):
        rank_answers(make(), *memory, lists)


def test_memory_that_is_masked_or_not_finite_and_training_mode_are_refused(memory):
    decoder, (states, mask), lists = make(), memory, answers(5)
    with pytest.raises(InputError, match=r"memory_mask\[1\] masks the whole memory"):
        rank_answers(decoder, states, mask * torch.tensor([[1], [0], [1]]), lists)
    broken = states.clone()
    broken[2, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"memory\[2\].*not finite"):
        rank_answers(decoder, broken, mask, lists)
    with pytest.raises(InputError, match="eval"):
        rank_answers(decoder.train(), states, mask, lists)
