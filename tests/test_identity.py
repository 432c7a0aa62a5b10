"""What names a run, what a specification may hold, and when a stored run is taken for the one asked for."""

from __future__ import annotations

import contextlib
import json
import pkgutil
import platform
import re
import shutil
from datetime import date

import pytest

from amif_lib import methods
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import identity, settings_page, stored
from amif_lib.experiments import rows as experiments
from tests import tiny, tiny_arl, tiny_mlip
from tests.conftest import python


@pytest.fixture(autouse=True)
def results_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))


SETS = ("phantom_vqa_rad", "phantom_slake")


def ids(run) -> dict[str, str]:
    return {step.stage: step.run_id for step in run.trainings()}


# --- which settings are part of which stage's identity ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "change", "first"),
    [
        (tiny.run, {"finetune": {"epochs": 3}}, "finetune"),
        (tiny.run, {"data": {"training_file": "other"}}, "finetune"),
        (tiny.run, {"data": {"blank_images": True}}, "finetune"),
        (tiny.run, {"model": {"decoder_layers": 3}}, "finetune"),
        (tiny.run, {"objective": {"weight_local": 0.2}}, "stage2"),
        (tiny.run, {"stage2": {"learning_rate": 0.1}}, "stage2"),
        (tiny.run, {"objective": {"positive_weight": 0.5}}, "stage1"),
        (tiny.run, {"data": {"text_length": 33}}, "stage1"),
        (tiny.run, {"model": {"width": 64}}, "stage1"),
        (tiny.run, {"data": {"tokenizer_questions": []}}, "stage1"),
        (tiny_arl.run, {"objective": {"weight_mim": 0.0}}, "pretrain"),
        (tiny_arl.run, {"knowledge": {"dim": 64}}, "pretrain"),
        (tiny_arl.run, {"objective": {"answer_head": "classifier"}}, "finetune"),
        (tiny_arl.run, {"model": {"decoder_layers": 3}}, "finetune"),
        (tiny_arl.run, {"model": {"projection_dim": 8}}, ""),
        (tiny_mlip.run, {"objective": {"weight_swap": 0.0}}, "pretrain"),
        (tiny_mlip.run, {"objective": {"divergence": "momentum"}}, "pretrain"),
        (tiny_mlip.run, {"model": {"projection_dim": 8}}, "pretrain"),
        (tiny_mlip.run, {"model": {"fusion_layers": 2}}, "finetune"),
        (tiny_mlip.run, {"model": {"decoder_layers": 3}}, "finetune"),
    ],
)
def test_a_setting_changes_the_stage_that_first_reads_it_and_those_behind_it(run, change, first):
    before, after = ids(run()), ids(run(**change))
    stages = list(before)
    changed = [stage for stage in stages if before[stage] != after[stage]]
    assert changed == (stages[stages.index(first) :] if first else [])


def test_label_and_scale_are_no_part_of_an_identity_and_the_seed_is():
    run = tiny.run()
    assert run.model_copy(update={"label": "another", "scale": "small"}).run_id == run.run_id
    assert run.model_copy(update={"seed": 1}).run_id != run.run_id


def test_without_a_parent_a_fine_tuning_reads_the_studies_for_its_tokenizer_only():
    alone = tiny.run().model_copy(update={"parent": None})
    assert "phantom_mimic_cxr" in identity.data_sets(alone)
    whole = alone.model_copy(update={"init": alone.init.model_copy(update={"tokenizer": "folder"})})
    assert identity.data_sets(whole) == identity.data_sets(tiny.run()) == ["phantom_vqa_rad"]
    assert identity.data_sets(tiny.run().parent.parent) == ["phantom_mimic_cxr", "phantom_roco", "phantom_vqa_rad"]
    assert identity.data_sets(tiny_arl.run()) == ["phantom_vqa_rad"]
    row = experiments.build_run("demo", {"method": "mlip", "pretraining": "none"}, "phantom_vqa_rad")
    assert row.parent is None and "data.tokenizer_questions" not in methods.settings("mlip").not_read(row)


def test_every_declared_setting_exists():
    """A misspelt name in `not_read` would do nothing."""
    for run in (tiny.run(knowledge={"source": "none"}), tiny_arl.run(), tiny_mlip.run()):
        known = {name for name, _ in settings_page.leaves(run.method)} | {"teacher"}
        for step in run.trainings():
            assert methods.settings(step.method).not_read(step) <= known


def test_other_data_give_another_identity(monkeypatch):
    before = ids(tiny.run())
    digest = identity.data_digest
    monkeypatch.setattr(identity, "data_digest", lambda name: digest(name) + "x" * (name == "phantom_vqa_rad"))
    assert not set(before.values()) & set(ids(tiny.run()).values())


ADDED = '    spread_weight: float = Field({default}, description="of a term that a user adds")\n'
SAY = """
import json
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows, stored
def state(step):
    try:
        return stored.is_finished(step)
    except InputError as error:
        return str(error)
runs = {name: rows.load_spec(name)[0] for name in ("demo/table4/6", "demo/table4/5")}
steps = {name: [(step.stage, step.run_id, state(step)) for step in run.trainings()] for name, run in runs.items()}
print(json.dumps(steps))
"""


def test_a_setting_that_a_user_adds_changes_the_rows_that_set_it_in_the_stages_that_read_it(tmp_path):
    """In a copy of the package with one more line in the method's settings, as a researcher would write it."""
    root, unchanged, changed = tmp_path / "clone", "demo/table4/6", "demo/table4/5"
    shutil.copytree(paths.PACKAGE, root / "amif_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data_manifests").symlink_to(paths.MANIFESTS)
    settings, table = root / "amif_lib/methods/amif/settings.py", root / "amif_lib/specs/table4.yaml"
    text = settings.read_text(encoding="utf-8")

    def said(added: str, declared: bool = False) -> dict[str, list]:
        place = text.index("    # Stage 2, local alignment")
        new = text[:place] + added + text[place:]
        listed = new.replace('"weight_local weight', '"spread_weight weight_local weight')
        settings.write_text(listed if declared else new)
        return json.loads(python("-c", SAY, cwd=root, AMIF_RESULTS=str(tmp_path / "results")).stdout)

    for name in (unchanged, changed):
        for step in experiments.load_spec(name)[0].trainings():
            finish(step)
    before = said("")
    assert all(finished is True for steps in before.values() for _, _, finished in steps)
    off = ADDED.format(default=0.0)
    assert said(off) == before  # at a default that switches it off, finished runs stay what they are

    row = "settings: {knowledge: {source: answers, gate: false}}}"
    assert row in table.read_text()
    table.write_text(table.read_text().replace(row, row[:-2] + ", objective: {spread_weight: 0.5}}}"))
    for declared, new_ids in ((False, ["stage1", "stage2", "finetune"]), (True, ["stage2", "finetune"])):
        after = said(off, declared)
        assert after[unchanged] == before[unchanged]
        pairs = zip(before[changed], after[changed], strict=True)
        assert [new[0] for old, new in pairs if new[1] != old[1]] == new_ids
        assert all(finished is (stage not in new_ids) for stage, _, finished in after[changed])

    table.write_text(table.read_text().replace(", objective: {spread_weight: 0.5}", ""))
    on = said(ADDED.format(default=0.5))[unchanged]
    assert [step[1] for step in on] == [step[1] for step in before[unchanged]]
    assert all("objective.spread_weight (stored: not set, asked for: 0.5)" in refusal for _, _, refusal in on)
    text = text.replace("positive_weight: float = Field(0.01", "positive_weight: float = Field(0.02")
    assert all("objective.positive_weight (stored: 0.01, asked for: 0.02)" in step[2] for step in said("")[unchanged])


# --- a stored run is compared with the one asked for ------------------------------------------------------------------


def finish(run, **changes) -> None:
    """The files by which a run counts as finished."""
    run.directory.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "provenance.json", "predictions.parquet", "candidates.parquet"):
        (run.directory / name).write_text("{}", encoding="utf-8")
    content = experiments.merge(run.model_dump(mode="json"), changes)
    (run.directory / "spec.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_stored_run_of_other_settings_is_refused_by_the_name_of_the_setting():
    run = tiny.run()
    assert not stored.is_finished(run)
    for unread in ({}, {"label": "another"}, {"objective": {"weight_local": 3.0}}, {"init": {"image": "elsewhere"}}):
        finish(run, **unread)
        assert stored.is_finished(run)
    for changes, name in (
        ({"knowledge": {"gate": False}}, "knowledge.gate"),
        ({"objective": {"new": 1}}, "objective.new"),
        ({"seed": 5}, r"seed \(stored: 5, asked for: 0\)"),
        ({"parent": {"objective": {"weight_local": 3.0}}}, "parent.objective.weight_local"),
        ({"parent": {"parent": {"train": {"epochs": 9}}}}, "parent.parent.train.epochs"),
        ({"parent": None}, "parent"),
    ):
        finish(run, **changes)
        with pytest.raises(InputError, match=f"differs from this one in {name}.*; move it elsewhere"):
            stored.is_finished(run)


def test_a_run_of_another_version_with_a_setting_that_is_none_any_more_is_refused_in_one_line():
    run = tiny.run()
    finish(run, parent={"objective": {"pair_positives": "per_type"}})
    with pytest.raises(
        InputError, match=r"spec\.json: parent\.objective\.pair_positives: unknown key; .*another version"
    ):
        _ = stored.load_run(run).spec


# --- reading and writing of specifications ----------------------------------------------------------------------------


def test_a_stored_specification_reads_back_equal_whatever_its_numbers(tmp_path):
    """JSON writes 0.00005 as 5e-05, which YAML would read as text."""
    run = tiny.run(stage1={"learning_rate": 5e-5}, finetune={"learning_rate": 1e-10})
    (tmp_path / "spec.json").write_text(json.dumps(run.model_dump(mode="json")), encoding="utf-8")
    assert "5e-05" in (tmp_path / "spec.json").read_text(encoding="utf-8")
    assert experiments.load_spec(str(tmp_path / "spec.json")) == [run]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "modle: unknown key; see amif_lib/specs/SETTINGS.md"),
        ({"model": {"widht": 3}}, "model.widht: unknown key"),
        ({"model": {"width": "wide"}}, "model.width: Input should be a valid integer"),
        ({"model": {"width": 100}}, "image_heads 12 does not divide width 100"),
        ({"objective": {"labels": "hard"}}, "objective.labels: Input should be 'soft' or 'one_hot'"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate"),
        ({"seed": date(2025, 1, 31)}, "seed: Input should be a valid integer"),  # YAML reads 2025-01-31 so
        ({"stage": "stage3"}, "amif has no stage 'stage3'; choose one of stage1, stage2, finetune"),
        ({"init": {"image": "teacher"}}, "init: 'teacher' needs a `teacher` section"),
        ({"init": {"image": "teacher"}, "teacher": {"cross_fit": 2}}, "init: 'teacher' needs one pair of towers"),
        ({"init": {"image": "teacher"}, "teacher": {"source": "file:x.parquet"}}, "init: 'teacher' needs one pair of"),
        ({"method": "clip"}, "method 'clip': unknown; choose one of amif"),
        ({"method": "arl", "stage": "stage1"}, "arl has no stage 'stage1'; choose one of pretrain, finetune"),
        ({"method": "arl", "stage": "pretrain", "teacher": {}}, "teacher: Value error, arl has no such section"),
        ({"method": "arl", "stage": "pretrain", "knowledge": {"gate": True}}, "knowledge.gate: unknown key"),
    ],
)
def test_a_wrong_specification_is_one_line_that_names_the_field(change, message):
    with pytest.raises(InputError) as caught:
        experiments.parse(experiments.merge({"stage": "finetune", "scale": "demo"}, change), "run.yaml")
    assert message in str(caught.value) and str(caught.value).startswith("run.yaml: ") and "\n" not in str(caught.value)


def test_a_run_that_is_not_there_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"stage": "stage1",', encoding="utf-8")
    (tmp_path / "folder.yaml").mkdir()
    for name, message in {
        str(tmp_path / "run.json"): "run.json: not valid YAML or JSON",
        str(tmp_path / "absent.yaml"): "no such file",
        str(tmp_path / "folder.yaml"): "cannot be read .Is a directory",
        "demo": "give a .yaml",
        "huge/table4": "unknown; choose one of",
        "demo/table9": "unknown; choose one of",
        "demo/table4/7": "no row '7'",
        "demo/table4/1/stage1": "has no stage1 run",
        "demo/table4/1/stage9": "has no stage9 run",
    }.items():
        with pytest.raises(InputError, match=message):
            experiments.load_spec(name)


# --- rows of the tables -----------------------------------------------------------------------------------------------


def test_rows_of_table_4_share_their_pre_training():
    rows = experiments.rows("table4", "demo")
    assert [row.row for row in rows] == ["1", "2", "3", "4", "5", "6"]
    parents = {row.row: {run.parent.run_id if run.parent else None for run in row.runs} for row in rows}
    assert parents["1"] == parents["2"] == {None}
    assert parents["3"] == parents["4"] == parents["5"] == parents["6"] != {None}
    assert len({run.run_id for row in rows for run in row.runs}) == 6 * len(rows[0].runs)


def test_a_row_has_every_seed_once_on_each_question_set():
    full, alone = experiments.rows("table4", "demo", SETS, seeds=3, pretrain_seeds=2, only=("6", "1"))[::-1]
    found = sorted((run.data.questions, run.seed, run.parent.seed) for run in full.runs)
    assert found == sorted((name, seed, seed // 3) for name in SETS for seed in range(6))  # seeds of their own
    assert sorted((run.data.questions, run.seed) for run in alone.runs) == sorted(
        (name, seed) for name in SETS for seed in range(6)
    )


def test_ablations_may_have_fewer_question_sets_and_contrasts_have_their_own_number_of_replicates():
    assert experiments.sets_of("table1", "demo") == tuple(experiments.scale_settings("demo")["question_sets"])
    assert experiments.sets_of("table4", "demo") == ("phantom_vqa_rad",)
    assert experiments.sets_of("table4", "paper") == experiments.sets_of("table1", "paper")
    for row in experiments.rows("contrasts", "demo"):
        assert [run.seed for run in row.runs] == list(range(8))
    assert {len(row.runs) for row in experiments.rows("contrasts", "demo", pretrain_seeds=1)} == {1}
    same = {"full": "table4:6", "no_knowledge": "table4:3", "no_gate": "table4:5", "no_hard_negatives": "table2:7"}
    for row, other in same.items():
        table, number = other.split(":")
        ours, theirs = (
            experiments.rows(*names, only=(key,))[0].runs[0]
            for names, key in ((("contrasts", "demo"), row), ((table, "demo"), number))
        )
        assert ours.run_id == theirs.run_id


def test_methods_share_the_runs_of_other_tables_and_a_row_needs_settings_of_its_scale():
    ours = {row.row: row.runs for row in experiments.rows("methods", "demo")}
    shared = {"full": ("contrasts", "full"), "no_pretraining": ("contrasts", "no_pretraining")}
    shared |= {"no_pretraining_plain": ("table4", "1"), "clip": ("table2", "1")}
    for row, (table, other) in shared.items():
        (theirs,) = experiments.rows(table, "demo", pretrain_seeds=5, only=(other,))
        assert [run.run_id for run in ours[row]] == [run.run_id for run in theirs.runs]
    methods = experiments.scale_settings("demo")["methods"]
    assert set(ours) == {*shared, *methods} and {len(runs) for runs in ours.values()} == {5}
    for run in (runs[0] for row, runs in ours.items() if row in methods):
        full = ours["full"][0]
        assert run.model == full.model and run.data == full.data and run.train == full.train
        spent = [[step.train.epochs for step in each.trainings()[:-1]] for each in (run, full)]
        assert sum(spent[0]) == sum(spent[1]) and run.parent.data.pretrain == full.parent.data.pretrain
    for scale in ("small", "base", "paper"):
        others = experiments.scale_settings(scale).get("methods", {})
        assert set(experiments.entries("methods", scale)) == {*shared, *others}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "hub"}, "scale demo: unknown start 'hub'; choose one of random"),
        ({"pretraining": "stage3"}, "pretraining: 'stage3' is not one of all, stage1, stage2, none"),
        ({"stage1": {"epoch": 3}}, "train.epoch: unknown key"),
    ],
)
def test_a_row_that_asks_for_what_is_not_there_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        experiments.build_run("demo", changes, "phantom_slake")


# --- the page of settings ---------------------------------------------------------------------------------------------


def test_the_page_of_settings_is_current_short_and_explains_each():
    assert (paths.SPECS / "SETTINGS.md").read_text(encoding="utf-8") == settings_page.page(), (
        "run `python -m amif_lib settings > amif_lib/specs/SETTINGS.md`"
    )
    leaves = dict(settings_page.leaves())
    assert len(leaves) <= 70, "raise this number for a setting of your own"
    assert all(field.description for field in leaves.values())


def test_provenance_names_seeds_files_and_commit_and_no_machine():
    run = tiny.run(seed=4)
    finish(run)
    made = stored.provenance(run, processes=2, seconds=12.34)
    assert made["seeds"] == {"stage1": 4, "stage2": 4, "finetune": 4} and made["wall_time_s"] == 12.3
    of_braces = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # SHA-256 of "{}"
    assert made["files"]["metrics.json"] == of_braces
    assert set(made["files"]) == {"spec.json", "metrics.json", "predictions.parquet", "candidates.parquet"}
    assert len(made["commit"]) in (0, 40) and isinstance(made["changes"], bool)
    assert not any(name in json.dumps(made) for name in (str(paths.ROOT), platform.node()))


def test_every_open_point_has_a_reading_and_the_place_exists():
    def exists(name: str) -> bool:
        with contextlib.suppress(ImportError, AttributeError):
            return pkgutil.resolve_name(f"amif_lib.{name}") is not None
        return False

    text = (paths.PACKAGE / "methods" / "amif" / "READINGS.md").read_text(encoding="utf-8")
    points = [line.split("|") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(point[1]) for point in points] == list(range(1, 54)) and {len(point) for point in points} == {8}
    known = {name.rpartition(".")[2] for name, _ in settings_page.leaves()}
    for point in points:
        for name in re.findall(r"`(\w+\.[\w.]+)`", point[5]):
            assert exists(name) or exists(f"methods.amif.{name}"), (point[1], name)
        assert {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", point[6])} <= known, point[1]
