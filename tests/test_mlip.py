"""MLIP: its losses against other code, the divergence encoders; overfitting; a run from pre-training to answers."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F

from amif_lib.experiments import stored
from amif_lib.methods.mlip import pretraining
from amif_lib.methods.mlip.network import MLIP
from amif_lib.methods.mlip.objectives import info_nce, sinkhorn_assignments, token_info_nce
from amif_lib.networks import pretrained
from amif_lib.networks.sizes import ModelSpec
from amif_lib.objectives.contrastive import soft_label_kl
from amif_lib.training.prepare import prepare
from tests import tiny, tiny_mlip
from tests.tiny_mlip import LOSSES

pytestmark = pytest.mark.usefixtures("own_results")


def only(*names: str, **objective: object):
    return tiny_mlip.pretraining(**{f"weight_{name}": float(name in names) for name in LOSSES}, **objective)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# --- formulas --------------------------------------------------------------------------------------------------------


def test_info_nce_is_log_n_on_constant_features_and_kl_from_one_hot_labels():
    positive, cosines = torch.tensor([3, 0, 5]), draw(3, 8)
    assert float(info_nce(torch.full((3, 8), 0.4), 0.07, positive)) == pytest.approx(math.log(8), rel=1e-5)
    torch.testing.assert_close(info_nce(cosines, 0.5, positive), soft_label_kl(cosines / 0.5, F.one_hot(positive, 8)))


def test_token_info_nce_is_the_weighted_sum_over_real_tokens():
    cosines, weights = draw(2, 5, 5), torch.tensor([[0.1, 0.2, 0.3, 0.2, 0.2], [0.5, 0.3, 0.2, 0.0, 0.0]])
    mask, expected = weights > 0, 0.0
    for i, n in enumerate((5, 3)):
        own = cosines[i, :n, :n] / 0.1
        rows, columns = F.log_softmax(own, 1).diagonal(), F.log_softmax(own, 0).diagonal()
        expected -= float((weights[i, :n] * (rows + columns)).sum()) / 4
    cosines.requires_grad_()
    loss = token_info_nce(cosines, 0.1, weights, mask)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert cosines.grad.isfinite().all() and not cosines.grad[1, 3:].any() and not cosines.grad[1, :, 3:].any()
    assert float(token_info_nce(torch.eye(5)[None], 0.01, weights[:1])) < 1e-6  # least where each token finds its own


def test_assignments_are_sinkhorns_plan():
    scores = F.normalize(draw(12, 6), dim=1) @ F.normalize(draw(4, 6), dim=1).T
    found = sinkhorn_assignments(scores, 0.1, 500)
    uniform = np.full(12, 1 / 12), np.full(4, 1 / 4)
    plan = ot.sinkhorn(*uniform, -scores.double().numpy(), 0.1, numItermax=5000, stopThr=1e-12)
    np.testing.assert_allclose(found / 12, plan, atol=1e-6)
    few = sinkhorn_assignments((1e3 * scores).half(), 1.0)  # exponentials would overflow
    torch.testing.assert_close(few.sum(1), torch.ones(12))
    assert few.dtype == torch.float32 and not few.requires_grad


def test_the_loss_of_categories_is_positive_and_cross_entropy_for_one_hot_targets():
    v, t, prototypes, right = draw(6, 8), draw(6, 9)[:, :8], F.normalize(draw(4, 8), dim=1), torch.arange(6) % 4
    v_, t_ = F.normalize(v, dim=1), F.normalize(t, dim=1)
    expected = -sum(
        F.log_softmax(prototypes @ x[i] / pretraining.TAU_CATEGORY, 0)[right[i]] for x in (v_, t_) for i in range(6)
    )
    found = pretraining.category_loss(v, t, prototypes, F.one_hot(right, 4).float())
    torch.testing.assert_close(found, expected / 12)
    assert pretraining.category_loss(v, t, prototypes, torch.full((6, 4), 0.25)) >= math.log(4)


def test_the_gradient_of_prototypes():
    """(p - u) times features, without the part along the prototype, since only its direction matters."""
    v, t, u, free = draw(6, 8), draw(6, 9)[:, :8], draw(6, 4).softmax(1), draw(4, 8).requires_grad_()
    pretraining.category_loss(v, t, pretraining.unit(free), u).backward()
    j = F.normalize(free.detach(), dim=1)
    tau, slope = pretraining.TAU_CATEGORY, torch.zeros(4, 8)
    for x in (F.normalize(v, dim=1), F.normalize(t, dim=1)):
        slope += ((x @ j.T / tau).softmax(1) - u).T @ x / (12 * tau)
    slope = (slope - (slope * j).sum(1, keepdim=True) * j) / free.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(free.grad, slope, atol=1e-6, rtol=1e-4)


def test_the_relevance_of_a_pair_by_hand():
    v, t, p, s = pretraining.unit(draw(2, 8)), pretraining.unit(draw(2, 9)[:, :8]), draw(2, 6, 8), draw(2, 5, 8)
    words = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = pretraining.relevance(v, t, p, s, words)
    for i, n in enumerate((5, 3)):
        of_text = (p[i] @ s[i, :n].T / 8**0.5).softmax(1) @ s[i, :n]
        of_image = (s[i, :n] @ p[i].T / 8**0.5).softmax(1) @ p[i]
        cosine = F.cosine_similarity(of_text.mean(0), of_image.mean(0), dim=0)
        torch.testing.assert_close(found[i], v[i] @ t[i] + pretraining.ALPHA * cosine)


def test_weights_of_tokens_are_clipped_to_quantiles_and_sum_to_one():
    attention = draw(3, 10).softmax(1)
    mask = torch.arange(10) < torch.tensor([[10], [6], [1]])
    w = pretraining.clipped(attention, mask)
    torch.testing.assert_close(w.sum(1), torch.ones(3))
    assert not w[~mask].any()
    own = attention[1, :6].numpy()
    expected = np.clip(own, *np.quantile(own, (0.1, 0.9)))
    np.testing.assert_allclose(w[1, :6], expected / expected.sum(), rtol=1e-5)


# --- matching and swapping -------------------------------------------------------------------------------------------


def test_others_have_another_study_and_text_and_gamma_of_the_texts_are_swapped():
    module, batch = only("itm"), tiny_mlip.batch(12)
    batch.group, batch.text_key = torch.arange(12) // 2, torch.arange(12) % 5
    seen, shares = set(), []
    for batch.step in range(60):
        other, valid = module.others(batch, 0)
        assert valid.all()
        seen |= set(enumerate(other.tolist()))
        shares.append(float(module.others(batch, 1, 0.5)[1].float().mean()))
    assert all(i // 2 != j // 2 and i % 5 != j % 5 for i, j in seen) and len(seen) > 80
    assert sum(shares) / 60 == pytest.approx(0.5, abs=0.06)
    batch.group = torch.zeros(12, dtype=torch.long)
    assert not module.others(batch, 0)[1].any() and float(module(batch)["itm"].detach()) == 0


def test_the_hinges_are_zero_where_margins_are_met_and_the_margin_where_all_is_alike():
    module, batch = only("swap"), tiny_mlip.batch()
    basis, words = torch.eye(8), torch.ones(8, 5, dtype=torch.bool)
    swapped = module.others(batch, 1, pretraining.SWAPPED)[1].float().mean()
    for features, expected in ((basis, 0.0), (basis[[0] * 8], 0.2 * float(swapped))):
        patches, tokens = features[:, None].expand(-1, 6, -1), features[:, None].expand(-1, 5, -1)
        found = module.text_swapping(batch, features, features, patches, tokens, words)
        assert float(found) == pytest.approx(expected, abs=1e-6)
    alike = tiny_mlip.batch()
    alike.views, alike.view = alike.views[:1].expand(8, -1, -1, -1, -1), torch.zeros(8, dtype=torch.long)
    module = only("itm")
    assert float(module(alike)["itm"].detach()) == pytest.approx(0.2, abs=1e-6)
    tiny.overfit(module, tiny_mlip.batch(), "itm", 2e-3)
    assert float(module(batch)["itm"].detach()) == 0


# --- divergence encoders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["similarity", "momentum", "inverse"])
@torch.no_grad()
def test_divergence_encoders_move_by_s_with_their_buffers(update):
    mlip, batch = MLIP(ModelSpec(**tiny.MODEL)), tiny_mlip.batch()
    mlip.text_encoder.extra = torch.nn.BatchNorm1d(4)  # which has buffers
    module = tiny_mlip.pretraining(mlip=mlip, divergence=update)
    for value in module.mlip.text_encoder.state_dict().values():  # an optimiser's step
        value.add_(torch.randn_like(value) * 0.05 if value.is_floating_point() else 7)
    before = {name: value.clone() for name, value in module.divergence["text"].state_dict().items()}
    module(batch)
    one, two = (f(batch.ids, batch.mask)[:, 0] for f in (module.mlip.text_encoder, module.divergence["text"]))
    s = float(F.cosine_similarity(one, two).mean())
    found = module.after_step()
    assert 0 < float(found["similarity_text"]) < 1 and float(found["similarity_text"]) == pytest.approx(s, abs=1e-5)
    share = {"similarity": s, "momentum": 0.005, "inverse": 1 - s}[update]
    for name, new in module.mlip.text_encoder.state_dict().items():
        own = module.divergence["text"].state_dict()[name]
        floats = own.is_floating_point()
        torch.testing.assert_close(own, share * new + (1 - share) * before[name] if floats else new)
    assert {"extra.running_mean", "extra.num_batches_tracked"} <= before.keys()


@torch.no_grad()
def test_s_stays_between_zero_and_one():
    module, batch = tiny_mlip.pretraining(), tiny_mlip.batch()
    for parameter in module.divergence["image"].vit.post_layernorm.parameters():
        parameter.neg_()  # opposite outputs
    before = [value.clone() for value in module.divergence["image"].parameters()]
    module(batch)
    assert float(module.after_step()["similarity_image"]) == 0
    assert all(torch.equal(*pair) for pair in zip(before, module.divergence["image"].parameters(), strict=True))


def test_as_printed_the_divergence_encoder_becomes_its_encoder():
    """Without dropout s is 1 for the text, a fixed point; the other two updates lag behind."""
    gaps = {}
    for update in ("similarity", "momentum", "inverse"):
        module = only("global", divergence=update)
        tiny.overfit(module, tiny_mlip.batch(), "global", 1e-3, 10)
        gaps[update] = module.after_step()
    assert float(gaps["similarity"]["similarity_text"]) == pytest.approx(1, abs=1e-5)
    assert float(gaps["similarity"]["gap_text"]) < 1e-6 < 1e-3 < float(gaps["momentum"]["gap_text"])
    assert float(gaps["inverse"]["gap_text"]) > 1e-3
    assert not any(p.requires_grad for p in module.divergence.parameters())


@torch.no_grad()
def test_the_distance_of_the_encoders_is_that_of_what_is_trained():
    """Not of a frozen trunk, which both share and which would make it smaller."""
    frozen = MLIP(ModelSpec(**tiny.MODEL))
    frozen.text_encoder.frozen = torch.nn.Linear(500, 500).requires_grad_(False)
    gaps = []
    for mlip in (MLIP(ModelSpec(**tiny.MODEL)), frozen):
        module = tiny_mlip.pretraining(mlip=mlip, divergence="momentum")
        for parameter in module.divergence["text"].bert.parameters():
            parameter.mul_(1.1)
        module(tiny_mlip.batch())
        gaps.append(float(module.after_step()["gap_text"]))
    assert gaps == pytest.approx([0.1 * 0.995] * 2, rel=1e-3)


@torch.no_grad()
def test_the_vector_for_no_entity_starts_as_long_as_those_of_entities():
    """Longer, it would fill z, in which a few entities could hardly be heard."""
    entities, known = tiny_mlip.pretraining().entities(tiny_mlip.batch())
    lengths = entities.norm(dim=-1)
    own = lengths[:, 1:][known[:, 1:]]
    assert own.min() < lengths[0, 0] < own.max()


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_each_objective_overfits_a_batch(name):
    module = only(name)
    assert set(module.weights) == {name}
    rate = 5e-4 if name == "category" else 2e-3  # its targets move with the prototypes; .65 is what all alike gives
    losses = tiny.overfit(module, tiny_mlip.batch(), name, rate, 100 if name == "local" else 30)
    assert losses[-1] < {"global": 0.1, "local": 0.6, "category": 0.6, "itm": 0.1, "swap": 0.1}[name] * losses[0]


def test_every_parameter_is_reached_and_a_switched_off_term_reads_one_view():
    module, batch = tiny_mlip.pretraining(), tiny_mlip.batch()
    tiny.total(module, module(batch)).backward()
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert not any("tucker" in name or "divergence" in name for name in trained)
    plain = only("global", "itm", weight_divergence=0.0)
    assert not plain.divergence and plain.after_step() == {}
    batch.views, batch.view = batch.views[:, :1], torch.zeros(8, dtype=torch.long)
    assert set(plain(batch)) == {"global", "itm", "retrieval_i2t", "retrieval_t2i"}


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(own_results):
    return tiny.trained(tiny_mlip.run())


def test_a_run_leaves_answers_and_its_model_gives_them_again(finished):
    metrics = stored.load_run(finished.parent).metrics
    assert metrics["knowledge"]["entities"] > 5 and metrics["prototypes"] == 4
    assert set(metrics["last_epoch"]) >= {*LOSSES, "retrieval_i2t", "similarity_image", "gap_text", "total"}
    tiny.same_answers_again(finished)


def test_weights_travel_from_pre_training_into_fine_tuning(finished):
    before, module = finished.parent.directory / "model", prepare(finished).module
    state, own = pretrained.read_state(before), module.model.mlip.state_dict()
    assert set(own) == {name for name in state if "projection" not in name or "proj." in name}
    assert all(torch.equal(own[name], state[name]) for name in own)
    loaded = {name for name, parameter in module.model.named_parameters() if hasattr(parameter, "loaded")}
    assert loaded == {name for name, _ in module.model.named_parameters() if name.startswith("mlip.")}
    random = prepare(finished.parent).module.mlip.state_dict()
    name = "text_encoder.bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(own[name], random[name])  # trained


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(stage, finished, monkeypatch):
    pretraining = ("similarity_image", "gap_image") if stage == "pretrain" else ()
    tiny.same_when_interrupted(finished, stage, monkeypatch, *pretraining)
