"""The benchmark of training and answering: that it trains for real, counts what it says, and needs little to run."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from amif_lib.app import benchmark, cost_model, flop_count
from amif_lib.app.benchmarks import growth, synthetic, teacher_views, training, transport
from amif_lib.core.errors import InputError
from amif_lib.data.readers import medicat
from amif_lib.experiments import rows as experiments
from amif_lib.reporting import table_rows
from amif_lib.training import compiling, micro_batch
from tests import tiny


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_three_trainings_learn_and_their_rates_follow_from_their_times(tmp_path: Path) -> None:
    files = training.write(tmp_path, "demo", "cpu", steps=6, batch=8, ways=(False,), questions=(1, 3))
    assert [file.name for file in files] == ["training.csv", "answering.csv", "hours.csv"]
    runs = training.lineage("demo")
    for row in rows(files[0]):
        names = (
            "seconds_per_step",
            "samples_per_second",
            "tflop_per_sample",
            "tflop_per_second",
            "first_loss",
            "last_loss",
        )
        number = {name: float(row[name]) for name in (*names, "matmul_tflop_per_second", "share_of_matmul_rate")}
        assert number["last_loss"] < number["first_loss"]  # on the one batch that it sees
        assert number["samples_per_second"] == pytest.approx(8 / number["seconds_per_step"], rel=1e-2)
        run = runs[row["stage"]]
        run = run.model_copy(update={"train": run.train.model_copy(update={"batch_size": 8})})
        flop = flop_count.sample_flop(run) / 1e12
        assert number["tflop_per_sample"] == pytest.approx(flop, rel=1e-3)
        assert number["tflop_per_second"] == pytest.approx(flop * number["samples_per_second"], rel=1e-2)
        share = number["tflop_per_second"] / number["matmul_tflop_per_second"]
        assert number["share_of_matmul_rate"] == pytest.approx(share, rel=1e-2) and share < 1.5
        assert row["device"] and row["torch"] == metadata.version("torch") and row["peak_memory_gb"] == ""
    assert [int(row["questions"]) for row in rows(files[1])] == [1, 3]


def test_the_cheapest_reading_is_the_specs_variant_2a_and_the_default_2b() -> None:
    """Against the cost model worked out apart (`05_flops.py`): training GFLOP a sample of stage 2, text 64 and 128."""
    from amif_lib.app import flop_count

    cheapest = training.lineage("paper", 0, "cheapest")
    assert cheapest["stage2"].data.text_length == 64 and not cheapest["stage2"].objective.reads_both_views("stage2")
    assert flop_count.sample_flop(cheapest["stage2"]) == pytest.approx(781e9, rel=0.05)
    assert flop_count.sample_flop(training.lineage("paper", 128)["stage2"]) == pytest.approx(1424e9, rel=0.08)
    assert flop_count.sample_flop(cheapest["stage1"]) == pytest.approx(390e9, rel=0.05)


def test_the_papers_schedule_by_hand(tmp_path: Path) -> None:
    file = training.write_schedule(tmp_path)
    rows = pd.read_csv(file).set_index("objective")
    assert rows.loc["cheapest", "exaflop"] == pytest.approx(8.21, rel=0.06)  # the research notes' total, teacher cached
    for name, row in rows.iterrows():
        assert row["exaflop"] == pytest.approx(row["exaflop_stage1"] + row["exaflop_stage2"], rel=1e-3)
        needed = row["exaflop"] * 1e18 / (training.BOUND_HOURS[name] * 3600) / 1e12
        assert row["tflop_per_second_for_bound"] == pytest.approx(needed, rel=1e-3)


def test_without_a_compiler_the_compiled_way_is_left_out_and_said(monkeypatch, capsys) -> None:
    def fails(*problem) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(transport, "compiled_ipot", fails)
    found = transport.measure("gauss", 4, 1)
    assert len(found) == 7 and not found["way"].str.contains("compiled").any()
    assert "IPOT is not compiled: no C++ compiler" in capsys.readouterr().out


def test_compiled_steps_end_with_their_block() -> None:
    from amif_lib.objectives import transport as solver
    from amif_lib.training import compiling

    with compiling.compiled_transport(True):
        assert solver.step_without_gradient is not solver.proximal_step
        with compiling.compiled_transport(False):
            pass
    assert solver.step_without_gradient is solver.proximal_step


def test_both_readings_are_timed_and_fine_tuning_once(tmp_path: Path) -> None:
    files = training.write(
        tmp_path, "demo", "cpu", steps=1, batch=8, questions=(1,), objectives=("default", "cheapest")
    )
    rows = pd.read_csv(files[0])
    assert list(zip(rows["objective"], rows["stage"], strict=True)) == [
        *(("default", stage) for stage in training.STAGES), ("cheapest", "stage1"), ("cheapest", "stage2")
    ]  # fmt: skip
    flop = rows[rows["stage"] == "stage2"].set_index("objective")["tflop_per_sample"]
    assert flop["cheapest"] < 0.75 * flop["default"]
    hours = pd.read_csv(files[2])
    assert set(hours.loc[hours["objective"] == "cheapest", "table"]) == {"headline"}


def test_hours_are_operations_over_rates_and_every_distinct_run_counts_once() -> None:
    rates = {"stage1": 1e14, "stage2": 5e13, "finetune": 2e13}
    found = {(row["table"], row["stage"]): row for row in training.projected(rates, "paper")}
    headline = training.lineage("paper")
    for stage, rate in rates.items():
        expected = cost_model.training_flop(headline[stage]) / rate / 3600
        assert found["headline", stage]["hours"] == pytest.approx(expected) and found["headline", stage]["runs"] == 1
    table2 = table_rows.required_runs("table2", "paper")
    assert any(run.data.blank_images for run in table2)
    for stage in rates:
        distinct = {each.run_id for run in table2 for each in run.lineage() if each.stage == stage}
        assert found["table2", stage]["runs"] == len(distinct)


def test_synthetic_batches_have_the_runs_shapes() -> None:
    run = training.lineage("demo")["stage2"]
    batch = synthetic.studies(run, 3)
    assert batch.views.shape == (3, 2, 3, 64, 64) and batch.ids.shape == (3, run.data.text_length)
    assert batch.mask.all() and (batch.ids[:, 0] == synthetic.CLS).all() and (batch.ids[:, -1] == synthetic.SEP).all()
    assert (batch.halves_ids[:, :, 0] == synthetic.CLS).all()
    assert synthetic.questions(run, 2, 5).answers.shape == (2, 6)


def test_a_data_loader_can_pin_both_kinds_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pins tensors in containers that it knows, and calls `pin_memory` of any other; without one nothing is pinned."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    run = training.lineage("demo")["stage2"]
    for batch in (synthetic.studies(run, 2), synthetic.questions(run, 2, 3)):
        pinned.clear()
        same = pin_memory(batch)
        tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
        assert type(same) is type(batch) and len(pinned) == len(tensors) > 5


def test_compiled_blocks_give_what_they_gave_before_and_keep_their_names() -> None:
    plain, compiled = (tiny.pretraining("stage2").eval() for _ in range(2))
    layers = [part for part in plain.modules() if type(part).__name__ in compiling.BLOCKS]
    assert (
        compiling.compile_blocks(compiled, backend="eager") == len(layers) == 2 + 2 + 2
    )  # image, text, co-attention's two streams
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for size in (4, 6):
        first, second = (module(tiny.batch(size))["total"] for module in (plain, compiled))
        assert first.item() == pytest.approx(second.item(), rel=1e-5)
    micro_batch.limit_rows(compiled, 2)
    assert compiled(tiny.batch(6))["total"].item() == pytest.approx(first.item(), rel=1e-5)


def test_compiling_is_asked_for_in_so_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("AMIF_COMPILE", text)
        assert compiling.asked() is expected
    monkeypatch.setenv("AMIF_COMPILE", "yes")
    with pytest.raises(InputError, match="AMIF_COMPILE='yes': give 1"):
        compiling.asked()


def closure(*names: str) -> set[str]:
    """These distributions and all that they need here, extras left out."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform
        if name not in found:
            found.add(name)
            left += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return found


@pytest.mark.skipif(os.name == "nt", reason="links to folders need a privilege on Windows")
def test_torch_transformers_and_accelerate_are_enough(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for name in closure("torch", "transformers", "accelerate", "pydantic", "pyyaml"):
        for file in metadata.distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(metadata.distribution(name).locate_file(top)).absolute())
    assert (site / "torch").is_dir() and not (site / "pandas").exists() and not (site / "PIL").exists()
    here = Path(__file__).parents[1]
    command = "import sys; sys.path[:0] = sys.argv[1:3]; from amif_lib.app import benchmark; sys.exit(benchmark.main(sys.argv[3:]))"
    arguments = ["--scale", "demo", "--batch", "2", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", command, str(site), str(here), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"training.csv", "answering.csv"}
    rates = re.search(r"--rates '(.*)'", done.stdout)[1]  # and hours can be had elsewhere
    assert benchmark.main(["--scale", "demo", "--rates", rates, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "hours.csv").is_file()


def test_what_cannot_be_measured_is_said(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert benchmark.main(["--scale", "huge"]) == 1
    assert "huge" in capsys.readouterr().err
    assert benchmark.main(["--steps", "0"]) == 1
    assert "--steps needs at least 1" in capsys.readouterr().err
    for text in ("{", '{"stage1": 1}', "[]"):
        assert benchmark.main(["--rates", text, "--out", str(tmp_path)]) == 1
        assert "--rates: give JSON" in capsys.readouterr().err
    with pytest.raises(InputError, match="SCALE=paper: this comparison trains"):
        teacher_views.write("paper")
    if not torch.cuda.is_available():
        assert benchmark.main(["--device", "cuda", "--out", str(tmp_path)]) == 1
        assert "sees no GPU" in capsys.readouterr().err
        assert benchmark.main(["--memory-gb", "24", "--out", str(tmp_path)]) == 1
        assert "--memory-gb: PyTorch sees no GPU" in capsys.readouterr().err


def test_curves_hold_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    ranges = {
        "batch size": (2, 32),
        "image size": (32, 128),
        "candidates": (4, 400),
        "answer length": (2, 24),
        "processes": (2,),
        "corpus size": (300, 9000),
    }
    assert ranges.keys() == growth.RANGES.keys() == growth.CURVES.keys() == growth.UNITS.keys()
    frame = pd.read_csv(growth.write("demo", ranges, repeats=1))
    assert (frame["seconds"] > 0).all()
    for curve, values in ranges.items():
        own = frame[frame["curve"] == curve]
        assert sorted(own["x"].unique()) == sorted(values)
        points = own.groupby("what")["x"].apply(
            list
        )  # every quantity at every point; how they grow is no matter of a test
        assert all(found == list(values) for found in points), points


def test_a_generated_corpus_is_read_whole(tmp_path: Path) -> None:
    captions = growth.generate_corpus(tmp_path, 50)
    studies = medicat.read(tmp_path, {"annotations": "records.jsonl", "images": "figures"})
    assert [study.text for study in studies] == captions and len({study.group_id for study in studies}) == 17


def test_transport_solvers_are_compared_on_the_same_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    frame = pd.read_csv(transport.write("demo", problems=4, repeats=1))
    assert frame.groupby("family")["way"].apply(list).map(len).to_dict() == dict.fromkeys(
        transport.FAMILIES, 7 + transport.compiles()
    )
    for name, rows in frame.groupby("family"):
        by_way = rows.set_index("way")
        assert abs(by_way.loc[transport.EXACT, "largest_gap"]) < 1e-3
        assert by_way.loc["adaptive, within 1%", "largest_gap"] < 1.001
        ratio = by_way["milliseconds_per_plan"] / by_way.loc[transport.COMMON, "milliseconds_per_plan"]
        assert by_way["times_common_loop"].tolist() == pytest.approx(ratio.tolist(), abs=1e-3), name
        # the common loop and the kit's IPOT are the same algorithm
        first, second = by_way.loc[transport.COMMON], by_way.loc["IPOT, beta 0.5, 50 iterations"]
        assert first["mean_gap"] == pytest.approx(second["mean_gap"], abs=1e-3)


def test_labels_of_clean_and_augmented_views_are_compared_on_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))

    def seen(views: str) -> experiments.RunSpec:
        content = tiny.run().model_dump(mode="json")
        for part in (content["parent"], content["parent"]["parent"]):
            part["teacher"]["views"] = views
        return experiments.parse(content, "tests")

    monkeypatch.setattr(teacher_views, "runs", lambda scale: {views: seen(views) for views in teacher_views.VIEWS})
    labels, scores = map(pd.read_csv, teacher_views.write("demo", batches=2))
    assert len(labels) == 2 and (labels["divergence"] > 0).all() and labels["same_nearest"].between(0, 1).all()
    bound = (labels["divergence"] / 2) ** 0.5  # Pinsker
    assert (labels["total_variation"] > 0).all() and (labels["total_variation"] <= bound + 1e-9).all()
    assert (labels[["neighbours_clean", "neighbours_augmented"]] >= 1).all(axis=None)
    assert (labels["mean_q_ii_clean"] != labels["mean_q_ii_augmented"]).all()
    assert scores["teacher_sees"].tolist() == ["clean", "augmented"]
    first, second = scores["accuracy"]
    assert scores["difference"].iloc[1] == pytest.approx(second - first)
    assert (scores["low"] <= scores["accuracy"]).all() and (scores["accuracy"] <= scores["high"]).all()
