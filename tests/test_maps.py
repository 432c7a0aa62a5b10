"""Patch maps: `explain` recomputed by hand, stored maps equal to it and of the right questions; mined negatives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoTokenizer

from amif_lib.app import word_maps
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import images, manifests
from amif_lib.data.load import load_questions, load_studies, pretraining_studies
from amif_lib.experiments import stored, stored_maps
from amif_lib.experiments.rows import blank_image_run
from amif_lib.methods.amif import knowledge, teacher
from amif_lib.methods.amif.network import AMiF, AMiFForVQA
from amif_lib.methods.amif.patch_maps import word_positions
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks import pixels, tokenizers
from amif_lib.networks.sizes import ModelSpec
from amif_lib.objectives import transport
from tests import tiny
from tests.test_transport import loop_ipot, uniform

QUESTION = "is there a nodule in the left lung hung"
SIDE = 4  # patches: 32 pixels by 8
# some questions are cut; the set whose images stand as examples for stage 2 is one that pre-training does not see
CHANGES = {"data": {"question_length": 16, "decontaminate_against": ["phantom_vqa_rad"]}}


# --- explain ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["is there a nodule in the left lung", "the heart is enlarged", "yes", "no", "axial"]
    return tokenizers.train(texts * 2, 120, tmp_path_factory.mktemp("tokenizer"))


def make(tokenizer, question_length=20, **changes):
    torch.manual_seed(0)
    spec = ModelSpec(**(tiny.MODEL | {"vocab_size": 120, "fusion_layers": 2} | changes))
    ids, _ = knowledge.select(["yes", "no", "left lung"], tokenizer, 64)
    return AMiFForVQA(spec, KnowledgeSpec(), ids, tokenizer, question_length, 8).eval()


@pytest.fixture(scope="module")
def vqa(tokenizer):
    return make(tokenizer)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def inside(vqa, picture):
    """Question tokens and the network's intermediates."""
    image, ids, mask = vqa.inputs(picture, QUESTION)
    with torch.inference_mode():
        return ids[0].tolist(), vqa.encode_with_maps(image, ids, mask, return_weights=True)[2]


def places(vqa, tokens, word):
    pieces = vqa.tokenizer(word, add_special_tokens=False)["input_ids"]
    return next(i for i in range(len(tokens)) if tokens[i : i + len(pieces)] == pieces) + np.arange(len(pieces))


@pytest.mark.parametrize(("word", "pieces"), [("nodule", 1), ("hung", 4), ("left lung", 2)])
def test_maps_of_a_word_by_hand(vqa, picture, inside, word, pieces):
    tokens, made = inside
    found, own = vqa.explain(picture, QUESTION, word), list(places(vqa, tokens, word))
    assert len(own) == pieces and {name: tuple(values.shape) for name, values in found.items()} == dict.fromkeys(
        ("attention", "transport_plan", "gate"), (SIDE, SIDE)
    )
    content = [i for i, token in enumerate(tokens) if token not in (2, 3)]
    x, y = (functional.normalize(t.double(), dim=1) for t in (made["image"][0, 1:], made["text"][0, content]))
    plan = loop_ipot((1 - x @ y.T).numpy(), uniform(len(x)), uniform(len(y)), 0.5, 50)  # mass is summed over pieces
    expected = plan[:, [content.index(i) for i in own]].sum(1)
    np.testing.assert_allclose(found["transport_plan"].numpy().ravel(), expected, rtol=1e-3, atol=1e-7)
    assert float(found["transport_plan"].sum()) == pytest.approx(pieces / len(content), rel=1e-4)
    weights = made["attentions"][-1][1][0].mean(0)  # text on image, mean over heads: (t, p+1)
    share = weights[own, 1:].mean(0)
    assert float(share.sum()) < 0.99  # [CLS] has its share of attention, which the map leaves out
    torch.testing.assert_close(found["attention"].flatten(), share / share.sum())
    torch.testing.assert_close(found["gate"].flatten(), made["gate"][0, 1 : 1 + SIDE**2].mean(-1))  # whichever the word


@pytest.mark.parametrize("word", ["spleen", "hun", "lun", "ß", "", "heart"])
def test_a_word_that_is_absent_or_cut_off_is_refused(vqa, tokenizer, picture, word):
    """Also the beginning of a longer word ('hun' of 'hung'), an unknown letter, and no word at all."""
    with pytest.raises(InputError, match="is not a word of the text"):
        vqa.explain(picture, QUESTION + " ü", word)
    with pytest.raises(InputError, match="'lung' is not a word"):
        make(tokenizer, question_length=7).explain(picture, QUESTION, "lung")


# --- what is stored of a run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainings(own_results):
    runs = tiny.trained(tiny.run(**CHANGES)).trainings()
    for spec in runs:
        word_maps.ensure(spec)
    return runs


def file_of(run, name):
    return stored_maps.read(run.directory / name)


def test_question_maps_are_those_of_explain(trainings):
    """Rows from all parts of the batch, one by one without padding; questions of different length share a batch."""
    kept, model = file_of(trainings[2], stored_maps.MAPS), stored.load_run(trainings[2]).model()
    questions = {q.question_id: q for q in load_questions("phantom_vqa_rad")}
    lengths = set()
    for row in (0, 1, 7, 60, len(kept) - 1):
        question = questions[kept.ids[row]]
        lengths.add(len(question.question.split()))
        single = model.explain(question.image_path, question.question, kept.words[row])
        assert set(single) == set(kept.values) == {"attention", "transport_plan", "gate"}
        for name, values in single.items():
            np.testing.assert_allclose(kept.values[name][row], values.numpy(), rtol=1e-4, atol=1e-7)
    assert len(lengths) > 1


def test_questions_are_the_first_that_name_what_the_image_shows(trainings):
    """From the annotation files and label maps themselves; examples are the first of each label and image."""
    kept, folder = file_of(trainings[2], stored_maps.MAPS), manifests.location("phantom_vqa_rad")
    about = json.loads((folder / "question_regions.json").read_text(encoding="utf-8"))
    numbers = json.loads((folder / "masks.json").read_text(encoding="utf-8"))["labels"]
    expected = []
    for question in (q for q in load_questions("phantom_vqa_rad") if q.split == "test"):
        for label in about[question.question_id]:
            shown = np.asarray(Image.open(folder / "masks" / f"{question.image_id}.png")) == numbers[label]
            if label in question.question.lower() and shown.any():
                expected.append((question.question_id, question.image_id, label, shown))
    expected = expected[: word_maps.MOST]
    assert [row[:3] for row in expected] == list(zip(kept.ids, kept.image_ids, kept.labels, strict=True))
    for row in (0, len(kept) // 2):  # 96 pixels on a grid of 4 x 4
        share = expected[row][3].reshape(4, 24, 4, 24).mean((1, 3))
        np.testing.assert_allclose(kept.coverage[row], share, atol=1e-3)
    assert kept.examples[0] == 0 and len({kept.labels[i] for i in kept.examples}) == len(kept.examples) == 4
    assert kept.pictures.std() > 0 and kept.outlines.any((1, 2)).all()


def test_a_report_map_recomputed_alone_of_a_study_that_no_stage_is_trained_on(trainings):
    """The first row from the saved weights: image, report, co-attention, plan, the word's columns."""
    run = trainings[1]
    kept = file_of(run, stored_maps.MAPS)
    held_out = {study.study_id: study for study in load_studies(word_maps.HELD_OUT)}
    trained_on = {study.study_id for study in pretraining_studies(run.data, run.model.stored_side)}
    assert set(kept.ids) <= set(held_out) and not set(kept.ids) & trained_on
    assert set(kept.values) == {"transport_plan", "attention"}
    assert all(word in text for word, text in zip(kept.words, kept.texts, strict=True))
    study = held_out[kept.ids[0]]
    picture = next(i for i in study.images if i.image_id == kept.image_ids[0])
    tokenizer, amif = (each.from_pretrained(run.directory / "model") for each in (AutoTokenizer, AMiF))
    ids, mask = tokenizers.encode(tokenizer, [study.text], run.data.text_length)
    image = pixels.to_tensor(images.as_stored(picture.path, run.model.stored_side), run.model.image_size)[None]
    with torch.inference_mode():
        x, y, _ = amif.co_attention(amif.image_encoder(image), amif.text_encoder(ids, mask), None, mask, "image_text")
        columns = tokenizers.content_mask(ids, mask, (tokenizer.cls_token_id, tokenizer.sep_token_id))
        plan = transport.ipot(transport.cosine_cost(x[:, 1:], y), None, columns)[0]
    wanted = plan[:, word_positions(tokenizer, ids[0].tolist(), kept.words[0])].sum(1)
    np.testing.assert_allclose(kept.values["transport_plan"][0].ravel(), wanted.numpy(), rtol=1e-3, atol=1e-7)


def test_mined_negatives_of_notebook_04_are_those_that_training_drew(trainings):
    """The last step's draw; probabilities by hand from the teacher's texts."""
    run = trainings[1]
    found: dict = {"run": run, "done": [stored.load_run(run)]}
    for cell in json.loads(next(paths.NOTEBOOKS.glob("04_*")).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).partition("figures.use_style()")[0]
        if any(mark in source for mark in ("import textwrap", "stage.mine(", "regions.known", "mined = pd.DataFrame(")):
            exec(source, found)
    assert set(found["mined"]["pair"]) == {"image_text", "image_image", "text_text"}
    part, studies = found["mined"].query("pair == 'text_text'"), found["studies"]
    known = teacher.embeddings(run, pretraining_studies(run.data, run.model.stored_side))
    vectors = torch.stack([known.vectors[known.rows["text", study.study_id]] for study in studies])
    q = (vectors @ vectors.T / run.objective.teacher_temperature).softmax(1).numpy()
    assert len(studies) == run.train.batch_size and part["sample"].tolist() == list(range(len(studies)))
    for line in part.itertuples():
        i, j = line.sample, line.negative
        allowed = [k for k, s in enumerate(studies) if k != i and s.text.lower() != studies[i].text.lower()]
        assert j in allowed and line.probability == pytest.approx(q[i, j] / q[i, allowed].sum(), rel=1e-3)
        assert line.uniform == pytest.approx(1 / len(allowed), rel=1e-3)
        assert line.drawn == (found["shown"][i] == found["shown"][j])


def test_done_once_and_not_of_a_run_without_maps(trainings):
    path = trainings[2].directory / stored_maps.MAPS
    kept = path.read_bytes()
    path.unlink()
    word_maps.ensure(trainings[2])
    assert path.read_bytes() == kept and len(kept) < 300_000  # equal input, equal file
    assert word_maps.ensure(trainings[0]) is None  # stage 1
    run = stored.load_run(trainings[2])
    run.spec = blank_image_run(trainings[2])
    assert word_maps.word_maps(run) is None


@pytest.mark.parametrize("stage", [1, 2])
def test_examples_without_regions_are_the_first_about_another_answer_word_and_image(
    trainings, monkeypatch, capsys, stage
):
    monkeypatch.setattr(word_maps.regions, "known", lambda name: False)  # as real sets
    monkeypatch.setattr(word_maps, "SHOWN", ("vqa_med_2019", "phantom_vqa_rad"))
    run = stored.load_run(trainings[stage])
    kept = stored_maps.Maps(**word_maps.word_maps(run))
    questions = load_questions("phantom_vqa_rad")
    answers = " ".join(q.answer.lower() for q in questions if q.split == "train").replace(",", " ").split()
    texts = {q.question_id: q.question for q in questions if q.split == "test"}
    for key, word in zip(kept.ids, kept.words, strict=True):
        own = [w.strip("?.,") for w in texts[key].split()]
        own = [w for w in own if len(w) >= 5 and w.isalpha() and w.lower() in answers]
        assert word == max(own, key=len)
    assert len(kept) == len(set(kept.labels)) == len(set(kept.image_ids)) == word_maps.EXAMPLES
    assert kept.examples.tolist() == [0, 1, 2, 3]
    assert not kept.coverage.any() and not kept.outlines.any() and kept.pictures.std() > 0
    assert set(kept.values) == {"transport_plan", "attention", *(["gate"] if stage == 2 else [])}
    monkeypatch.setattr(word_maps.manifests, "may_show", lambda name, kind: kind == "texts")
    assert word_maps.word_maps(run) is None and "no text that may be shown" in capsys.readouterr().out
