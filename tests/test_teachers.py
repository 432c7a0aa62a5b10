"""Teachers of every form, embedding files, noise, and the towers of an open_clip model as the student's encoders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, CLIPConfig, CLIPImageProcessor, CLIPModel

from amif_lib.app import smoke
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.load import load_studies
from amif_lib.experiments import identity
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.methods.amif import embedding_files, teacher_embeddings, teacher_models
from amif_lib.methods.amif import teacher as teachers
from amif_lib.methods.amif.settings import TeacherSpec
from amif_lib.networks import tokenizers
from amif_lib.networks.sizes import ModelSpec
from amif_lib.objectives import contrastive
from amif_lib.phantom import shapes as phantom_shapes
from amif_lib.training import prepare
from tests import tiny

WORDS = [
    "a",
    "small",
    "nodule",
    "in",
    "the",
    "left",
    "lung",
    ",",
    "no",
    "effusion",
    ".",
    "heart",
    "size",
    "is",
    "normal",
]


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")  # of this file alone: teachers are kept there too


@pytest.fixture(autouse=True)
def own_results(tmp_path: Path, prepared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("AMIF_PREPARED", str(prepared_folder))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> object:
    return tokenizers.train([" ".join(words)] * 2, 200, folder)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every tensor random, biases and norms too, which fresh modules have at 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + (value == 1))
    return module.eval()


def write_open_clip(folder: Path, vision: dict, text: dict | None = None, **config: object) -> str:
    """An open_clip folder with random weights: an image tower as asked, a BERT (or the text tower as asked)."""
    tokenizer = write_tokenizer(folder)
    if text is None:
        bert = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
        bert.save_pretrained(folder)
        text = {
            "hf_model_name": ".",
            "hf_model_pretrained": False,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
        }
    text = {"hf_tokenizer_name": "here", "context_length": 24, "vocab_size": len(tokenizer)} | text
    own = text | ({"hf_model_name": str(folder)} if "hf_model_name" in text else {})
    kind = open_clip.CustomTextCLIP if "hf_model_name" in text or "timm_model_name" in vision else open_clip.CLIP
    model = randomised(kind(embed_dim=16, vision_cfg=vision, text_cfg=own, **config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    custom = {"custom_text": True} if kind is open_clip.CustomTextCLIP else {}
    content = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **config, **custom}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": content, "preprocess_cfg": {}}))
    return f"open_clip:local-dir:{folder}"


VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}


def model_spec(**changes: object) -> ModelSpec:
    return ModelSpec(**(tiny.MODEL | changes))


def tower_tokens(tower: torch.nn.Module, last_norm: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What an open_clip tower gives after its last norm, for every token, and runs."""
    kept = []
    handle = last_norm.register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        tower(inputs)
    handle.remove()
    return kept[0]


# --- Hugging Face CLIP -----------------------------------------------------------------------------------------------


def write_hf_clip(folder: Path) -> CLIPModel:
    tokenizer = write_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 20, "eos_token_id": tokenizer.sep_token_id}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    model = randomised(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


class Stored(dict):
    """Image files by id, as prepared sets give them: pictures and the bytes they are stored as."""

    def __getitem__(self, name: str) -> Image.Image:
        return Image.open(self.get(name))

    def content(self, name: str) -> bytes:
        return self.get(name).read_bytes()


def test_a_hugging_face_clip_embeds_as_transformers_does_in_batches_of_any_size(tmp_path: Path) -> None:
    clip = write_hf_clip(tmp_path / "clip")
    model = teacher_models.load(f"hf-clip:{tmp_path / 'clip'}")
    studies = load_studies("phantom_shapes")[:70]  # more than one batch of 64
    pictures = Stored({s.study_id: s.images[0].path for s in studies})
    folds = {0: list(range(len(studies)))}
    found = teachers.embed(studies, folds, {0: model}, pictures, tmp_path / "a")
    from transformers import AutoTokenizer

    processor, tokenizer = (
        CLIPImageProcessor.from_pretrained(tmp_path / "clip"),
        AutoTokenizer.from_pretrained(tmp_path / "clip"),
    )
    for study in (studies[0], studies[63], studies[69]):  # one by one, without padding
        with torch.no_grad():
            pixels = processor(pictures[study.study_id].convert("RGB"), return_tensors="pt")["pixel_values"]
            image = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)[0]
            ids = tokenizer([study.text], truncation=True, max_length=20, return_tensors="pt")["input_ids"]
            text = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)[0]
        own = found.image_vectors[found.images[study.study_id]], found.text_vectors[found.studies[study.study_id]]
        for vector, expected in zip(own, (image, text), strict=True):
            torch.testing.assert_close(vector, expected / expected.norm(), atol=1e-5, rtol=0)
    backwards = teachers.embed(studies[::-1], folds, {0: model}, pictures, tmp_path / "b")
    again = backwards.image_vectors[[backwards.images[name] for name in found.images]]
    torch.testing.assert_close(again, found.image_vectors, atol=1e-5, rtol=0)


def test_another_choice_of_data_embeds_only_what_the_model_has_not_seen(tmp_path: Path) -> None:
    write_hf_clip(tmp_path / "clip")
    network, *rest = teacher_models.load(f"hf-clip:{tmp_path / 'clip'}")
    encoded = {"image": 0, "text": 0}

    class Counting(torch.nn.Module):
        def encode_image(self, pixels):
            encoded["image"] += len(pixels)
            return network.encode_image(pixels)

        def encode_text(self, ids):
            encoded["text"] += len(ids)
            return network.encode_text(ids)

    model = (Counting(), *rest)
    studies = load_studies("phantom_shapes")[:30]
    pictures = Stored({s.study_id: s.images[0].path for s in studies})
    first = teachers.embed(studies[:20], {0: list(range(20))}, {0: model}, pictures, tmp_path / "a")
    texts = {study.text for study in studies[:20]}
    assert encoded == {"image": 20, "text": len(texts)}
    # another order, ten more studies, and one of the old ones with another image under its id
    pictures[studies[3].study_id] = studies[25].images[0].path
    second = teachers.embed(studies[::-1], {0: list(range(30))}, {0: model}, pictures, tmp_path / "b", [tmp_path / "a"])
    more = {study.text for study in studies[20:]} - texts
    assert encoded == {"image": 20 + 10, "text": len(texts | more)}  # the changed image is equal to a new one
    for study in studies[:20]:
        same = torch.equal(
            first.image_vectors[first.images[study.study_id]], second.image_vectors[second.images[study.study_id]]
        )
        assert same == (study is not studies[3])
    changed, equal = (second.image_vectors[second.images[studies[i].study_id]] for i in (3, 25))
    assert torch.equal(changed, equal)


def test_only_caches_of_a_model_with_the_same_weights_and_image_size_by_equal_code_are_taken_from(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(teachers.manifests, "derived_folder", lambda name: tmp_path)
    spec = tiny.run().lineage()[0].model_copy(update={"teacher": TeacherSpec(source="hf-clip:anything")})
    side, code = teachers.stored_side(spec), results.code_digest()

    def cache(name: str, content: str) -> Path:
        folder = tmp_path / "teachers" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(content)
        return folder / "embeddings"

    def metrics(**changes) -> str:
        return json.dumps({"stored_side": side, "weights": "w", "code_digest": code} | changes)

    same = cache("same", metrics())
    cache("smaller", metrics(stored_side=side - 1))
    cache("another", metrics(weights="v"))
    cache("older", metrics(code_digest="of other code"))
    cache("damaged", "{")
    (tmp_path / "teachers" / "half.part-1").mkdir()
    assert teachers.same_model(spec, "w") == [same]
    cache(teachers.teacher_id(spec), metrics())  # its own is not another
    assert teachers.same_model(spec, "w") == [same]


def test_the_digest_of_weights_is_of_their_bits_and_names() -> None:
    one = torch.nn.Linear(3, 2)
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert teachers.weights_digest(one) == teachers.weights_digest(other)
    with torch.no_grad():
        other.bias[0] = torch.nextafter(other.bias[0], torch.tensor(9.0))
    assert teachers.weights_digest(one) != teachers.weights_digest(other)
    assert teachers.weights_digest(one) != teachers.weights_digest(torch.nn.Sequential(one))
    assert teachers.weights_digest(one.half()) != teachers.weights_digest(one.float())


def test_a_hugging_face_clip_that_is_not_there_or_not_one_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither a folder nor reachable .*HF_HOME"):
        teacher_models.load("hf-clip:nobody/no-such-clip")
    smoke.write_bert(
        tmp_path / "bert", 200, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    with pytest.raises(InputError, match=r"is a 'bert', no 'clip'"):
        teacher_models.load(f"hf-clip:{tmp_path / 'bert'}")


# --- files of embeddings ---------------------------------------------------------------------------------------------


def vectors(n: int, e: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, e)).astype(np.float32)


def test_what_is_written_is_read_by_id_in_unit_length(tmp_path: Path) -> None:
    pictures, texts = dict(zip("abc", vectors(3), strict=True)), dict(zip("ab", 7 * vectors(2, seed=1), strict=True))
    embedding_files.write(tmp_path / "x.parquet", pictures, texts)
    image, text = embedding_files.read(tmp_path / "x.parquet", ["c", "a"], ["b"])
    for found, expected in ((image[0], pictures["c"]), (image[1], pictures["a"]), (text[0], texts["b"])):
        np.testing.assert_allclose(found, expected / np.sqrt((expected**2).sum()), rtol=1e-6)
    # from pandas alone, in the documented form
    frame = pd.DataFrame({"kind": ["text", "image"], "id": ["t", "i"], "vector": [[0.0, 2.0], [3.0, 4.0]]})
    frame.to_parquet(tmp_path / "y.parquet")
    image, text = embedding_files.read(tmp_path / "y.parquet", ["i"], ["t"])
    np.testing.assert_allclose([image[0], text[0]], [[0.6, 0.8], [0, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("image", "i", [1, 2])], r"no vector of text 't' \(1 of the 1 texts"),
        (
            [("image", "i", [1, 2]), ("text", "t", [1, 2]), ("image", "i", [2, 1])],
            r"image 'i' occurs twice \(rows 1 and 3\)",
        ),
        ([("image", "i", [1, 2]), ("text", "t", [1, 2, 3])], r"text 't' has 3 numbers, the first row 2"),
        ([("image", "i", [1, 2]), ("text", "t", [0, 0])], r"text 't' holds zeros alone"),
        ([("image", "i", [1, float("nan")]), ("text", "t", [1, 2])], r"image 'i' holds a number that is not finite"),
        ([("picture", "i", [1, 2]), ("text", "t", [1, 2])], r"row 1 \('i'\): kind 'picture'; write image or text"),
        ([("image", 7, [1, 2])], r"row 1: id 7 is no text"),
        ([("image", "i", "far"), ("text", "t", "near")], r"column vector holds (large_)?string"),
        ([("image", "i", ["far"]), ("text", "t", ["near"])], r"must hold lists of floats"),
    ],
)
def test_a_bad_file_of_embeddings_is_named_with_the_id(tmp_path: Path, rows: list, message: str) -> None:
    path = tmp_path / "bad.parquet"
    pd.DataFrame(rows, columns=["kind", "id", "vector"]).to_parquet(path)
    with pytest.raises(InputError, match=rf"bad\.parquet.*{message}") as caught:
        embedding_files.read(path, ["i"], ["t"])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_absent_of_another_kind_or_without_columns_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.parquet: no such file of embeddings; .*DATA_ROOT"):
        embedding_files.read(tmp_path / "none.parquet", [], [])
    (tmp_path / "text.parquet").write_text("kind,id,vector\n")
    with pytest.raises(InputError, match=r"text\.parquet: not a Parquet file"):
        embedding_files.read(tmp_path / "text.parquet", [], [])
    pd.DataFrame({"kind": ["image"], "id": ["i"]}).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(InputError, match=r"two\.parquet: no column 'vector'"):
        embedding_files.read(tmp_path / "two.parquet", [], [])
    for bad, message in (
        ({"a": [1, 2], "b": [1, 2, 3]}, "'b'"),
        ({"a": [0, 0]}, "zeros"),
        ({"a": [np.inf, 0]}, "finite"),
    ):
        with pytest.raises(InputError, match=message):
            embedding_files.write(tmp_path / "new.parquet", bad, {})
        assert not (tmp_path / "new.parquet").exists()


def stage1(**teacher: object) -> experiments.RunSpec:
    spec = tiny.run().parent.parent
    return spec.model_copy(update={"teacher": type(spec.teacher).model_validate(spec.teacher.model_dump() | teacher)})


def test_a_teacher_from_a_file_gives_the_students_vectors_and_notices_another_file(tmp_path: Path) -> None:
    run = stage1(source="file:teachers/x.parquet", data=())
    studies = teachers.student_studies(run)
    pictures = list(dict.fromkeys(p.image_id for s in studies for p in s.images))
    given = dict(zip(pictures, vectors(len(pictures)), strict=True))
    texts = dict(zip([s.study_id for s in studies], vectors(len(studies), seed=1), strict=True))
    path = tmp_path / "data" / "teachers" / "x.parquet"
    embedding_files.write(path, dict(reversed(given.items())), texts | {"not one of the run's": vectors(1)[0]})
    prepared = prepare.prepare(run)  # what a training reads
    assert prepared.notes["teacher"]["file_sha256"] == manifests.sha256(path)
    stored = teachers.read(teachers.ensure(run))
    for name, row in stored.images.items():
        np.testing.assert_allclose(stored.image_vectors[row], given[name] / np.linalg.norm(given[name]), rtol=1e-5)
    assert set(stored.studies) == set(texts) - {"not one of the run's"}
    noisy = stage1(source="file:teachers/x.parquet", data=(), noise=0.5)
    for _ in range(2):  # made, and found again
        assert json.loads((teachers.ensure(noisy) / "metrics.json").read_text())["noise"] == 0.5
    embedding_files.write(path, given, texts | {"more": vectors(1)[0]})
    with pytest.raises(InputError, match=r"x\.parquet: changed since teacher"):
        teachers.ensure(run)
    path.unlink()
    teachers.ensure(run)  # the cache stands for itself
    with pytest.raises(InputError, match=r"y\.parquet: no such file"):
        teachers.ensure(stage1(source="file:teachers/y.parquet", data=()))


# --- noise -----------------------------------------------------------------------------------------------------------


def test_noise_has_the_stated_size_and_depends_on_the_id_alone() -> None:
    clean = vectors(400, 64)
    clean /= np.linalg.norm(clean, axis=1, keepdims=True)
    ids = [f"s{i}" for i in range(400)]
    for noise in (0.5, 1.0, 2.0):
        noisy = embedding_files.with_noise(ids, clean, noise, 0, "image")
        np.testing.assert_allclose(np.linalg.norm(noisy, axis=1), 1, rtol=1e-5)
        cosine = float((noisy * clean).sum(1).mean())
        assert abs(cosine - 1 / (1 + noise**2) ** 0.5) < 0.02, (noise, cosine)
    some = embedding_files.with_noise(["s7", "s3"], clean[[7, 3]], 2.0, 0, "image")
    np.testing.assert_array_equal(some, noisy[[7, 3]])
    for other in (
        embedding_files.with_noise(ids, clean, 2.0, 1, "image"),
        embedding_files.with_noise(ids, clean, 2.0, 0, "text"),
    ):
        assert not np.isclose(other, noisy).any(1).all()


def test_a_degraded_teacher_shares_the_training_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, plain = [], teachers.train_open_clip
    monkeypatch.setattr(teachers, "train_open_clip", lambda *a: trained.append(1) or plain(*a))
    half, whole, base = stage1(noise=0.5), stage1(noise=1.0), stage1()
    folders = {run.teacher.noise: teachers.ensure(run) for run in (half, whole, base)}
    assert trained == [1] and len(set(folders.values())) == 3
    found = {noise: teachers.read(folder) for noise, folder in folders.items()}
    for noise in (0.5, 1.0):
        assert list(found[noise].images) == list(found[0.0].images) and found[noise].folds == found[0.0].folds
        own = embedding_files.with_noise(found[0.0].images, found[0.0].image_vectors.numpy(), noise, 0, "image")
        np.testing.assert_allclose(found[noise].image_vectors, own, atol=1e-6)
        metrics = json.loads((folders[noise] / "metrics.json").read_text())
        assert metrics["noise"] == noise and metrics["degraded_from"] == folders[0.0].name
        assert (folders[noise] / teachers.DEGRADED).is_file()
    assert len({half.run_id, whole.run_id, base.run_id}) == 3
    assert teachers.teacher_ids(half) == [folders[0.0].name, folders[0.5].name] and teachers.teacher_ids(base) == [
        folders[0.0].name
    ]


def test_an_interrupted_embedding_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage1(seed=5)
    whole = teachers.read(teachers.ensure(run))
    shutil.rmtree(teachers.cache(run))
    shutil.rmtree(paths.run_dir(teachers.teacher_id(run)))
    calls, plain, trained, train = [], teacher_embeddings._embedded, [], teachers.train_open_clip

    def embedded(ids: list[str], *rest: object) -> dict[str, torch.Tensor]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(ids))
        return plain(ids, *rest)

    monkeypatch.setattr(teachers, "train_open_clip", lambda *a: trained.append(1) or train(*a))
    monkeypatch.setattr(teacher_embeddings, "_embedded", embedded)
    monkeypatch.setattr(teacher_embeddings, "SHARD", 4)
    with pytest.raises(KeyboardInterrupt):
        teachers.ensure(run)
    assert not teachers.cache(run).exists() and not paths.run_dir(teachers.teacher_id(run)).exists()
    monkeypatch.setattr(teacher_embeddings, "_embedded", lambda *a: calls.append(len(a[0])) or plain(*a))
    folder = teachers.ensure(run)
    shards = sorted((folder / teachers.SHARDS).iterdir())
    assert trained == [1] and len(calls) == len(shards) == -(-len(whole.studies) // 4) > 3  # nothing was done twice
    assert not list(folder.parent.glob(f"{folder.name}.part*"))
    again = teachers.read(folder)
    assert again.studies == whole.studies and again.images.keys() == whole.images.keys() and again.folds == whole.folds
    torch.testing.assert_close(again.text_vectors, whole.text_vectors, atol=1e-5, rtol=1e-4)
    for name, row in whole.images.items():
        torch.testing.assert_close(
            again.image_vectors[again.images[name]], whole.image_vectors[row], atol=1e-5, rtol=1e-4
        )


def test_a_cache_that_another_results_folder_made_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = stage1(seed=6)
    folder = teachers.ensure(run)
    made = (folder / "metrics.json").read_bytes()
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    monkeypatch.setattr(teachers, "train_open_clip", None)  # it is not called
    assert teachers.ensure(run) == folder
    public = paths.run_dir(folder.name)
    assert public.is_relative_to(tmp_path) and (public / "metrics.json").read_bytes() == made
    assert {path.name for path in public.iterdir()} == {"metrics.json", "spec.json"}


def test_noise_makes_the_labels_flatter() -> None:
    clean = torch.nn.functional.normalize(torch.from_numpy(vectors(64, 32)), dim=-1)
    positive, share = torch.arange(64), []
    for noise in (0.0, 0.5, 1.0, 2.0):
        a, b = (
            torch.from_numpy(embedding_files.with_noise(map(str, range(64)), clean.numpy(), noise, 0, kind))
            if noise
            else clean
            for kind in ("image", "text")
        )
        share.append(contrastive.soft_labels(a @ b.T, 0.1, 0.0, positive).diagonal().mean().item())
    assert share == sorted(share, reverse=True) and share[0] > 2 * share[-1]


# --- settings --------------------------------------------------------------------------------------------------------


def test_new_settings_at_their_defaults_are_no_part_of_an_identity() -> None:
    run = stage1()
    content = identity.settings_read(run)
    assert not {"noise", "towers", "heads"} & set(content["teacher"]) and "image_form" not in content["model"]
    changed = identity.settings_read(stage1(noise=1.0, towers="student", heads=2))
    assert {name: changed["teacher"][name] for name in ("noise", "towers", "heads")} == {
        "noise": 1.0,
        "towers": "student",
        "heads": 2,
    }


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"noise": 1.0, "views": "augmented"}, "views 'augmented' needs a model"),
        ({"source": "file:x.parquet", "views": "augmented"}, "views 'augmented' needs a model"),
        ({"noise": -1}, "noise: Input should be greater than or equal to 0"),
        ({"heads": 5, "width": 32}, "heads 5 does not divide width 32"),
    ],
)
def test_teachers_that_cannot_be_are_refused(teacher: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        experiments.parse({"stage": "stage1", "scale": "demo", "teacher": teacher}, "tests")


# --- a run that starts from its teacher's towers ---------------------------------------------------------------------


def towers_run(**teacher: object) -> dict:
    """Table 4's row 2 in small: a fine-tuning without pre-training, whose encoders are the trained teacher's."""
    content = tiny.run().model_dump(mode="json", exclude={"parent"})
    own = tiny.run().parent.parent.teacher.model_dump(mode="json") | {"towers": "student", "layers": 2, "heads": 2}
    init = content["init"] | {"image": "teacher", "text": "teacher"}
    return content | {"init": init, "teacher": own | teacher}


def test_a_fine_tuning_starts_from_the_towers_of_the_trained_teacher() -> None:
    run = experiments.parse(towers_run(), "tests")
    prepared = prepare.prepare(run)
    folder = teachers.cache(run)
    model, _, tokenizer = teacher_models.load(f"local-dir:{folder / 'fold0'}")
    amif = prepared.module.model.amif.eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tower_tokens(model.visual, model.visual.ln_post, pixels)
        torch.testing.assert_close(amif.image_encoder(pixels), expected, atol=1e-5, rtol=0)
    layers = amif.text_encoder.bert.encoder.state_dict()
    theirs = model.text.transformer.encoder.state_dict()
    assert set(layers) == set(theirs) and all(torch.equal(layers[name], theirs[name]) for name in theirs)
    ours, vocabulary = prepared.tokenizer.get_vocab(), tokenizer.tokenizer.get_vocab()
    table, own = amif.text_encoder.bert.embeddings.word_embeddings, model.text.transformer.embeddings.word_embeddings
    shared = [piece for piece in ours if piece in vocabulary]
    rows = [[vocab[piece] for piece in shared] for vocab in (ours, vocabulary)]
    assert len(shared) > 50 and torch.equal(table.weight[rows[0]], own.weight[rows[1]])
    assert any("pieces" in line for line in prepared.notes["weights"])


def test_the_teacher_is_part_of_the_identity_of_such_a_run_and_of_no_other_fine_tuning() -> None:
    run = experiments.parse(towers_run(), "tests")
    assert run.run_id != experiments.parse(towers_run(seed=1), "tests").run_id
    assert run.run_id == experiments.parse(towers_run(views="augmented"), "tests").run_id
    assert teachers.teacher_id(run) and "phantom_teacher" in experiments.data_sets(run)
    plain = towers_run() | {"init": tiny.run().model_dump(mode="json")["init"]}
    other = plain | {"teacher": plain["teacher"] | {"seed": 1}}
    assert experiments.parse(plain, "tests").run_id == experiments.parse(other, "tests").run_id
    assert not teachers.teacher_id(experiments.parse(plain, "tests"))
    external = experiments.parse(towers_run(source="hf-hub:a/b", data=[]), "tests")
    assert not teachers.teacher_id(external) and teachers.towers_source(external) == "open_clip:hf-hub:a/b"
    assert teachers.towers_source(experiments.parse(towers_run(source="hf-clip:a/b", data=[]), "tests")) == "a/b"


@pytest.mark.parametrize("teacher", [None, {"cross_fit": 2}, {"noise": 1.0}, {"source": "file:x.parquet"}])
def test_a_teacher_without_one_pair_of_towers_is_refused(teacher: dict | None) -> None:
    content = towers_run(**teacher) if teacher else towers_run() | {"teacher": None}
    with pytest.raises(InputError, match=r"init: 'teacher' needs a"):
        experiments.parse(content, "tests")


def test_a_tables_row_can_ask_for_the_teachers_towers_and_for_another_teacher() -> None:
    settings = {
        "pretraining": "none",
        "init": {"image": "teacher", "text": "teacher"},
        "teacher": {"towers": "student", "heads": 4},
    }
    row = experiments.build_run("demo", settings, "phantom_vqa_rad")
    default = experiments.build_run("demo", {}, "phantom_vqa_rad")
    assert row.parent is None and row.teacher.towers == "student" and row.teacher.data == ("phantom_teacher",)
    noisy = experiments.build_run("demo", {"teacher": {"noise": 1.0}}, "phantom_vqa_rad")
    assert (
        noisy.teacher is None and noisy.parent.teacher.noise == 1.0 and noisy.parent.parent.teacher.source == "trained"
    )
    assert noisy.run_id != default.run_id and teachers.teacher_ids(noisy.parent)[0] == teachers.teacher_id(
        default.parent
    )


# --- general shapes --------------------------------------------------------------------------------------------------


def test_shapes_have_the_colour_and_place_that_their_caption_says() -> None:
    studies = load_studies("phantom_shapes")
    latents = json.loads((manifests.location("phantom_shapes") / "latents.json").read_text(encoding="utf-8"))
    assert len(studies) == 600 == len({s.group_id for s in studies})
    part = re.compile(r"an? (small|large) (\w+) (\w+) in the (upper|lower) (left|right)")
    for study in studies[:100]:
        stated = part.findall(study.text)
        assert len(stated) == len(latents[study.study_id]["shapes"]) > 0
        with Image.open(study.images[0].path) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32)  # (96, 96, 3)
        for (size, colour, shape, row, column), entry in zip(stated, latents[study.study_id]["shapes"], strict=True):
            assert (size, colour, shape) == (entry["size"], entry["colour"], entry["shape"])
            x, y = (round(96 * value) for value in entry["centre"])
            assert (x > 48, y > 48) == (column == "right", row == "lower")
            middle = pixels[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
            assert np.abs(middle - phantom_shapes.COLOURS[colour]).max() < 45, (study.study_id, entry)
    assert len({s.text for s in studies}) > 550
