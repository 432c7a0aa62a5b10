"""Stage 1 and stage 2 as sums of objectives: against a float64 loop, gradients, shortcuts, padding, overfitting."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests import tiny


def kl_loop(rows, columns, t_rows, t_columns, tau=0.07, weight=0.01):
    """Mean over rows of KL(H || P) with H of Eq. 5, written out number by number in float64."""
    rows, columns, t_rows, t_columns = (x.double().tolist() for x in (rows, columns, t_rows, t_columns))
    total = 0.0
    for i in range(len(rows)):

        def softmax(vector, others):
            values = [math.exp(sum(a * b for a, b in zip(vector, other, strict=True)) / tau) for other in others]
            return [v / sum(values) for v in values]

        p, q = softmax(rows[i], columns), softmax(t_rows[i], t_columns)
        for j in range(len(columns)):
            h = q[j] + weight * (i == j)
            total += h * (math.log(h) - math.log(p[j]))
    return total / len(rows)


def test_stage1_equals_the_equations_written_out():
    module, batch = tiny.pretraining("stage1").eval(), tiny.batch(6)
    found = module(batch)
    amif = module.amif
    z1, z2 = (amif.image_projection(amif.image_encoder(batch.views[:, k])[:, 0]) for k in (0, 1))
    r = amif.text_projection(amif.text_encoder(batch.ids, batch.mask)[:, 0])
    z = torch.stack([z1, z2], 1)[range(6), batch.view]
    t1, t2 = batch.teacher_views.unbind(1)
    t, tr = torch.stack([t1, t2], 1)[range(6), batch.view], batch.teacher_text
    inter = (kl_loop(z, r, t, tr) + kl_loop(r, z, tr, t)) / 2  # Eq. 6
    intra_image = (kl_loop(z1, z2, t1, t2) + kl_loop(z2, z1, t2, t1)) / 2
    intra_text = kl_loop(r, r, tr, tr)
    assert found["inter"].item() == pytest.approx(inter, rel=1e-4)
    assert found["intra_image"].item() == pytest.approx(intra_image, rel=1e-4)
    assert found["intra_text"].item() == pytest.approx(intra_text, rel=1e-4)
    assert found["total"].item() == pytest.approx(inter + intra_image + intra_text, rel=1e-4)  # Eq. 7, 8


def test_one_hot_labels_are_infonce():
    module, batch = (
        tiny.pretraining("stage1", labels="one_hot", global_intra="none").eval(),
        tiny.batch(6, teacher=False),
    )
    amif = module.amif
    z = amif.image_projection(amif.image_encoder(batch.views[range(6), batch.view])[:, 0])
    r = amif.text_projection(amif.text_encoder(batch.ids, batch.mask)[:, 0])
    logits = z @ r.T / 0.07
    expected = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(module(batch)["total"], expected)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("none", {"inter"}), ("text", {"inter", "intra_text"}), ("both", {"inter", "intra_text", "intra_image"})],
)
def test_columns_of_table_2_switch_alignments(choice, names):
    found = tiny.pretraining("stage1", global_intra=choice)(tiny.batch(4))
    assert {name for name in found if name in ("inter", "intra_text", "intra_image")} == names


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_padding_changes_no_loss(stage):
    module, batch = tiny.pretraining(stage).eval(), tiny.batch(6)
    longer = tiny.batch(6)
    for name in ("ids", "mask", "copy_ids"):
        setattr(longer, name, F.pad(getattr(longer, name), (0, 4)))
    a, b = module(batch), module(longer)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=2e-4, equal_nan=True)


def reached(module, out):
    module.zero_grad()
    out.backward()
    return {
        name.split(".")[1]
        for name, p in module.named_parameters()
        if p.grad is not None and bool(p.grad.abs().sum() > 0)
    }


def test_stage1_gradients_reach_encoders_and_projections_only():
    module = tiny.pretraining("stage1")
    assert reached(module, module(tiny.batch())["total"]) == {
        "image_encoder",
        "text_encoder",
        "image_projection",
        "text_projection",
    }


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, {"image_encoder", "text_encoder", "co_attention", "pair_head"}),
        ({"stage2_trains": "fusion"}, {"co_attention", "pair_head"}),
        ({"weight_hard_negatives": 0.0}, {"image_encoder", "text_encoder", "co_attention"}),
        ({"weight_local": 0.0}, {"image_encoder", "text_encoder", "co_attention", "pair_head"}),
        (
            {"weight_global": 1.0},
            {"image_encoder", "text_encoder", "co_attention", "pair_head", "image_projection", "text_projection"},
        ),
        (
            {"local_contrast": "positives_minus_negatives", "weight_hard_negatives": 0.0},
            {"image_encoder", "text_encoder", "co_attention"},
        ),
    ],
)
def test_stage2_gradients_reach_what_they_should_and_nothing_else(objective, expected):
    module = tiny.pretraining("stage2", **objective)
    assert reached(module, module(tiny.batch())["total"]) == expected
    trainable = {name.split(".")[1] for name, p in module.named_parameters() if p.requires_grad}
    assert trainable == expected


def test_both_views_in_one_pass_are_encoded_as_in_two():
    """Tokens and gradients: the encoder has nothing that joins samples of a batch."""
    module, batch = tiny.pretraining("stage1"), tiny.batch()
    encoder = module.amif.image_encoder
    weights = torch.randn(2, *encoder(batch.views[:, 0]).shape, generator=torch.Generator().manual_seed(0))
    gradients = []
    for views in (module.encode_views(batch.views), [encoder(batch.views[:, k]) for k in (0, 1)]):
        encoder.zero_grad()
        sum((view * weight).sum() for view, weight in zip(views, weights, strict=True)).backward()
        gradients.append(
            ([view.detach() for view in views], {n: p.grad.clone() for n, p in encoder.named_parameters()})
        )
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("labels", ["soft", "one_hot"])
def test_mined_negatives_are_never_the_positive_nor_a_duplicate(labels):
    """One-hot labels have no mass off the diagonal: negatives then come from the teacher's Q, without one from the student."""
    module, batch = tiny.pretraining("stage2", labels=labels).eval(), tiny.batch(8, teacher=labels == "soft")
    batch.group, batch.text_key = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]), torch.tensor([0, 1, 2, 3, 3, 3, 6, 7])
    batch.view_label = torch.tensor([[0, k % 2] for k in range(8)])
    text = module.amif.text_encoder(batch.ids, batch.mask)
    both = [module.amif.image_encoder(batch.views[:, k]) for k in (0, 1)]
    seen = {kind: set() for kind in ("image_text", "image_image", "text_text")}
    for step in range(60):
        batch.step = step
        for kind, drawn in module.mine(batch, both[0], both, text).items():
            for i, j in enumerate(drawn.index.tolist()):
                assert j != i and batch.group[i] != batch.group[j] and batch.text_key[i] != batch.text_key[j]
                if kind == "image_image":
                    assert batch.view_label[i, 1] == batch.view_label[j, 1]
                seen[kind].add((i, j))
    assert all(len(pairs) > 16 for pairs in seen.values())  # really drawn, not one fixed partner per row


def test_a_batch_without_allowed_negatives_is_skipped_and_counted():
    module, batch = tiny.pretraining("stage2"), tiny.batch(4)
    batch.group = torch.zeros(4, dtype=torch.long)
    found = module(batch)
    assert found["hard_negatives"].item() == 0 and found["skipped_image_text"].item() == 4
    assert torch.isfinite(found["total"])


class LabelOnly(torch.nn.Module):
    """An encoder that sees nothing of a sample but a label: the view type, or whether the text was copied with masking."""

    def __init__(self, read):
        super().__init__()
        self.read, self.table = read, torch.nn.Embedding(8, 32)

    def forward(self, x, mask=None):
        tokens = 4 if mask is None else x.shape[1]
        return self.table(self.read(x))[:, None].expand(-1, tokens, -1)


def label_batch(step, n=32):
    """Studies of frontal + lateral, two frontals, or one augmented image; the label is all that pixels hold."""
    batch = tiny.batch(n, seed=step, step=step)
    g = torch.Generator().manual_seed(step)
    kinds = torch.tensor([[0, 1], [0, 0], [2, 2], [3, 3]])[torch.randint(0, 4, (n,), generator=g)]  # (n, 2)
    batch.view_label = kinds
    batch.views = kinds[:, :, None, None, None].expand(-1, -1, 3, 2, 2).float()
    return batch


@pytest.mark.parametrize(("same_view", "succeeds"), [(True, False), (False, True)])
def test_a_pair_head_fed_only_view_label_and_copy_flag_scores_chance(same_view, succeeds):
    """With the rule, the labels tell nothing; without it (the second case) the same head does find the shortcut."""
    module = tiny.pretraining(
        "stage2", weight_local=0.0, same_view_negatives=same_view, pair_types=("image_image", "text_text")
    )
    module.amif.image_encoder = LabelOnly(lambda views: views[:, 0, 0, 0].long())
    module.amif.text_encoder = LabelOnly(lambda ids: (ids == 4).any(1).long() + 4)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    scores = []
    for step in range(180):
        batch = label_batch(step)
        batch.copy_ids = torch.where(batch.mask & (batch.ids > 4), 4, batch.ids)  # every copy carries the flag
        found = module(batch)
        optimizer.zero_grad()
        found["total"].backward()
        optimizer.step()
        scores.append(found["pair_accuracy"].item())
    late = sum(scores[-60:]) / 60  # each step is a fresh batch
    assert late > 0.56 if succeeds else abs(late - 0.5) < 0.02


def overfit(module, batch, learning_rate):
    optimizer = torch.optim.Adam(
        [p for p in module.parameters() if p.requires_grad], lr=learning_rate, betas=(0.9, 0.98)
    )
    losses = []
    for _ in range(30):
        found = module(batch)
        optimizer.zero_grad()
        found["total"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(found["total"].item())
    return losses


def test_thirty_steps_overfit_eight_samples_in_stage1():
    losses = overfit(tiny.pretraining("stage1", labels="one_hot"), tiny.batch(8, teacher=False), 5e-3)
    assert losses[0] > 3 and losses[-1] < 0.35, losses[::5]


def test_thirty_steps_overfit_eight_samples_in_stage2():
    """Mean-pooled pair heads. With [CLS] alone transport flattens the tokens first, and the head takes more steps."""
    model = tiny.MODEL | {"width": 64, "image_heads": 4, "text_heads": 4, "fusion_heads": 4, "pair_pooling": "mean"}
    losses = overfit(tiny.pretraining("stage2", model=model, transport_iterations=20), tiny.batch(8), 2e-3)
    assert losses[0] > 5 and losses[-1] < 6 * 0.15, losses[::5]  # six pairs per sample and the transport cost


def test_norm_masses_and_exact_plans_run_and_stay_feasible():
    for objective in (
        {"marginals": "norm"},
        {"transport_solver": "exact"},
        {"transport_solver": "adaptive"},
        {"plan_gradient": "unrolled", "transport_iterations": 5},
        {"cost": "dot", "transport_beta": 50.0},
        {"transport_on": "unimodal"},
        {"transport_tokens": "all"},
        {"pair_pooling": None},
        {"negative_directions": "both"},
        {"negative_distribution": "top_k"},
        {"negative_distribution": "student"},
        {"pair_positives": "none"},
        {"pair_positives": "image_text"},
        {"text_positive": "identical"},
    ):
        objective.pop("pair_pooling", None)
        found = tiny.pretraining("stage2", **objective)(tiny.batch(4))
        assert torch.isfinite(found["total"]), objective
