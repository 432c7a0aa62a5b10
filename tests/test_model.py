"""The network: sizes at paper scale, fusion, decoder, padding, files of the answering model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from amif_lib.core.errors import InputError
from amif_lib.methods.amif import knowledge
from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks import tokenizers
from amif_lib.networks.encoders import TextEncoder, length_groups
from amif_lib.networks.fusion import CoAttention, GatedCrossAttention
from amif_lib.networks.sizes import ModelSpec
from tests import tiny

TINY = ModelSpec(**(tiny.MODEL | {"vocab_size": 120, "fusion_layers": 2}))


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["is there a nodule in the left lung", "the heart is enlarged", "yes", "no", "axial", "pleural effusion"]
    return tokenizers.train(texts * 2, 120, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def vqa(tokenizer):
    torch.manual_seed(0)
    ids, _ = knowledge.select(["yes", "yes", "no", "left lung"], tokenizer, 64)
    return AMiFForVQA(TINY, KnowledgeSpec(), ids, tokenizer, 16, 8).eval()


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_parameter_counts_at_paper_size():
    with torch.device("meta"):
        model = AMiFForVQA(ModelSpec(), KnowledgeSpec(), torch.zeros(1, dtype=torch.long))
    assert parameters(model.gated_cross_attention) == 14_766_336  # the paper's 14.8M
    assert parameters(model.decoder) == 122_524_228  # the paper's 122M
    assert round(parameters(model.amif.co_attention) / 1e6, 2) == 113.42
    assert round(parameters(model.amif.image_encoder) / 1e6, 2) == 85.90
    assert round(parameters(model.amif.text_encoder) / 1e6, 2) == 107.72


# --- fusion --------------------------------------------------------------------------------------------------------


def test_closed_gate_ignores_knowledge_and_open_gate_equals_no_gate():
    torch.manual_seed(0)
    module = GatedCrossAttention(16, 2, 0.0).eval()
    joint, one, other = torch.randn(2, 5, 16), torch.randn(1, 7, 16), torch.randn(1, 3, 16)
    torch.nn.init.zeros_(module.gate.weight)
    torch.nn.init.constant_(module.gate.bias, -100.0)
    torch.testing.assert_close(module(joint, one)[0], module(joint, other)[0])
    torch.testing.assert_close(module(joint, one)[0], module.feed_forward(joint))
    torch.nn.init.constant_(module.gate.bias, 100.0)
    torch.testing.assert_close(module(joint, one)[0], module(joint, one, use_gate=False)[0])
    assert not torch.allclose(module(joint, one)[0], module(joint, other)[0])


def test_same_modality_pair_is_symmetric():
    torch.manual_seed(0)
    module = CoAttention(16, 2, 2, 0.0).eval()
    a, b = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    for kind in ("image_image", "text_text"):
        x, y, _ = module(a, b, None, None, kind)
        y2, x2, _ = module(b, a, None, None, kind)
        torch.testing.assert_close(x, x2)
        torch.testing.assert_close(y, y2)


def test_each_pair_type_runs_through_its_own_stream():
    torch.manual_seed(0)
    module = CoAttention(16, 1, 2, 0.0)
    for kind, used in {"image_image": {"image"}, "text_text": {"text"}, "image_text": {"image", "text"}}.items():
        module.zero_grad()
        x, y, _ = module(torch.randn(1, 3, 16), torch.randn(1, 3, 16), None, None, kind)
        (x.square().sum() + y.square().sum()).backward()
        reached = [name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()]
        assert {name.split("_")[0] for name in reached if "stream" in name} == used


def test_weights_of_cross_attention_match_the_fused_kernel():
    torch.manual_seed(0)
    module = CoAttention(16, 2, 2, 0.0).eval()
    a, b, mask = torch.randn(2, 5, 16), torch.randn(2, 4, 16), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    plain = module(a, b, None, mask)
    shown = module(a, b, None, mask, return_weights=True)
    torch.testing.assert_close(plain[0], shown[0])
    weights = shown[2][0][0]
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    assert not weights[0, :, :, 3].any() and not weights[1, :, :, 2:].any()


# --- padding -------------------------------------------------------------------------------------------------------


def test_padding_of_the_question_changes_nothing(vqa):
    picture = torch.randn(2, 3, 32, 32)
    ids = torch.randint(5, 60, (2, 6))
    mask = torch.ones_like(ids).bool()
    padded, padded_mask = torch.nn.functional.pad(ids, (0, 5)), torch.nn.functional.pad(mask, (0, 5))
    memory, memory_mask = vqa.encode(picture, ids, mask)
    longer, longer_mask = vqa.encode(picture, padded, padded_mask)
    torch.testing.assert_close(longer[longer_mask].view_as(memory), memory, atol=1e-5, rtol=1e-4)
    answers, answer_mask = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    given = ((memory, memory_mask), (longer, longer_mask))
    losses = [vqa.decoder.loss(answers, answer_mask, *each) for each in given]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-4)


# --- decoder -------------------------------------------------------------------------------------------------------


def test_free_generation_is_the_greedy_choice_step_by_step(vqa):
    memory, mask = torch.randn(3, 4, 32), torch.ones(3, 4).bool()
    ids = vqa.decoder.generate(memory, mask, 2, 3, 6)
    for row in range(3):
        for t in range(1, ids.shape[1]):
            if 3 in ids[row, 1:t]:
                assert ids[row, t] == 3
            else:
                logits = vqa.decoder(ids[[row], :t], None, memory[[row]]).logits  # (1, t, vocabulary)
                assert ids[row, t] == logits[0, -1].argmax()


# --- the answering model ---------------------------------------------------------------------------------------------


def test_saved_model_loads_equal_and_answers(vqa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vqa.save_pretrained("a model")
    again = AMiFForVQA.from_pretrained("a model")
    for name, value in vqa.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    picture, question = Image.new("L", (40, 50), 120), "is there a nodule in the left lung"
    assert again.answer(picture, question) == vqa.answer(picture, question)
    ranked = again.rank(picture, question, ["yes", "no", "left lung"])
    assert ranked.log_likelihood.is_monotonic_decreasing and ranked.probability.sum() == pytest.approx(1)
    as_series = again.rank(picture, question, pd.Series(["yes", "no", "left lung"]))
    pd.testing.assert_frame_equal(as_series, ranked)
    for wrong in ("yes", []):
        with pytest.raises(InputError, match=r"candidates is .*; give a list with at least one answer"):
            again.rank(picture, question, wrong)
    maps = again.explain(picture, question, "nodule")
    assert {"attention", "gate", "transport_plan"} == set(maps) and all(m.shape == (4, 4) for m in maps.values())
    with pytest.raises(InputError, match="'spleen' is not a word"):
        again.explain(picture, question, "spleen")


@pytest.mark.parametrize(
    ("section", "value"),
    [("architecture", "AMiF"), ("knowledge", None), ("model", {"wide": 3}), ("model", {"image_heads": 5})],
)
def test_from_pretrained_names_a_config_it_cannot_use(vqa, tmp_path, section, value):
    """Another network, a section that is missing, an unknown key, sizes that do not fit: one line."""
    vqa.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    content[section] = content[section] | value if isinstance(value, dict) else value
    content = {key: value for key, value in content.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: .*(is 'AMiF'|knowledge|wide|image_heads)") as caught:
        AMiFForVQA.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_knowledge_is_the_most_frequent_texts_once_each_within_the_limit(tokenizer):
    ids, left_out = knowledge.select(["no", "yes", "yes", "left lung", "axial"], tokenizer, 4)
    assert tokenizer.decode(ids) == "yes [SEP] axial [SEP]" and left_out == 2
    asked = ["Is there a nodule in the left lung?", "Is the heart enlarged?"]
    training = [SimpleNamespace(question=question, answer="yes") for question in asked]
    words = knowledge.texts("questions", training)
    assert " ".join(words) == "is there a nodule in the left lung is the heart enlarged"
    ids, left_out = knowledge.select(words, tokenizer, 3, words=True)
    assert tokenizer.decode(ids) == "is the a" and left_out == len(set(words)) - 3
    assert knowledge.texts("answers", training) == ["yes", "yes"] and knowledge.texts("none", training) == []


@pytest.mark.parametrize("lengths", [[3, 40, 5, 17, 4, 4, 31, 6, 9], [2, 50], [7] * 8, [1]])
def test_texts_in_groups_of_like_length_give_what_each_gives_alone(lengths):
    torch.manual_seed(0)
    encoder = TextEncoder(ModelSpec(**tiny.MODEL))
    ids = torch.randint(5, 400, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    groups = length_groups(mask)
    assert sorted(row for rows, _ in groups for row in rows.tolist()) == list(range(len(lengths)))
    assert all(lengths[row] <= length for rows, length in groups for row in rows.tolist())
    weight = torch.randn(*ids.shape, tiny.MODEL["width"]) * mask[..., None]  # only real tokens count
    found = encoder(ids, mask)
    (found * weight).sum().backward()
    gradient = encoder.bert.embeddings.word_embeddings.weight.grad.clone()
    encoder.zero_grad()
    for row, length in enumerate(lengths):
        alone = encoder.bert(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]  # (length, d)
        assert torch.allclose(found[row, :length], alone, atol=1e-5)
        (alone * weight[row, :length]).sum().backward()
    assert torch.allclose(gradient, encoder.bert.embeddings.word_embeddings.weight.grad, atol=1e-4)
