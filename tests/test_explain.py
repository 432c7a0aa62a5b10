"""What the maps of `AMiFForVQA.explain` mean: recomputed by hand, and on a model built to look at one patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from amif_lib.core.errors import InputError
from amif_lib.methods.amif import knowledge
from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks import tokenizers
from amif_lib.networks.sizes import ModelSpec
from tests import tiny

QUESTION = "is there a nodule in the left lung hung"
SIDE = 4  # patches: 32 pixels by 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["is there a nodule in the left lung", "the heart is enlarged", "yes", "no", "axial"]
    return tokenizers.train(texts * 2, 120, tmp_path_factory.mktemp("tokenizer"))


def make(tokenizer, question_length=20, **changes):
    torch.manual_seed(0)
    spec = ModelSpec(**(tiny.MODEL | {"vocab_size": 120, "fusion_layers": 2} | changes))
    ids, _ = knowledge.select(["yes", "no", "left lung"], tokenizer, 64)
    return AMiFForVQA(spec, KnowledgeSpec(), ids, tokenizer, question_length, 8).eval()


@pytest.fixture(scope="module")
def vqa(tokenizer):
    return make(tokenizer)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def inside(vqa, picture):
    """Question tokens and the network's intermediates."""
    pixels, ids, mask = vqa.inputs(picture, QUESTION)
    with torch.inference_mode():
        return ids[0].tolist(), vqa.encode_with_maps(pixels, ids, mask, return_weights=True)[2]


def places(vqa, tokens, word):
    pieces = vqa.tokenizer(word, add_special_tokens=False)["input_ids"]
    return next(i for i in range(len(tokens)) if tokens[i : i + len(pieces)] == pieces) + np.arange(len(pieces))


def plan_by_hand(image, text, content, beta=0.5, iterations=50):
    """IPOT as its authors write it, in float64: cosine cost, uniform masses, real columns only."""
    x, y = (t.double().numpy() / np.linalg.norm(t.double().numpy(), axis=1, keepdims=True) for t in (image, text))
    kernel = np.exp(-(1 - x @ y[content].T) / beta)  # (p, content)
    a, b = np.full(len(x), 1 / len(x)), np.full(len(content), 1 / len(content))
    plan, v = np.ones_like(kernel), b.copy()
    for _ in range(iterations):
        q = kernel * plan
        u = a / (q @ v)
        v = b / (q.T @ u)
        plan = u[:, None] * q * v[None]
    return plan


@pytest.mark.parametrize("word", ["nodule", "hung", "left lung"])
def test_transport_map_is_the_words_columns_of_the_plan(vqa, picture, inside, word):
    tokens, maps = inside
    content = [i for i, token in enumerate(tokens) if token not in (2, 3)]
    plan = plan_by_hand(maps["image"][0, 1:], maps["text"][0], content)
    columns = [content.index(i) for i in places(vqa, tokens, word)]
    found = vqa.explain(picture, QUESTION, word)["transport_plan"]
    np.testing.assert_allclose(found.numpy().ravel(), plan[:, columns].sum(1), rtol=1e-3, atol=1e-7)
    assert float(found.sum()) == pytest.approx(len(columns) / len(content), rel=1e-4)  # the word's share of the mass


@pytest.mark.parametrize("word", ["nodule", "hung"])
def test_attention_map_is_a_distribution_over_patches_without_the_class_token(vqa, picture, inside, word):
    tokens, maps = inside
    weights = maps["attentions"][-1][1][0].mean(0)  # text on image, mean over heads: (t, p+1)
    columns = list(places(vqa, tokens, word))
    assert len(columns) == {"nodule": 1, "hung": 4}[word]  # one piece, and a word spelt out
    share = sum(weights[i, 1:] for i in columns) / len(columns)
    assert float(share.sum()) < 0.99  # [CLS] has its share of attention, which the map leaves out
    found = vqa.explain(picture, QUESTION, word)["attention"]
    torch.testing.assert_close(found.flatten(), share / share.sum())
    assert float(found.sum()) == pytest.approx(1, abs=1e-5) and bool((found > 0).all())


def test_gate_map_is_the_patches_gate_and_lies_between_zero_and_one(vqa, picture, inside):
    _, maps = inside
    found = vqa.explain(picture, QUESTION, "nodule")["gate"]
    torch.testing.assert_close(found.flatten(), maps["gate"][0, 1 : 1 + SIDE**2].mean(-1))
    assert bool(((found > 0) & (found < 1)).all())
    torch.testing.assert_close(found, vqa.explain(picture, QUESTION, "left")["gate"])  # whichever the word


def test_attention_of_several_pieces_is_a_mean_and_transported_mass_a_sum(vqa, picture):
    """'left lung' is two words: attention is their mean, transported mass their sum."""
    both, left, lung = (vqa.explain(picture, QUESTION, word) for word in ("left lung", "left", "lung"))
    torch.testing.assert_close(both["transport_plan"], left["transport_plan"] + lung["transport_plan"])
    mixture = torch.stack([left["attention"], lung["attention"], both["attention"]]).flatten(1)
    low, high = mixture[:2].min(0).values, mixture[:2].max(0).values
    assert bool(((mixture[2] >= low - 1e-6) & (mixture[2] <= high + 1e-6)).all())


@pytest.mark.parametrize("word", ["spleen", "hun", "lun", "ß", "", "heart"])
def test_a_word_that_is_absent_is_refused(vqa, picture, word):
    """Also the beginning of a longer word ('hun' of 'hung'), an unknown letter, and no word at all."""
    with pytest.raises(InputError, match="is not a word of the question"):
        vqa.explain(picture, QUESTION + " ü", word)


def test_a_word_behind_the_question_length_is_refused(tokenizer, picture):
    with pytest.raises(InputError, match="'lung' is not a word"):
        make(tokenizer, question_length=7).explain(picture, QUESTION, "lung")


class FixedImage(torch.nn.Module):
    """Image tokens that are zero but for one patch (and [CLS], as strong as asked)."""

    def __init__(self, patch, cls):
        super().__init__()
        tokens = torch.zeros(1, 1 + SIDE**2, 32)
        tokens[0, 0, 0], tokens[0, 1 + patch, 0] = cls, 8.0
        self.register_buffer("tokens", tokens)

    def forward(self, images):
        return self.tokens


@pytest.mark.parametrize(("patch", "cls"), [(0, 0.0), (6, 0.0), (15, 8.0)])
def test_map_peaks_at_the_one_patch_that_cross_attention_looks_at(tokenizer, picture, patch, cls):
    model = make(tokenizer, fusion_layers=1)
    model.amif.image_encoder = FixedImage(patch, cls)
    model.amif.co_attention.pair_embedding.weight.data.zero_()
    attention = model.amif.co_attention.text_stream[0].cross_attention
    for layer in (attention.query, attention.key):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    first = [0, 16]  # the first channel of either head
    attention.query.bias.data[first] = 4.0  # every word asks for channel 0 ...
    attention.key.weight.data[first, 0] = 1.0  # ... which a patch's key is
    found = model.explain(picture, QUESTION, "nodule")["attention"]
    assert int(found.flatten().argmax()) == patch and float(found.max()) > 0.98
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)  # also where [CLS] takes half of the attention
