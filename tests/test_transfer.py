"""Linear probe, zero-shot classification and segmentation of frozen encoders, and notebook 18 on tiny runs."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from amif_lib import methods
from amif_lib.app import transfer
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import labelled, manifests
from amif_lib.data.labelled import FINDING, Labelled
from amif_lib.experiments import rows, stored
from amif_lib.networks import pretrained
from amif_lib.scoring import transfer as scores
from amif_lib.training import launch
from amif_lib.training.prepare import prepare
from tests import tiny, tiny_arl, tiny_mlip
from tests.test_table_notebooks import execute

RNG = np.random.default_rng(0)


# --- scores on numbers that are known --------------------------------------------------------------------------------


def labels_of(y: np.ndarray, kinds: list[str], groups: np.ndarray) -> Labelled:
    """Images without pictures, the first half for training, then a quarter each for validation and testing."""
    names = [f"label {k}" for k in range(y.shape[1])]
    split = np.repeat(["train", "val", "test"], [len(y) // 2, len(y) // 4, len(y) - len(y) // 2 - len(y) // 4])
    images = pd.DataFrame({"image_id": np.arange(len(y)).astype(str), "group": groups, "split": split})
    return Labelled("vqa_rad", images, pd.DataFrame(y, columns=names), pd.Series(kinds, index=names))


def test_probe_of_separable_features_is_perfect_and_of_random_labels_at_chance():
    y = (RNG.random((800, 2)) < 0.3).astype(float)
    y[:40, 1] = np.nan  # unknown labels are left out, wherever they are
    x = RNG.normal(size=(800, 1, 6))
    x[:, 0, 0] += 12 * np.nan_to_num(y[:, 0])
    data = labels_of(y, [FINDING] * 2, np.arange(800) // 2)
    found, examples = scores.score(x, None, data, seed=0)
    known, unknown = (found.query("label == @name and share == 1").iloc[0] for name in data.labels)
    assert known["value"] == 1 and known["ci_low"] == 1
    assert unknown["ci_low"] < 0.5 < unknown["ci_high"] and 0.1 < unknown["ci_high"] - unknown["ci_low"] < 0.4
    mean = found.query("label == '' and share == 1")["value"].item()
    assert mean == pytest.approx((known["value"] + unknown["value"]) / 2)
    assert set(found["task"]) == {"linear probe"} and not examples  # no regions, no shared space


def test_one_label_of_a_kind_is_scored_by_accuracy_too_and_zero_shot_scores_are_ranked():
    truth = RNG.integers(0, 3, 400)
    y = np.eye(3)[truth]
    data = labels_of(y, ["plane"] * 3, np.arange(400))
    right = np.where(RNG.random(400) < 0.8, truth, (truth + 1) % 3)
    found, _ = scores.score(RNG.normal(size=(400, 1, 4)), np.eye(3)[right], data, seed=0)
    accuracy = found.query("task == 'zero-shot' and metric == 'accuracy'")
    assert len(accuracy) == 1 and accuracy["value"].item() == (right == truth)[300:].mean()


def test_lines_have_the_order_of_the_labels_in_every_process():
    kinds = [name for name in ("modality", "plane", "organ", "side", "view") for _ in range(2)]
    data = labels_of(np.tile(np.eye(2)[RNG.integers(0, 2, 80)], 5), kinds, np.arange(80))
    found, _ = scores.score(RNG.normal(size=(80, 1, 2)), None, data, seed=0)
    assert found.query("metric == 'accuracy' and share == 1")["kind"].tolist() == kinds[::2]


def test_an_answer_of_no_training_image_counts_as_wrong():
    y = np.eye(3)[RNG.integers(0, 3, 400)]
    y[300:350] = 0  # half of the test images have an answer that is none of the labels
    guessed = np.where(y.any(1)[:, None], y, [1, 0, 0])
    found, _ = scores.score(RNG.normal(size=(400, 1, 4)), guessed, labels_of(y, ["plane"] * 3, np.arange(400)), seed=0)
    assert found.query("task == 'zero-shot' and metric == 'accuracy'")["value"].item() == 0.5


def test_a_label_without_a_positive_example_is_at_chance_and_counted():
    y = (RNG.random((400, 2)) < 0.3).astype(float)
    x = RNG.normal(size=(400, 1, 3)) + 9 * y[:, None, :1]
    few = scores.subset(np.arange(200), 0.01, seed=0)  # two of the images for training
    y[:200][few] = [[1, 0], [0, 0]]
    found, _ = scores.score(x, None, labels_of(y, [FINDING] * 2, np.arange(400)), seed=0)
    probed = found.query("metric == 'AUROC'").set_index(["share", "label"])
    assert probed.loc[(0.01, "label 1"), ["value", "ci_low", "ci_high"]].tolist() == [0.5] * 3
    assert probed["learned"].tolist() == [1, 1, 0] + 2 * [2, 1, 1]  # of each share: the mean, then each label
    assert probed.at[(1.0, "label 0"), "value"] > 0.95


def test_auroc_counts_pairs_and_weights_are_repetitions():
    score, truth = np.array([3.0, 1, 2, 2, 0, 2]), np.array([1, 0, 1, 0, 0, 1])
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 1, 0], [0, 1, 0, 1, 1, 0]])
    found = scores.auroc(score, truth, weights)
    for area, w in zip(found[:2], weights, strict=False):
        s, t = np.repeat(score, w), np.repeat(truth, w)
        pairs = [np.sign(a - b) / 2 + 0.5 for a in s[t == 1] for b in s[t == 0]]
        assert area == pytest.approx(np.mean(pairs))
    assert np.isnan(found[2])  # no positive was drawn


def test_subsets_hold_whole_groups_of_the_asked_size_and_grow():
    groups = np.arange(900) // 3
    parts = {share: scores.subset(groups, share, seed=1) for share in (0.001, 0.01, 0.1, 1)}
    assert [len(np.unique(groups[part])) for part in parts.values()] == [1, 3, 30, 300]
    assert [part.sum() for part in parts.values()] == [3, 9, 90, 900]
    assert (parts[0.01] <= parts[0.1]).all() and (scores.subset(groups, 0.1, 2) != parts[0.1]).any()


def test_dice_of_the_truth_is_one_and_empty_masks_follow_the_rule():
    mask = np.zeros((4, 8, 8), dtype=bool)
    mask[0, :4], mask[1, 2:6] = True, True
    assert scores.dice(mask, mask).tolist() == [1, 1, 1, 1]
    # half of each; nothing predicted; nothing there to predict
    assert scores.dice(mask[[1, 3, 0]], mask[[0, 0, 3]]).tolist() == [0.5, 0, 0]
    with pytest.raises(InputError, match="give both at the image's size"):
        scores.dice(mask, mask[:, :6])


def test_enlarging_keeps_constants_and_the_order_of_places():
    flat = scores.enlarged(np.full((2, 3, 3), 0.25), 9, 12)
    assert flat.shape == (2, 9, 12) and np.allclose(flat, 0.25)
    step = torch.nn.functional.interpolate(torch.tensor([[[[0.0, 1], [0, 0]]]]), size=(8, 6), mode="bilinear")
    assert np.allclose(scores.enlarged(np.array([[0.0, 1], [0, 0]]), 8, 6), step[0, 0].numpy(), atol=1e-6)


def test_table_and_summary_say_what_one_and_three_replicates_can_say():
    def frame(value: float) -> pd.DataFrame:
        draws = value + np.linspace(-0.02, 0.02, 1001)
        line = {"task": "linear probe", "share": 1.0, "metric": "AUROC", "kind": FINDING, "label": "", "value": value}
        return pd.DataFrame([line | {"ci_low": value - 0.019, "ci_high": value + 0.019, "draws": np.r_[value, draws]}])

    one = scores.summary(scores.table({"none": [frame(0.8)], "ours": [frame(0.9)]}, "none")).set_index("row")
    assert one.at["ours", "change"] == pytest.approx(0.1) == one.at["ours", "change_low"]  # the draws move together
    assert one["detectable"].isna().all()  # other trainings are not known
    assert np.isnan(one.at["none", "change"]) and one.at["ours", "ci_low"] == pytest.approx(0.881)
    several = {"none": [frame(0.8)] * 3, "ours": [frame(0.88), frame(0.9), frame(0.92)]}
    three = scores.summary(scores.table(several, "none")).set_index("row").loc["ours"]
    assert three["replicates"] == 3 and three["change"] == pytest.approx(0.1)
    half = 4.3027 * 0.02 / 3**0.5  # t with two degrees of freedom
    assert three["change_low"] == pytest.approx(0.1 - half, abs=1e-4)
    assert three["detectable"] == pytest.approx((4.3027 + 1.0607) * 0.02 / 3**0.5, abs=1e-3)
    assert three["ci_high"] - three["value"] > half  # test studies add to it
    two = scores.summary(scores.table({name: each[:2] for name, each in several.items()}, "none"))
    assert two[["ci_low", "change_low", "detectable"]].isna().all().all()


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """Small phantom sets, and a results folder of one's own."""
    folder, patch = tmp_path_factory.mktemp("transfer"), pytest.MonkeyPatch()
    shutil.copytree(paths.MANIFESTS, folder / "manifests")
    for name, studies in (("phantom_transfer", 240), ("phantom_mimic_cxr", 48)):
        path = folder / "manifests" / f"{name}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["generator"]["counts"] = {"studies": studies}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    patch.setattr(paths, "MANIFESTS", folder / "manifests")
    for name in ("RESULTS", "PHANTOM", "PREPARED"):
        patch.setenv(f"AMIF_{name}", str(folder / name.lower()))
    patch.setenv("AMIF_HEADLESS", "1")
    manifests.load.cache_clear()
    yield folder
    patch.undo()
    manifests.load.cache_clear()


@pytest.fixture(scope="module")
def runs(small):
    """A start without pre-training, and the first training of each method."""
    found = {"none": tiny.run().model_copy(update={"parent": None})}
    asked = {"amif": tiny.run(stage1={"epochs": 1}), "arl": tiny_arl.run(), "mlip": tiny_mlip.run()}
    found |= {name: run.trainings()[0] for name, run in asked.items()}
    for run in list(found.values())[1:]:
        launch.train(run, processes=1)
    return found


@pytest.fixture(scope="module")
def data(runs):
    return transfer.read_data("demo", tiny.run().model.stored_side)


def test_labels_are_what_the_images_show_and_views_that_cannot_show_it_are_not_asked(data):
    about = json.loads((manifests.location("phantom_transfer") / "masks.json").read_text(encoding="utf-8"))["images"]
    views = data.images["image_id"].map(lambda name: about[name]["view"])
    shown = data.images["image_id"].map(lambda name: set(about[name]["areas"]))
    for label in data.labels:
        own = data.labels[label]
        assert ((own == 1) == shown.map(lambda areas, label=label: label in areas)).all()
    assert data.labels.loc[views == "axial", "nodule"].isna().all() and data.labels["mass"].notna().sum() > 20
    assert data.labels.loc[views == "lateral", "pneumothorax"].isna().all()
    assert data.images.groupby("group")["split"].nunique().max() == 1 and data.images["split"].nunique() == 3
    with pytest.raises(InputError, match="scale base: no labelled images"):
        transfer.read_data("base", 53)
    with pytest.raises(InputError, match="has no labels; name a generated set"):
        labelled.read("roco", 53)
    with pytest.raises(InputError, match="several questions of one type"):
        labelled.read("phantom_vqa_rad", 53)


def test_a_mask_of_another_size_than_its_image_is_one_line(data, monkeypatch):
    masks = manifests.location("phantom_transfer") / "masks"
    path = masks / f"{data.images['image_id'][3]}.png"
    content = path.read_bytes()
    with Image.open(path) as mask:
        mask.resize((48, 48)).save(path)
    try:
        with pytest.raises(InputError, match=r"\(96, 96\) pixels, its mask \(48, 48\)"):
            labelled.read("phantom_transfer", 36)
    finally:
        path.write_bytes(content)


def test_planted_weights_travel_from_a_stored_pretraining_into_the_features(runs, data):
    folder = runs["amif"].directory / "model"
    state = pretrained.read_state(folder)
    before, _ = transfer.features(runs["amif"], data)
    planted = {name: value.clone() for name, value in state.items()}
    planted["image_encoder.vit.post_layernorm.bias"] += 3
    try:
        pretrained.save_file(planted, folder / "model.safetensors")
        after, _ = transfer.features(runs["amif"], data)
    finally:
        pretrained.save_file(state, folder / "model.safetensors")
    assert np.allclose(after - before, 3, atol=1e-4)
    start, none = transfer.features(runs["none"], data)
    assert none is None and start.shape == before.shape and not np.allclose(start, before)
    assert np.array_equal(start, transfer.features(runs["none"], data)[0])  # one start for one seed


@pytest.mark.parametrize("name", ["amif", "arl", "mlip"])
def test_the_start_without_pre_training_is_that_of_every_pre_training(runs, name):
    start = transfer.encoder(runs["none"]).state_dict()
    first = prepare(runs[name]).module.get_submodule(f"{name}.image_encoder").state_dict()
    assert all(torch.equal(value, first[key]) for key, value in start.items()) and set(start) == set(first)


def test_the_start_without_pre_training_is_always_among_the_rows():
    found = transfer.pretrainings("demo", ("mlip",))
    assert list(found) == ["no pre-training", "MLIP"] == list(transfer.pretrainings("demo", ("mlip", "no_pretraining")))
    assert next(iter(transfer.pretrainings("demo"))) == "no pre-training"


def test_ablations_are_mlip_with_one_weight_of_zero_each():
    found = transfer.pretrainings("demo", ("mlip",), ablations=True)
    (whole,), ablated = found["MLIP"], {loss: found[f"MLIP without {loss}"] for loss in transfer.LOSSES}
    assert len({whole.run_id, *(runs[0].run_id for runs in ablated.values())}) == 1 + len(transfer.LOSSES)
    for loss, (run,) in ablated.items():
        assert run.objective == whole.objective.model_copy(update={f"weight_{loss}": 0.0}) and run.stage == "pretrain"
        assert run.model_copy(update={"objective": whole.objective}).run_id == whole.run_id


def test_ablations_have_as_many_replicates_as_are_finished_and_take_none_from_the_other_rows(monkeypatch):
    monkeypatch.setattr(stored, "is_finished", lambda run: run.seed < 3 or not _lacks_a_loss(run))
    found = transfer.pretrainings("demo", ("mlip",), ablations=True)
    numbers = {label: len(runs) for label, runs in found.items()}
    assert numbers.pop("MLIP") == numbers.pop("no pre-training") == 5
    assert set(numbers.values()) == {3} and len(numbers) == len(transfer.LOSSES)


def _lacks_a_loss(run):
    return run.method == "mlip" and 0 in [getattr(run.objective, f"weight_{loss}") for loss in transfer.LOSSES]


def test_arl_without_its_alignment_has_no_zero_shot_scores(runs, data, monkeypatch):
    run = stored.load_run(runs["arl"])
    objective = run.spec.objective.model_copy(update={"weight_align": 0.0})
    other = SimpleNamespace(spec=run.spec.model_copy(update={"objective": objective}), directory=run.directory)
    monkeypatch.setattr(stored, "load_run", lambda _: other)
    assert transfer.features(runs["arl"], data)[1] is None


@pytest.mark.parametrize("name", ["amif", "arl", "mlip"])
def test_the_order_of_prompts_does_not_matter_and_denying_reverses_where_it_is_read(runs, data, name):
    prompts, tokens = transfer.prompts_of(data), torch.randn(5, 17, 32)
    score = methods.load(name).zero_shot(stored.load_run(runs[name]), prompts)(tokens)
    turned = [(yes[::-1], no[::-1]) for yes, no in prompts]
    assert torch.allclose(score, methods.load(name).zero_shot(stored.load_run(runs[name]), turned)(tokens), atol=1e-5)
    assert score.shape == (5, len(data.kinds)) and score.std(0).max() > 0
    swapped = methods.load(name).zero_shot(stored.load_run(runs[name]), [(no, yes) for yes, no in prompts])(tokens)
    assert torch.allclose(score, -swapped, atol=1e-5) == (name != "arl")  # ARL's entities know no denial


def test_segmentation_finds_planted_regions(runs, data):
    side = 8
    covered = np.stack([[np.asarray(Image.fromarray(m).resize((side, side))) for m in own]
                        for own in data.masks(np.arange(len(data.images)))])  # fmt: skip
    tokens = covered.reshape(*covered.shape[:2], -1).transpose(0, 2, 1)  # each patch knows what covers it: (n, p, F)
    tokens = np.concatenate([np.zeros_like(tokens[:, :1]), tokens], axis=1).astype(np.float32)
    found, examples = scores.score(tokens, None, data, seed=0)
    dice = found.query("task == 'segmentation' and label == '' and share == 1").set_index("metric")["value"]
    assert dice["Dice"] > 0.85 and dice["Dice, positives"] > 0.6
    nothing = found[found["metric"] == "Dice, nothing predicted"].set_index("label")["value"]
    assert nothing[""] == pytest.approx((1 - data.labels[data.images["split"] == "test"]).mean().mean())
    none = found.query("metric == 'Dice' and share == 0.01 and learned == 0 and label != ''").set_index("label")
    assert len(none) and none["value"].equals(nothing[none.index])  # what is not learned is predicted nowhere
    overlap = scores.dice(examples["predicted"], examples["mask"])
    assert len(overlap) == len(data.kinds) and examples["mask"].any((1, 2)).all() and overlap.mean() > 0.5


def test_a_rare_finding_is_predicted_and_one_that_is_not_learned_is_nowhere(data):
    """Patches hardly know what covers them, for the first label; the second is in no training image."""
    labels = data.labels[["nodule", "mass"]].copy()
    labels.loc[data.images["split"] == "train", labels.columns[1]] = 0.0
    less = Labelled(data.data_set, data.images, labels, data.kinds[list(labels)])
    shown = np.stack(list(less.masks(np.arange(len(data.images)))))  # (n, 2, H, W)
    tokens = np.stack([[scores.regions.coverage(mask, 8) for mask in own] for own in shown])
    tokens = tokens.reshape(len(shown), 2, -1).transpose(0, 2, 1) * 0.3 + RNG.normal(size=(len(shown), 64, 2))
    split = data.images["split"].to_numpy()
    train, val, test = (np.flatnonzero(split == name) for name in ("train", "val", "test"))
    found = scores.segment(tokens, less, train, val, test)
    assert found[:, 0].any() and not found[:, 1].any()
    dice = scores.dice(found[:, 0], shown[test, 0])[labels.to_numpy()[test, 0] == 1]
    assert dice.mean() > 0


def test_notebook_on_tiny_runs_and_again_from_what_it_stored(runs, data, monkeypatch, capsys):
    fine_tunings = {
        "no_pretraining": tiny.run().model_copy(update={"parent": None}),
        "full": tiny.run(stage1={"epochs": 1}),
    }
    fine_tunings |= {"arl": tiny_arl.run(), "mlip": tiny_mlip.run()}
    planned = [rows.Row(table="methods", row=name, label=name, runs=(run,)) for name, run in fine_tunings.items()]
    monkeypatch.setattr(rows, "rows", lambda table, scale, only=(), **_: planned)
    monkeypatch.setattr("amif_lib.reporting.show.required_runs", lambda name, scale: [])
    names, _ = execute("18_transfer", monkeypatch)
    table = pd.read_csv(paths.scale_dir("demo") / "tables" / "transfer.csv")
    assert list(dict.fromkeys(table["row"])) == ["no_pretraining", "full", "arl", "mlip"]
    assert set(table["task"]) == {"linear probe", "segmentation", "zero-shot"} and len(names["written"]) > 4
    said = capsys.readouterr().out
    assert f"predicting nothing at all has {names['nothing']:.2f}" in said and 0.5 < names["nothing"] < 1
    assert "Teaching run" in said and "full, finding: " in said and "better by at least 0.10" in said
    reference = paths.scale_dir("demo").parent / "kept"
    shutil.copytree(paths.scale_dir("demo"), reference / "demo")
    monkeypatch.setattr(paths, "reference", lambda scale="": reference / scale)
    monkeypatch.setattr(transfer, "features", lambda *_: pytest.fail("weights were read"))
    source = (paths.NOTEBOOKS / "18_transfer.ipynb").read_text(encoding="utf-8")
    monkeypatch.setattr(paths, "NOTEBOOKS", reference)
    files.write_text(reference / "18_transfer.ipynb", source.replace('source = \\"\\"', 'source = \\"reference\\"'))
    again, _ = execute("18_transfer", monkeypatch)
    pd.testing.assert_frame_equal(again["summary"], names["summary"])
