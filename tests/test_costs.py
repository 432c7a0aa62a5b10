"""Costs: operations against the published arithmetic, torch's own counter and modules; plans against brute force."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from amif_lib.app.workflow.plan import Selection, make_plan

from amif_lib.app import cli, cost_model, costs, flop_count
from amif_lib.app.cost_model import GB
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import RunSpec
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks.sizes import ModelSpec
from amif_lib.reporting import tables

STUDIES = 525_827  # 227,827 + 81,000 + 217,000, the sets at the sizes that the paper's sources state
PAPER_RUNS = (16, 21, 29)  # stage 1, stage 2, notebooks


@pytest.fixture(autouse=True)
def empty_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    return tmp_path


def paper(stage: str, question_set: str = "pathvqa", **settings) -> RunSpec:
    """A run of the full model at paper scale."""
    return next(run for run in experiments.build_run("paper", settings, question_set).lineage() if run.stage == stage)


def planned(scale: str) -> dict[str, list[RunSpec]]:
    names = experiments.tables_of(scale)
    return {name: tables.required_runs(name, scale, tables.Selection()) for name in names}


# --- operations, against arithmetic by hand (GF; texts of 64 tokens and of 128) ------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda m: flop_count.image_macs(m), 59.483),  # torch.utils.flop_counter on the ViT at 288 pixels
        (lambda m: flop_count.text_macs(m, 64), 11.0),
        (lambda m: flop_count.text_macs(m, 128), 22.3),
        (lambda m: flop_count.pair_macs(m, 325, 64), 46.8),
        (lambda m: flop_count.pair_macs(m, 325, 128), 55.1),
        (lambda m: flop_count.pair_macs(m, 325, 325), 81.4),
        (lambda m: flop_count.pair_macs(m, 64, 64), 14.8),
        (lambda m: flop_count.pair_macs(m, 128, 128), 30.2),
        (lambda m: flop_count.decoder_macs(m, 10, 357), 7.4),
        (lambda m: flop_count.image_macs(flop_count.EXTERNAL), 35.1),
        (lambda m: flop_count.text_macs(flop_count.EXTERNAL, flop_count.EXTERNAL_TEXT), 45.9),
    ],
)
def test_forward_passes_of_the_paper_sized_parts(found, expected) -> None:
    assert 2 * found(ModelSpec()) / 1e9 == pytest.approx(expected, rel=0.01)


IDENTICAL = {"text_positive": "identical"}  # no second pass of the text encoder


@pytest.mark.parametrize(
    ("stage", "tokens", "objective", "expected"),
    [
        ("stage1", 64, {}, 390),
        ("stage1", 128, {}, 424),
        ("stage2", 64, IDENTICAL, 1248),  # positives of all pairs, two views
        ("stage2", 128, IDENTICAL, 1424),
        ("stage2", 64, IDENTICAL | {"pair_positives": "image_text"}, 960),  # positives of image-text pairs only
        ("stage2", 128, IDENTICAL | {"pair_positives": "image_text"}, 1089),
        ("stage2", 64, {"weight_hard_negatives": 0.0}, 3 * (59.5 + 11.0 + 46.8)),
        ("stage2", 64, {"weight_hard_negatives": 0.0, "stage2_trains": "fusion"}, 59.5 + 11.0 + 3 * 46.8),
    ],
)
def test_training_of_one_sample_in_pre_training(stage, tokens, objective, expected) -> None:
    run = paper(stage, data={"text_length": tokens}, objective=objective)
    assert flop_count.sample_flop(run) / 1e9 == pytest.approx(expected, rel=0.01)


def test_whole_schedules_of_the_paper() -> None:
    first = 20 * STUDIES * flop_count.sample_flop(paper("stage1", data={"text_length": 64}))
    assert first == pytest.approx(4.10e18, rel=0.01)
    for tokens, expected in ((64, 1.07e19), (128, 1.19e19)):
        stages = [paper(stage, data={"text_length": tokens}) for stage in ("stage1", "stage2")]
        total = sum(STUDIES * run.train.epochs * flop_count.sample_flop(run) for run in stages)
        assert total == pytest.approx(expected, rel=0.05)
    m, cheap = ModelSpec(), 0.0  # one view, no positives of one modality: 8.2e18 with the first stage
    cheap += flop_count.image_macs(m) + flop_count.text_macs(m, 64) + 2 * flop_count.pair_macs(m, 325, 64)
    cheap += flop_count.pair_macs(m, 325, 325) + flop_count.pair_macs(m, 64, 64)
    assert first + 6 * cheap * 10 * STUDIES == pytest.approx(8.21e18, rel=0.01)


@pytest.mark.parametrize(
    ("question_set", "settings", "expected"),
    [
        ("vqa_rad", {"data": {"training_file": "published3064"}}, 6.7e16),
        ("slake", {}, 1.07e17),
        ("pathvqa", {}, 4.28e17),
        ("vqa_med_2019", {}, 2.77e17),
    ],
)
def test_fine_tunings_of_the_paper(question_set, settings, expected) -> None:
    assert cost_model.training_flop(paper("finetune", question_set, **settings)) == pytest.approx(expected, rel=0.01)


def test_ranking_grows_with_the_candidates_and_projects_the_memory_once() -> None:
    run = paper("finetune")
    for candidates, expected in ((121, 120), (132, 130), (166, 162), (2500, 2370)):
        assert flop_count.ranking_flop(run, candidates) / 1e9 == pytest.approx(expected, rel=0.01)
    encoded = flop_count.evaluation_flop(run, 121) - flop_count.ranking_flop(run, 121)
    free = sum(2 * flop_count.decoder_macs(run.model, length, 357) for length in range(1, 10))
    assert (encoded - free) / 1e9 == pytest.approx(113, rel=0.01)


def test_without_knowledge_or_gate_their_operations_go() -> None:
    full, no_gate, none = (paper("finetune", knowledge=k) for k in ({}, {"gate": False}, {"source": "none"}))
    cost = [flop_count.sample_flop(run) for run in (full, no_gate, none)]
    assert cost[0] - cost[1] == pytest.approx(6 * 768**2 * 357)
    assert (cost[0] - cost[2]) / 3e9 == pytest.approx(5.3, rel=0.02)


# --- operations and parameters, against torch ----------------------------------------------------------------------


def _counted(step) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("stage", "objective", "model"),
    [
        ("stage1", {}, {}),
        ("stage1", {"text_text_second": "copy"}, {"projection": "mlp", "projection_sharing": "alignment"}),
        ("stage2", {}, {}),
        ("stage2", {"pair_positives": "image_text", "text_positive": "none", "image_image_views": "one"}, {}),
        ("stage2", {"weight_global": 1.0, "text_text_second": "copy"}, {}),
        ("stage2", {"pair_positives": "none", "negative_directions": "both", "text_positive": "halves"}, {}),
        ("stage2", {"weight_hard_negatives": 0.0}, {"co_attention": "one_way"}),
        (
            "stage2",
            {"pair_types": ["image_text"], "weight_global": 1.0, "local_contrast": "positives_minus_negatives"},
            {},
        ),
    ],
)
def test_pre_training_step_against_torch(stage, objective, model, monkeypatch) -> None:
    tiny = pytest.importorskip("tests.tiny", reason="needs torch")
    # texts are counted at their longest, so they run as one group
    monkeypatch.setattr("amif_lib.networks.encoders.length_groups", lambda mask: [(None, mask.shape[1])])
    changes = {name: tuple(v) if isinstance(v, list) else v for name, v in objective.items()}
    module, batch = tiny.pretraining(stage, model=model, **changes), tiny.batch(8, length=16)
    step = type(batch)(**vars(batch) | {"step": 1})  # step 0 watches for collapse, which is no training
    run = tiny.run(objective=objective, model=model, data={"text_length": 16})
    run = next(one for one in run.lineage() if one.stage == stage)
    assert batch.ids.shape[1] == 16
    assert 8 * flop_count.sample_flop(run) == pytest.approx(
        _counted(lambda: module(step)["total"].backward()), rel=0.05
    )


@pytest.mark.parametrize("knowledge", [{}, {"gate": False}, {"source": "none"}])
def test_fine_tuning_step_against_torch(knowledge) -> None:
    torch = pytest.importorskip("torch")
    from amif_lib.methods.amif.network import AMiFForVQA
    from tests import tiny

    spec, tokens = KnowledgeSpec(**knowledge), torch.arange(5, 45)
    run = tiny.run(knowledge=knowledge | {"max_tokens": 40}, data={"question_length": 12}, finetune={"batch_size": 6})
    model = AMiFForVQA(run.model, spec, tokens, torch.arange(40))
    ids, answers = torch.randint(5, 400, (6, 12)), torch.randint(5, 400, (6, 8))
    inputs = (torch.randn(6, 3, 32, 32), ids, torch.ones_like(ids).bool(), answers, torch.ones_like(answers))
    counted = _counted(lambda: model(*inputs).sum().backward())
    assert 6 * flop_count.sample_flop(run, answer_tokens=7) == pytest.approx(counted, rel=0.05)
    parts = flop_count.parameters(run)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert parts["decoder"] == sum(p.numel() for p in model.decoder.parameters())


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"co_attention": "shared", "projection": "mlp"},
        {"same_modality_pairs": "separate", "projection_sharing": "alignment"},
    ],
)
def test_parameters_of_pre_training_against_torch(model) -> None:
    tiny = pytest.importorskip("tests.tiny", reason="needs torch")
    amif = tiny.pretraining("stage1", model=model).amif
    parts = flop_count.parameters(tiny.run(model=model).parent)
    for name in ("image_encoder", "text_encoder", "co_attention"):
        assert parts[name] == sum(p.numel() for p in getattr(amif, name).parameters()), name
    modules = [module for name, module in amif.named_children() if name.endswith("projection")]
    assert parts["projections"] == sum(p.numel() for module in modules for p in module.parameters())


def test_parameters_and_memory_at_the_size_of_the_paper() -> None:
    run = paper("finetune")
    parts = flop_count.parameters(run)
    assert parts["gated_cross_attention"] == 14_766_336 and parts["decoder"] == 122_524_228
    assert parts["co_attention"] == pytest.approx(113.42e6, rel=1e-4)
    state = 16 * sum(parts.values())
    one, four = flop_count.gpu_memory(run), flop_count.gpu_memory(run, 4)
    assert four > state and one - state == pytest.approx(
        4 * (four - state)
    )  # activations are shared out, weights are not
    assert flop_count.gpu_memory(paper("stage2")) > flop_count.gpu_memory(paper("stage1")) > 40 * GB


@pytest.mark.parametrize("stage", ["stage1", "stage2", "finetune"])
def test_the_base_scale_fits_a_card_of_24_gb_some_rows_at_a_time(stage) -> None:
    run = next(one for one in experiments.build_run("base", {}, "pathvqa").lineage() if one.stage == stage)
    whole = flop_count.gpu_memory(run)
    few = [flop_count.gpu_memory(run, 1, rows) for rows in (1, 16, 64)]
    assert few == sorted(few) and few[1] < 20 * GB < whole  # a fifth is left to transport, kernels and fragmentation
    assert flop_count.gpu_memory(run, 1, run.train.batch_size) == whole
    assert few[0] > 16 * sum(flop_count.parameters(run).values())


# --- counts of data ------------------------------------------------------------------------------------------------


def test_samples_are_whole_batches_of_the_manifests_counts() -> None:
    first = paper("stage1")
    whole = (222_758 + 65_448 + 217_060) // 256 * 256  # MIMIC-CXR, ROCO, MedICaT
    assert cost_model.samples(first) == 20 * whole
    assert cost_model.samples(paper("finetune", "vqa_rad")) == 60 * 1797
    short = first.train.model_copy(update={"max_steps": 3})
    assert cost_model.samples(first.model_copy(update={"train": short})) == 3 * 256
    small = next(run for run in experiments.build_run("small", {}, "vqa_rad").lineage() if run.stage == "stage1")
    assert cost_model.samples(small) == 12 * 2 * (1357 // 2 // 64) * 64  # two folds of the teacher


def test_question_counts_follow_training_file_and_language() -> None:
    counted = cost_model.questions(paper("finetune", "vqa_rad", data={"training_file": "clean2772"}))
    assert (counted.train, counted.test, counted.all_answers, counted.images) == (2772, 451, 517, 314)
    counted = cost_model.questions(paper("finetune", "slake", data={"language": "zh"}))
    assert (counted.train, counted.test) == (4916, 1033)
    few = paper("finetune", "pathvqa", data={"max_questions": 24})
    assert (cost_model.questions(few).train, cost_model.questions(few).test) == (24, 24)


def test_downloads_are_the_manifests_sizes_and_unknown_ones_are_named() -> None:
    found = cost_model.downloads([*paper("finetune", "vqa_rad").lineage(), *paper("finetune", "pathvqa").lineage()])
    content = yaml.safe_load((paths.MANIFESTS / "vqa_rad.yaml").read_text(encoding="utf-8"))
    assert found["vqa_rad"] == sum(entry["bytes"] for entry in content["files"] + content["trees"])
    assert found["medicat"] == 104e9 and found["pathvqa"] is None and found["roco"] is None
    assert "openai/clip-vit-base-patch16" in found and "random" not in found
    assert cost_model.downloads(experiments.build_run("demo", {}, "phantom_vqa_rad").lineage()) == {}


def test_a_set_without_counts_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(cost_model.DOCUMENTED_STUDIES, "medicat")
    with pytest.raises(InputError, match=r"medicat\.yaml: splits"):
        cost_model.studies("medicat")


# --- time ----------------------------------------------------------------------------------------------------------


def store(folder: Path, run: RunSpec, seconds: float, gpus: list[str] | None = None, **metrics) -> None:
    """A stored run as far as costs read it."""
    own = folder / "runs" / run.run_id
    own.mkdir(parents=True)
    made = {"hardware": {"gpus": gpus or []}, "processes": 1}
    files = {"provenance": made, "spec": run.model_dump(mode="json")}
    files["metrics"] = {"samples": 1000, "train_time_s": seconds, **metrics}
    for name, content in files.items():
        (own / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_rates_are_those_of_this_machines_runs_on_the_scales_device(empty_results: Path) -> None:
    stage1, _, tip = experiments.build_run("demo", {}, "phantom_vqa_rad").lineage()
    before = cost_model.basis("demo")
    assert "reference runs of SCALE=demo" in before.text and "this machine" not in before.text
    store(empty_results, stage1, 50.0)
    other = experiments.build_run("demo", {}, "phantom_vqa_rad", pretrain_seed=1).lineage()[0]
    store(empty_results, other, 1.0, gpus=["A100"])  # says nothing about a CPU
    broken = empty_results / "runs" / "0" / "provenance.json"
    broken.parent.mkdir()
    broken.write_text("{", encoding="utf-8")
    after = cost_model.basis("demo")
    assert after.rates["stage1"] == {stage1.model.width: pytest.approx(1000 * flop_count.sample_flop(stage1) / 50.0)}
    assert after.rates["finetune"] == before.rates["finetune"]
    assert "stage 1: measured in runs of this scale on this machine" in after.text
    assert cost_model.basis("demo", here=False) == before
    store(empty_results, tip, 30.0, evaluation_time_s=8.0)
    measured = cost_model.basis("demo")
    assert measured.rates["answering"] == {tip.model.width: pytest.approx(cost_model.answering_flop(tip) / 8.0)}


def test_without_measurement_the_rate_is_assumed_and_says_so() -> None:
    found = cost_model.basis("paper")
    assert found.text.startswith("assumed 30% of an A100") and {found.rate(kind, 768) for kind in cost_model.KINDS} == {
        0.3 * 312e12
    }
    assert found.seconds({("stage1", 768): 0.3 * 312e12 * 7200}) == pytest.approx(7200 + cost_model.JOB_SECONDS)


def test_the_committed_runs_are_predicted_within_a_tenth() -> None:
    """The reference runs of SCALE=small: training and answering as their own metrics have them, model by model."""
    known, compared = cost_model.basis("small", here=False), 0
    for path in sorted((paths.ROOT / "results" / "reference" / "small" / "runs").glob("*/metrics.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        run = results.Run(path.parent).spec
        if run.data.blank_images:  # one image serves a whole batch: another mixture of work
            continue
        spent = metrics["train_time_s"] + metrics.get("evaluation_time_s", 0.0)
        assert known.seconds(cost_model.work(run)) - cost_model.JOB_SECONDS == pytest.approx(spent, rel=0.1), run.run_id
        compared += 1
    assert compared >= 6


# --- plans ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    return costs.summary(planned("paper"), "paper", here=False)


def test_the_whole_paper_counts_each_run_once(whole: pd.DataFrame) -> None:
    total = whole.iloc[-1]
    assert (total["stage1"], total["stage2"], total["notebooks"]) == PAPER_RUNS
    content = {"stage1": set(), "stage2": set()}  # told apart by their settings alone, whatever a run id is
    for tip in [run for runs in planned("paper").values() for run in runs]:
        for step in tip.lineage()[:-1]:
            objective = step.objective.model_dump()
            if step.stage == "stage1":  # what stage 1 does not read
                objective = {k: v for k, v in objective.items() if k in ("global_intra", "labels", "positive_weight")}
                if objective["labels"] == "one_hot":
                    objective.pop("positive_weight")
            content[step.stage].add(json.dumps([objective, str(step.teacher), step.train.model_dump()], sort_keys=True))
    assert len(content["stage1"]) == total["stage1"] and len(content["stage2"]) == total["stage2"]


def test_sets_with_epochs_of_their_own_share_a_notebook() -> None:
    """At demo scale two sets are trained for fewer epochs; the notebooks are those of the whole paper."""
    total = costs.summary(planned("demo"), "demo", here=False).iloc[-1]
    assert (total["stage1"], total["stage2"], total["notebooks"]) == PAPER_RUNS


def test_tables_add_up_and_share(whole: pd.DataFrame) -> None:
    parts, total = whole.iloc[:-1], whole.iloc[-1]
    assert whole["table"].iloc[0] == "table1" and total["table"] == "total"
    for column in ("new", "flop", "gpu_hours", "disk", "download"):
        assert parts[column].sum() == pytest.approx(total[column]), column
    needed = parts[["teacher", "stage1", "stage2", "finetune"]].sum(axis=1)
    assert ((parts["shared"] + parts["new"]) == needed).all()
    table3 = parts.set_index("table").loc["table3"]  # its row 1 is the headline; all rows have its stage 1
    assert (table3["notebooks"], table3["extra"], table3["stage1"], table3["stage2"], table3["new"]) == (5, 1, 1, 5, 20)
    assert total["gpu_memory"] == parts["gpu_memory"].max()
    alone = costs.summary({"table3": planned("paper")["table3"]}, "paper", here=False).iloc[-1]
    assert alone["new"] == 31 and alone["flop"] > table3["flop"]


def test_finished_runs_are_no_longer_to_do(empty_results: Path) -> None:
    plan = {"table1": tables.required_runs("table1", "demo", tables.Selection())}
    before = costs.summary(plan, "demo").iloc[-1]
    assert before["finished"] == 0 and before["hours_left"] == pytest.approx(before["hours"])
    done = empty_results / "runs" / plan["table1"][0].parent.parent.run_id / "metrics.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}", encoding="utf-8")
    after = costs.summary(plan, "demo").iloc[-1]
    assert after["finished"] == 1 and after["hours_left"] < after["hours"] == pytest.approx(before["hours"])


def test_more_seeds_cost_more_fine_tunings_only() -> None:
    one, three = (
        costs.summary({"table1": tables.required_runs("table1", "demo", tables.Selection(seeds=n))}, "demo").iloc[-1]
        for n in (1, 3)
    )
    assert three["stage1"] == one["stage1"] and three["notebooks"] == 3 * one["notebooks"]
    assert three["finetune"] == 3 * (one["finetune"] - 4) + 4  # the baselines of four sets are made once


def test_page_has_the_headline_first_and_says_what_it_rests_on(whole: pd.DataFrame) -> None:
    text = costs.page(whole)
    lines = text.splitlines()
    assert lines[3].startswith("table1") and any(line.startswith("total") for line in lines)
    for words in ("SCALE=paper", "assumed 30% of an A100", "modelled", "unknown size, not counted: pathvqa, roco"):
        assert words in text, words
    assert "GPU: none needed" in costs.page(costs.summary({"table1": planned("demo")["table1"]}, "demo"))


def test_the_plan_command_prints_costs_before_jobs(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["plan", "--tables", "table1"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("What this plan costs at SCALE=demo") < printed.index("to do  stage 1")
    chosen = Selection("demo", ("table1",), ("phantom_slake",))
    assert {run.data.questions for run in make_plan(chosen).tables["table1"]} == {"phantom_slake"}


def test_expected_costs_are_comment_lines_per_scale() -> None:
    lines = costs.expected("table1").splitlines()
    assert all(line.startswith("#") for line in lines)
    assert [line.split()[1] for line in lines[1:]] == [
        scale for scale in costs.SCALES if (paths.SPECS / "scales" / f"{scale}.yaml").is_file()
    ]


@pytest.mark.parametrize("name", ["phantom_vqa_rad", "phantom_slake", "phantom_pathvqa", "phantom_vqa_med_2019"])
def test_a_fine_tuning_of_the_demo_sees_at_least_four_thousand_samples(name: str) -> None:
    assert 4000 <= cost_model.samples(experiments.build_run("demo", {}, name)) <= 9000


# --- budget --------------------------------------------------------------------------------------------------------


def test_a_budget_keeps_rows_in_order_and_names_the_others_with_their_hours() -> None:
    rows = [row for name in ("table4", "table1") for row in experiments.rows(name, "paper")]
    everything, nothing = costs.within_budget(rows, 1e6, "paper"), costs.within_budget(rows, 0.01, "paper")
    assert everything[0][0].table == "table1" and len(everything[0]) == len(rows) and everything[1] == []
    assert nothing[0] == [] and len(nothing[1]) == len(rows)
    headline = nothing[1][0][1]  # stage 1, stage 2, teacher and four fine-tunings, in hours
    jobs = {run.run_id: run for run in rows[-2].runs for run in run.lineage()}
    rate, count = 0.3 * 312e12, (222_758 + 65_448 + 217_060, 368_960 + 65_448 + 217_060)
    flop = sum(sum(cost_model.work(run).values()) for run in jobs.values())
    flop += 2 * (
        count[0] * flop_count.text_macs(flop_count.EXTERNAL, 256)
        + count[1] * flop_count.image_macs(flop_count.EXTERNAL)
    )
    assert headline == pytest.approx(flop / rate / 3600, rel=0.001)

    kept, left_out = costs.within_budget(rows, headline + 0.001, "paper")
    assert [(row.table, row.row) for row in kept] == [
        ("table1", "hub"),
        ("table4", "6"),
    ]  # the same runs: no further cost
    assert {(row.table, row.row) for row, _ in left_out} >= {("table4", "1"), ("table4", "5")}
    assert all(hours > 0.001 for _, hours in left_out)


def test_baselines_and_finished_runs_count_in_a_budget(empty_results: Path) -> None:
    rows = experiments.rows("table1", "demo", only=("demo",))
    blank = [experiments.blank_image_run(run) for run in rows[0].runs]
    alone = costs.within_budget(rows, 1e-9, "demo")[1][0][1]
    both = costs.within_budget(rows, 1e-9, "demo", blank)[1][0][1]
    assert alone < both < 2 * alone
    for run in rows[0].runs:
        (empty_results / "runs" / run.run_id).mkdir(parents=True)
        (empty_results / "runs" / run.run_id / "metrics.json").write_text("{}", encoding="utf-8")
    assert costs.within_budget(rows, 1e-9, "demo")[1][0][1] < alone


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_a_budget_is_a_number_above_zero(hours) -> None:
    with pytest.raises(InputError, match="BUDGET_HOURS"):
        costs.within_budget([], hours, "demo")


@pytest.mark.parametrize("hours", ["-3", "two", "inf"])
def test_the_command_refuses_another_budget(hours, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "--budget-hours", hours])
    assert "is no number of hours" in capsys.readouterr().err


def test_no_torch() -> None:
    program = "import sys\nfrom amif_lib.app import costs\nprint(len(costs.expected('table4')) > 99, 'torch' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=paths.ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True False", done.stderr
