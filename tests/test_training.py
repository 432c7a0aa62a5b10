"""The training loop: overfitting, resuming, refusing bad input before training, teachers, settings page."""

from __future__ import annotations

import pytest
import torch

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import read_predictions
from amif_lib.methods.amif.finetune import FineTuning
from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.methods.batch import QuestionBatch
from amif_lib.networks.sizes import ModelSpec
from amif_lib.training import loop as train
from amif_lib.training import prepare
from amif_lib.training.batches import global_batches, share
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("AMIF_RESULTS", str(tmp_path_factory.mktemp("results")))
    patch.setenv("AMIF_HEADLESS", "1")
    yield paths.results()
    patch.undo()


@pytest.fixture(scope="module")
def finished(folder):
    """A tiny run with both stages behind it, trained once for this file."""
    run = tiny.run()
    for spec in run.lineage():
        train.run_spec(spec)
    return run


def test_a_run_leaves_what_its_readers_need(finished):
    for spec in finished.lineage():
        assert results.is_finished(spec)
        run = results.load_run(spec)
        assert run.spec == spec and len(run.history) == run.metrics["steps"]
        assert run.provenance["files"].keys() >= {
            "spec.json",
            "metrics.json",
            "metrics.jsonl",
            "model/model.safetensors",
        }
        assert not (spec.directory / "state").exists()
    frame, candidates = read_predictions(finished.directory)
    assert len(frame) == 24 and frame.question_id.is_unique
    assert all(len(row) == len(candidates) for row in frame.log_likelihoods)
    assert (finished.directory / "blank_test" / "predictions.parquet").is_file()
    model = results.load_run(finished).model()
    assert sum(p.numel() for p in model.parameters()) == results.load_run(finished).metrics["parameters"]


def test_stored_log_likelihoods_are_those_of_the_saved_model(finished):
    from amif_lib.data.load import load_questions

    model = results.load_run(finished).model()
    frame, candidates = read_predictions(finished.directory)
    row = frame.iloc[3]
    question = next(q for q in load_questions("phantom_vqa_rad") if q.question_id == row.question_id)
    ranked = (
        model.rank(question.image_path, question.question, candidates.answer.tolist())
        .set_index("answer")
        .log_likelihood
    )
    for answer, stored in zip(candidates.answer, row.log_likelihoods, strict=True):
        assert ranked[answer] == pytest.approx(float(stored), abs=1e-4)


def test_blank_images_at_test_time_change_the_answers_to_different_images_only_through_the_question(finished):
    frame, _ = read_predictions(finished.directory / "blank_test")
    for _, same in frame.groupby("question"):
        first = same.log_likelihoods.iloc[0]
        assert all(abs(a - b) < 1e-3 for row in same.log_likelihoods for a, b in zip(first, row, strict=True))


@pytest.mark.parametrize("stage", ["stage1", "finetune"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(stage, finished, monkeypatch):
    whole = next(spec for spec in finished.lineage() if spec.stage == stage)
    expected = results.load_run(whole).history
    keep = whole.directory.with_name(f"kept-{stage}")
    whole.directory.rename(keep)
    clock = iter(range(0, 10_000_000, 1000))  # a training state after every step
    monkeypatch.setattr(train.time, "time", lambda: next(clock))
    stored = train.store

    def store_then_stop(*arguments):
        stored(*arguments)
        if arguments[4] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "store", store_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train.run_spec(whole)
    assert not results.is_finished(whole) and (whole.directory / "state").is_dir()
    monkeypatch.setattr(train, "store", stored)
    train.run_spec(whole)
    again = results.load_run(whole).history
    assert again.step.tolist() == expected.step.tolist()
    for column in ("total", "gradient_norm", "learning_rate"):
        assert again[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-4)


def test_thirty_steps_overfit_eight_answers():
    torch.manual_seed(0)
    module = FineTuning(AMiFForVQA(ModelSpec(**tiny.MODEL), KnowledgeSpec(), torch.arange(5, 20), torch.arange(15)))
    ids, answers = torch.randint(5, 400, (8, 6)), torch.randint(5, 400, (8, 4))
    mask = torch.ones(8, 6).bool()
    batch = QuestionBatch(torch.randn(8, 3, 32, 32), ids, mask, answers, mask[:, :4], torch.ones(8), 8)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = module(batch)["answer"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 10 and losses[-1] < 0.2, losses[::5]


def test_every_sample_is_in_exactly_one_batch_of_an_epoch_and_folds_do_not_mix():
    folds = [0, 1] * 20
    batches = global_batches(40, 6, seed=1, epoch=3, folds=folds)
    seen = [i for batch in batches for i in batch]
    assert len(seen) == len(set(seen)) == 36  # 20 of each fold, 18 used
    assert all(len({folds[i] for i in batch}) == 1 for batch in batches)
    assert (
        batches
        == global_batches(40, 6, seed=1, epoch=3, folds=folds)
        != global_batches(40, 6, seed=1, epoch=4, folds=folds)
    )
    assert sorted(i for batch in global_batches(41, 6, 0, 0, drop_last=False) for i in batch) == list(range(41))
    with pytest.raises(InputError, match="batch_size: 64 exceeds"):
        global_batches(40, 64, 0, 0)


def test_share_of_one_process_is_the_batch_itself():
    assert share([4, 5, 6]) == ([4, 5, 6], [1.0, 1.0, 1.0])


# --- bad input, before any training --------------------------------------------------------------------------------------


def refuses(run, message, folder):
    with pytest.raises(InputError, match=message):
        train.run_spec(run)
    assert not (run.directory / "metrics.jsonl").exists()


def test_missing_parent_unknown_set_and_unsuitable_sizes_stop_before_training(folder):
    refuses(tiny.run(seed=77, stage2={"epochs": 5}), "parent run .* is not finished", folder)
    with pytest.raises(InputError, match="has no manifest"):
        train.run_spec(tiny.run(data={"pretrain": ["nowhere"]}).lineage()[0])
    refuses(tiny.run(stage1={"batch_size": 200}).lineage()[0], "batch_size: 200 exceeds", folder)
    without = tiny.run().lineage()[0].model_copy(update={"teacher": None, "seed": 3})
    refuses(without, "needs a teacher", folder)
    same = tiny.run().lineage()[0]
    same = same.model_copy(update={"teacher": same.teacher.model_copy(update={"data": ("phantom_mimic_cxr",)})})
    refuses(same, "also the student's", folder)


def test_a_tokenizer_larger_than_the_model_is_refused(finished):
    small = ModelSpec(**(tiny.MODEL | {"vocab_size": 40}))
    init = finished.init.model_copy(update={"tokenizer": str(finished.directory / "model")})
    run = finished.model_copy(update={"model": small, "parent": None, "init": init})
    with pytest.raises(InputError, match="vocab_size: 40 is smaller"):
        prepare.prepare(run)


# --- teachers ------------------------------------------------------------------------------------------------------------


def test_a_steps_numbers_over_processes(monkeypatch):
    """Two processes of equal shares: losses are averaged, counts of skipped rows added up."""
    out = {"total": torch.tensor(1.0), "skipped_text_text": torch.tensor(2), "pair_accuracy": torch.tensor(0.5)}
    assert train.across_processes(out, torch.device("cpu")) == {name: float(value) for name, value in out.items()}
    monkeypatch.setattr(train, "world_size", lambda: 2)
    monkeypatch.setattr(train.dist, "all_reduce", lambda values: values.add_(torch.tensor([3.0, 5.0, 0.7])))
    got = train.across_processes(out, torch.device("cpu"))
    assert got == pytest.approx({"total": 2.0, "skipped_text_text": 7.0, "pair_accuracy": 0.6})
