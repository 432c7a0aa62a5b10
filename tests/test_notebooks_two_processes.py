"""Notebooks 03, 04 and 05, executed headlessly with two processes, give what they give with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from amif_lib.experiments.predictions import read_predictions
from amif_lib.experiments.stored import load_run
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {
    "stage1": "03_stage1_global_alignment",
    "stage2": "04_stage2_local_alignment_and_mining",
    "finetune": "05_finetune_vqa",
}


def execute(processes: int, folder: Path) -> Path:
    """Run the three notebooks in order; returns the results folder."""
    environment = os.environ | {
        "AMIF_RESULTS": str(folder / "results"),
        "AMIF_PROCESSES": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    for spec in tiny.run(finetune={"epochs": 1}).lineage():
        file = folder / f"{spec.stage}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
        notebook, out = f"notebooks/{NOTEBOOKS[spec.stage]}.ipynb", folder / f"{spec.stage}.ipynb"
        command = [
            sys.executable,
            "-m",
            "amif_lib.app.run_notebook",
            notebook,
            "--out",
            str(out),
            "-p",
            "spec",
            str(file),
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder / "results" / "runs"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(f"processes{p}") for p in (1, 2)]
    from amif_lib.data.load import load_studies

    load_studies("phantom_teacher"), load_studies("phantom_mimic_cxr")  # generated once, before two want it
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(execute, (1, 2), folders))


def test_losses_of_every_step_agree(both):
    for spec in tiny.run(finetune={"epochs": 1}).lineage():
        one, two = (load_run(runs / spec.run_id).history for runs in both)
        assert len(one) == len(two) > 0
        for a, b in zip(one.to_dict("records"), two.to_dict("records"), strict=True):
            assert b["total"] == pytest.approx(a["total"], rel=2e-3), (spec.stage, a["step"])
            assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=2e-2)


def test_answers_agree_and_each_question_is_counted_once(both):
    run = tiny.run(finetune={"epochs": 1})
    (one, candidates), (two, again) = (read_predictions(runs / run.run_id) for runs in both)
    assert one.question_id.tolist() == two.question_id.tolist() and one.question_id.is_unique
    assert candidates.equals(again)
    a, b = (np.stack(frame.log_likelihoods) for frame in (one, two))
    np.testing.assert_allclose(a, b, atol=0.05)


def test_two_processes_really_ran(both):
    run = tiny.run(finetune={"epochs": 1})
    for processes, runs in zip((1, 2), both, strict=True):
        for spec in run.lineage():
            provenance = json.loads((runs / spec.run_id / "provenance.json").read_text(encoding="utf-8"))
            assert provenance["processes"] == processes
