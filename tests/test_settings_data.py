"""Readings of open points in data, training and scoring: merge, single views, text copies, teacher's views, epoch, protocol."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import images, prepared
from amif_lib.data.records import Study, StudyImage
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import run_spec
from amif_lib.experiments import settings_page as settings
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import ModelSpec, ObjectiveSpec, TeacherSpec
from amif_lib.methods.amif import teacher as teachers
from amif_lib.methods.amif.network import AMiF
from amif_lib.methods.amif.online_teacher import OnlineTeacher
from amif_lib.methods.amif.stages import Pretraining
from amif_lib.networks import tokenizers
from amif_lib.networks.tokenizers import in_halves, shuffle_sentences
from amif_lib.reporting import report_facts
from amif_lib.scoring import evaluate
from amif_lib.training import loop as train
from amif_lib.training import prepare, selection
from amif_lib.training.batches import PretrainingData, balanced, global_batches
from tests import tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("AMIF_HEADLESS", "1")
    return tmp_path


# --- merge of the pre-training sets, studies with one image (points 51, 45) ----------------------------------------------


def test_balanced_merge_draws_equally_and_evenly():
    sources = ["large"] * 300 + ["middle"] * 60 + ["small"] * 24
    order = balanced(np.arange(384), np.array(sources), np.random.default_rng(0))
    drawn = pd.Series([sources[i] for i in order])
    assert len(order) == 384 and drawn.value_counts().to_dict() == {"large": 128, "middle": 128, "small": 128}
    times = pd.Series(order).value_counts()
    assert times[range(300, 360)].isin([2, 3]).all() and times[range(360, 384)].isin([5, 6]).all()
    assert times.reindex(range(300), fill_value=0).max() == 1  # a large set in part, nothing of it twice
    for start in range(0, 384, 48):  # every batch has its share of each set
        part = order[start : start + 48]
        assert pd.Series([sources[i] for i in part]).value_counts().between(14, 18).all()


def test_balanced_batches_keep_folds_apart_and_differ_by_epoch():
    sources, folds = ["a"] * 40 + ["b"] * 8, [0, 1] * 24
    batches = [global_batches(48, 6, 1, epoch, folds, sources=sources) for epoch in (0, 1)]
    assert batches[0] != batches[1] and len(batches[0]) == 8
    assert all(len({folds[i] for i in batch}) == 1 for batch in batches[0])
    drawn = [sources[i] for batch in batches[0] for i in batch]
    assert drawn.count("a") == drawn.count("b") == 24
    with pytest.raises(AssertionError):  # concatenated, the sets keep their sizes
        drawn = [sources[i] for batch in global_batches(48, 6, 1, 0, folds) for i in batch]
        assert drawn.count("a") == drawn.count("b")


def study(name, pictures):
    return Study(
        name, tuple(StudyImage(f"{name}-{k}", Path(f"{name}-{k}.png")) for k in range(pictures)), f"text {name}"
    )


def test_studies_with_one_image_are_left_out_only_where_others_have_several(monkeypatch):
    found = {"multi": [study("a", 2), study("b", 1), study("c", 3)], "single": [study("d", 1), study("e", 1)]}
    monkeypatch.setattr("amif_lib.data.load.load_studies", lambda name, **settings: found[name])

    def names(choice):
        run = tiny.run(data={"pretrain": ["multi", "single"], "single_view_studies": choice}).lineage()[0]
        return [(s.study_id, s.data_set) for s in teachers.student_studies(run)]

    every = [("a", "multi"), ("b", "multi"), ("c", "multi"), ("d", "single"), ("e", "single")]
    assert names("augment") == every
    assert names("drop") == [pair for pair in every if pair[0] != "b"]


# --- texts of the pair loss and of masked language modelling (points 17, 30) ----------------------------------------------


def test_a_report_is_halved_at_the_sentence_end_nearest_to_its_middle():
    assert in_halves("The heart is large. No effusion. Lungs clear.") == (
        "The heart is large.",
        "No effusion. Lungs clear.",
    )
    assert in_halves("no acute disease seen.") == ("no acute", "disease seen.")
    assert in_halves("normal") == ("normal", "normal")


def test_shuffled_sentences_are_the_same_ones_in_another_order():
    tokens = np.array([2, 10, 11, 9, 20, 9, 30, 31, 32, 9, 40, 3])  # 9 is the full stop; the last sentence has none
    stops = np.flatnonzero(tokens == 9)
    seen = {tuple(shuffle_sentences(tokens, stops, np.random.default_rng(seed))) for seed in range(60)}
    sentences = {(10, 11, 9), (20, 9), (30, 31, 32, 9), (40,)}
    for out in seen:
        assert out[0] == 2 and out[-1] == 3 and sorted(out) == sorted(tokens.tolist())
        found = [out[i:j] for i in range(1, 12) for j in range(i, 12)]  # every run of inner tokens
        assert all(sentence in found for sentence in sentences)
    assert len(seen) > 12  # of 24 orders


@pytest.fixture(scope="module")
def studies():
    run = tiny.run(data={"max_studies": 16}).lineage()[0]
    return teachers.student_studies(run)


@pytest.fixture(scope="module")
def tokenizer(studies, tmp_path_factory):
    return tokenizers.train([s.text for s in studies], 400, tmp_path_factory.mktemp("tokenizer"))


def samples(studies, tokenizer, objective, keys=((3, 5),)):
    spec = tiny.run(objective=objective).lineage()[1]
    data = PretrainingData(studies, spec, tokenizer, None)
    return data, [data[key] for key in keys]


@pytest.mark.parametrize("intra", ["both", "none"])
def test_a_view_that_no_loss_reads_is_not_made_and_changes_nothing(studies, tokenizer, monkeypatch, intra):
    """Stage 1 without image-image alignment reads one view of a study: fewer augmentations, the same view, the same loss."""
    made = []
    plain = images.augment
    monkeypatch.setattr(images, "augment", lambda *a, **k: made.append(1) or plain(*a, **k))
    stage1 = tiny.run(objective={"global_intra": intra, "labels": "one_hot"}).lineage()[0]
    data = PretrainingData(studies[:6], stage1, tokenizer, None)
    batch = data.collate([data[(3, i)] for i in range(6)])
    assert len(made) == (12 if intra == "both" else 6)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectiveSpec, "reads_both_views", lambda self, stage: True)
        both = PretrainingData(studies[:6], stage1, tokenizer, None)
        whole = both.collate([both[(3, i)] for i in range(6)])
    drawn, same = (torch.stack([x.views[i, x.view[i]] for i in range(6)]) for x in (batch, whole))
    assert torch.equal(drawn, same) and torch.equal(batch.view, whole.view)
    torch.manual_seed(0)
    network = AMiF(stage1.model)
    passes = []
    network.image_encoder.register_forward_hook(lambda module, given, out: passes.append(len(given[0])))
    module = Pretraining(network, stage1.objective, "stage1", 0, (2, 3), 0)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectiveSpec, "reads_both_views", lambda self, stage: True)
        second = module(whole)["total"]
    first = module(batch)["total"]
    assert first.item() == pytest.approx(second.item(), rel=1e-5)
    assert passes == [12, 12 if intra == "both" else 6]


def test_masks_are_keyed_by_step_and_sample_and_disturb_no_other_draw(studies, tokenizer):
    plain, (before,) = samples(studies, tokenizer, {})
    assert "mlm_tokens" not in before and plain.collate([before]).mlm_ids is None
    data, (once, other_step, other_sample) = samples(studies, tokenizer, {"weight_mlm": 1.0}, ((3, 5), (4, 5), (3, 6)))
    _, (again,) = samples(studies[:6], tokenizer, {"weight_mlm": 1.0})  # another process's data, loader, order
    for name in ("tokens", "copy", "mlm_tokens", "mlm_chosen", "view"):
        assert np.array_equal(once[name], again[name])
        assert name.startswith("mlm") or np.array_equal(once[name], before[name])
    assert torch.equal(once["views"], before["views"])
    assert not np.array_equal(once["mlm_chosen"], other_step["mlm_chosen"])
    batch = data.collate([once, other_sample])
    kept = ~batch.mlm_chosen
    assert torch.equal(batch.mlm_ids[kept], batch.ids[kept]) and not (batch.mlm_chosen & ~batch.mask).any()


def test_pairs_of_halves_and_shuffled_copies_come_out_of_the_data(studies, tokenizer):
    data, found = samples(studies, tokenizer, {"text_positive": "halves"}, ((0, 1), (0, 2)))
    batch = data.collate(found)
    for row, number in enumerate((1, 2)):
        for half, text in enumerate(in_halves(studies[number].text)):
            ids = batch.halves_ids[row, half][batch.halves_mask[row, half]].tolist()
            assert ids == tokenizer(text, truncation=True, max_length=32)["input_ids"]
    _, (copy,) = samples(studies, tokenizer, {})
    _, (shuffled,) = samples(studies, tokenizer, {"text_positive": "shuffled"})
    assert sorted(shuffled["copy"]) == sorted(copy["copy"]) and shuffled["copy"].tolist() != copy["copy"].tolist()


# --- what the teacher sees (point 47) --------------------------------------------------------------------------------------


def test_online_teacher_embeds_the_students_views(studies, tokenizer, tmp_path):
    size = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "embed_dim": 16, "text_length": 32}
    spec = TeacherSpec(source="trained", views="augmented", epochs=1, batch_size=8, **size)
    pictures = prepared.pictures(["phantom_mimic_cxr"], run_spec.stored_side(32))
    model = teachers.train_open_clip(studies, spec, tmp_path / "fold0", pictures)
    cached = teachers.embed(studies, {0: list(range(len(studies)))}, {0: model}, pictures, tmp_path / "embeddings")
    online = OnlineTeacher(tmp_path, spec, {0})
    assert not any(p.requires_grad for p in online.models[0].parameters())

    def batch(strength):
        data = {"augment_single_view": strength, "augment_multi_view": strength}
        source = PretrainingData(studies, tiny.run(data=data).lineage()[0], tokenizer, cached)
        return source.collate([source[0, i] for i in range(6)])

    clean, strong = batch("none"), batch("strong")
    torch.testing.assert_close(clean.teacher_views, strong.teacher_views)  # the cache knows no augmentation
    same = (online(clean).teacher_views * clean.teacher_views).sum(-1)
    assert same.min() > 0.999  # not 1: the student's image is resized twice, by way of its cache
    found = online(strong).teacher_views
    assert found.shape == (6, 2, 16) and torch.allclose(found.norm(dim=-1), torch.ones(6, 2), atol=1e-5)
    assert (found * clean.teacher_views).sum(-1).mean() < same.mean() - 0.001  # another picture, another embedding
    pixels = strong.views[2, 1] * torch.tensor(images.STD).view(3, 1, 1) + torch.tensor(images.MEAN).view(3, 1, 1)
    expected = model[0].visual.preprocess_cfg
    pixels = (pixels - torch.tensor(expected["mean"]).view(3, 1, 1)) / torch.tensor(expected["std"]).view(3, 1, 1)
    with torch.no_grad():
        by_hand = torch.nn.functional.normalize(model[0].encode_image(pixels[None]), dim=-1)[0]
    torch.testing.assert_close(found[2, 1], by_hand, atol=1e-4, rtol=1e-3)
    assert torch.equal(online(strong).teacher_text, strong.teacher_text)


def test_what_the_teacher_sees_is_no_other_teacher():
    clean = tiny.run().lineage()[0]
    seen = clean.model_copy(update={"teacher": clean.teacher.model_copy(update={"views": "augmented"})})
    assert teachers.teacher_id(clean) == teachers.teacher_id(seen) and clean.run_id != seen.run_id


# --- start of the co-attention (point 11) -----------------------------------------------------------------------------------


def test_co_attention_starts_from_another_run_before_it_is_first_trained_and_not_later(folder):
    torch.manual_seed(7)
    other, parent = AMiF(ModelSpec(**tiny.MODEL)), AMiF(ModelSpec(**tiny.MODEL))
    other.save(paths.run_dir("0123456789ab") / "model")
    other.save(folder / "elsewhere" / "model")
    for source in ("0123456789ab", str(folder / "elsewhere"), str(folder / "elsewhere" / "model")):
        finetune = tiny.run(init={"co_attention": source})
        stage1, stage2, _ = finetune.lineage()
        for run in (stage1, stage2):
            parent.save(run.directory / "model")
        for run, expected in ((stage2, other), (finetune, parent)):
            started = AMiF(ModelSpec(**tiny.MODEL))
            prepare.load_encoders(started, run, None)
            for name, value in started.co_attention.state_dict().items():
                assert torch.equal(value, expected.co_attention.state_dict()[name]), (run.stage, name)
            for name, value in started.text_encoder.state_dict().items():
                assert torch.equal(value, parent.text_encoder.state_dict()[name])
    with pytest.raises(InputError, match="neither a folder nor reachable"):
        prepare.load_co_attention(other, "no-such-run")
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"no model.safetensors"):
        prepare.load_co_attention(other, str(folder / "empty"))


# --- which epoch is kept (point 43) -------------------------------------------------------------------------------------------


def question_run(**settings):
    run = tiny.run(data={"pretrain": [], "max_questions": 24}, knowledge={"source": "none"}, finetune=settings)
    return run.model_copy(update={"parent": None})


@pytest.fixture
def validation(monkeypatch):
    """The phantom questions with every third training question as a validation one."""
    plain = prepare.load_questions

    def load(name, **settings):
        found = plain(name, **settings)
        return [replace(q, split="val") if q.split == "train" and i % 3 == 0 else q for i, q in enumerate(found)]

    monkeypatch.setattr(prepare, "load_questions", load)


def test_best_epoch_by_validation_loss_is_kept_and_no_test_question_is_read_before(folder, validation, monkeypatch):
    run = question_run(epochs=4, epoch_choice="best_validation", learning_rate=5e-3, schedule="constant")
    wanted = iter([3.0, 1.0, 2.0, 2.5])  # the second epoch is best, whatever was really lost
    states, real, read = [], [], []
    plain_loss, plain_item = selection.BestEpoch.loss, selection.QuestionData.__getitem__

    def loss(self, module, device):
        states.append({name: value.clone() for name, value in module.state_dict().items()})
        real.append((plain_loss(self, module, device), module.training))
        return next(wanted)

    def item(self, key):
        read.append(self.questions[key[1]].split)
        return plain_item(self, key)

    predicted = []
    monkeypatch.setattr(selection.BestEpoch, "loss", loss)
    monkeypatch.setattr(selection.QuestionData, "__getitem__", item)
    monkeypatch.setattr(train.predict, "predict", lambda model, *rest, **more: predicted.append((model, list(read))))
    train.run_spec(run)
    model, before = predicted[0]
    assert set(before) == {"train", "val"}  # no test question until the epoch is chosen
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[1][f"model.{name}"])
    metrics = json.loads((run.directory / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["kept_epoch"] == {"epoch": 1, "loss": 1.0} and metrics["test_questions"] == 24
    lines = train.read_lines(run.directory / "metrics.jsonl")
    assert [line["validation_loss"] for line in lines if "validation_loss" in line] == [3.0, 1.0, 2.0, 2.5]
    assert all(training for _, training in real) and not (run.directory / "best").exists()
    # the real loss, written out question by question
    prepared = prepare.prepare(run)
    prepared.module.load_state_dict(states[3])
    network = prepared.module.model.eval()
    total, chosen = 0.0, [q for q in prepared.questions if q.split == "val"]
    with torch.no_grad():
        for q in chosen:
            ranked = network.rank(q.image_path, q.question, [q.answer])
            total -= float(ranked.log_likelihood[0]) / len(chosen)
    assert len(chosen) == 24 and real[3][0] == pytest.approx(total, rel=1e-4)


def test_a_set_without_validation_questions_is_refused_before_training(folder):
    run = question_run(epoch_choice="best_validation")
    with pytest.raises(
        InputError, match=r"epoch_choice: 'best_validation' needs validation questions and phantom_vqa_rad"
    ):
        train.run_spec(run)
    assert not (run.directory / "metrics.jsonl").exists()


def test_validation_answers_are_candidates_of_their_own(folder, validation):
    run = question_run(epochs=1, max_steps=1)
    train.run_spec(run)
    _, candidates = evaluate.read_predictions(run.directory)
    questions = prepare.prepare(run).questions
    for split in ("train", "val", "test"):
        expected = {answer for q in questions if q.split == split for answer in q.answers}
        assert set(candidates.answer[candidates[f"in_{split}"]]) == expected != set()


# --- refusals --------------------------------------------------------------------------------------------------------------


def test_half_precision_needs_a_gpu(folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="'fp16' needs a GPU"):
        train.run_spec(question_run(precision="fp16"))


@pytest.mark.parametrize(
    ("objective", "refused"),
    [
        ({}, True),
        ({"negative_distribution": "student"}, False),
        ({"negative_distribution": "student", "weight_global": 1.0}, True),
        ({"labels": "one_hot"}, False),
        ({"weight_hard_negatives": 0.0}, False),
    ],
)
def test_stage_2_never_replaces_a_missing_teacher_silently(folder, monkeypatch, objective, refused):
    run = tiny.run(objective=objective).lineage()[1]
    run = run.model_copy(update={"teacher": None})
    monkeypatch.setattr(results, "is_finished", lambda spec: True)
    model = AMiF(ModelSpec(**tiny.MODEL))
    model.save(run.parent.directory / "model")
    tokenizers.train(["no acute disease"] * 2, 400, run.parent.directory / "model")
    if refused:
        with pytest.raises(InputError, match="'soft' needs a teacher"):
            prepare.prepare(run)
    else:
        notes = prepare.prepare(run).notes
        mines = objective.get("weight_hard_negatives", 1.0) > 0
        assert notes.get("negatives_drawn_from") == ("student's P" if mines else None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"marginals": "attention"}, "model": {"co_attention": "one_way"}}, "needs both sides to attend"),
        ({"objective": {"queue": 8}, "teacher": {"cross_fit": 2}}, "queue mixes folds"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change, message):
    content = {"stage": "stage2", "scale": "demo", "teacher": {}}
    with pytest.raises(InputError, match=message):
        experiments.parse(experiments.merge(content, change), "run.yaml")


# --- identity --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"model": {"co_attention": "shared"}}, "123"),
        ({"model": {"decoder_cross_placement": "first"}}, "3"),
        ({"model": {"decoder_output": "untied"}}, "3"),
        ({"model": {"gated_norm": "pre"}}, "3"),
        ({"model": {"projection_sharing": "alignment"}}, "123"),
        ({"objective": {"text_text_second": "copy"}}, "123"),
        ({"objective": {"queue": 16}}, "123"),
        ({"objective": {"weight_mlm": 1.0}}, "23"),
        ({"objective": {"pair_reduction": "mean"}}, "23"),
        ({"objective": {"text_positive": "halves"}}, "23"),
        ({"objective": {"marginals": "attention"}}, "23"),
        ({"objective": {"token_drop": 0.5}}, "23"),
        ({"data": {"merge": "balanced"}}, "123"),
        ({"data": {"single_view_studies": "drop"}}, "123"),
        ({"knowledge": {"form": "words"}}, "3"),
        ({"knowledge": {"embedder": "frozen"}}, "3"),
        ({"knowledge": {"positions": "per_answer"}}, "3"),
        ({"init": {"co_attention": "0123456789ab"}}, "23"),
        ({"stage1": {"epoch_choice": "best_validation"}, "stage2": {"epoch_choice": "best_validation"}}, ""),
        ({"finetune": {"epoch_choice": "best_validation"}}, "3"),
    ],
)
def test_a_setting_changes_the_identity_of_the_stages_that_read_it(change, stages):
    """And, through the parent, of those after them; of no stage before."""
    plain, changed = tiny.run().lineage(), tiny.run(**change).lineage()
    assert "".join(str(i) for i in (1, 2, 3) if plain[i - 1].run_id != changed[i - 1].run_id) == stages


def own_identity(run):
    """A run's identity but for its parent's."""
    return {key: value for key, value in experiments._identity(run).items() if key != "parent"}


def test_a_later_stage_does_not_read_what_an_earlier_one_did():
    plain = tiny.run()
    for change in ({"data": {"merge": "balanced", "text_length": 40}}, {"init": {"co_attention": "0123456789ab"}}):
        assert own_identity(tiny.run(**change)) == own_identity(plain)
    copies = {"text_text_second": "copy"}
    reads = [tiny.run(objective=copies | {"token_drop": share}).lineage()[0].run_id for share in (0.1, 0.2)]
    assert reads[0] != reads[1]  # stage 1 reads the share of dropped tokens only with copies
    bare = {"source": "none"}
    assert tiny.run(knowledge=bare).run_id == tiny.run(knowledge=bare | {"gate": False, "form": "words"}).run_id


# --- scoring (points 40, 41) ------------------------------------------------------------------------------------------------


def test_closed_questions_over_yes_and_no_alone_and_mean_scores():
    candidates = pd.DataFrame(
        {
            "answer": ["no", "pleural effusion", "yes"],
            "tokens": [1, 4, 1],
            "in_train": True,
            "in_val": False,
            "in_test": True,
        }
    )
    rows = {"q1": (["yes"], True, [-3.0, -1.0, -2.0]), "q2": (["pleural effusion"], False, [-0.9, -2.0, -4.0])}
    frame = pd.DataFrame(
        [
            {"question_id": q, "image_id": q, "question_type": "", "gold": gold, "log_likelihoods": scores}
            | {"closed_field": not closed, "closed_yes_no": closed}
            for q, (gold, closed, scores) in rows.items()
        ]
    )

    def answers(**changes):
        protocol = evaluate.PROTOCOLS["paper"].model_copy(update=changes)
        return evaluate.score(frame, candidates, protocol).prediction.tolist()

    assert answers() == ["pleural effusion", "no"]
    assert answers(closed_candidates="yes_no") == ["yes", "no"]
    assert evaluate.score(frame, candidates, evaluate.PROTOCOLS["closed_yes_no"]).correct.tolist() == [True, False]
    assert answers(closed_candidates="yes_no", closed="answer_type") == ["pleural effusion", "no"]
    assert answers(score="mean") == ["pleural effusion", "pleural effusion"]  # -1/4, -2/4 per token
    without = candidates.assign(in_test=[False, True, False])
    with pytest.raises(InputError, match="no candidate 'yes' or 'no'"):
        evaluate.score(frame, without, evaluate.PROTOCOLS["closed_yes_no"])


# --- the page ---------------------------------------------------------------------------------------------------------------


def test_every_open_point_has_a_setting_with_alternatives_or_a_reason():
    assert len(settings.POINTS) == 53
    for point, names in settings.POINTS.items():
        assert names or point in settings.FIXED, point
        for name in names:
            section, field = name.split(".")
            info = settings.SECTIONS[section].model_fields[field]
            assert info.description, name
            choices = settings._choices(info.annotation)
            assert len(choices) != 1 and (not choices or info.is_required() or info.default in choices), name


def test_every_setting_says_what_it_means_and_names_a_point_that_lists_it():
    numbers = dict(enumerate(settings.POINTS.values(), start=1))
    for section, model in settings.SECTIONS.items():
        assert model.__doc__, section
        for field, info in model.model_fields.items():
            assert info.description, f"{section}.{field}"
            for part in info.description.split("(point ")[1:]:
                assert f"{section}.{field}" in numbers[int(part.split(")")[0])], f"{section}.{field}"


def test_numbers_that_are_none_and_misspelt_stages_are_refused():
    content = {"stage": "stage1", "scale": "demo", "train": {"learning_rate": float("inf")}}
    with pytest.raises(InputError, match=r"train\.learning_rate: .*finite"):
        experiments.parse(content, "a spec")
    with pytest.raises(InputError, match=r"stage2\.epoch: unknown key; known: epochs"):  # though the row has no stage 2
        experiments.build_run("demo", {"pretraining": "none", "stage2": {"epoch": 3}}, "phantom_vqa_rad")


def test_a_question_set_may_have_a_fine_tuning_of_its_own_and_a_row_goes_before_it(monkeypatch):
    plain = experiments.scale_settings("demo")
    plain["question_sets"]["phantom_slake"]["finetune"] = {"epochs": 7}
    monkeypatch.setattr(experiments, "scale_settings", lambda scale: copy.deepcopy(plain))
    slake, rad = (experiments.build_run("demo", {}, f"phantom_{name}") for name in ("slake", "vqa_rad"))
    assert slake.train == rad.train.model_copy(update={"epochs": 7}) and rad.train.epochs == plain["finetune"]["epochs"]
    assert slake.data.language == "en" and slake.parent == rad.parent  # pre-training knows nothing of it
    row = experiments.build_run("demo", {"finetune": {"epochs": 2}}, "phantom_slake")
    assert row.train.epochs == 2
    plain["question_sets"]["phantom_slake"]["finetune"] = {"epoch": 7}
    with pytest.raises(InputError, match=r"finetune\.epoch: unknown key; known: epochs"):
        experiments.build_run("demo", {}, "phantom_slake")


def test_the_report_names_the_question_sets_that_train_otherwise():
    demo = report_facts.settings_that_differ("demo").set_index(["setting", "stage"])
    (of_sets,) = demo.loc[("train.epochs", "fine-tuning")].drop("SCALE=paper")
    assert of_sets == "3 (phantom_slake: 2, phantom_pathvqa: 2)"
