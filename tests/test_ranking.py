"""rank_answers against scoring each candidate on its own, for a Hugging Face decoder with cross-attention."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="ranking needs the train extra")
transformers = pytest.importorskip("transformers", reason="ranking needs the train extra")

from amif_lib.errors import InputError  # noqa: E402
from amif_lib.ranking import rank_answers  # noqa: E402

CLS, SEP, VOCABULARY, WIDTH = 2, 3, 60, 32


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        is_decoder=True,
        add_cross_attention=True,
        use_cache=False,
        initializer_range=0.3,
    )
    return transformers.BertLMHeadModel(config).eval()


@pytest.fixture(scope="module")
def memory():
    torch.manual_seed(1)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    return torch.randn(3, 7, WIDTH), mask


def candidates(seed: int = 2, count: int = 23) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()  # from one-token answers to long ones
    return [[CLS, *torch.randint(4, VOCABULARY, (n,), generator=generator).tolist(), SEP] for n in lengths]


def alone(decoder, memory, mask, sequence) -> float:
    """One question, one candidate, no padding, float64 sum over a python loop of prefixes."""
    total = 0.0
    real = memory[mask.bool()][None]  # (1, s, d)
    for position in range(1, len(sequence)):
        logits = decoder(input_ids=torch.tensor([sequence[:position]]), encoder_hidden_states=real).logits
        total += float(torch.log_softmax(logits[0, -1].double(), -1)[sequence[position]])
    return total


@torch.no_grad()
def test_equals_each_candidate_alone(decoder, memory):
    lists = [*candidates(), [CLS, 7, SEP], [CLS, SEP]]
    lists += [list(lists[0]), list(lists[3])]  # duplicates
    got = rank_answers(decoder, *memory, lists, chunk=10)
    assert got.shape == (3, len(lists)) and got.dtype == torch.float32
    expected = torch.tensor([[alone(decoder, m, k, c) for c in lists] for m, k in zip(*memory, strict=True)])
    assert expected.std() > 1  # the candidates differ, so that agreement means something
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert torch.equal(got[:, 0], got[:, -2]) and torch.equal(got[:, 3], got[:, -1])


def test_chunk_never_changes_a_result(decoder, memory):
    lists = candidates()
    whole = rank_answers(decoder, *memory, lists, chunk=10_000)
    for chunk in (1, 5, 64):
        torch.testing.assert_close(rank_answers(decoder, *memory, lists, chunk=chunk), whole, atol=1e-4, rtol=0)


def test_memory_padding_never_changes_a_result(decoder, memory):
    lists, (states, mask) = candidates(), memory
    plain = rank_answers(decoder, states, mask, lists)
    garbage = torch.where(mask.bool()[..., None], states, 1e3 * torch.ones_like(states))
    torch.testing.assert_close(rank_answers(decoder, garbage, mask, lists), plain, atol=1e-4, rtol=0)
    longer = torch.cat([states, 50 * torch.randn(3, 9, WIDTH)], 1)  # (3, 16, d)
    padded = torch.cat([mask, torch.zeros(3, 9, dtype=mask.dtype)], 1).bool()  # a boolean mask means the same
    torch.testing.assert_close(rank_answers(decoder, longer, padded, lists), plain, atol=1e-4, rtol=0)


def test_each_forward_pass_is_bounded_and_duplicates_are_scored_once(decoder, memory):
    seen: list[int] = []

    def counting(**arguments):
        assert set(arguments) == {"input_ids", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"}
        seen.append(len(arguments["input_ids"]))
        return decoder(**arguments)

    rank_answers(counting, *memory, candidates(count=10) * 4, chunk=12)
    assert max(seen) <= 12 and sum(seen) == 3 * 10


@pytest.mark.parametrize(("lists", "message"), [([], "empty"), ([[CLS, 5, SEP], [CLS]], r"candidates\[1\]")])
def test_unusable_candidates(decoder, memory, lists, message):
    with pytest.raises(InputError, match=message):
        rank_answers(decoder, *memory, lists)


def test_training_mode_and_wrong_mask_are_refused(decoder, memory):
    states, mask = memory
    with pytest.raises(InputError, match="memory_mask"):
        rank_answers(decoder, states, mask[:, :-1], candidates())
    decoder.train()
    try:
        with pytest.raises(InputError, match="eval"):
            rank_answers(decoder, states, mask, candidates())
    finally:
        decoder.eval()
