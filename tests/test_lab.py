"""`make lab` and notebook 00: working copies that are never lost, kernels that sleep while they wait, true figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from amif_lib.app import lab, run_notebook
from amif_lib.core import paths
from amif_lib.reporting import architecture


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Originals (a notebook and a solution) and the folder of their copies, made once."""
    originals = tmp_path / "notebooks"
    (originals / "solutions").mkdir(parents=True)
    (originals / "00_a.ipynb").write_text("first")
    (originals / "solutions" / "00_a.py").write_text("solution")
    assert lab.make_copies(originals, tmp_path / "lab") == []
    return originals, tmp_path / "lab"


def test_copies_that_nobody_touched_follow_their_originals(folders) -> None:
    originals, copies = folders
    assert (copies / "solutions" / "00_a.py").read_text() == "solution"
    (originals / "00_a.ipynb").write_text("second")
    (originals / "01_b.ipynb").write_text("new")
    (copies / "solutions" / "00_a.py").unlink()
    assert lab.make_copies(*folders) == []
    assert [p.read_text() for p in sorted(copies.rglob("0*"))] == ["second", "new", "solution"]


def test_a_changed_copy_is_kept_and_named_until_it_is_deleted(folders) -> None:
    originals, copies = folders
    (copies / "00_a.ipynb").write_text("mine")
    (copies / "99_mine.ipynb").write_text("mine alone")
    assert lab.make_copies(*folders) == ["00_a.ipynb"]
    (originals / "00_a.ipynb").write_text("second")
    for _ in range(2):
        assert lab.make_copies(*folders) == ["00_a.ipynb (older than its original)"]
    assert (copies / "00_a.ipynb").read_text() == "mine" and (copies / "99_mine.ipynb").read_text() == "mine alone"
    (copies / "00_a.ipynb").unlink()
    assert lab.make_copies(*folders) == [] and (copies / "00_a.ipynb").read_text() == "second"


@pytest.mark.parametrize(("copies", "opened"), [(1, "lab"), (0, "notebooks")])
def test_jupyterlab_opens_the_first_notebook_and_its_kernels_sleep(
    copies: int, opened: str, tmp_path: Path, monkeypatch
) -> None:
    started = {}
    monkeypatch.setattr(lab, "FOLDER", tmp_path / "lab")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(subprocess, "call", lambda command, **given: started.update(given, command=command) or 0)
    assert lab.main(copies, ["--no-browser"]) == 0
    assert started["command"][-2:] == [f"--LabApp.default_url=/lab/tree/{opened}/00_start_here.ipynb", "--no-browser"]
    assert started["env"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert (tmp_path / "lab" / "00_start_here.ipynb").is_file() == bool(copies)


def test_the_map_names_every_notebook_and_the_minutes_of_executed_ones() -> None:
    rows = lab.notebook_map().splitlines()[2:]
    assert len(rows) == len(list(paths.NOTEBOOKS.glob("*.ipynb"))) - 1 <= 25, "all but the template"
    row = next(row for row in rows if "03_stage1_global_alignment.ipynb" in row)
    assert "Stage 1" in row and float(row.split("|")[3]) > 0


def test_the_committed_copy_of_start_here_shows_the_minutes_of_the_others() -> None:
    copy = (paths.reference("demo") / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8")
    for row in lab.notebook_map().splitlines():
        assert row in copy or "[00_start_here]" in row, "older than the others: python -m amif_lib reference 00"


def test_start_here_says_of_the_plans_what_their_scores_say() -> None:
    scores = pd.read_csv(paths.reference("demo") / "figures" / "map_scores.csv").query("map == 'transport_plan'")
    low = scores.set_index(["stage", "label"]).low
    assert low["stage2", "full model"].min() > 0 >= low["finetune"].max(), "of no fine-tuned row"


def test_the_figure_says_which_stage_trains_which_part() -> None:
    """A part's weights differ from those of the stage before exactly where the figure has a dot."""
    from safetensors.torch import load_file

    from amif_lib.app import walkthrough

    weights = {n: load_file(run.directory / "model" / "model.safetensors") for n, run in walkthrough.trained().items()}
    weights["finetune"] = {name.removeprefix("amif."): each for name, each in weights["finetune"].items()}
    for before, stage in (("stage1", "stage2"), ("stage2", "finetune")):
        shared = set(weights[before]) & set(weights[stage])
        changed = {n.split(".")[0] for n in shared if not weights[before][n].equal(weights[stage][n])}
        dotted = {part for part, (*_, stages) in architecture.PARTS.items() if stage in stages}
        assert changed == dotted & {name.split(".")[0] for name in shared}


def test_start_here_runs_in_a_fresh_clone(tmp_path: Path) -> None:
    run_notebook.run(paths.NOTEBOOKS / "00_start_here.ipynb", tmp_path / "out.ipynb")
    cells = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert not any(output["output_type"] == "error" for output in outputs)
