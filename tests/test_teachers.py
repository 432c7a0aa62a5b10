"""Teachers: models, files of embeddings, the one that the kit trains, and its encoders in a student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from amif_lib.app import cost
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data import vectors as files_of_vectors
from amif_lib.data.load import load_studies, pretraining_studies
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.methods.amif import teacher as teachers
from amif_lib.methods.amif import teacher_models
from amif_lib.methods.amif.settings import teacher_id
from amif_lib.networks import tokenizers
from amif_lib.training import prepare
from tests import tiny
from tests.test_pretrained import TOWER, randomised, write_bert, write_tokenizer


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")  # of this file alone: teachers are kept there too


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, prepared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("AMIF_PREPARED", str(prepared_folder))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))


def stage1(**teacher: object) -> experiments.RunSpec:
    spec = tiny.run().parent.parent
    return spec.model_copy(update={"teacher": type(spec.teacher).model_validate(spec.teacher.model_dump() | teacher)})


def embeddings(run: experiments.RunSpec) -> teachers.Embeddings:
    return teachers.embeddings(run, pretraining_studies(run.data, run.model.stored_side))


def vectors(n: int, e: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, e)).astype(np.float32)


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_hugging_face_clip_embeds_as_transformers_does(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_models, "BATCH", 4)
    own = write_tokenizer(tmp_path)
    text = TOWER | {"vocab_size": len(own), "max_position_embeddings": 20, "eos_token_id": own.sep_token_id}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    clip = randomised(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))
    clip.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    studies = load_studies("phantom_shapes")[:10]
    pictures = {s.study_id: Image.open(s.images[0].path) for s in studies}
    model = teacher_models.load(f"hf-clip:{tmp_path}")
    images = teacher_models.embed(model.images, [picture.convert("RGB") for picture in pictures.values()], 10)
    texts = teacher_models.embed(model.texts, [s.text for s in studies], 10)
    processor, tokenizer = CLIPImageProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for row in (0, 3, 9):  # one by one, without padding
        with torch.no_grad():
            pixels = processor(pictures[studies[row].study_id].convert("RGB"), return_tensors="pt")["pixel_values"]
            image = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)[0]
            ids = tokenizer([studies[row].text], truncation=True, max_length=20, return_tensors="pt")["input_ids"]
            text = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)[0]
        np.testing.assert_allclose(images[row], image / image.norm(), atol=1e-5)
        np.testing.assert_allclose(texts[row], text / text.norm(), atol=1e-5)


def test_a_model_that_is_not_there_or_not_a_clip_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"open_clip 'local-dir:.*cannot be loaded .*HF_HOME"):
        teacher_models.load(f"local-dir:{tmp_path}")
    write_bert(tmp_path)
    with pytest.raises(InputError, match=r"has model_type 'bert', not 'clip'"):
        teacher_models.load(f"hf-clip:{tmp_path}")


# --- files of embeddings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("image", "i", [1, 2])], r"no vector of 'text' 't' \(1 of 2 are missing"),
        ([("image", "i", [1, 2]), ("text", "t", [1, 2]), ("image", "i", [2, 1])], "image 'i' occurs twice"),
        ([("image", "i", [1, 2]), ("text", "t", [1, 2, 3])], "lists of equally many numbers"),
        ([("image", "i", [1, float("nan")]), ("text", "t", [1, 2])], "'image' 'i' is zero or not finite"),
        (None, "not a Parquet file with columns kind, id and vector"),
    ],
)
def test_a_bad_file_of_embeddings_is_named_with_the_id(tmp_path, rows, message):
    path = tmp_path / "bad.parquet"
    if rows:
        pd.DataFrame(rows, columns=["kind", "id", "vector"]).to_parquet(path)
    else:
        path.write_text("kind,id,vector\n")
    with pytest.raises(InputError, match=rf"bad\.parquet.*{message}") as caught:
        files_of_vectors.read(path, [("image", "i"), ("text", "t")])
    assert "\n" not in str(caught.value)


def test_a_teacher_from_a_file_gives_the_students_vectors_and_notices_another_file(tmp_path):
    run = stage1(source="file:teachers/x.parquet", data=())
    studies = pretraining_studies(run.data, run.model.stored_side)
    keys = [("image", image.image_id) for study in studies for image in study.images]
    keys += [("text", study.study_id) for study in studies]
    given, path = vectors(len(keys)), tmp_path / "data" / "teachers" / "x.parquet"
    others = [*keys[::-1], ("text", "no study of the run")]
    files_of_vectors.write(path, others, np.concatenate([given[::-1], vectors(1)]))
    prepared = prepare.prepare(run)  # what a training reads
    assert prepared.notes["teacher"]["file_sha256"] == files.sha256(path)
    found = teachers.embeddings(run, studies)
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(found.vectors[[found.rows[key] for key in keys]], unit, rtol=1e-5)
    of = found.of(studies[0], studies[0].images)
    np.testing.assert_allclose(of["teacher_views"], unit[: len(studies[0].images)], rtol=1e-5)
    np.testing.assert_allclose(of["teacher_text"], unit[-len(studies)], rtol=1e-5)
    first = stored.inputs(run)
    files_of_vectors.write(path, keys, given)
    assert first["teacher.source"] != stored.inputs(run)["teacher.source"]  # a run of the first is not taken any more
    with pytest.raises(InputError, match=r"x\.parquet: the file changed since teacher .* delete .*runs"):
        teachers.embeddings(run, studies)
    path.unlink()
    with pytest.raises(InputError, match=r"x\.parquet: no such file; .*DATA_ROOT"):
        teachers.embeddings(run, studies)


# --- the one that the kit trains -------------------------------------------------------------------------------------


def test_what_a_teacher_has_made_is_taken_and_not_made_again(monkeypatch, tmp_path):
    run = stage1(epochs=2)
    whole = embeddings(run)
    written, fold = sorted(teachers.cache(run).iterdir())
    assert written.suffix == ".parquet" and fold.name == "fold0"
    assert 0 < whole.metrics["mean_q_ii"] < 1 <= whole.metrics["effective_neighbours"]
    written.unlink()
    monkeypatch.setattr(teacher_models, "train", None)  # is not called again
    torch.testing.assert_close(embeddings(run).vectors, whole.vectors, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(teacher_models, "embed", None)
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "another"))
    torch.testing.assert_close(embeddings(run).vectors, whole.vectors, atol=1e-5, rtol=1e-4)
    public = paths.run_dir(teacher_id(run))
    assert {path.name for path in public.iterdir()} == {"metrics.json", "spec.json"}
    assert json.loads((public / "spec.json").read_text())["epochs"] == 2
    assert json.loads((public / "metrics.json").read_text()) == whole.metrics
    assert "for the reference" in cost.rates("demo")[1]  # a plan takes the folder of a teacher for no training


def test_images_exchanged_under_equal_ids_are_embedded_again(monkeypatch, tmp_path):
    run = stage1()
    for name in (*run.data.pretrain, *run.teacher.data):
        shutil.copytree(manifests.location(name), tmp_path / "phantom" / manifests.load(name).folder)
    monkeypatch.setenv("AMIF_PHANTOM", str(tmp_path / "phantom"))
    before, studies = embeddings(run), pretraining_studies(run.data, run.model.stored_side)
    one, other = (study.images[0] for study in studies[:2])
    for image, content in zip((one, other), (other.path.read_bytes(), one.path.read_bytes()), strict=True):
        image.path.write_bytes(content)
    after = embeddings(run)
    rows, expected = [before.rows["image", image.image_id] for image in (one, other)], before.vectors.clone()
    expected[rows] = before.vectors[rows[::-1]]
    torch.testing.assert_close(after.vectors, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after.vectors, before.vectors, atol=1e-3)


def test_cross_fitting_embeds_no_case_by_a_model_that_was_trained_on_it(monkeypatch):
    run, trained = stage1(cross_fit=2, data=()), {}
    monkeypatch.setattr(teacher_models, "BATCH", 8)
    plain = teacher_models.train

    def train(studies, teacher, folder, pictures):
        trained[folder.name] = {study.group_id for study in studies}
        plain(studies, teacher, folder, pictures)

    monkeypatch.setattr(teacher_models, "train", train)
    run = run.model_copy(update={"train": run.train.model_copy(update={"batch_size": 4})})
    found = embeddings(run)
    studies = pretraining_studies(run.data, run.model.stored_side)
    for fold in (0, 1):
        own = {s.group_id for s in studies if found.folds[s.study_id] == fold}
        assert own and trained[f".fold{fold}"] and not own & trained[f".fold{fold}"]
    assert set(found.folds) == {s.study_id for s in studies}


def test_a_teacher_of_the_students_own_pairs_is_refused():
    with pytest.raises(InputError, match=r"teacher.data: phantom_mimic_cxr is also the student's"):
        embeddings(stage1(data=("phantom_mimic_cxr",)))
    with pytest.raises(InputError, match=r"train.batch_size: 8000 exceeds the studies of a fold"):
        run = stage1()
        embeddings(run.model_copy(update={"train": run.train.model_copy(update={"batch_size": 8000})}))


# --- a run that starts from its teacher's towers ---------------------------------------------------------------------


def towers_run(**teacher: object) -> dict:
    """Table 4's row 2 in small: a fine-tuning without pre-training, whose encoders are the trained teacher's."""
    content = tiny.run().model_dump(mode="json", exclude={"parent"})
    own = tiny.run().parent.parent.teacher.model_dump(mode="json") | {"layers": 2}
    sizes = {"image_heads": 1, "text_heads": 1}  # the teacher's: one per 32 of width
    init = content["init"] | {"image": "teacher", "text": "teacher"}
    return content | {"init": init, "teacher": own | teacher, "model": content["model"] | sizes}


def test_a_fine_tuning_starts_from_the_towers_of_the_trained_teacher():
    run = experiments.parse(towers_run(), "tests")
    prepared = prepare.prepare(run)
    saved = load_file(teachers.cache(run) / "fold0" / "model.safetensors")
    found = prepared.module.model.amif.state_dict()
    words = "text_encoder.bert.embeddings.word_embeddings.weight"
    theirs, ours = tokenizers.load(teachers.cache(run) / "fold0").get_vocab(), prepared.tokenizer.get_vocab()
    same = [name for name in found if "encoder" in name and name != words and "position_embeddings" not in name]
    assert len(same) > 40 and all(torch.equal(found[name], saved[name]) for name in same)
    for piece in ours.keys() & theirs.keys():
        assert torch.equal(found[words][ours[piece]], saved[words][theirs[piece]])
    assert any("pieces" in line for line in prepared.notes["weights"])


def test_the_teacher_is_part_of_the_identity_of_such_a_run_and_of_no_other_fine_tuning():
    run = experiments.parse(towers_run(), "tests")
    assert run.run_id != experiments.parse(towers_run(epochs=3), "tests").run_id
    assert teacher_id(run) and teacher_id(run) != teacher_id(experiments.parse(towers_run(epochs=3), "tests"))
    init = {"init": tiny.run().model_dump(mode="json")["init"]}
    plain = [towers_run(**change) | init for change in ({}, {"epochs": 3})]
    assert len({experiments.parse(each, "tests").run_id for each in plain}) == 1
    assert not teacher_id(experiments.parse(plain[0], "tests"))
    external = experiments.parse(towers_run(source="hf-hub:a/b", data=[]), "tests")
    assert not teacher_id(external) and teachers.towers(external) == ("open_clip:hf-hub:a/b",) * 2
    assert teachers.towers(experiments.parse(towers_run(source="hf-clip:a/b", data=[]), "tests")) == ("a/b", "a/b")
