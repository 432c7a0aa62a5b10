"""Losses, gradients, mined negatives and answers are those of one process, with any number of processes and rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from amif_lib.app import run_notebook
from amif_lib.experiments.predictions import read_predictions
from amif_lib.experiments.stored import load_run
from amif_lib.training import launch, loop
from tests import tiny
from tests import two_process_worker as worker
from tests.conftest import ROOT, python


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gradients")


@pytest.fixture(scope="module")
def found(folder):
    python("-m", "tests.two_process_worker", str(folder))
    return {way: load_file(folder / f"{way}.safetensors") for way in worker.WAYS}


@pytest.mark.parametrize("way", list(worker.WAYS)[1:])
@pytest.mark.parametrize("case", [*worker.OBJECTIVES, *worker.FINETUNINGS])
def test_losses_gradients_and_negatives_are_those_of_one_process_with_the_whole_batch(case, way, found):
    one, two = ({n: v for n, v in found[each].items() if n.startswith(f"{case}/")} for each in ("one process", way))
    assert one.keys() == two.keys() and f"{case}/total" in one
    largest = max(float(value.abs().max()) for name, value in one.items() if "negatives/" not in name)
    for name, value in one.items():
        if "negatives/" in name:
            assert value.tolist() == two[name].tolist(), name
        else:
            named = {"msg": lambda text, name=name: f"{name}: {text}"}
            torch.testing.assert_close(two[name], value, atol=1e-5 * largest, rtol=1e-3, **named)


def test_processes_agree_on_when_to_save(found):
    """Clocks differ, and a process that saves alone waits for the others for ever."""
    assert found["two processes"]["agreed"].tolist() == [True, True]


@pytest.mark.parametrize("way", ["two processes", "four"])
def test_every_question_is_answered_once_and_as_by_one_process(way, found, folder):
    (one, candidates), (several, same) = (read_predictions(folder / name) for name in ("one process", way))
    assert len(one) == worker.QUESTIONS and one["question_id"].is_unique
    pd.testing.assert_frame_equal(candidates, same)
    pd.testing.assert_frame_equal(one.drop(columns="log_likelihoods"), several.drop(columns="log_likelihoods"))
    first, second = (np.stack(frame["log_likelihoods"]) for frame in (one, several))
    np.testing.assert_allclose(first, second, atol=1e-4)


# --- whole trainings by two processes, one of them from a notebook, and the same runs in this process -----------------


@pytest.fixture(scope="module")
def runs(folder):
    """(run in this process, run by two processes) of every stage."""
    patch, found = pytest.MonkeyPatch(), []
    for spec in tiny.run(finetune={"epochs": 1}).trainings():
        patch.setenv("AMIF_RESULTS", str(folder / "one"))
        loop.fit(spec)
        own = load_run(spec)
        patch.setenv("AMIF_RESULTS", str(folder / "two"))
        if spec.stage == "stage2":
            patch.setenv("AMIF_PROCESSES", "2")
            run_notebook_04(spec, folder / "two.ipynb")
        else:
            launch.train(spec, processes=2)
        found.append((own, load_run(spec)))
    patch.undo()
    return found


def run_notebook_04(spec, out):
    file = out.with_suffix(".json")
    file.write_text(spec.model_dump_json(), encoding="utf-8")
    run_notebook.run(ROOT / "notebooks" / "04_stage2_local_alignment_and_mining.ipynb", out, {"spec": str(file)})


def test_losses_and_answers_of_whole_trainings_agree(runs):
    for one, two in runs:
        assert (one.provenance["processes"], two.provenance["processes"]) == (1, 2)
        assert two.history["total"].tolist() == pytest.approx(one.history["total"].tolist(), rel=2e-3)
        assert two.history["gradient_norm"].tolist() == pytest.approx(one.history["gradient_norm"].tolist(), rel=2e-2)
    first, second = (run.predictions for run in runs[-1])
    assert first.question_id.tolist() == second.question_id.tolist() and first.question_id.is_unique
    np.testing.assert_allclose(np.stack(first.log_likelihoods), np.stack(second.log_likelihoods), atol=0.05)


def test_a_stage_2_without_hard_negatives_is_shown_too(runs, folder, monkeypatch):
    """Rows 4, 5 and 7 of Table 2: no pair is mined, so there is none to show."""
    monkeypatch.setenv("AMIF_RESULTS", str(folder / "one"))
    spec = tiny.run(objective={"weight_hard_negatives": 0.0}).trainings()[1]
    run_notebook_04(spec, folder / "alone.ipynb")
    assert "local" in load_run(spec).history and "hard_negatives" not in load_run(spec).history
