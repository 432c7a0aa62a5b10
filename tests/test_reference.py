"""Reference results: what is copied and what is not, not taken for runs, and all rebuilt under FROM=reference."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import softmax

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import load as datasets
from amif_lib.data import manifests
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import read_predictions, write_predictions
from amif_lib.reporting import figure_set, layout, reference, report, tables
from amif_lib.reporting.table_rows import Selection
from amif_lib.scoring.protocols import PROTOCOLS, score
from amif_lib.training import launch
from tests.fabricated import install, plan, write_table
from tests.test_cli import light

COMMITTED = [path for path in paths.reference().glob("*/plan.json") if path.is_file()]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone elsewhere with the finished runs of two tables."""
    install(monkeypatch, tmp_path / "results")
    published = paths.published()
    monkeypatch.setattr(paths, "published", lambda: published)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    write_table("table1", "demo", {"demo": (7,)})
    write_table("table4", "demo", {"1": (5, 6), "3": (5,), "4": (4, 5), "5": (6,), "6": (7,)})
    plan("table1", "table4")
    for name in ("table1", "table4"):
        layout.write(tables.collect(name, "demo"))
    return tmp_path


@pytest.fixture
def kept(clone, monkeypatch) -> Path:
    """The same, stored as reference; then the own results are out of reach, and so are the data."""
    reference.store("demo")
    monkeypatch.setenv("AMIF_RESULTS", str(clone / "elsewhere"))
    monkeypatch.setattr(datasets, "load_questions", None)
    return clone


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("allowed", [True, False])
def test_what_the_manifest_allows_is_copied(clone, monkeypatch, allowed):
    monkeypatch.setattr(manifests, "may_show", lambda name, kind: allowed)
    monkeypatch.setattr(manifests, "notice", lambda names: "" if allowed else "not to be passed on")
    heads = experiments.rows("table1", "demo")[0].runs
    run = heads[0]
    (run.directory / "model").mkdir()
    (run.directory / "model" / "model.safetensors").write_bytes(b"weights")
    target = reference.store("demo")
    assert (target / "tables" / "table4.csv").is_file() and bool(list(target.rglob("predictions.parquet"))) is allowed
    assert [path.parent.parent.name for path in target.rglob("*.safetensors")] == [run.run_id] * allowed
    without_the_image = {path.parent.name for path in target.glob("runs/*/blank_test")}  # shown of the full model alone
    assert without_the_image == ({head.run_id for head in heads} if allowed else set())


def executed(path: Path, *outputs: dict) -> Path:
    """An executed notebook with one cell."""
    cell = {"cell_type": "code", "metadata": {"papermill": {"duration": 1}}, "outputs": list(outputs), "source": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [cell], "metadata": {"at": str(paths.ROOT / "data"), "widgets": 1}}))
    return path


def test_notebooks_of_the_full_model_are_copied_unless_they_are_large(clone, capsys):
    run, folder = experiments.rows("table1", "demo")[0].runs[0], paths.scale_dir("demo") / "notebooks"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (250, 400, 3), dtype=np.uint8))
    noise.save(drawn := io.BytesIO(), "PNG")
    png = {"data": {"image/png": base64.b64encode(drawn.getvalue()).decode()}}  # 400 kB
    executed(run.directory / "05_finetune_vqa.ipynb", png, {"data": {"text/html": "<b>1</b>", "text/plain": "1"}})
    executed(folder / "11_table1.ipynb", {"text": "x" * 250_001})
    target = reference.store("demo")
    assert [path.name for path in target.glob("notebooks/*")] == ["05_finetune_vqa.ipynb"]
    assert "11_table1.ipynb: 250 kB, above 250 kB" in capsys.readouterr().out
    text = (target / "notebooks" / "05_finetune_vqa.ipynb").read_text(encoding="utf-8")
    assert str(paths.ROOT) not in text and "widgets" not in text and "duration" not in text and len(text) < 250_000
    first, second = json.loads(text)["cells"][0]["outputs"]
    shown = Image.open(io.BytesIO(base64.b64decode(first["data"]["image/png"]))).convert("RGB")
    assert shown.size == noise.size and np.abs(np.asarray(shown, int) - np.asarray(noise, int)).mean() < 40
    assert second["data"] == {"text/html": "<b>1</b>"}
    with pytest.raises(InputError, match=r"11_table1\.ipynb: too large"):
        reference.keep_notebook(folder / "11_table1.ipynb", "demo")


def test_the_pictures_of_readme_are_those_of_the_committed_notebooks():
    found = {}
    for path in (paths.reference("demo") / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for tag in cell["metadata"]["tags"]:
                if tag.startswith(reference.PICTURE):
                    shown = next(each["data"]["image/png"] for each in cell["outputs"] if "data" in each)
                    found[tag.removeprefix(reference.PICTURE)] = base64.b64decode(shown)
    assert found == {path.stem: path.read_bytes() for path in paths.reference("pictures").glob("*.png")}
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(found) == 3 and all(len(png) < 60_000 for png in found.values())
    assert all(f"results/reference/pictures/{name}.png" in readme for name in found)


@pytest.mark.parametrize("margin", [0, reference.MARGIN])
def test_small_predictions_keep_every_choice_and_with_a_margin_the_probabilities(tmp_path, margin):
    rng = np.random.default_rng(0)
    answers = sorted({"yes", "no", *(f"answer {n}" for n in range(38))})
    candidates = pd.DataFrame({"answer": answers, "tokens": rng.integers(1, 6, 40)})
    for split in ("train", "val", "test"):
        candidates[f"in_{split}"] = (rng.random(40) < 0.6) | np.isin(answers, ("yes", "no"))
    frame = pd.DataFrame(
        {"question_id": [f"q{n:02d}" for n in range(60)], "gold": [[answers[n % 40]] for n in range(60)]}
    )
    frame = frame.assign(image_id="i", question="what", question_type="t", split="test", generated="yes")
    frame["closed_field"] = frame["closed_yes_no"] = np.arange(60) % 2 == 0
    frame["log_likelihoods"] = list((-20 - 60 * rng.random((60, 40))).astype(np.float32))
    write_predictions(tmp_path / "whole", frame, candidates)
    before = read_predictions(tmp_path / "whole")[0]
    write_predictions(tmp_path / "small", reference.smaller(before, candidates, margin), candidates)
    after, same = read_predictions(tmp_path / "small")
    pd.testing.assert_frame_equal(same, candidates)
    for protocol in PROTOCOLS.values():
        chosen = [score(each, candidates, protocol)["prediction"] for each in (before, after)]
        pd.testing.assert_series_equal(*chosen)
    test = candidates["in_test"].to_numpy()
    odds = [softmax(np.stack(each["log_likelihoods"])[:, test], axis=1) for each in (before, after)]
    assert not margin or np.abs(odds[0] - odds[1]).max() < 0.01


def test_missing_runs_are_refused_and_the_old_reference_stays(kept, monkeypatch):
    before = content(paths.reference("demo"))
    monkeypatch.setenv("AMIF_RESULTS", str(kept / "results"))
    (Selection().rows("table4", "demo")[0].runs[0].directory / "predictions.parquet").unlink()
    with pytest.raises(InputError, match=r"run `make reproduce SCALE=demo`"):
        reference.store("demo")
    assert content(paths.reference("demo")) == before and not list(paths.reference().glob(".*"))


# --- reading with FROM=reference ---


def test_tables_from_reference_are_those_that_were_stored(kept, monkeypatch):
    with pytest.raises(InputError, match="make reproduce SCALE=demo"):  # not taken for runs without being asked
        layout.write(tables.collect("table4", "demo"))
    monkeypatch.setenv("FROM", "reference")
    before = content(paths.reference("demo"))
    for path in (path for name in ("table1", "table4") for path in layout.write(tables.collect(name, "demo"))):
        assert path.parent == kept / "elsewhere" / "from_reference" / "demo" / "tables"
        assert path.read_bytes() == before[f"tables/{path.name}"], path.name
    monkeypatch.setattr(figure_set, "draw_all", lambda *_, **__: [])
    page = report.write("demo")
    assert page.is_relative_to(kept / "elsewhere" / "from_reference")
    assert "committed in" in page.read_text(encoding="utf-8")
    assert content(paths.reference("demo")) == before and not (kept / "elsewhere" / "demo").exists()


def test_nothing_is_trained_under_from(kept, monkeypatch, capsys):
    spec = Selection().rows("table4", "demo")[0].runs[0]
    monkeypatch.setenv("FROM", "reference")
    for command in ("reproduce", "plan", "reference"):
        assert cli.main([command]) == 2
        assert capsys.readouterr().err.startswith(f"error: FROM=reference: {command} makes runs")
    with pytest.raises(InputError, match="FROM=reference: training makes runs"):
        launch.train(spec)
    monkeypatch.setenv("FROM", "elsewhere")
    assert cli.main(["table", "table4"]) == 2 and "FROM=elsewhere: unknown" in capsys.readouterr().err


# --- what is committed ---


@pytest.mark.parametrize("scale", [path.parent.name for path in COMMITTED])
def test_committed_results_rebuild_the_report_in_the_light_install(tmp_path, scale):
    """No torch, no notebook runner, no data: the tables come out byte for byte as they are committed."""
    first = next(paths.reference(scale).glob("runs/*/spec.json")).parent
    if results.load_run(first).spec.run_id != first.name:
        pytest.skip("the committed runs are of settings that have changed since; make reference")
    changed = {"AMIF_RESULTS": str(tmp_path), "DATA_ROOT": str(tmp_path / "none"), "MPLBACKEND": "Agg"}
    light("report", "--scale", scale, "--from", "reference", **changed)
    made = tmp_path / "from_reference" / scale
    assert (made / "report.html").stat().st_size < 8_000_000
    for path in (paths.reference(scale) / "tables").iterdir():
        if path.stem != "transfer":  # of notebook 18
            assert (made / "tables" / path.name).read_bytes() == path.read_bytes(), path.name


def test_reference_results_are_small_never_taken_for_a_run_and_name_no_folder_of_a_machine():
    assert sum(path.stat().st_size for path in paths.reference().rglob("*") if path.is_file()) < 30_000_000  # DESIGN.md
    for file in paths.reference().rglob("metrics.json"):
        if file.parent.parent.name == "runs":
            assert results.load_run(file.parent).spec.run_id and paths.run_dir(file.parent.name) != file.parent
    for path in paths.reference().rglob("*.json"):
        assert not re.search(r"[\" :](/[\w.-]+){3,}", path.read_text(encoding="utf-8")), path


def test_every_accuracy_in_the_readme_is_one_of_the_committed_tables():
    """Numbers with an interval, `49.3 [46.7, 52.0]` or `49.3 ± 1.9 [46.7, 52.0]`, as the tables have them."""
    text = " ".join((paths.ROOT / "README.md").read_text(encoding="utf-8").split())
    found = re.findall(r"(\d+\.\d)(?: ± (\d+\.\d))? \[(\d+\.\d), (\d+\.\d)\]", text)
    known = set()
    for path in paths.reference().glob("*/tables/table*[0-9].csv"):
        cells = pd.read_csv(path)
        for cell in cells[cells["split"] == "overall"].itertuples():
            spread = f"{cell.ours_sd:.1f}" if cell.ours_sd == cell.ours_sd else ""
            known |= {(f"{cell.ours:.1f}", s, f"{cell.ci_low:.1f}", f"{cell.ci_high:.1f}") for s in {spread, ""}}
    for path in paths.reference().glob("*/tables/[cm]*s.md"):  # contrasts and methods: their CSV has differences alone
        cells = re.findall(r"(\d+\.\d)(?: ± (\d+\.\d))? \[(\d+\.\d), (\d+\.\d)\]", path.read_text(encoding="utf-8"))
        known |= {(value, s, low, high) for value, spread, low, high in cells for s in {spread, ""}}
    assert not [number for number in found if number not in known]
