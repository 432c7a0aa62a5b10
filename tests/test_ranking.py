"""rank_answers against scoring each candidate on its own, for our decoder and Hugging Face decoders with cross-attention."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="ranking needs the train extra")
transformers = pytest.importorskip("transformers", reason="ranking needs the train extra")

from amif_lib.core.errors import InputError  # noqa: E402
from amif_lib.networks import ranking  # noqa: E402
from amif_lib.networks.decoder import AnswerDecoder  # noqa: E402
from amif_lib.networks.ranking import rank_answers  # noqa: E402

CLS, SEP, VOCABULARY, WIDTH = 2, 3, 60, 32


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "is_decoder": True,
    "add_cross_attention": True,
    "initializer_range": 0.3,
}


def bert(**more):
    return transformers.BertLMHeadModel(transformers.BertConfig(**SIZES, **more))


def blip():
    config = transformers.BlipTextConfig(**SIZES, encoder_hidden_size=WIDTH, bos_token_id=CLS, sep_token_id=SEP)
    return transformers.BlipTextLMHeadModel(config)


def roberta():  # its position table begins behind the padding index
    return transformers.RobertaForCausalLM(transformers.RobertaConfig(**SIZES, pad_token_id=1))


def bart():  # takes no positions: scored in buckets
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64,
        max_position_embeddings=40, init_std=0.3, is_decoder=True, add_cross_attention=True, use_cache=False,
    )  # fmt: skip
    return transformers.BartForCausalLM(config)


def ours(placement="last"):
    decoder = AnswerDecoder(VOCABULARY, WIDTH, 3, 2, 4, 40, 0.1, placement)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder


KINDS = {
    "ours": ours,
    "ours, cross-attention first": lambda: ours("first"),
    "bert": bert,
    "bert, eager": lambda: bert(attn_implementation="eager"),
    "blip": blip,
    "roberta": roberta,
    "bart": bart,
}


def make(kind: str):
    torch.manual_seed(0)
    return KINDS[kind]().eval()


@pytest.fixture(scope="module", params=KINDS)
def any_decoder(request):
    return make(request.param)


@pytest.fixture(scope="module")
def decoder():
    return make("bert")


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
    """One question, one candidate, no padding, no mask, summed in float64."""
    real = memory[mask.bool()][None]  # (1, s, d)
    logits = decoder(input_ids=torch.tensor([sequence[:-1]]), encoder_hidden_states=real).logits[0].double()
    return sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits, sequence[1:], strict=True))


def sharing(count: int, seed: int = 5, letters: int = 4, longest: int = 7) -> list[list[int]]:
    """Answers over few tokens: many share beginnings, many begin others, many are twice there."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest, (count,), generator=generator).tolist()
    return [[CLS, *torch.randint(4, 4 + letters, (n,), generator=generator).tolist(), SEP] for n in lengths]


def prefixes(lists) -> set[tuple[int, ...]]:
    return {tuple(c[:t]) for c in lists for t in range(1, len(c))}


@torch.no_grad()
@pytest.mark.parametrize("bounds", [{}, {"pack": 9, "chunk": 20}])
def test_equals_each_candidate_alone(any_decoder, memory, bounds):
    lists = [*candidates(count=8), *sharing(9), [CLS, 7, SEP], [CLS, SEP]]
    lists += [[CLS, 7, SEP, 8, SEP], [9, 7, SEP], list(lists[0]), list(lists[3])]  # another start token; duplicates
    got = rank_answers(any_decoder, *memory, lists, **bounds)
    assert got.shape == (3, len(lists)) and got.dtype == torch.float32
    expected = torch.tensor([[alone(any_decoder, m, k, c) for c in lists] for m, k in zip(*memory, strict=True)])
    assert expected.std() > 1  # the candidates differ, so that agreement means something
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert torch.equal(got[:, 0], got[:, -2]) and torch.equal(got[:, 3], got[:, -1])
    torch.testing.assert_close(ranking.rank_in_buckets(any_decoder, *memory, lists), expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ours", "blip"])
def test_thousands_of_answers_in_bounded_memory(kind, memory, monkeypatch):
    decoder, lists = make(kind), sharing(3225, letters=40, longest=12)
    head = decoder.word_embeddings if kind == "ours" else decoder.cls
    tokens, logits, first = [], [], torch.nn.functional.linear
    embeddings = decoder.word_embeddings if kind == "ours" else decoder.bert.embeddings.word_embeddings
    hook = embeddings.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].numel()))

    def linear(x, weight, bias=None):
        out = first(x, weight, bias)
        if weight is head.weight:
            logits.append(out.numel())
        return out

    if kind == "ours":
        monkeypatch.setattr("amif_lib.networks.decoder.F.linear", linear)
    monkeypatch.setattr(ranking, "logits_at_once", lambda device: 100 * VOCABULARY)
    got = rank_answers(decoder, *memory, lists, pack=200, chunk=450)
    hook.remove()
    assert max(tokens) <= 450 and len(tokens) > 50
    assert kind != "ours" or max(logits) <= 100 * VOCABULARY
    for column in range(0, len(lists), 400):
        expected = [alone(decoder, m, k, lists[column]) for m, k in zip(*memory, strict=True)]
        assert got[:, column].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("most", [1, 5, 30, 10_000])
def test_packs_hold_each_prefix_with_its_ancestors(most):
    ordered = sorted({tuple(c) for c in sharing(80)})
    runs = list(ranking.cut(ordered, most))
    assert [c for run in runs for c in run] == ordered
    for run in runs:
        pack = ranking.pack_trie(run)
        found = [tuple(pack.tokens[row].tolist()) for row in pack.sees]  # what each node sees, in order
        assert set(found) == prefixes(run) and len(found) == len(prefixes(run))
        assert pack.depths.tolist() == [len(prefix) - 1 for prefix in found]
        assert len(found) <= most or len(run) == 1
        edges = [(found[n], t) for n, t in zip(pack.edge_nodes.tolist(), pack.edge_tokens.tolist(), strict=True)]
        for candidate, path in zip(run, pack.paths.tolist(), strict=True):
            walk = [edges[e] for e in path if e < len(edges)]
            assert walk == [(candidate[:t], candidate[t]) for t in range(1, len(candidate))]
    assert len(runs) == 1 or most < len(prefixes(ordered))


def test_each_distinct_prefix_is_read_once(decoder, memory):
    seen: list[int] = []
    hook = decoder.bert.embeddings.word_embeddings.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].numel())
    )
    lists = sharing(60)
    rank_answers(decoder, memory[0], torch.ones_like(memory[1]), lists * 2)
    hook.remove()
    assert seen == [3 * len(prefixes(lists))] and len(prefixes(lists)) < sum(len(c) - 1 for c in lists) / 2


@pytest.mark.parametrize("kind", ["ours", "bert", "blip", "roberta"])
def test_keys_and_values_of_the_memory_are_computed_once_per_question(kind, memory):
    decoder, rows = make(kind), []
    for name, module in decoder.named_modules():
        if name.endswith(("cross_attention.key", "crossattention.self.key")):
            module.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    rank_answers(decoder, *memory, sharing(60), pack=10, chunk=20)  # many packs, two questions at a time
    assert sum(rows) == 3 * (2 if kind == "ours" else 3)  # questions times layers that cross-attend


def test_bounds_never_change_a_result(decoder, memory):
    lists = candidates()
    whole = rank_answers(decoder, *memory, lists, chunk=10_000)
    for pack, chunk in ((1, 1), (5, 64), (512, 5), (30, 100)):
        got = rank_answers(decoder, *memory, lists, pack=pack, chunk=chunk)
        torch.testing.assert_close(got, whole, atol=1e-4, rtol=0)


def test_memory_padding_never_changes_a_result(any_decoder, memory):
    lists, (states, mask) = candidates(), memory
    plain = rank_answers(any_decoder, states, mask, lists)
    garbage = torch.where(mask.bool()[..., None], states, torch.full_like(states, float("nan")))
    torch.testing.assert_close(rank_answers(any_decoder, garbage, mask, lists), plain, atol=1e-4, rtol=0)
    longer = torch.cat([states, 50 * torch.randn(3, 9, WIDTH)], 1)  # (3, 16, d)
    padded = torch.cat([mask, torch.zeros(3, 9, dtype=mask.dtype)], 1).bool()  # a boolean mask means the same
    torch.testing.assert_close(rank_answers(any_decoder, longer, padded, lists), plain, atol=1e-4, rtol=0)


def test_a_function_that_takes_no_positions_is_served_in_buckets(decoder, memory):
    seen: list[int] = []

    def counting(**arguments):
        assert set(arguments) == {"input_ids", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"}
        seen.append(arguments["input_ids"].numel())
        return decoder(**arguments)

    lists = candidates(count=10)
    got = rank_answers(counting, *memory, lists * 4, chunk=36)
    assert max(seen) <= 36 and sum(seen) == 3 * sum(len(c) - 1 for c in lists)
    torch.testing.assert_close(got, rank_answers(decoder, *memory, lists * 4), atol=1e-4, rtol=0)


def test_what_the_decoder_cannot_hold_is_refused(any_decoder, memory):
    for wrong, message in (([CLS, VOCABULARY, SEP], "vocabulary"), ([CLS, -1, SEP], "-1")):
        with pytest.raises(InputError, match=rf"candidates\[1\].*{message}"):
            rank_answers(any_decoder, *memory, [[CLS, 5, SEP], wrong])
    with pytest.raises(InputError, match=r"candidates\[0\].*position table"):
        rank_answers(any_decoder, *memory, [[CLS, *[5] * 40, SEP]])


def test_memory_that_is_empty_masked_or_not_finite_is_refused(decoder, memory):
    states, mask = memory
    with pytest.raises(InputError, match=r"memory_mask\[1\]"):
        rank_answers(decoder, states, mask * torch.tensor([[1], [0], [1]]), candidates())
    with pytest.raises(InputError, match="no row"):
        rank_answers(decoder, states[:0], mask[:0], candidates())
    broken = states.clone()
    broken[2, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"memory\[2\].*not finite"):
        rank_answers(decoder, broken, mask, candidates())


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
