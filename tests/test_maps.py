"""What `maps.ensure` stores: equal to `explain` one by one, on the right questions, never on training studies."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.load import load_questions, load_studies, pretraining_studies
from amif_lib.experiments import stored as results
from amif_lib.methods.amif import explain, maps
from amif_lib.methods.amif import teacher as teachers
from amif_lib.networks import tokenizers
from amif_lib.objectives import contrastive
from amif_lib.reporting import map_files, map_scores
from amif_lib.training import loop as train
from tests import tiny

# some questions are cut; the set whose images stand as examples for stage 2 on real data is one that pre-training does not see
CHANGES = {"data": {"question_length": 16, "decontaminate_against": ["phantom_vqa_rad"]}}


def studies_of(run):
    return pretraining_studies(run.data, run.model.stored_side)


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("AMIF_RESULTS", str(tmp_path_factory.mktemp("results")))
    patch.setenv("AMIF_HEADLESS", "1")
    runs = tiny.run(**CHANGES).lineage()
    for spec in runs:
        train.fit(spec)
        maps.ensure(spec)
    yield runs
    patch.undo()


@pytest.fixture(scope="module")
def asked(lineage):
    return map_files.read(lineage[2].directory / map_files.MAPS)


def test_question_maps_are_those_of_explain(lineage, asked):
    """Rows from all parts of the batch, one by one without padding; questions of different length share a batch."""
    model = results.load_run(lineage[2]).model()
    questions = {q.question_id: q for q in load_questions("phantom_vqa_rad")}
    lengths = set()
    for row in (0, 1, 7, 60, len(asked) - 1):
        question = questions[asked.ids[row]]
        lengths.add(len(question.question.split()))
        single = model.explain(question.image_path, question.question, asked.words[row])
        assert set(single) == set(asked.values) == {"attention", "transport_plan", "gate"}
        for name, values in single.items():
            wanted = values.numpy() if name == "gate" else (values / values.sum()).numpy()
            np.testing.assert_allclose(asked.values[name][row], wanted, rtol=1e-4, atol=1e-5)  # a 65,535th of the range
    assert len(lengths) > 1


def test_questions_are_the_first_that_name_what_the_image_shows(asked):
    """From the annotation files and label maps themselves."""
    folder = manifests.location("phantom_vqa_rad")
    about = json.loads((folder / "question_regions.json").read_text(encoding="utf-8"))
    labels = json.loads((folder / "masks.json").read_text(encoding="utf-8"))["labels"]
    expected = []
    for question in (q for q in load_questions("phantom_vqa_rad") if q.split == "test"):
        for label in about[question.question_id]:
            pixels = np.asarray(Image.open(folder / "masks" / f"{question.image_id}.png"))
            if label in question.question.lower() and (pixels == labels[label]).any():
                expected.append((question.question_id, question.image_id, label, pixels == labels[label]))
    expected = expected[: maps.MOST]
    assert [(i, image, label) for i, image, label, _ in expected] == list(
        zip(asked.ids, asked.image_ids, asked.labels, strict=True)
    )
    for row in (0, len(asked) // 2):  # 96 pixels on a grid of 4 x 4
        share = expected[row][3].reshape(4, 24, 4, 24).mean((1, 3))
        np.testing.assert_allclose(asked.coverage[row], share, atol=1e-3)


def test_examples_follow_the_rule():
    assert maps.first_of_each(["a", "a", "b", "c", "d", "e"], ["1", "2", "1", "3", "4", "5"], 3) == [0, 3, 4]


def test_report_maps_are_of_studies_that_no_stage_is_trained_on(lineage):
    stored = map_files.read(lineage[1].directory / map_files.MAPS)
    held_out = {study.study_id for study in load_studies(maps.HELD_OUT)}
    trained_on = {study.study_id for study in studies_of(lineage[1])}
    assert set(stored.ids) <= held_out and not set(stored.ids) & trained_on
    assert set(stored.values) == {"transport_plan", "attention"}
    np.testing.assert_allclose(stored.values["transport_plan"].sum((1, 2)), 1, rtol=1e-3)
    assert all(word in text for word, text in zip(stored.words, stored.texts, strict=True))


def test_a_report_map_recomputed_alone(lineage):
    """The first row from the saved weights: image, report, co-attention, plan, the word's columns."""
    from amif_lib.data import images
    from amif_lib.methods.amif.network import AMiF
    from amif_lib.objectives import transport

    run = lineage[1]
    stored = map_files.read(run.directory / map_files.MAPS)
    study = next(s for s in load_studies(maps.HELD_OUT) if s.study_id == stored.ids[0])
    picture = next(i for i in study.images if i.image_id == stored.image_ids[0])
    tokenizer, amif = tokenizers.load(run.directory / "model"), AMiF(run.model)
    amif.load(run.directory / "model")
    amif.eval()
    ids, mask = tokenizers.encode(tokenizer, [study.text], run.data.text_length)
    from amif_lib.networks import pixels as inputs

    pixels = inputs.to_tensor(images.as_stored(picture.path, run.model.stored_side), run.model.image_size)[None]
    with torch.inference_mode():
        image, text = amif.image_encoder(pixels), amif.text_encoder(ids, mask)
        x, y, _ = amif.co_attention(image, text, None, mask, "image_text")
        columns = tokenizers.content_mask(ids, mask, (tokenizer.cls_token_id, tokenizer.sep_token_id))
        plan = transport.ipot(transport.cosine_cost(x[:, 1:], y), None, columns)[0]
    places = explain.word_positions(tokenizer, ids[0], stored.words[0])
    wanted = plan[:, places].sum(1)
    np.testing.assert_allclose(
        stored.values["transport_plan"][0].ravel(), (wanted / wanted.sum()).numpy(), rtol=1e-3, atol=1e-5
    )  # stored with 16 bits


@pytest.mark.parametrize("stage", [1, 2])
def test_untrained_model_is_asked_the_same_and_answers_otherwise(lineage, stage):
    run = lineage[stage]
    stored = map_files.read(run.directory / map_files.MAPS)
    fresh = map_files.read(map_scores.untrained_file(run, stored.data_set))
    assert (fresh.ids, fresh.words) == (stored.ids, stored.words) and set(fresh.values) == set(stored.values)
    assert all(not np.allclose(fresh.values[name], stored.values[name], rtol=1e-4) for name in fresh.values)


def test_soft_labels_are_distributions_of_the_first_batch(lineage):
    run = lineage[0]
    stored = map_files.read_arrays(run.directory / map_files.SOFT_LABELS)
    n = run.train.batch_size
    embeddings = teachers.embeddings(run, studies_of(run))
    texts = torch.stack([embeddings.vectors[embeddings.rows["text", name]] for name in stored["ids"].tolist()])
    q = (texts @ texts.T / run.objective.teacher_temperature).softmax(1).numpy()
    np.testing.assert_allclose(stored["t2t_teacher"], q, atol=1e-3)
    np.testing.assert_allclose(stored["t2t_labels"], q + run.objective.positive_weight * np.eye(n), atol=1e-3)
    for name in ("i2t_student", "t2t_student", "i2t_teacher"):
        assert stored[name].shape == (n, n)
        np.testing.assert_allclose(stored[name].astype(float).sum(1), 1, atol=5e-3)


def test_mined_negatives_are_those_that_training_drew(lineage):
    """The last step's draw, made again by the training's own module; probabilities by hand from the teacher's texts."""
    run = lineage[1]
    table = pd.read_csv(run.directory / map_files.HARD_NEGATIVES, dtype={"id": str, "negative_id": str})
    assert set(table["step"]) == {results.load_run(run).metrics["steps"] - 1}
    assert set(table["pair"]) == {"image_text", "image_image", "text_text"}
    assert (table["id"] != table["negative_id"]).all()
    part = table[table["pair"] == "text_text"].reset_index(drop=True)
    embeddings = teachers.embeddings(run, studies_of(run))
    studies = {s.study_id: s for s in studies_of(run)}
    vectors = torch.stack([embeddings.vectors[embeddings.rows["text", name]] for name in part["id"]])
    q = contrastive.soft_labels(
        vectors @ vectors.T, run.objective.teacher_temperature, 0.0, torch.arange(len(part))
    ).numpy()
    names, texts = list(part["id"]), [studies[name].text.lower() for name in part["id"]]
    assert len(names) == run.train.batch_size
    for i, line in part.iterrows():
        allowed = [j for j in range(len(names)) if j != i and texts[j] != texts[i]]
        j = names.index(line["negative_id"])
        assert j in allowed
        assert line["probability"] == pytest.approx(q[i, j] / q[i, allowed].sum(), rel=1e-3)
        assert line["uniform"] == pytest.approx(1 / len(allowed), rel=1e-3)
        assert line["same_findings"] == (line["findings"] == line["negative_findings"]) or pd.isna(line["findings"])


def test_done_once_and_again_where_it_is_gone(lineage):
    path = lineage[2].directory / map_files.MAPS
    before = path.stat().st_mtime_ns
    assert path in maps.ensure(lineage[2].run_id) and path.stat().st_mtime_ns == before
    assert path.stat().st_size < 300_000
    kept = path.read_bytes()
    path.write_bytes(b"half")
    maps.ensure(lineage[2])
    assert path.read_bytes() == kept  # equal input, equal file


def test_runs_without_regions_say_so(lineage, capsys):
    from amif_lib.experiments.rows import blank_image_run

    blank = blank_image_run(lineage[2])
    train.fit(blank)
    assert maps.ensure(blank) == [] and "no maps: it is trained on blank images" in capsys.readouterr().out
    seen = lineage[1].model_copy(update={"data": lineage[1].data.model_copy(update={"pretrain": (maps.HELD_OUT,)})})
    assert "is trained on phantom_teacher" in maps._no_maps(seen)


@pytest.fixture
def without_regions(lineage, monkeypatch):
    """The lineage, as if its sets came without regions, as real ones do."""
    monkeypatch.setattr(maps.regions, "known", lambda name: False)
    monkeypatch.setattr(maps, "SHOWN", ("vqa_med_2019_that_is_not_here", "phantom_vqa_rad"))
    yield lineage
    for run in lineage:
        (run.directory / map_files.EXAMPLE_MAPS).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("stage", "kinds"), [(1, {"transport_plan", "attention"}), (2, {"transport_plan", "attention", "gate"})]
)
def test_examples_without_regions_are_the_first_about_another_answer_word_and_image(without_regions, stage, kinds):
    run = without_regions[stage]
    assert run.directory / map_files.EXAMPLE_MAPS in maps.ensure(run)
    stored = map_files.read(run.directory / map_files.EXAMPLE_MAPS)
    questions = load_questions("phantom_vqa_rad")
    learnt = [q.question.lower() for q in questions if q.split == "train"]
    answers = " ".join(q.answer.lower() for q in questions if q.split == "train").replace(",", " ").split()
    expected, seen = [], set()
    for question in (q for q in questions if q.split == "test"):
        own = [w.strip("?.,").lower() for w in question.question.split()]
        own = [w for w in own if len(w) >= 5 and w.isalpha() and w in answers]
        own = [w for w in own if sum(re.search(rf"\b{w}\b", text) is not None for text in learnt) <= 0.02 * len(learnt)]
        word = max(own, key=len, default=None)
        if word and word not in seen and question.image_id not in seen and len(expected) < maps.EXAMPLES:
            expected.append((question.question_id, word))
            seen |= {word, question.image_id}
    assert list(zip(stored.ids, stored.labels, strict=True)) == expected and len(expected) == maps.EXAMPLES
    assert not stored.coverage.any() and not stored.outlines.any() and stored.pictures.std() > 0
    assert set(stored.values) == kinds and stored.examples == list(range(maps.EXAMPLES))
    assert all(word in text for word, text in zip(stored.words, stored.texts, strict=True))
    if stage == 2:
        question = next(q for q in questions if q.question_id == stored.ids[1])
        single = results.load_run(run).model().explain(question.image_path, question.question, stored.words[1])
        wanted = (single["attention"] / single["attention"].sum()).numpy()
        np.testing.assert_allclose(stored.values["attention"][1], wanted, rtol=1e-4, atol=1e-5)


def test_no_examples_of_images_that_may_not_be_shown_or_are_not_here(without_regions, monkeypatch, capsys):
    monkeypatch.setattr(maps, "SHOWN", ("vqa_med_2019_that_is_not_here",))
    assert not any(path.name == map_files.EXAMPLE_MAPS for path in maps.ensure(without_regions[1]))
    assert "none of vqa_med_2019_that_is_not_here, whose images may be shown, is under" in capsys.readouterr().out
    monkeypatch.setattr(maps.redistribution, "may_show", lambda name, kind: kind == "texts")
    assert maps.ensure(without_regions[2]) == []
    assert "and no examples: " in (said := capsys.readouterr().out) and "images not shown" in said


def test_an_unfinished_run_is_refused(lineage):
    folder = paths.run_dir("0123456789ab")
    folder.mkdir()
    spec = lineage[2].model_copy(update={"seed": 9})
    (folder / "spec.json").write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
    with pytest.raises(InputError, match="not finished; train it first"):
        maps.ensure("0123456789ab")
