"""Codes that train the same bits: noted where every file is equal, refused where one number is not, and believed by readers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import equal_code
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import read_parquet
from amif_lib.reporting import map_files, reference, report
from tests import fabricated


@pytest.fixture
def two_codes(tmp_path, monkeypatch):
    """The lineage of one fine-tuning, trained by two codes: `before/` by code1, `after/` by code2."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for folder, digest in (("before", "code1"), ("after", "code2")):
        fabricated.install(monkeypatch, tmp_path / folder)
        monkeypatch.setattr(results, "map_digest", lambda digest=digest: f"maps of {digest}")
        for run in experiments.rows("table4", "demo", only=("6",))[0].runs[0].lineage():
            chosen = fabricated.wrong_at(1) if run.stage == "finetune" else None
            made = fabricated.write_run(run, chosen, digest)
            (made / "model").mkdir()
            weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}
            save_file(weights, made / "model" / "model.safetensors")
            if run.stage == "stage1":
                map_files.write_arrays(made / map_files.SOFT_LABELS, {"version": np.array(1), "x": np.eye(2)})
    monkeypatch.setattr(results, "code_digest", lambda: "code2")
    return tmp_path


def test_equal_runs_make_their_codes_equal_for_every_reader(two_codes, monkeypatch, capsys):
    assert cli.main(["reference", "--equals", str(two_codes / "before")]) in (0, None)
    assert "code: code1 and code2 are equal in 3 runs" in capsys.readouterr().out
    kept = json.loads((paths.reference() / "equal_code.json").read_text())
    assert [(note["kind"], note["earlier"], note["later"]) for note in kept] == [
        ("code", "code1", "code2"),
        ("maps", "maps of code1", "maps of code2"),
    ]
    assert [run["stage"] for run in sorted(kept[0]["runs"], key=lambda run: run["stage"])] == [
        "finetune",
        "stage1",
        "stage2",
    ]
    assert all("model/model.safetensors" in run["files"] for run in kept[0]["runs"])
    assert equal_code.present() == {"code1", "code2"}
    # a reference by the earlier code is current, and its page says why; its maps are no other code's
    target = paths.reference("demo") / "runs"
    target.parent.mkdir(parents=True)
    (two_codes / "before" / "runs").rename(target)
    assert reference.stale() == []
    monkeypatch.setenv("FROM", "reference")
    runs = [results.Run(path) for path in sorted(target.iterdir())]
    assert "shown to train the same: 3 runs by both" in report._origin_notes(runs)[1]
    labels = next(target.glob(f"*/{map_files.SOFT_LABELS}"))
    assert map_files.code_note([labels]) == ""
    monkeypatch.setattr(results, "code_digest", lambda: "code3")
    monkeypatch.setattr(results, "map_digest", lambda: "maps of code3")
    assert len(reference.stale()) == 1 and "1 of 1 map files" in map_files.code_note([labels])


def test_notes_are_followed_in_any_number_of_steps_and_either_way(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert equal_code.same_as("a") == {"a"}
    pairs = [("code", "a", "b"), ("code", "c", "b"), ("code", "x", "y"), ("maps", "b", "z")]
    notes = [{"kind": kind, "earlier": one, "later": two, "runs": []} for kind, one, two in pairs]
    paths.reference().mkdir(parents=True)
    (paths.reference() / "equal_code.json").write_text(json.dumps(notes))
    assert equal_code.same_as("c") == {"a", "b", "c"} and equal_code.same_as("b", "maps") == {"b", "z"}


def one_weight(folder):
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}
    weights["a"][1, 2] = np.nextafter(weights["a"][1, 2], np.float32(9))
    save_file(weights, next(folder.glob("*/model/model.safetensors")))


def one_log_likelihood(folder):
    path = next(folder.glob("*/predictions.parquet"))
    frame = read_parquet(path)
    frame["log_likelihoods"] = [np.nextafter(row, np.float32(0)) for row in frame["log_likelihoods"]]
    frame.to_parquet(path)


def one_file_gone(folder):
    next(folder.glob(f"*/{map_files.SOFT_LABELS}")).unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_weight, r"model.safetensors differ \(a\): these codes are not equal"),
        (one_log_likelihood, r"predictions.parquet differ \(log_likelihoods\)"),
        (one_file_gone, "soft_labels.npz: has no counterpart"),
    ],
)
def test_the_last_bit_counts(two_codes, change, said):
    change(two_codes / "after" / "runs")
    with pytest.raises(InputError, match=said):
        equal_code.note(two_codes / "before")
    assert equal_code.noted() == []


def test_runs_of_one_code_or_of_several_or_of_other_settings_show_nothing(two_codes):
    with pytest.raises(InputError, match="its runs are of the same code"):
        equal_code.note(two_codes / "after")
    with pytest.raises(InputError, match="shares no finished run"):
        equal_code.note(two_codes / "nowhere")
    path = next((two_codes / "before" / "runs").glob("*/provenance.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code_digest": "code0"}))
    with pytest.raises(InputError, match="the runs compared are of 2 codes"):
        equal_code.note(two_codes / "before")


def test_the_committed_notes_name_runs_of_every_stage_and_their_files():
    if not equal_code.noted():
        pytest.skip(
            "nothing is noted: the committed runs are of the present code, or of none that is known to be equal"
        )
    for note in equal_code.noted():
        stages = {run["stage"] for run in note["runs"]}
        assert stages >= {"stage1", "stage2", "finetune"}, note["later"]
        assert all(run["files"] for run in note["runs"])
