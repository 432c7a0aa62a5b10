"""Readings of open points in stage 1 and 2: second text side, queue, masses, text pairs, negatives, masked language modelling."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from amif_lib.methods.amif.pair_classification import negatives_drawn_from
from amif_lib.methods.amif.settings import ObjectiveSpec
from amif_lib.networks.tokenizers import content_mask
from amif_lib.objectives import masked_language, transport
from tests import tiny
from tests.test_pretraining import kl_loop


def projected(module, batch, ids=None):
    """Text projections (B, e) of the reports or of other tokens under their mask."""
    amif = module.amif
    return amif.text_projection(amif.text_encoder(batch.ids if ids is None else ids, batch.mask)[:, 0])


# --- stage 1 (points 3, 6) -------------------------------------------------------------------------------------------


def test_text_text_alignment_with_a_copy_as_second_side():
    module, batch = tiny.pretraining("stage1", global_intra="text", text_text_second="copy").eval(), tiny.batch(6)
    found = module(batch)["intra_text"].item()
    t = batch.teacher_text
    expected = kl_loop(projected(module, batch), projected(module, batch, batch.copy_ids), t, t)
    assert found == pytest.approx(expected, rel=1e-4)
    same = tiny.pretraining("stage1", global_intra="text").eval()
    assert same(batch)["intra_text"].item() != pytest.approx(found, rel=1e-3)


def test_queue_adds_the_last_steps_features_as_columns_without_gradient():
    module = tiny.pretraining("stage1", global_intra="text", global_inter=False, queue=6).train()  # dropout is 0
    first, second, third = (tiny.batch(4, seed=seed) for seed in (1, 2, 3))
    without = tiny.pretraining("stage1", global_intra="text", global_inter=False)(first)
    torch.testing.assert_close(module(first)["total"], without["total"])  # empty at first
    old = projected(module, first).detach()
    found = module(second)["total"]
    rows = projected(module, second)
    t_rows, t_old = second.teacher_text, first.teacher_text
    assert found.item() == pytest.approx(
        kl_loop(rows, torch.cat([rows, old]), t_rows, torch.cat([t_rows, t_old])), rel=1e-4
    )
    found.backward()
    gradient = module.amif.text_projection.layers.weight.grad.clone()
    module.zero_grad()
    q = torch.softmax(t_rows @ torch.cat([t_rows, t_old]).T / 0.07, -1) + 0.01 * torch.eye(4, 8)
    rows = projected(module, second)
    log_p = torch.log_softmax(rows @ torch.cat([rows, old]).T / 0.07, -1)
    (-(q * log_p).sum(-1).mean()).backward()
    torch.testing.assert_close(gradient, module.amif.text_projection.layers.weight.grad, atol=1e-6, rtol=1e-4)
    assert int(module.queue.filled) == 6  # of eight: the four newest, and two of the step before
    torch.testing.assert_close(module.queue.text[:4], projected(module, second).detach())
    torch.testing.assert_close(module.queue.text[4:], old[:2])
    module.eval()(third)
    torch.testing.assert_close(module.queue.text[4:], old[:2])  # evaluation leaves it alone


# --- transport (point 26) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["content", "all"])
def test_masses_by_attention_are_what_the_other_side_pays(tokens):
    module = tiny.pretraining(
        "stage2", marginals="attention", transport_tokens=tokens, weight_hard_negatives=0.0, model={"fusion_layers": 2}
    ).eval()
    batch, amif = tiny.batch(5), module.amif
    image = amif.image_encoder(batch.views[range(5), batch.view])
    text = amif.text_encoder(batch.ids, batch.mask)
    x, y, attentions = amif.co_attention(image, text, None, batch.mask, return_weights=True)
    on_words, on_patches = attentions[-1]  # (B, h, p+1, t), (B, h, t, p+1)
    total = 0.0
    for i in range(5):
        columns = batch.mask[i] if tokens == "all" else content_mask(batch.ids, batch.mask, tiny.SPECIAL)[i]
        start = 0 if tokens == "all" else 1
        a = on_patches[i][:, batch.mask[i]].sum((0, 1))[start:]  # what each patch gets from the real words
        b = on_words[i].sum((0, 1))[columns]  # what each word gets from the patches
        cost = transport.cosine_cost(x[i : i + 1, start:], y[i : i + 1, columns])
        plan = transport.ipot(cost, row_mass=(a / a.sum())[None], col_mass=(b / b.sum())[None])
        torch.testing.assert_close(plan[0].sum(0), b / b.sum(), atol=1e-5, rtol=1e-3)
        total += (plan * cost).sum().item() / 5
    found = module(batch)
    assert found["local"].item() == pytest.approx(total, rel=1e-4)
    assert found["collapse/col_violation"].item() < 1e-4  # judged by the same masses
    uniform = tiny.pretraining("stage2", weight_hard_negatives=0.0, transport_tokens=tokens, model={"fusion_layers": 2})
    assert uniform.eval()(batch)["local"].item() != pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("objective", [{}, {"local_contrast": "positives_minus_negatives"}])
def test_attention_masses_train(objective):
    found = tiny.pretraining("stage2", marginals="attention", **objective)(tiny.batch())
    found["total"].backward()
    assert torch.isfinite(found["total"])


def test_attention_masses_without_attention_are_refused():
    with pytest.raises(ValidationError, match="transport_on is 'unimodal'"):
        ObjectiveSpec(marginals="attention", transport_on="unimodal")


# --- pairs (points 16, 17, 22) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "pairs"),
    [
        ({}, 6),
        ({"text_positive": "none"}, 5),
        ({"pair_positives": "image_text"}, 4),
        ({"pair_positives": "none"}, 3),
        ({"negative_directions": "both"}, 7),
        ({"pair_types": ("text_text",), "text_positive": "halves"}, 2),
    ],
)
def test_mean_over_pairs_is_their_sum_over_their_number(objective, pairs):
    values = {}
    for reduction in ("sum", "mean"):
        module = tiny.pretraining("stage2", pair_reduction=reduction, **objective).eval()
        values[reduction] = module(tiny.batch())["hard_negatives"].item()
    assert values["sum"] == pytest.approx(pairs * values["mean"], rel=1e-5)


ONE_VIEW = {"pair_positives": "image_text", "image_image_views": "one"}


@pytest.mark.parametrize("weight_global", [0.0, 1.0])
def test_one_view_stands_on_both_sides_of_a_pair_of_images(weight_global):
    """By hand: (V,V) negatives pair the drawn views of both samples; nothing but L_global reads the other view."""
    objective = ONE_VIEW | {"pair_types": ("image_image",), "weight_local": 0.0, "weight_global": weight_global}
    module, batch = tiny.pretraining("stage2", **objective).eval(), tiny.batch(8)
    amif, rows = module.amif, torch.arange(8)
    drawn = amif.image_encoder(batch.views[rows, batch.view])
    mined = module.mine(batch, drawn, (drawn, drawn), None)["image_image"]
    label = batch.view_label[rows, batch.view]
    assert mined.valid.any() and (label[mined.index[mined.valid]] == label[mined.valid]).all()
    pair = amif.co_attention(drawn, drawn[mined.index.clamp_min(0)], None, None, "image_image")[:2]
    each = torch.nn.functional.cross_entropy(
        amif.pair_head(*pair, None, None, "image_image"), torch.ones(8, dtype=torch.long), reduction="none"
    )
    found = module(batch)["hard_negatives"]
    torch.testing.assert_close(found, (each * mined.valid).mean())
    if weight_global:
        return
    other = type(batch)(**vars(batch) | {"views": batch.views.clone()})
    other.views[rows, 1 - batch.view] = torch.nan
    torch.testing.assert_close(module(other)["hard_negatives"], found)


def test_negatives_of_one_view_are_mined_among_drawn_views_beside_the_global_loss(monkeypatch):
    """The student's own similarities are then of V_i alone, though L_global has both views encoded."""
    objective = ONE_VIEW | {"weight_global": 1.0, "negative_distribution": "student"}
    module, batch = tiny.pretraining("stage2", **objective).eval(), tiny.batch(8)
    mine, seen = module.mine, []
    monkeypatch.setattr(module, "mine", lambda *given: seen.append(given[2]) or mine(*given))
    module(batch)
    drawn = module.amif.image_encoder(batch.views[torch.arange(8), batch.view])
    for side in seen[0]:
        torch.testing.assert_close(side, drawn)


def test_one_view_is_neither_made_nor_encoded_twice_and_is_no_positive():
    assert ObjectiveSpec().reads_both_views("stage2") and not ObjectiveSpec(**ONE_VIEW).reads_both_views("stage2")
    assert ObjectiveSpec(**ONE_VIEW, weight_global=1.0).reads_both_views("stage2")  # Eq. 6-8 compare the views
    with pytest.raises(ValidationError, match="an image with itself as a positive"):
        ObjectiveSpec(image_image_views="one")


@pytest.mark.parametrize("source", ["soft_labels", "student"])
def test_one_view_with_the_global_loss_kept_and_with_every_source_of_negatives(source):
    objective = ONE_VIEW | {"weight_global": 1.0, "global_intra": "text", "negative_distribution": source}
    module = tiny.pretraining("stage2", **objective)
    found = module(tiny.batch())
    found["total"].backward()
    assert torch.isfinite(found["total"]) and found["global"] > 0


def test_halves_pair_first_half_with_own_and_with_anothers_second_half():
    module, batch = tiny.pretraining("stage2", text_positive="halves", pair_types=("text_text",)).eval(), tiny.batch(6)
    amif = module.amif
    first, second = (amif.text_encoder(batch.halves_ids[:, k], batch.halves_mask[:, k]) for k in (0, 1))
    masks = batch.halves_mask.unbind(1)
    text = amif.text_encoder(batch.ids, batch.mask)
    index = module.mine(batch, None, None, text)["text_text"].index
    losses = []
    for partner, mask, label in ((second[index], masks[1][index], 1), (second, masks[1], 0)):
        x, y, _ = amif.co_attention(first, partner, masks[0], mask, "text_text")
        logits = amif.pair_head.linear(torch.cat([x[:, 0], y[:, 0]], -1))
        losses.append(F.cross_entropy(logits, torch.full((6,), label)))
    torch.testing.assert_close(module(batch)["hard_negatives"], sum(losses))


# --- hard negatives (point 19, and one-hot labels) ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "teacher", "source"),
    [
        ({}, True, "soft labels H"),
        ({"labels": "one_hot"}, True, "teacher's Q"),
        ({"labels": "one_hot"}, False, "student's P"),
        ({"negative_distribution": "student"}, True, "student's P"),
        ({"negative_distribution": "top_k", "negative_top_k": 3}, True, "soft labels H, highest 3"),
        ({"negative_distribution": "top_k", "labels": "one_hot"}, False, "student's P, highest 5"),
    ],
)
def test_name_of_the_distribution_that_negatives_are_drawn_from(objective, teacher, source):
    assert negatives_drawn_from(ObjectiveSpec(**objective), teacher) == source


def mined(**objective):
    teacher = objective.pop("teacher", True)
    module, batch = tiny.pretraining("stage2", **objective).eval(), tiny.batch(8, teacher=teacher)
    text = module.amif.text_encoder(batch.ids, batch.mask)
    both = [module.amif.image_encoder(batch.views[:, k]) for k in (0, 1)]
    image = torch.stack(both, 1)[range(8), batch.view]
    return {kind: drawn.index.tolist() for kind, drawn in module.mine(batch, image, both, text).items()}, module, batch


def test_one_hot_labels_draw_as_soft_ones_with_a_teacher_and_as_the_student_without():
    assert mined(labels="one_hot")[0] == mined()[0]
    assert mined(labels="one_hot", teacher=False)[0] == mined(negative_distribution="student")[0] != mined()[0]


def test_the_single_highest_negative_is_the_most_similar_one():
    found, _, batch = mined(negative_distribution="top_k", negative_top_k=1)
    similarity = (batch.teacher_text @ batch.teacher_text.T).fill_diagonal_(-2)
    assert found["text_text"] == similarity.argmax(1).tolist()


def test_the_students_own_similarity_uses_the_projection_of_the_alignment():
    _, module, batch = mined(negative_distribution="student", model={"projection_sharing": "alignment"})
    amif = module.amif
    both = [amif.image_encoder(batch.views[:, k]) for k in (0, 1)]
    image = torch.stack(both, 1)[range(8), batch.view]
    text = amif.text_encoder(batch.ids, batch.mask)
    sides, temperature = module._similar_sides(batch, image, both, text)
    views, own = [amif.intra_image_projection(x[:, 0]) for x in both], amif.intra_text_projection(text[:, 0])
    expected = {
        "image_text": (amif.image_projection(image[:, 0]), amif.text_projection(text[:, 0])),
        "image_image": tuple(views),
        "text_text": (own, own),
    }
    assert temperature == module.objective.temperature and set(sides) == set(expected)
    for kind, pair in expected.items():
        for found, wanted in zip(sides[kind], pair, strict=True):
            torch.testing.assert_close(found, wanted, msg=kind)


# --- masked language modelling (point 30) ---------------------------------------------------------------------------------


def test_mlm_loss_is_the_mean_over_masked_tokens_written_out():
    module, batch = tiny.pretraining("stage2", weight_mlm=0.5).double().eval(), tiny.batch(5)
    batch.views = batch.views.double()
    batch.teacher_views, batch.teacher_text = batch.teacher_views.double(), batch.teacher_text.double()
    amif, head = module.amif, module.mlm_head
    found = module(batch)
    image = amif.image_encoder(batch.views[range(5), batch.view])
    text = amif.text_encoder(batch.mlm_ids, batch.mask)
    _, fused, _ = amif.co_attention(image, text, None, batch.mask)
    words = amif.text_encoder.bert.embeddings.word_embeddings.weight
    total, count = 0.0, 0
    for i in range(5):
        for j in range(batch.ids.shape[1]):
            if not batch.mlm_chosen[i, j]:
                continue
            h = head.norm(F.gelu(head.transform(fused[i, j])))
            scores = [(h @ words[k] + head.bias[k]).item() for k in range(len(words))]
            top = max(scores)
            total -= scores[int(batch.ids[i, j])] - top - math.log(sum(math.exp(s - top) for s in scores))
            count += 1
    assert count > 5 and found["mlm"].item() == pytest.approx(total / count, rel=1e-5)
    expected = found["local"] + found["hard_negatives"] + 0.5 * found["mlm"]
    assert found["total"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_mlm_head_exists_only_with_a_weight_and_shares_the_word_embeddings():
    assert tiny.pretraining("stage2").mlm_head is None and tiny.pretraining("stage1", weight_mlm=1.0).mlm_head is None
    module = tiny.pretraining("stage2", weight_mlm=1.0, weight_local=0.0, weight_hard_negatives=0.0)
    assert sum(p.numel() for p in module.mlm_head.parameters()) == 32 * 32 + 32 + 2 * 32 + 400  # no second matrix
    batch = tiny.batch()
    module(batch)["total"].backward()
    unread = next(i for i in range(5, 400) if i not in batch.mlm_ids)
    words = module.amif.text_encoder.bert.embeddings.word_embeddings.weight
    assert bool(words.grad[unread].any())  # it is predicted against, though read nowhere
    trained = {name.split(".")[1] for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"image_encoder", "text_encoder", "co_attention"} <= trained


def test_a_batch_without_masked_tokens_has_no_mlm_loss():
    batch = tiny.batch()
    batch.mlm_chosen = torch.zeros_like(batch.mlm_chosen)
    found = tiny.pretraining("stage2", weight_mlm=1.0)(batch)
    found["total"].backward()
    assert found["mlm"].item() == 0


def test_corruption_masks_replaces_and_keeps_in_berts_shares_and_never_special_tokens():
    special, tokens = {0, 1, 2, 3, 4}, np.concatenate([[2], np.resize(np.arange(5, 50), 20_000), [3]])
    out, chosen = masked_language.corrupt(tokens, special, 4, 400, 0.15, np.random.default_rng(0))
    assert not chosen[[0, -1]].any() and np.array_equal(out[~chosen], tokens[~chosen])
    assert chosen.mean() == pytest.approx(0.15, abs=0.01)
    shares = Counter(np.select([out == 4, out == tokens], ["masked", "kept"], "other")[chosen])
    for kind, share in {"masked": 0.8, "other": 0.1, "kept": 0.1}.items():
        assert shares[kind] / chosen.sum() == pytest.approx(share, abs=0.025)
    assert not special & set(out[chosen & (out != 4)].tolist())
