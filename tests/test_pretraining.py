"""Stage 1 and stage 2 as sums of objectives: against a float64 loop, gradients, and what is mined."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from amif_lib.objectives import transport
from tests import tiny
from tests.test_contrastive import loop_kl, loop_labels

ENCODERS = {"image_encoder", "text_encoder"}
PROJECTIONS = {"image_projection", "text_projection"}


def kl_loop(rows, columns, t_rows, t_columns, tau=0.07, weight=0.01):
    """Mean over rows of KL(H || P) with H of Eq. 5, written out number by number in float64."""
    rows, columns, t_rows, t_columns = (x.double() for x in (rows, columns, t_rows, t_columns))
    labels = loop_labels(t_rows @ t_columns.T, tau, weight, torch.arange(len(rows)))
    return loop_kl(rows @ columns.T / tau, labels)


def projected(module, batch):
    """Both views (B, e) and the text (B, e) as Eq. 1 has them, encoded one by one."""
    amif = module.amif
    z1, z2 = (amif.image_projection(amif.image_encoder(batch.views[:, k])[:, 0]) for k in (0, 1))
    return z1, z2, amif.text_projection(amif.text_encoder(batch.ids, batch.mask)[:, 0])


def test_stage1_equals_the_equations_written_out():
    module, batch = tiny.pretraining("stage1").eval(), tiny.batch(6)
    found, (z1, z2, r) = module(batch), projected(module, batch)
    z = torch.stack([z1, z2], 1)[range(6), batch.view]
    t1, t2 = batch.extras["teacher_views"].unbind(1)
    t, tr = torch.stack([t1, t2], 1)[range(6), batch.view], batch.extras["teacher_text"]
    expected = {
        "inter": (kl_loop(z, r, t, tr) + kl_loop(r, z, tr, t)) / 2,  # Eq. 6
        "intra_image": (kl_loop(z1, z2, t1, t2) + kl_loop(z2, z1, t2, t1)) / 2,  # Eq. 7
        "intra_text": kl_loop(r, r, tr, tr),  # Eq. 7
    }
    assert module.weights == dict.fromkeys(expected, 1.0)  # Eq. 8
    assert {name: found[name].item() for name in expected} == pytest.approx(expected, rel=1e-4)


def test_one_hot_labels_are_infonce():
    module = tiny.pretraining("stage1", labels="one_hot", global_intra="none").eval()
    batch = tiny.batch(6, teacher=False)
    z1, z2, r = projected(module, batch)
    logits = torch.stack([z1, z2], 1)[range(6), batch.view] @ r.T / 0.07
    expected = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(module(batch)["inter"], expected)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("none", {"inter"}), ("text", {"inter", "intra_text"}), ("both", {"inter", "intra_text", "intra_image"})],
)
def test_columns_of_table_2_switch_alignments_and_fewer_views_will_do(choice, names):
    module, batch = tiny.pretraining("stage1", global_intra=choice), tiny.batch(4)
    found = module(batch)
    assert {name for name in found if not name.startswith("retrieval_")} == names == set(module.weights)
    if choice != "both":  # a feed that makes the drawn view only: the same losses
        rows = torch.arange(4)
        batch.views = batch.views[rows, batch.view][:, None]
        batch.extras["teacher_views"] = batch.extras["teacher_views"][rows, batch.view][:, None]
        batch.view = torch.zeros(4, dtype=torch.long)
        torch.testing.assert_close(module(batch), found, atol=1e-5, rtol=1e-4)


def test_stage2_equals_its_parts_one_by_one():
    """Eq. 9 on co-attended content tokens, and Eq. 13 as a sum of six cross-entropies, each pair fused by itself."""
    module, batch = tiny.pretraining("stage2").eval(), tiny.batch(6)
    amif, found = module.amif, module(batch)
    views = torch.stack([amif.image_encoder(batch.views[:, k]) for k in (0, 1)], 1)
    text, copy = (amif.text_encoder(ids, batch.mask) for ids in (batch.ids, batch.copy_ids))
    image = views[range(6), batch.view]
    x, y, _ = amif.co_attention(image, text, None, batch.mask)
    words = batch.mask & (batch.ids != 2) & (batch.ids != 3)
    cost = transport.cosine_cost(x[:, 1:], y)
    local = (transport.ipot(cost, None, words) * cost).sum((1, 2)).mean()
    torch.testing.assert_close(found["local"], local, atol=1e-5, rtol=1e-4)
    mined, expected = module.mine(batch, views, text), torch.zeros(())
    for kind, a, b, a_mask, b_mask in (
        ("image_text", image, text, None, batch.mask),
        ("image_image", views[:, 0], views[:, 1], None, None),
        ("text_text", text, copy, batch.mask, batch.mask),
    ):
        m = mined[kind].index
        other_mask = None if b_mask is None else b_mask[m]
        for label, pair in (
            (0, amif.co_attention(a, b, a_mask, b_mask, kind)),
            (1, amif.co_attention(a, b[m], a_mask, other_mask, kind)),
        ):
            logits = amif.pair_head(pair[0], pair[1])
            expected = expected + F.cross_entropy(logits, torch.full((6,), label))
    torch.testing.assert_close(found["hard_negatives"], expected, atol=1e-5, rtol=1e-4)
    assert module.weights == {"local": 1.0, "hard_negatives": 1.0}


@pytest.mark.parametrize(
    ("stage", "objective", "expected"),
    [
        ("stage1", {}, ENCODERS | PROJECTIONS),
        ("stage2", {}, ENCODERS | {"co_attention", "pair_head"}),
        ("stage2", {"weight_hard_negatives": 0.0}, ENCODERS | {"co_attention"}),
        ("stage2", {"weight_local": 0.0}, ENCODERS | {"co_attention", "pair_head"}),
    ],
)
def test_gradients_reach_what_they_should_and_nothing_else(stage, objective, expected):
    module = tiny.pretraining(stage, **objective)
    tiny.total(module, module(tiny.batch())).backward()
    reached = [n for n, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())]
    assert {name.split(".")[1] for name in reached} == expected


@pytest.mark.parametrize("teacher", [True, False])
def test_mined_negatives_are_never_the_positive_nor_a_duplicate(teacher):
    """From the teacher, or without one from the student; images only of the same view label."""
    module, batch = tiny.pretraining("stage2", labels="one_hot").eval(), tiny.batch(8, teacher=teacher)
    batch.group, batch.text_key = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]), torch.tensor([0, 1, 2, 3, 3, 3, 6, 7])
    batch.view_label = torch.tensor([[0, k % 2] for k in range(8)])
    views, text = module.amif.encode_views(batch.views), module.amif.text_encoder(batch.ids, batch.mask)
    seen = {kind: set() for kind in ("image_text", "image_image", "text_text")}
    for batch.step in range(60):
        for kind, drawn in module.mine(batch, views, text).items():
            for i, j in enumerate(drawn.index.tolist()):
                assert j != i and batch.group[i] != batch.group[j] and batch.text_key[i] != batch.text_key[j]
                assert kind != "image_image" or batch.view_label[i, 1] == batch.view_label[j, 1]
                seen[kind].add((i, j))
    assert all(len(pairs) > 16 for pairs in seen.values())  # really drawn, not one fixed partner per row


def test_a_batch_without_allowed_negatives_is_skipped_and_counted():
    module, batch = tiny.pretraining("stage2"), tiny.batch(4)
    batch.group = torch.zeros(4, dtype=torch.long)
    found = module(batch)
    assert found["hard_negatives"].item() == 0 and found["skipped_image_text"].item() == 4
    assert torch.isfinite(tiny.total(module, found))


def test_pair_accuracy_leaves_out_kinds_of_pairs_without_negatives():
    module, batch = tiny.pretraining("stage2"), tiny.batch(4)
    with torch.no_grad():  # every pair is called a hard negative, so half of all pairs is right
        module.amif.pair_head.linear.weight.zero_()
        module.amif.pair_head.linear.bias.copy_(torch.tensor([0.0, 1.0]))
    batch.view_label = torch.arange(8).view(4, 2)  # no other image may replace a second view
    found = module(batch)
    assert found["skipped_image_image"].item() == 4 and found["pair_accuracy"].item() == 0.5
