"""The training loop: going on after a cut-off, streams, diverging, refusing bad input before training."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from amif_lib.core.errors import InputError
from amif_lib.data.load import load_questions
from amif_lib.experiments import stored
from amif_lib.experiments.predictions import read_predictions
from amif_lib.networks.sizes import ModelSpec
from amif_lib.training import batches, checkpoint, loop, predict
from amif_lib.training.prepare import about_questions, prepare
from tests import tiny, tiny_arl

pytestmark = pytest.mark.usefixtures("own_results")


@pytest.fixture(scope="module")
def finished(own_results):
    return tiny.trained(tiny.run())


def test_a_run_leaves_what_its_readers_need(finished):
    for spec in finished.trainings():
        assert stored.is_finished(spec)
        run = stored.load_run(spec)
        assert run.spec == spec and len(run.history) == run.metrics["steps"]
        assert run.provenance["files"].keys() >= {"spec.json", "metrics.jsonl", "model/model.safetensors"}
        assert not list(spec.directory.glob("*state*")) and not list(spec.directory.glob(".state*"))
    assert stored.load_run(finished).predictions.question_id.is_unique
    tiny.same_answers_again(finished)
    assert (finished.directory / "blank_test" / "predictions.parquet").is_file()
    model = stored.load_run(finished).model()
    assert sum(p.numel() for p in model.parameters()) == stored.load_run(finished).metrics["parameters"]


def test_a_run_is_not_taken_once_its_parent_has_other_weights(finished):
    made = finished.parent.directory / "provenance.json"
    before = made.read_text()
    weights = stored.load_run(finished.parent).provenance["files"]["model/model.safetensors"]
    made.write_text(before.replace(weights, "0" * 64))
    with pytest.raises(InputError, match=f"{finished.run_id}: was trained from another parent .* delete this folder"):
        stored.is_finished(finished)
    made.write_text(before)
    assert stored.is_finished(finished)


def test_every_question_is_answered_once_more_with_another_image(finished):
    """The stored numbers are those of the saved model for each question with the image that it was given."""
    frame, candidates = stored.load_run(finished).shuffled_test
    own, _ = read_predictions(finished.directory)
    assert frame.question_id.tolist() == own.question_id.tolist() and frame.image_id.tolist() == own.image_id.tolist()
    assert stored.load_run(finished).metrics["shuffled_left_out"] == 0
    other = predict.other_images({image: image for image in own.image_id})
    questions, model = load_questions("phantom_vqa_rad"), stored.load_run(finished).model()
    path = {question.image_id: question.image_path for question in questions}
    for row in (0, 11, 23):
        asked = frame.iloc[row]
        ranked = model.rank(path[other[asked.image_id]], asked.question, candidates.answer.tolist())
        found = ranked.set_index("answer").log_likelihood[candidates.answer]
        assert found.tolist() == pytest.approx(asked.log_likelihoods.tolist(), abs=1e-4)


@pytest.mark.parametrize("sizes", [[1, 1], [1] * 3, [1] * 451, [3, 1, 2], [5, 2, 2, 1, 4]])
def test_every_image_is_exchanged_for_one_of_another_case_and_each_is_used_once(sizes):
    case_of = {f"image{case}{number}": f"case{case}" for case, size in enumerate(sizes) for number in range(size)}
    other = predict.other_images(case_of)
    assert set(other) == set(other.values()) == set(case_of)
    assert all(case_of[own] != case_of[shown] for own, shown in other.items())
    assert other == predict.other_images(dict(reversed(case_of.items())))  # whatever the order of the questions
    if len(sizes) > 3:
        assert other != predict.other_images(case_of, seed=1)


def test_a_set_of_one_case_has_no_other(finished, tmp_path):
    assert predict.other_images({"a": "a"}) == predict.other_images({}) == {}
    model, questions = stored.load_run(finished).model(), load_questions("phantom_vqa_rad")
    first = next(question for question in questions if question.split == "test")
    of_one = [question for question in questions if question.image_id == first.image_id]
    assert predict.predict(model, of_one, finished, tmp_path / "none", "shuffled") == 0
    assert not (tmp_path / "none").exists()


# --- going on after a cut-off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["stage1", "finetune"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(stage, finished, monkeypatch):
    tiny.same_when_interrupted(finished, stage, monkeypatch)


def parts(value: float = 0.0) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, value)
    optimizer = torch.optim.AdamW(module.parameters())
    return module, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def test_a_state_that_cannot_be_stored_leaves_the_one_before_and_the_training_running(tmp_path, monkeypatch, caplog):
    checkpoint.save(tmp_path, *parts(1.0), 5, 2.0)

    def full(content, path):
        path.write_bytes(b"half of it")
        raise RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    checkpoint.save(tmp_path, *parts(2.0), 6, 3.0)
    assert "could not be stored" in caplog.text
    module, optimizer, schedule = parts()
    assert checkpoint.restore(tmp_path, module, optimizer, schedule) == (5, 2.0)
    assert module.weight.tolist() == [[1.0, 1.0]] and [path.name for path in tmp_path.iterdir()] == [checkpoint.STATE]


def test_a_full_disk_ends_no_training_and_the_log_is_complete_in_the_end(finished, monkeypatch, caplog):
    spec, plain = tiny.run(seed=5).trainings()[0], Path.open

    def full(path, mode="r", **named):
        if path.name == loop.LINES and mode == "a":
            path.write_text('{"step": 0, "los')  # all that fits
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, mode, **named)

    monkeypatch.setattr(Path, "open", full)
    loop.fit(spec)
    assert caplog.text.count("No space left on device") == 1
    assert stored.load_run(spec).history.step.tolist() == stored.load_run(finished.trainings()[0]).history.step.tolist()


# --- batches and streams ----------------------------------------------------------------------------------------------


def test_every_sample_is_in_exactly_one_batch_of_an_epoch_and_folds_do_not_mix():
    folds = [0, 1] * 20
    found = batches.global_batches(40, 6, (1, 0, 3), folds)
    seen = [i for batch in found for i in batch]
    assert len(seen) == len(set(seen)) == 36  # 20 of each fold, 18 used
    assert all(len({folds[i] for i in batch}) == 1 for batch in found)
    assert found == batches.global_batches(40, 6, (1, 0, 3), folds) != batches.global_batches(40, 6, (1, 0, 4), folds)
    whole = batches.global_batches(41, 6, (0, 2, 0), drop_last=False)
    assert sorted(i for batch in whole for i in batch) == list(range(41))
    with pytest.raises(InputError, match="batch_size: 64 exceeds"):
        batches.global_batches(40, 64, (0, 0, 0))


def test_no_stage_replays_the_batches_views_and_draws_of_another(finished):
    one, two, _ = finished.trainings()
    data = [prepare(spec).data for spec in (one, two)]
    plans = [[keys for _, _, keys in batches.steps_of(d, s)] for d, s in zip(data, (one, two), strict=True)]
    assert plans[0] != plans[1]
    samples = [d[3, 5, 1.0, 8] for d in data]
    assert not torch.equal(samples[0]["views"], samples[1]["views"])
    assert torch.equal(samples[0]["views"], data[0][3, 5, 1.0, 8]["views"])
    assert batches.seed_of(one, 0) != batches.seed_of(two, 0)


def test_a_view_that_no_loss_reads_is_not_made_and_the_other_is_the_same(finished):
    stage1 = finished.trainings()[0]
    data = prepare(stage1).data
    both = [data[3, i, 1.0, 8] for i in range(6)]
    assert {sample["view"] for sample in both} == {0, 1}
    data.both_views = False
    for i, sample in enumerate(both):
        one = data[3, i, 1.0, 8]
        assert one["views"].shape[0] == 1 and one["view"] == 0
        assert torch.equal(one["views"][0], sample["views"][sample["view"]])
        assert torch.equal(one["extras"]["teacher_views"][0], sample["extras"]["teacher_views"][sample["view"]])
        assert torch.equal(one["copy"], sample["copy"])


def test_of_fixed_views_a_sample_shows_no_others(finished):
    """The views of a frozen EfficientNet-lite0; here the network itself is left out."""
    data, fine_tuning = prepare(finished.trainings()[0]).data, prepare(finished).data
    frozen = finished.model.model_copy(update={"image_form": "lite0"})
    for each in (data, fine_tuning):
        each.spec = each.spec.model_copy(update={"model": frozen})
    fine_tuning.augment = "light"
    views = [data[step, 5, 1.0, 8]["views"] for step in range(12)]
    for slot in (0, 1):
        assert len({view[slot].numpy().tobytes() for view in views}) == 2
    assert len({view.numpy().tobytes() for pair in views for view in pair}) == 4
    questions = fine_tuning.questions
    questions[1] = replace(questions[1], image_id=questions[0].image_id)
    shown = [fine_tuning[step, index, 1.0, 8]["image"].numpy().tobytes() for step in range(8) for index in (0, 1)]
    assert len(set(shown)) == 2  # questions about an image share its views


# --- optimiser, precision, divergence ---------------------------------------------------------------------------------


def test_decay_and_the_factor_of_random_modules_reach_the_parameters_they_are_meant_for(finished):
    """Fine-tuning after stage 2: encoders and co-attention are loaded, decoder and gated module start at random."""
    spec = tiny.run(finetune={"fusion_multiplier": 5.0})
    module = prepare(spec).module
    optimizer, _ = loop.make_optimizer(module, spec, 10)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [(names[id(p)], g) for g in optimizer.param_groups for p in g["params"]]
    assert len(groups) == len(names)
    for name, group in groups:
        fresh = name.startswith(("model.decoder.", "model.gated_cross_attention."))
        assert group["initial_lr"] == pytest.approx(1e-3 * (5 if fresh else 1)), name
        plain = name.endswith(("bias", "class_embedding")) or "norm" in name.lower() or "position_embedding" in name
        assert group["weight_decay"] == (0.0 if plain else 0.01), name


def test_what_stage_1_stores_without_training_it_counts_as_random(finished):
    spec = tiny.run(stage2={"fusion_multiplier": 5.0}).parent
    module = prepare(spec).module
    optimizer, _ = loop.make_optimizer(module, spec, 10)
    fast = {id(p) for g in optimizer.param_groups if g["initial_lr"] == pytest.approx(5e-3) for p in g["params"]}
    names = {name.split(".")[1] for name, parameter in module.named_parameters() if id(parameter) in fast}
    assert names == {"co_attention", "pair_head"}
    assert len(fast) == sum(1 for name, _ in module.named_parameters() if name.split(".")[1] in names)


def test_a_stage_2_without_a_loss_is_refused(finished):
    run = tiny.run(objective={"weight_local": 0.0, "weight_hard_negatives": 0.0}).parent
    with pytest.raises(InputError, match="all weights of stage2 are 0"):
        prepare(run)


def test_the_learning_rate_rises_then_falls_in_a_line():
    optimizer, schedule = loop.make_optimizer(nn.Linear(2, 1), tiny.run(finetune={"learning_rate": 1.0}), 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, *(1 - step / 18 for step in range(18))])  # point 49: a tenth rises


def test_a_diverged_training_is_an_error_and_no_finished_run(finished, monkeypatch):
    """Also where only the last update diverges, whose loss no step sees."""
    run = tiny.run(seed=5, stage1={"batch_size": 24}).trainings()[0]  # two epochs of one step
    real = torch.optim.AdamW.step

    def step(self, *arguments, **named):
        out = real(self, *arguments, **named)
        self.param_groups[0]["params"][0].data.fill_(torch.nan)
        return out

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(InputError, match=r"the loss is nan at step 1; lower train.learning_rate"):
        loop.fit(run)
    last = tiny.run(seed=5, stage1={"batch_size": 24, "epochs": 1}).trainings()[0]
    with pytest.raises(InputError, match=r"is not finite after the last step; lower train.learning_rate"):
        loop.fit(last)
    assert not stored.is_finished(run) and not stored.is_finished(last)


def test_mined_negatives_send_back_the_same_bits_on_several_threads():
    """Many rows that take the same partner: its gradient is a sum whose order threads would decide."""
    g = torch.Generator().manual_seed(0)
    index, sent = torch.randint(4, (4096,), generator=g), torch.randn(4096, 96, generator=g)
    before, found = torch.get_num_threads(), []
    loop.start(tiny.run())
    torch.set_num_threads(4)
    for _ in range(20):
        tokens = torch.zeros(4, 96, requires_grad=True)
        tokens[index].backward(sent)
        found.append(tokens.grad)
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


# --- what metrics.json says of cuts -----------------------------------------------------------------------------------


def test_cut_texts_and_candidates_that_read_alike_are_counted(finished):
    tokenizer = prepare(finished).tokenizer
    question = lambda split, text, answer: SimpleNamespace(split=split, question=text, answer=answer, answers=(answer,))  # noqa: E731
    long = " ".join(["lung"] * 30)
    questions = [
        question("train", "is this a lung", "lung " * 20),
        question("train", long, "mr - flair"),
        question("test", long, "mr-flair"),
        question("test", "is this a lung", long + " left"),
        question("test", "is this a lung", long + " right"),
    ]
    cut = {"training_questions_cut": 1, "test_questions_cut": 1, "training_answers_cut": 1, "test_answers_cut": 2}
    alike = {"candidates_read_alike": 3}  # cut, three are the same lungs; with their hyphen apart, two are one
    counts = {"training_questions": 2, "test_questions": 3, "candidates": 5}
    assert about_questions(finished, tokenizer, questions) == counts | cut | alike
    assert stored.load_run(finished).metrics["training_answers_cut"] == 0


# --- bad input, before any training -----------------------------------------------------------------------------------


def refuses(run, message):
    with pytest.raises(InputError, match=message):
        loop.fit(run)
    assert not (run.directory / "metrics.jsonl").exists()


def test_missing_parent_unknown_set_and_unsuitable_settings_stop_before_training():
    refuses(tiny.run(seed=77, stage2={"epochs": 5}), "parent run .* is not finished")
    with pytest.raises(InputError, match="has no manifest"):
        loop.fit(tiny.run(data={"pretrain": ["nowhere"]}).trainings()[0])
    refuses(tiny.run(stage1={"batch_size": 200}).trainings()[0], "batch_size: 200 exceeds")
    stage1 = tiny.run(seed=3).trainings()[0]
    refuses(stage1.model_copy(update={"teacher": None}), "needs a teacher")
    same = stage1.teacher.model_copy(update={"data": ("phantom_mimic_cxr",)})
    refuses(stage1.model_copy(update={"teacher": same}), "also the student's")
    refuses(stage1.model_copy(update={"stage": "stage2"}), "stage 2 has no parent")
    refuses(tiny_arl.run().model_copy(update={"parent": None}), "a fine-tuning of ARL has no parent")


def test_a_tokenizer_larger_than_the_model_is_refused(finished):
    small = ModelSpec(**(tiny.MODEL | {"vocab_size": 40}))
    init = finished.init.model_copy(update={"tokenizer": str(finished.directory / "model")})
    run = finished.model_copy(update={"model": small, "parent": None, "init": init})
    with pytest.raises(InputError, match="vocab_size: 40 is smaller"):
        prepare(run)
