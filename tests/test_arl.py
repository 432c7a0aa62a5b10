"""ARL: what is masked, what is matched, what is aligned; overfitting; a run from pre-training to stored answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from amif_lib.core.errors import InputError
from amif_lib.data import knowledge_graph
from amif_lib.data.load import pretraining_studies
from amif_lib.experiments import stored
from amif_lib.experiments.predictions import read_predictions
from amif_lib.methods.arl import masked_modelling, pretraining
from amif_lib.methods.arl.knowledge import gather_knowledge
from amif_lib.methods.arl.network import stored_graph
from amif_lib.networks import pretrained, tokenizers
from amif_lib.training import batches, loop
from amif_lib.training.prepare import prepare
from tests import tiny, tiny_arl, tiny_mlip

pytestmark = pytest.mark.usefixtures("own_results")

TASKS = ("mlm", "mim", "itm", "align")


@pytest.fixture
def module():
    return tiny_arl.pretraining().eval()


# --- masked language modelling ---------------------------------------------------------------------------------------


def test_a_masked_entity_is_masked_at_all_its_mentions_and_leaves_the_stream_of_entities(module):
    seen, hidden, shares = set(), 0, []
    for step in range(60):
        batch = tiny_arl.batch(step=step)
        numbers, spans = module.arl.link(batch.ids, batch.mask)
        ids, masked = module.hide(batch, spans)
        left, _ = pretraining.without((numbers, spans), masked)
        shares.append(float(masked.sum() / batch.mask.sum()))
        assert (ids == batch.ids)[~masked].all() and not masked[batch.ids < 5].any()  # no special token, no padding
        for i, row in enumerate(numbers.tolist()):
            for j, number in enumerate(row):
                own = masked[i, spans[i, j]]
                assert own.all() or not own.any()  # all of its tokens, at all mentions, or none
                assert number < 0 or (left[i, j] == -1) == bool(own.any())
                assert number < 0 or not own.any() or number not in left[i].tolist()
                seen.add((number, bool(own.any())))
                hidden += bool(own.any())
    assert hidden > 50 and len({number for number, _ in seen}) > 3
    assert 0.12 < sum(shares) / len(shares) < 0.19


def test_what_a_masked_entity_is_changes_nothing_that_the_fusion_reads_of_entities(module):
    """With every token masked, the fused text is the same whatever entities the text named."""
    batch = tiny_arl.batch()
    named = module.arl.link(batch.ids, batch.mask)
    everything = torch.ones_like(batch.mask)
    vectors, image, text = module.arl.entity_encoder(), torch.randn(8, 17, 32), torch.randn(*batch.ids.shape, 32)
    hidden = module.arl.fuse(image, text, batch.mask, vectors, pretraining.without(named, everything))[1]
    shifted = (torch.where(named[0] >= 0, (named[0] + 1) % len(vectors), -1), named[1])
    other = module.arl.fuse(image, text, batch.mask, vectors, pretraining.without(shifted, everything))[1]
    torch.testing.assert_close(hidden, other)
    shown = [module.arl.fuse(image, text, batch.mask, vectors, each)[1] for each in (named, shifted)]
    assert not torch.allclose(*shown)  # else the test says nothing


def test_eighty_ten_ten_and_the_loss_is_the_mean_over_masked_tokens():
    g = torch.Generator().manual_seed(0)
    ids, real = torch.randint(5, 400, (200, 50), generator=g), torch.ones(200, 50, dtype=torch.bool)
    draws, own = torch.rand(200, 50, 2, generator=g), torch.arange(50).expand(200, 50)
    shown, masked = masked_modelling.mask_units(ids, own, real, draws, 0.15, 4, torch.full_like(ids, 401))
    of_masked = shown[masked]
    for value, share in ((4, 0.8), (401, 0.1)):
        assert (of_masked == value).float().mean() == pytest.approx(share, abs=0.03)
    logits = torch.randn(int(masked.sum()), 402, generator=g)
    expected = -sum(row.log_softmax(0)[i] for row, i in zip(logits, ids[masked], strict=True)) / len(logits)
    torch.testing.assert_close(masked_modelling.masked_language_loss(logits, ids, masked, len(logits)), expected)


# --- masked image modelling ------------------------------------------------------------------------------------------


def test_the_loss_of_masked_images_reads_removed_patches_only():
    g = torch.Generator().manual_seed(0)
    images, predicted = torch.randn(4, 3, 32, 32, generator=g), torch.randn(4, 16, 192, generator=g)
    kept, removed = masked_modelling.split_patches(torch.rand(4, 16, generator=g), 0.75)
    assert kept.shape == (4, 4) and removed.shape == (4, 12)
    assert torch.cat([kept, removed], 1).sort(1).values.tolist() == [list(range(16))] * 4
    target = masked_modelling.patches(images, 8)
    torch.testing.assert_close(
        target[2, 5], F.layer_norm(images[2, :, 8:16, 8:16].flatten(), (192,)), rtol=1e-2, atol=1e-2
    )
    loss = masked_modelling.masked_image_loss(predicted, target, removed)
    by_hand = sum(((predicted[i, j] - target[i, j]) ** 2).mean() for i in range(4) for j in removed[i].tolist()) / 48
    torch.testing.assert_close(loss, by_hand)
    target.scatter_(1, kept[..., None].expand(-1, -1, 192), 9.0)
    assert masked_modelling.masked_image_loss(predicted, target, removed) == loss
    target[0, removed[0, 0]] += 1
    assert masked_modelling.masked_image_loss(predicted, target, removed) != loss


def test_the_encoder_never_sees_a_removed_patch_and_with_all_kept_is_the_encoder(module):
    encoder, images = module.arl.image_encoder, torch.randn(2, 3, 32, 32)
    everything, kept = torch.arange(16).expand(2, -1), torch.tensor([[1, 5, 9], [0, 2, 15]])
    torch.testing.assert_close(encoder.visible(images, everything), encoder(images), atol=1e-5, rtol=1e-4)
    before = encoder.visible(images, kept)
    images[0, :, 0:8, 0:8] = 7.0  # patch 0, kept in the second image only
    assert torch.equal(encoder.visible(images, kept)[0], before[0])
    decoder = module.patch_decoder
    moved = decoder(before, torch.tensor([[1, 5, 9], [0, 2, 14]]))
    assert torch.equal(moved[0], decoder(before, kept)[0]) and not torch.allclose(moved[1], decoder(before, kept)[1])


# --- matching --------------------------------------------------------------------------------------------------------


def test_images_of_others_never_share_labels_study_or_text(module):
    batch = tiny_arl.batch(12)
    batch.extras["label"] = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 5])
    batch.group, batch.text_key = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 7, 9, 10, 11]), torch.arange(12) // 2 * 2
    shares, pairs = [], set()
    for batch.step in range(100):
        partner, other = module.negatives(batch)
        assert ((partner != torch.arange(12)) == other).all()
        for i in torch.nonzero(other).flatten().tolist():
            j = int(partner[i])
            pairs.add((i, j))
            assert batch.extras["label"][i] != batch.extras["label"][j]
            assert batch.group[i] != batch.group[j] and batch.text_key[i] != batch.text_key[j]
        shares.append(float(other.float().mean()))
    assert sum(shares) / 100 == pytest.approx(0.5, abs=0.05) and len(pairs) > 80
    batch.extras["label"] = torch.zeros(12, dtype=torch.long)
    assert not module.negatives(batch)[1].any()


# --- alignment and entities ------------------------------------------------------------------------------------------


def test_alignment_is_binary_cross_entropy_of_every_entity():
    g = torch.Generator().manual_seed(0)
    features, entities = torch.randn(3, 8, generator=g), torch.randn(5, 8, generator=g)
    target = pretraining.multi_hot(torch.tensor([[4, 0, -1], [-1, -1, -1], [2, -1, -1]]), 5)
    assert target.tolist() == [[1, 0, 0, 0, 1], [0] * 5, [0, 0, 1, 0, 0]]
    expected = 0.0
    for i in range(3):
        for j in range(5):
            p = torch.sigmoid(features[i] @ entities[j])
            expected -= (p if target[i, j] else 1 - p).log() / 15
    torch.testing.assert_close(pretraining.alignment_loss(features, entities, target), expected)


def test_an_entity_reaches_the_tokens_that_name_it_first(module):
    """After one layer a changed vector has changed those tokens alone; a text without entities is as without any."""
    batch = tiny_arl.batch()
    numbers, spans = module.arl.link(batch.ids, batch.mask)
    vectors, image, text = module.arl.entity_encoder(), torch.randn(8, 17, 32), torch.randn(*batch.ids.shape, 32)
    layer = module.arl.fusion.text_stream[0]
    z = F.pad(vectors, (0, 0, 0, 1))[numbers]
    plain, _ = layer.with_entities(text, image, batch.mask, z, numbers >= 0, spans)
    changed, _ = layer.with_entities(text, image, batch.mask, z + 1, numbers >= 0, spans)
    differs = ~torch.isclose(plain, changed, atol=1e-5).all(-1)
    assert torch.equal(differs, spans.any(1)) and differs.any()


@pytest.mark.parametrize("task", TASKS)
def test_each_objective_overfits_a_batch(task):
    module = tiny_arl.pretraining(**{f"weight_{name}": float(name == task) for name in TASKS})
    assert set(module.weights) == {task}
    steps, rate = (100, 5e-3) if task == "mim" else (30, 2e-3)
    losses = tiny.overfit(module, tiny_arl.batch(), task, rate, steps)
    assert losses[-1] < {"mlm": 0.6, "mim": 0.75, "itm": 0.3, "align": 0.6}[task] * losses[0], losses


@pytest.mark.parametrize(("of", "rel"), [(tiny_arl, 0.02), (tiny_mlip, 0.05)])
@torch.no_grad()
def test_bf16_gives_nearly_the_losses_of_fp32(of, rel):
    module, batch = of.pretraining().eval(), of.batch()
    expected = module(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(batch)
    for name in module.weights:
        assert found[name].dtype == torch.float32
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=rel)


def test_without_knowledge_it_is_plain_co_attention():
    module = tiny_arl.pretraining(knowledge={"inject": False}, weight_align=0.0)
    sum(weight * module(tiny_arl.batch())[name] for name, weight in module.weights.items()).backward()
    reached = {name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert not any("entit" in name or "align" in name or "injection" in name for name in reached)
    parts = {name.split(".")[1] for name in reached if name.startswith("arl.")}
    assert parts == {"image_encoder", "text_encoder", "fusion", "image_pooler", "text_pooler"}
    whole = tiny_arl.pretraining()
    sum(weight * whole(tiny_arl.batch())[name] for name, weight in whole.weights.items()).backward()
    left = [name for name, p in whole.named_parameters() if p.grad is None and "entity_feed_forward" not in name]
    assert left == []  # the entities of the last layer are not read again


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(own_results):
    return tiny.trained(tiny_arl.run())


def test_a_run_leaves_answers_and_its_model_gives_them_again(finished):
    metrics = stored.load_run(finished.parent).metrics
    assert metrics["knowledge"]["entities"] > 5 and set(metrics["last_epoch"]) >= {*TASKS, "mlm_accuracy", "total"}
    tiny.same_answers_again(finished)


def test_weights_and_knowledge_travel_from_pre_training_into_fine_tuning(finished):
    before, module = finished.parent.directory / "model", prepare(finished).module
    state = pretrained.read_state(before)
    own = module.model.arl.state_dict()
    more = {name for name in state if name.startswith("image_align.")}  # read by zero-shot classification alone
    assert more and set(own) == set(state) - more and all(torch.equal(own[name], state[name]) for name in own)
    assert all(hasattr(parameter, "loaded") for parameter in module.model.arl.parameters())
    assert module.model.arl.graph.entities == stored_graph(before).entities
    random = prepare(finished.parent).module.arl.state_dict()
    assert not torch.equal(own["fusion.text_linear.weight"], random["fusion.text_linear.weight"])  # trained


def test_the_classes_of_arl_answer_too(finished):
    run = tiny_arl.run(objective={"answer_head": "classifier"})
    assert run.parent.run_id == finished.parent.run_id and run.run_id != finished.run_id
    loop.fit(run)
    frame, candidates = read_predictions(run.directory)
    model = stored.load_run(run).model()
    best = [candidates.answer[int(row.argmax())] for row in frame.log_likelihoods]
    written = [tokenizers.decode(model.tokenizer, each) for each in model.tokenize_answers(best)]
    assert frame.generated.tolist() == written
    with pytest.raises(InputError, match="is none of the"):
        model.decoder.number([[2, 99, 98, 97, 3]])


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(stage, finished, monkeypatch):
    tiny.same_when_interrupted(finished, stage, monkeypatch)


def test_the_content_of_knowledge_files_is_part_of_an_identity(tmp_path, monkeypatch):
    def ids(source, root):
        monkeypatch.setenv("DATA_ROOT", str(root))
        return [step.run_id for step in tiny_arl.run(knowledge={"source": source}).trainings()]

    for source, name in (("own.tsv", "own.tsv"), *(("slake", f"slake/KG/{name}") for name in knowledge_graph.OF_SLAKE)):
        for root in (tmp_path / "here", tmp_path / "elsewhere"):
            for file in ("own.tsv", *(f"slake/KG/{name}" for name in knowledge_graph.OF_SLAKE)):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_text("nodule\tin\tlung\nmass\tin\tlung\n")
        before = ids(source, tmp_path / "here")
        assert ids(source, tmp_path / "elsewhere") == before
        (tmp_path / "here" / name).write_text("nodule\tin\tlung\nmass\tin\tbrain\n")
        assert not set(before) & set(ids(source, tmp_path / "here"))
        (tmp_path / "here" / name).unlink()
        with pytest.raises(InputError, match=f"{name}: no such file") as error:
            ids(source, tmp_path / "here")
        assert "\n" not in str(error.value)


def test_so_is_the_content_of_the_built_in_dictionary(tmp_path, monkeypatch):
    before = [step.run_id for step in tiny_arl.run().trainings()]
    changed = tmp_path / "dictionary.csv"
    changed.write_text(knowledge_graph.DICTIONARY.read_text(encoding="utf-8") + "thymoma,finding,,\n", encoding="utf-8")
    monkeypatch.setattr(knowledge_graph, "DICTIONARY", changed)
    assert not set(before) & {step.run_id for step in tiny_arl.run().trainings()}


def test_all_methods_are_fine_tuned_with_the_same_draws_and_no_stage_has_those_of_another():
    runs = [tiny.run(), tiny_arl.run(), tiny_arl.run("mlip")]
    streams = [[batches.stream(step) for step in run.trainings()] for run in runs]
    assert streams[0] == [(0, 0), (0, 1), (0, 2)]  # committed runs of AMiF depend on these
    assert {own[0] for own in streams} == {(0, 0)} and {own[-1] for own in streams} == {(0, 2)}
    assert all(len(set(own)) == len(own) for own in streams)


@pytest.mark.parametrize(("of", "names"), [(tiny_arl, TASKS), (tiny_mlip, tiny_mlip.LOSSES)])
def test_a_pre_training_without_a_loss_is_refused(of, names, own_results):
    run = of.run(objective={f"weight_{name}": 0.0 for name in names}).parent
    with pytest.raises(InputError, match="all weights of pretrain are 0, so it has no loss"):
        prepare(run)


def test_labels_are_affirmed_findings_and_denied_ones_may_be_dropped_from_what_images_name():
    spec = tiny_arl.run().parent
    studies = pretraining_studies(spec.data, spec.model.stored_side)
    kept = gather_knowledge(spec, studies)
    dropped = gather_knowledge(tiny_arl.run(objective={"negated_entities": "dropped"}).parent, studies)
    assert 0 < dropped.metrics["entities_of_a_report"] < kept.metrics["entities_of_a_report"]
    for one in studies:
        for two in studies:
            same = knowledge_graph.findings(one.text) == knowledge_graph.findings(two.text)
            assert (kept.labels[one.study_id] == kept.labels[two.study_id]) == same
