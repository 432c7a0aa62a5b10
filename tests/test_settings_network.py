"""The network's readings of open points: co-attention, heads, projections, norms, decoder, knowledge."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amif_lib.app import smoke
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.methods.amif import knowledge
from amif_lib.methods.amif.network import AMiF, AMiFForVQA
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks import pretrained, tokenizers
from amif_lib.networks.decoder import AnswerDecoder, crosses
from amif_lib.networks.fusion import CoAttention, GatedCrossAttention
from amif_lib.networks.sizes import ModelSpec
from amif_lib.training import prepare
from tests import tiny


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def reached(module):
    """Top-level parts with a gradient that is not zero."""
    return {
        name.split(".")[0]
        for name, p in module.named_parameters()
        if p.grad is not None and bool(p.grad.abs().sum() > 0)
    }


def sides():
    torch.manual_seed(1)
    return torch.randn(2, 5, 16), torch.randn(2, 4, 16), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()


# --- co-attention (points 12, 13) ----------------------------------------------------------------------------------


def test_one_way_leaves_the_image_side_as_it_was():
    torch.manual_seed(0)
    module, (a, b, mask) = CoAttention(16, 2, 2, 0.0, "one_way").eval(), sides()
    for kind in ("image_text", "image_image", "text_text"):
        x, y, attentions = module(a, b, None, mask, kind, return_weights=True)
        assert torch.equal(x, a) and not torch.allclose(y, b)
        assert not torch.allclose(module(a + 1, b, None, mask, kind)[1], y)  # the other side does look at it
        assert all(on_b is None and on_a.shape == (2, 2, 4, 5) for on_b, on_a in attentions)
    assert module.image_stream is None


def test_shared_stream_treats_both_sides_alike():
    torch.manual_seed(0)
    module, (a, b, mask) = CoAttention(16, 2, 2, 0.0, "shared").eval(), sides()
    x, y, _ = module(a, b, None, mask, "image_text")
    y2, x2, _ = module(b, a, mask, None, "image_text")
    torch.testing.assert_close(x, x2)
    torch.testing.assert_close(y, y2)
    two = CoAttention(16, 2, 2, 0.0).eval()  # and two streams do not
    assert not torch.allclose(two(a, b, None, mask)[0], two(b, a, mask, None)[1])


@pytest.mark.parametrize(
    ("choice", "kind", "first", "second"),
    [
        ("modality", "image_image", {"image_stream"}, {"image_stream"}),
        ("slot", "image_image", {"image_stream"}, {"text_stream"}),
        ("slot", "text_text", {"image_stream"}, {"text_stream"}),
        ("slot", "image_text", {"image_stream"}, {"text_stream"}),
        ("separate", "image_image", {"image_image_stream"}, {"image_image_stream"}),
        ("separate", "text_text", {"text_text_stream"}, {"text_text_stream"}),
        ("separate", "image_text", {"image_stream"}, {"text_stream"}),
    ],
)
def test_streams_that_the_sides_of_a_pair_run_through(choice, kind, first, second):
    torch.manual_seed(0)
    module, (a, b, mask) = CoAttention(16, 1, 2, 0.0, same_modality=choice), sides()
    for side, expected in ((0, first), (1, second)):
        module.zero_grad()
        module(a, b, None, mask, kind)[side].square().sum().backward()
        assert reached(module) - {"pair_embedding"} == expected


def test_only_two_streams_have_the_papers_size():
    with torch.device("meta"):
        sizes = {form: parameters(CoAttention(768, 6, 12, 0.0, form)) for form in ("two_stream", "one_way", "shared")}
    assert round(sizes["two_stream"] / 1e6, 2) == 113.42
    assert sizes["one_way"] == sizes["shared"] and sizes["two_stream"] - sizes["shared"] == 6 * (
        2 * 2_363_904 + 4_723_968
    )


# --- heads and projections (points 4, 17) --------------------------------------------------------------------------


def test_a_head_per_pair_type_learns_from_its_own_pairs_alone():
    module = tiny.pretraining("stage2", model={"pair_head": "per_type"}, pair_types=("image_text", "text_text"))
    module(tiny.batch())["total"].backward()
    heads = module.amif.pair_head.linear
    assert set(heads) == {"image_text", "image_image", "text_text"}
    touched = {kind for kind, head in heads.items() if head.weight.grad is not None and bool(head.weight.grad.any())}
    assert touched == {"image_text", "text_text"}
    shared = tiny.pretraining("stage2").amif.pair_head.state_dict()
    assert set(shared) == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"global_intra": "none"}, {"image_projection", "text_projection"}),
        ({"global_inter": False}, {"intra_image_projection", "intra_text_projection"}),
        ({"global_inter": False, "global_intra": "text"}, {"intra_text_projection"}),
    ],
)
def test_projections_per_alignment_learn_from_their_alignment_alone(objective, expected):
    module = tiny.pretraining("stage1", model={"projection_sharing": "alignment"}, **objective)
    module(tiny.batch())["total"].backward()
    assert {name for name in reached(module.amif) if "projection" in name} == expected
    trainable = {name.split(".")[0] for name, p in module.amif.named_parameters() if p.requires_grad}
    assert {name for name in trainable if "projection" in name} == expected


def test_projections_of_pre_training_are_not_carried_into_the_answering_model():
    empty = torch.zeros(1, dtype=torch.long)
    spec = ModelSpec(**(tiny.MODEL | {"projection_sharing": "alignment", "pair_head": "per_type"}))
    names = AMiFForVQA(spec, KnowledgeSpec(), empty, empty).state_dict()
    assert not [name for name in names if "projection" in name or "pair_head" in name]


# --- norms of the gated module (point 36) --------------------------------------------------------------------------


@pytest.mark.parametrize("pre_norm", [False, True])
def test_knowledge_encoder_equals_torchs_layer_with_norms_in_the_same_place(pre_norm):
    torch.manual_seed(0)
    ours = GatedCrossAttention(16, 2, 0.0, pre_norm=pre_norm).eval()
    theirs = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True, norm_first=pre_norm
    ).eval()
    attention, feed_forward = ours.knowledge_attention, ours.knowledge_feed_forward
    for norm in (attention.norm, feed_forward.norm):
        nn.init.normal_(norm.weight)
    qkv = (attention.query, attention.key, attention.value)
    theirs.self_attn.in_proj_weight.data = torch.cat([part.weight.data for part in qkv])
    theirs.self_attn.in_proj_bias.data = torch.cat([part.bias.data for part in qkv])
    pairs = [(attention.output, theirs.self_attn.out_proj), (attention.norm, theirs.norm1)]
    pairs += [
        (feed_forward.inner, theirs.linear1),
        (feed_forward.output, theirs.linear2),
        (feed_forward.norm, theirs.norm2),
    ]
    for own, other in pairs:
        other.load_state_dict(own.state_dict())
    x = 3 * torch.randn(1, 7, 16)
    torch.testing.assert_close(ours.encode_knowledge(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_pre_norm_keeps_the_residual_unnormed_and_adds_no_parameters():
    torch.manual_seed(0)
    pre, post = GatedCrossAttention(16, 2, 0.0, pre_norm=True), GatedCrossAttention(16, 2, 0.0)
    assert parameters(pre) == parameters(post)
    for part in (pre.cross_attention, pre.feed_forward):  # blocks that add nothing
        nn.init.zeros_(part.output.weight), nn.init.zeros_(part.output.bias)
    joint, prior = 5 * torch.randn(2, 5, 16), torch.randn(1, 7, 16)
    torch.testing.assert_close(pre(joint, prior)[0], joint)


# --- decoder (points 37, 38) ---------------------------------------------------------------------------------------


def test_layers_that_cross_attend():
    def chosen(layers, cross, placement):
        return [i for i in range(layers) if crosses(i, layers, cross, placement)]

    assert chosen(12, 6, "last") == [6, 7, 8, 9, 10, 11]
    assert chosen(12, 6, "first") == [0, 1, 2, 3, 4, 5]
    assert chosen(12, 6, "alternate") == [1, 3, 5, 7, 9, 11]
    for layers in range(1, 13):
        for cross in range(1, layers + 1):
            assert {len(chosen(layers, cross, placement)) for placement in ("last", "first", "alternate")} == {cross}


@pytest.mark.parametrize("placement", ["last", "first", "alternate"])
def test_decoder_of_paper_size_wherever_it_cross_attends(placement):
    with torch.device("meta"):
        tied = AnswerDecoder(28_996, 768, 12, 6, 12, 512, 0.1, placement)
        untied = AnswerDecoder(28_996, 768, 12, 6, 12, 512, 0.1, placement, tied=False)
    assert parameters(tied) == 122_524_228 and parameters(untied) == 122_524_228 + 28_996 * 768
    found = [layer.cross_attention is not None for layer in tied.layers]
    assert found == [crosses(i, 12, 6, placement) for i in range(12)]


def test_untied_output_starts_as_the_word_embeddings_and_goes_its_own_way(tmp_path):
    source = smoke.write_bert(
        tmp_path / "bert",
        120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    init = {"image": "random", "text": "random", "decoder": source, "tokenizer": source}
    model = {"vocab_size": 120, "decoder_output": "untied"}
    run = tiny.run(init=init, model=model, data={"pretrain": []}).model_copy(update={"parent": None})
    decoder = prepare.prepare(run).module.model.decoder
    words = pretrained.bert_state(pretrained.read_state(tmp_path / "bert"))["embeddings.word_embeddings.weight"]
    assert torch.equal(decoder.output_embeddings.weight, words) and torch.equal(decoder.word_embeddings.weight, words)
    tied = AnswerDecoder(120, 32, 2, 1, 2, 64, 0.0)
    tied.load_state_dict(decoder.state_dict(), strict=False)
    ids, memory = torch.randint(5, 120, (2, 6)), torch.randn(2, 4, 32)
    torch.testing.assert_close(decoder(ids, None, memory).logits, tied(ids, None, memory).logits)
    decoder.loss(ids, torch.ones(2, 6).bool(), memory, None).sum().backward()
    unseen = next(i for i in range(5, 120) if i not in ids)  # read nowhere: only the output layer learns of it
    assert not decoder.word_embeddings.weight.grad[unseen].any() and decoder.output_embeddings.weight.grad[unseen].any()


# --- knowledge (points 32, 33, 34) ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = ["left lung", "right lung", "the heart", "pleural effusion", "yes", "no"]
    return tokenizers.train(words * 2, 120, tmp_path_factory.mktemp("tokenizer"))


def answering(tokenizer, answers, spec, **model):
    torch.manual_seed(0)
    size = ModelSpec(**(tiny.MODEL | {"vocab_size": 120} | model))
    limit = knowledge.token_limit(spec, size.text_positions)
    ids, owner, left_out = knowledge.select(answers, tokenizer, limit, words=spec.form == "words")
    return AMiFForVQA(size, spec, ids, owner, tokenizer, 16, 8), left_out


def test_words_enter_once_and_without_separators(tokenizer):
    ids, owner, left_out = knowledge.select(["left lung", "left lung", "right lung", "no"], tokenizer, 64, words=True)
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == ["left", "lung", "no", "right"] and left_out == 0
    assert owner.tolist() == [0, 1, 2, 3]  # each its own
    assert knowledge.select(["left lung", "right lung", "no"], tokenizer, 3, words=True)[2] == 1


def test_positions_per_answer_admit_more_tokens_than_the_position_table(tokenizer):
    answers = [f"{a} {b} {c}" for a in ("left", "right") for b in ("lung", "heart") for c in "abcdefghijk"]
    whole, left_out = answering(tokenizer, answers, KnowledgeSpec())
    assert left_out > 0 and 60 < len(whole.knowledge_ids) <= 64  # the table of `tiny` has 64
    model, left_out = answering(tokenizer, answers, KnowledgeSpec(positions="per_answer"))
    assert left_out == 0 and len(model.knowledge_ids) > 128
    encoder = model.amif.text_encoder.eval()
    found = knowledge.embed(encoder, model.knowledge_ids, model.knowledge_answer, model.knowledge)[0]
    for answer in range(3):
        own = model.knowledge_answer == answer
        torch.testing.assert_close(found[own], encoder.embed(model.knowledge_ids[own][None])[0])
    assert model.eval().knowledge_tokens().isfinite().all()


@pytest.mark.parametrize("positions", ["sequence", "per_answer"])
def test_frozen_embedder_is_the_encoder_at_the_start_and_gets_no_gradient(tokenizer, positions, tmp_path):
    answers = ["left lung", "left lung", "no", "pleural effusion"]
    spec = KnowledgeSpec(embedder="frozen", positions=positions)
    model, _ = answering(tokenizer, answers, spec, dropout=0.3)
    assert not model.knowledge_tokens().isfinite().any()  # nothing goes on unnoticed without freeze_knowledge
    model.train().freeze_knowledge()
    encoder = model.amif.text_encoder.eval()
    ids, owner = model.knowledge_ids, model.knowledge_answer
    parts = [ids[owner == k] for k in range(3)] if positions == "per_answer" else [ids]
    expected = torch.cat([encoder(part[None], torch.ones(1, len(part)).bool())[0] for part in parts])
    torch.testing.assert_close(model.knowledge_embedding, expected, atol=1e-5, rtol=1e-4)
    model.train().knowledge_tokens().square().sum().backward()
    assert reached(model) == {"gated_cross_attention"}
    before = model.eval().knowledge_tokens()
    for p in encoder.parameters():
        p.data.add_(1.0)
    assert torch.equal(model.knowledge_tokens(), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(AMiFForVQA.from_pretrained(tmp_path).knowledge_tokens(), before)


def test_trained_embedder_gets_a_gradient(tokenizer):
    model, _ = answering(tokenizer, ["left lung", "no"], KnowledgeSpec())
    model.knowledge_tokens().square().sum().backward()
    assert reached(model) == {"gated_cross_attention", "amif"}


@pytest.mark.parametrize("source", ["answers", "questions"])
def test_test_vocabulary_enters_the_knowledge_only_where_asked(source, tmp_path, monkeypatch):
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))

    def vocabulary(which):
        settings = {"source": source, "vocabulary": which, "positions": "per_answer", "max_tokens": 10_000}
        run = tiny.run(data={"pretrain": [], "max_questions": 200}, knowledge=settings)
        prepared = prepare.prepare(run.model_copy(update={"parent": None}))
        model = prepared.module.model
        pieces = prepared.tokenizer.convert_ids_to_tokens(model.knowledge_ids.tolist())
        texts = " ".join(pieces).split(" [SEP]")
        split = {name: set() for name in ("train", "test")}
        for q in prepared.questions:
            text = q.answer if source == "answers" else q.question.lower()
            split[q.split].add(" ".join(prepared.tokenizer.tokenize(text)))
        return {text.strip() for text in texts if text.strip()}, split

    train, split = vocabulary("train")
    both, _ = vocabulary("train+test")
    assert train == split["train"] and both == split["train"] | split["test"] != train


def test_amif_with_every_alternative_saves_and_loads(tmp_path):
    changes = {"co_attention": "shared", "same_modality_pairs": "separate", "projection_sharing": "alignment"}
    spec = ModelSpec(**(tiny.MODEL | changes | {"pair_head": "per_type", "pair_pooler": "tanh", "projection": "mlp"}))
    model = AMiF(spec)
    model.save(tmp_path)
    again = AMiF(spec)
    again.load(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize(
    ("sizes", "named"),
    [({"image_heads": 5}, "image_heads 5 does not divide width"), ({"patch_size": 7}, "patch_size 7 does not divide"),
     ({"decoder_cross_layers": 13}, "decoder_cross_layers 13 exceeds")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, int], named: str) -> None:
    content = {"stage": "stage1", "scale": "demo", "model": sizes}
    with pytest.raises(InputError, match=named):
        experiments.parse(content, "a spec")
