"""Tables from made-up runs with hand-computed numbers, and the published numbers against recomputation."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import run_spec
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import write_predictions
from amif_lib.reporting import layout, table_notes, table_rows, table_tests, tables
from amif_lib.reporting.table_rows import Selection
from amif_lib.scoring import statistics
from tests import fabricated
from tests.fabricated import write_run, write_table, wrong_at

WRONG = {"1": (0, 1, 3, 5, 6, 8), "2": (0, 1, 3, 5, 8), "3": (0, 1, 5, 8), "4": (0, 5, 8), "5": (0, 5), "6": (5,)}


@pytest.fixture
def demo(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path / "results of a demo")
    write_table("table4", "demo", WRONG)
    return tmp_path


def cell(frame: pd.DataFrame, row: str, split: str, protocol: str = "paper") -> pd.Series:
    found = frame[(frame["row"] == row) & (frame["split"] == split) & (frame["protocol"] == protocol)]
    assert len(found) == 1
    return found.iloc[0]


def test_cells_by_hand(demo):
    got = tables.collect("table4", "demo").cells
    assert list(got.columns) == tables.COLUMNS
    # 12 questions, 7 of them yes/no; row 1 has 6 right of 12, of the yes/no ones 0, 3, 6 and 8 wrong
    assert cell(got, "1", "overall")["ours"] == 50
    assert cell(got, "1", "closed")["ours"] == pytest.approx(100 * 3 / 7)
    assert cell(got, "1", "open")["ours"] == pytest.approx(100 * 3 / 5)
    assert cell(got, "1", "overall")["n_questions"] == 12 and cell(got, "1", "closed")["n_questions"] == 7
    # by the data set's own field 9 are closed; row 1 answers 1 and 5 of the 3 open ones wrongly
    assert cell(got, "1", "open", "paper/answer_type")["ours"] == pytest.approx(100 / 3)
    assert cell(got, "1", "closed", "paper/answer_type")["ours"] == pytest.approx(100 * 5 / 9)
    assert cell(got, "6", "overall")["ours"] == pytest.approx(100 * 11 / 12)
    # strict: `mri` (questions 5 and 9) is no training answer, so both are lost; row 6 answers 5 as `left lung` anyway
    assert cell(got, "6", "overall", "strict@1")["ours"] == pytest.approx(100 * 10 / 12)
    assert set(got["scale"]) == {"demo"} and set(got["table"]) == {"table4"}
    # the paper's numbers stand beside ours under the protocol paper, and no difference to them: the data are synthetic
    assert cell(got, "6", "overall")["paper"] == 80.49 and got["delta"].isna().all()
    assert got.loc[(got["protocol"] != "paper") | (got["row"] == "most_frequent"), "paper"].isna().all()


def test_baseline_rows(demo):
    got = tables.collect("table4", "demo").cells
    # `no` is the commonest training answer (2 of 7) and right for 4 of 12
    assert cell(got, "most_frequent", "overall")["ours"] == pytest.approx(100 * 4 / 12)
    # nearest question on the same image, by hand: no, no, no / no, no, ct / right, right / yes, yes / left lung twice
    assert cell(got, "nearest_question", "overall")["ours"] == pytest.approx(100 * 2 / 12)
    assert cell(got, "question_only:demo", "overall")["ours"] == pytest.approx(100 * 3 / 12)
    assert cell(got, "blank_at_test:demo", "overall")["ours"] == pytest.approx(100 * 4 / 12)
    # baselines that rank nothing are the same under both protocols
    assert cell(got, "most_frequent", "overall", "strict@1")["ours"] == pytest.approx(100 * 4 / 12)


def test_delta_on_real_data_at_paper_scale(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "paper", {"hub": (2,)})
    got = tables.collect("table1", "paper").cells
    assert set(table_rows.PAPER_SETS) <= {*got["dataset"]}
    got = got[got["dataset"] == "vqa_rad"]
    assert cell(got, "hub", "overall")["delta"] == pytest.approx(100 * 11 / 12 - 80.49)
    assert cell(got, "hub", "open")["delta"] == pytest.approx(100 * 4 / 5 - 72.00)
    assert cell(got, "hub", "closed")["delta"] == pytest.approx(100 - 87.25)
    assert np.isnan(cell(got, "hub", "overall", "strict@1")["delta"])
    assert np.isnan(cell(got, "hub", "closed", "paper/answer_type")["delta"])
    verdicts = tables.collect("table1", "paper").tests["replication"]
    assert set(verdicts) == {table_tests.ONE_TRAINING}


def test_small_scale_prints_the_paper_but_no_difference_and_no_verdict(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "small", {"random": (0, 1, 2), "minilm": (0,)})
    got = tables.collect("table1", "small").cells
    assert cell(got, "minilm", "open")["paper"] == 72.00 and got["delta"].isna().all()
    tested = tables.collect("table1", "small").tests
    assert set(tested["replication"]) == {"not tested at this scale"}
    against = tested.groupby("row")["against"].agg(set)  # the first start's question-only network stands beside both
    assert all("question_only:minilm" in against[row] for row in ("minilm", "random"))
    assert "blank_at_test:minilm" in against["minilm"] and "blank_at_test:minilm" not in against["random"]


def test_paired_tests_by_hand(demo):
    got = tables.collect("table4", "demo").tests
    assert list(got.columns) == table_tests.COLUMNS
    pairs = {
        (row, against)
        for row, against, kind in zip(got["row"], got["against"], got["kind"], strict=True)
        if kind == "reference"
    }
    assert {pair for pair in pairs if "2" not in pair} == {("3", "1"), ("4", "3"), ("5", "4"), ("5", "3"), ("6", "5")}
    assert set(got.loc[got["kind"] == "baseline", "row"]) == {"6"}  # the headline row alone
    one = got[
        (got["row"] == "3") & (got["against"] == "1") & (got["split"] == "overall") & (got["protocol"] == "paper")
    ].iloc[0]
    assert (one["wins"], one["losses"]) == ("2", "0") and float(one["mcnemar_p"]) == 0.5
    assert one["difference"] == pytest.approx(100 * 2 / 12)
    family = got[(got["kind"] == "reference") & (got["protocol"] == "paper")]
    p = [max(float(m), b) for m, b in zip(family["mcnemar_p"], family["bootstrap_p"], strict=True)]
    assert list(family["p_holm"]) == pytest.approx(list(statistics.holm(p)))
    assert not family["supported"].any()  # two questions prove nothing
    assert set(got["replication"]) == {"not tested at this scale"}


def test_a_row_without_anything_to_compare_with(demo):
    whole = tables.collect("table4", "demo", Selection(only=("1",)))
    assert whole.tests.empty and list(whole.tests.columns) == table_tests.COLUMNS
    assert "None in this selection" in tables.store(whole)[3].read_text(encoding="utf-8")


def test_rows_that_saw_test_answers_are_marked_and_never_strict(monkeypatch, demo):
    monkeypatch.setattr(run_spec, "LEAKING_FILES", ("official1797",))
    whole = tables.collect("table4", "demo")
    strict = whole.cells[whole.cells["protocol"].str.startswith("strict")]
    assert set(strict["row"]) == {"most_frequent", "nearest_question"}
    assert set(whole.tests["protocol"]) == {"paper"}
    assert tables.store(whole)[3].read_text(encoding="utf-8").count("gate†") == 1


def test_the_scale_plan_decides_what_a_table_holds(demo):
    paths.scale_dir("demo").mkdir()
    plan = {"selection": {"scale": "demo", "question_sets": [], "rows": ["5", "6", "hub"], "seeds": 1}}
    (paths.scale_dir("demo") / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    got = tables.collect("table4", "demo").cells
    assert {row for row in got["row"] if row.isdigit()} == {"5", "6"}


def test_required_runs_are_what_a_missing_one_is_missed_from(demo):
    needed = table_rows.required_runs("table4", "demo")
    assert len(needed) == 1 + len(Selection().rows("table4", "demo"))
    assert sum(run.data.blank_images for run in needed) == 1
    assert results.missing(needed) == []
    lost = Selection(only=("3",)).rows("table4", "demo")[0].runs[0]
    (lost.directory / "predictions.parquet").unlink()
    assert [run.run_id for run in results.missing(needed)] == [lost.run_id]
    with pytest.raises(
        InputError,
        match=rf"row 3 \(phantom_vqa_rad, seed 0\) = run {lost.run_id}; run `make reproduce "
        "SCALE=demo`",
    ):
        tables.collect("table4", "demo")


def test_one_training_is_not_judged(monkeypatch, tmp_path):
    """Row 4 is right where row 3 is wrong, everywhere: with one training each no verdict and no bold, with two both."""
    fabricated.install(monkeypatch, tmp_path)
    for seeds, said, bold in ((1, table_tests.ONE_TRAINING, False), (2, "better", True)):
        selection = Selection(("vqa_rad",), only=("3", "4"), seeds=seeds)
        write_table("table4", "paper", {"3": tuple(range(12)), "4": ()}, selection)
        whole = tables.collect("table4", "paper", selection)
        one = whole.tests[(whole.tests["split"] == "overall") & (whole.tests["protocol"] == "paper")].iloc[0]
        assert (one["row"], one["against"], one["replication"]) == ("4", "3", said) and one["supported"]
        assert (("4", "vqa_rad", "overall") in table_tests.supported_cells(whole.tests, whole.lines)) is bold
        assert (table_tests.HOLM in " ".join(table_notes.notes(whole))) and (
            "SEEDS=3" in layout.markdown(whole)
        ) is not bold


def test_nearest_question_is_left_out_where_no_test_image_is_in_training(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    monkeypatch.setattr(fabricated, "TRAIN", [(f"other {image}", *rest) for image, *rest in fabricated.TRAIN])
    write_table("table4", "demo", WRONG)
    whole = tables.collect("table4", "demo")
    assert "nearest_question" not in {line.row for line in whole.lines} | set(whole.tests["against"])
    assert "most_frequent" in {line.row for line in whole.lines}
    assert "and left out if that is everywhere" in " ".join(table_notes.notes(whole))


# --- four question sets, seeds of pre-training, selections ---

SETS = ("phantom_vqa_rad", "phantom_slake", "phantom_pathvqa", "phantom_vqa_med_2019")


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("four sets"), SETS)
        write_table("table4", "demo", WRONG)
        slake = Selection(("phantom_slake",)).rows("table4", "demo")
        for row in slake:
            if row.row == "5":  # row 5 is as good as row 4 on three sets, and worse on this one
                write_run(row.runs[0], wrong_at(0, 3, 5, 6), blank=wrong_at(*range(8)))
        plain = experiments.table_settings

        def with_leaking_row(table: str) -> dict:
            """Table 1 as at paper scale, where VQA-RAD's file as published is a row."""
            content = plain(table)
            for row in content["rows"]:
                if row["row"] == "published3064" and "paper" in row["scales"]:
                    row |= {"scales": ["demo"], "reference": ["demo"]}
            return content

        patch.setattr(experiments, "table_settings", with_leaking_row)
        write_table("table1", "demo", {"demo": (5,), "published3064": (5, 6)})
        yield tables.collect("table4", "demo"), tables.collect("table1", "demo")


def test_averages_over_four_sets_have_the_papers_number_and_a_paired_test(four):
    cells, tested = four[0].cells, four[0].tests
    average = cells[(cells["row"] == "5") & (cells["dataset"] == "avg") & (cells["protocol"] == "paper")].iloc[0]
    assert average["ours"] == pytest.approx((3 * 100 * 10 / 12 + 100 * 8 / 12) / 4) and average["paper"] == 77.71
    assert average["n_questions"] == 48 and len(average["run_ids"].split()) == 4
    found = tested[(tested["dataset"] == "avg") & (tested["protocol"] == "paper") & (tested["kind"] == "reference")]
    one = found[(found["row"] == "5") & (found["against"] == "3")].iloc[0]
    assert one["difference"] == pytest.approx((3 * 100 * 2 / 12 + 0) / 4) and one["n_questions"] == 48
    assert (one["wins"], one["losses"], one["mcnemar_p"]) == ("", "", "")
    images = [image for image, *_ in fabricated.TEST]
    parts = [
        ([n not in wrong for n in range(12)], [n not in WRONG["3"] for n in range(12)], images)
        for wrong in ((0, 5), (0, 3, 5, 6), (0, 5), (0, 5))
    ]
    expected = statistics.bootstrap_mean_difference(parts)
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert one["bootstrap_p"] == expected.p


def test_holm_families_are_all_questions_and_their_parts(four):
    tested = four[0].tests
    for _, family in tested.groupby(["kind", "protocol", tested["split"] == "overall"]):
        p = [
            max([b, *map(float, m.split())]) for m, b in zip(family["mcnemar_p"], family["bootstrap_p"], strict=True)
        ]  # printed with four digits
        assert list(family["p_holm"]) == pytest.approx(list(statistics.holm(p)), rel=1e-3)


def test_lambda_sweep_is_compared_with_its_middle_and_has_no_paper_column(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("lambda_sweep", "demo", {"0": (0, 1), "0.01": (0,), "0.05": (0, 5)})
    whole = tables.collect("lambda_sweep", "demo")
    assert whole.cells["paper"].isna().all()
    found = whole.tests[whole.tests["kind"] == "reference"]
    assert set(found["against"]) == {"0.01"} and "0.01" not in set(found["row"]) and found["row"].nunique() == 7
    assert layout.heading(whole).startswith("Lambda sweep:")
    assert not layout.accuracies(whole)[0].map(lambda text: "/" in text).any(axis=None)


def test_pretraining_seeds(monkeypatch, tmp_path):
    """Row 1 has no pre-training and as many trainings as the others, each with a seed of its own."""
    fabricated.install(monkeypatch, tmp_path)
    selection = Selection(seeds=2, pretrain_seeds=2, only=("1", "3"))
    write_table("table4", "demo", WRONG, selection)
    second = [run for run in selection.rows("table4", "demo")[1].runs if run.parent.seed == 1]
    for run, wrong in zip(second, ((0,), (0, 1)), strict=True):
        write_run(run, wrong_at(*wrong), blank=wrong_at(*range(8)))
    whole = tables.collect("table4", "demo", selection)
    one, three = (cell(whole.cells, row, "overall") for row in ("1", "3"))
    assert one["n_seeds"] == 4 and len(one["run_ids"].split()) == 4 and one["ours_sd"] == 0
    assert three["n_seeds"] == 4 and three["ours"] == pytest.approx(100 * (8 + 8 + 11 + 10) / 48)
    right = [[n not in wrong for n in range(12)] for wrong in (WRONG["3"], WRONG["3"], (0,), (0, 1))]
    images = [image for image, *_ in fabricated.TEST]
    expected = statistics.bootstrap(right, images, pretrainings=[0, 0, 1, 1])
    assert (three["ci_low"], three["ci_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    tested = whole.tests[(whole.tests["row"] == "3") & (whole.tests["split"] == "overall")].iloc[0]
    assert tested["wins"].split() == ["2", "2", "5", "4"]  # each run of row 3 with row 1's of the same seed
    each = whole.seeds[(whole.seeds["row"] == "3") & (whole.seeds["split"] == "overall")]
    each = each[each["protocol"] == "paper"]
    assert list(zip(each["pretrain_seed"], each["seed"], strict=True)) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert list(each["ours"]) == pytest.approx([100 * k / 12 for k in (8, 8, 11, 10)])
    text = layout.markdown(whole)
    assert "2 fine-tunings (SEEDS) of 2 pre-training(s) (PRETRAIN_SEEDS), pre-trainings drawn first" in text
    assert "66.67, 66.67, 91.67, 83.33" in text


def test_a_csv_edited_by_hand_changes_nothing_and_is_written_anew(demo, capsys):
    written = tables.write("table4", "demo")
    before = [path.read_bytes() for path in written]
    assert "note" not in capsys.readouterr().out
    text = written[0].read_text(encoding="utf-8")
    written[0].write_text(text.replace("91.6667", "99.9999"), encoding="utf-8")
    cells = tables.collect("table4", "demo").cells
    assert cell(cells, "6", "overall")["ours"] == pytest.approx(100 * 11 / 12)
    tables.store(tables.collect("table4", "demo"))
    assert [path.read_bytes() for path in written] == before
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and "table4.csv did not hold what the stored runs say" in said


# --- the published numbers ---


# --- what a run must hold, what is bold, and the files ---


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_id", "i9"), ("gold", ["no"]), ("closed_field", False), ("closed_yes_no", False), ("question_id", "other")],
)
def test_a_run_on_other_questions_is_refused(demo, field, value):
    run = Selection(only=("1",)).rows("table4", "demo")[0].runs[0]
    frame = fabricated.predictions(wrong_at())
    frame.at[0, field] = value
    write_predictions(run.directory, frame, fabricated.candidates())
    with pytest.raises(
        InputError, match=rf"row 1 \(run {run.run_id}\): question test-00 of phantom_vqa_rad is not as in"
    ):
        tables.collect("table4", "demo")
    more = pd.concat([fabricated.predictions(wrong_at()), frame.iloc[[0]].assign(question_id="more")])
    write_predictions(run.directory, more, fabricated.candidates())
    with pytest.raises(InputError, match="question more of phantom_vqa_rad is not as in"):
        tables.collect("table4", "demo")


def test_bold_needs_support_against_every_reference(demo):
    whole = tables.collect("table4", "demo")
    tested, bold = whole.tests, table_tests.supported_cells
    assert bold(tested, whole.lines) == set()
    sure = tested.assign(supported=(tested["row"] == "5") & (tested["kind"] == "reference"))
    assert {row for row, *_ in bold(sure, whole.lines)} == {"5"}
    assert bold(sure, [replace(line, leaks=line.row == "5") for line in whole.lines]) == set()
    part = sure[(sure["row"] == "5") & (sure["against"] != "3")]  # a reference is not in the selection
    assert bold(part, [line for line in whole.lines if line.row != "3"]) == set()
    assert bold(sure.assign(replication=table_tests.ONE_TRAINING), whole.lines) == set()
    assert bold(sure.assign(difference=-1.0), whole.lines) == set()
    above = tested[(tested["kind"] == "baseline") & (tested["row"] == "6")].assign(supported=True, difference=1.0)
    assert bold(above, whole.lines) == set()  # above its baselines, which says nothing about other rows
    head = [replace(line, references=()) for line in whole.lines]  # as the full model in Table 1
    assert {row for row, *_ in bold(above.assign(table="table1"), head)} == {"6"}
    one_fails = above["against"] != "question_only:demo"
    assert bold(above.assign(table="table1", supported=one_fails), head) == set()


def test_synthetic_cells_hold_no_published_number(four):
    texts, strong = layout.accuracies(four[0], ["overall"])
    assert list(texts) == ["Avg", *(f"phantom {n}" for n in ("VQA-RAD", "SLAKE", "PathVQA", "VQA-2019"))]
    row = texts.loc["6"].iloc[0]
    assert row["phantom VQA-RAD"].startswith("91.7 [") and not texts.apply(lambda c: c.str.contains("/")).any(axis=None)
    supported = table_tests.supported_cells(four[0].tests, four[0].lines)
    assert strong.to_numpy().sum() == len({key for key in supported if key[2] == "overall"})


def test_real_cells_stand_beside_the_papers_numbers(four, monkeypatch):
    monkeypatch.setattr(layout, "synthetic", lambda table: False)
    assert layout.accuracies(four[0], ["overall"])[0].loc["6"].iloc[0]["Avg"].endswith("/ 78.93")
    frame = layout.accuracies(four[1])[0].reset_index(level="#")  # Table 1, with open and closed
    others = frame.index[frame["#"] == ""][:14]
    assert others[0] == "MMQ [13]" and others[-1] == "BiomedCLIP [57]"
    assert list(frame.loc["MUMC [29]"])[2:6] == ["- / 71.50", "- / 84.20", "- / 79.20", ""]
    ours = frame[frame["#"] == "ours"]
    assert list(ours.index) == ["AMiF", "AMiF, trained on published3064† (extra)"]
    own = cell(four[1].cells.query("dataset == 'phantom_slake'"), "demo", "open")
    text = ours.loc["AMiF", ("phantom SLAKE", "open")]
    assert text == f"{own['ours']:.1f} [{own['ci_low']:.1f}, {own['ci_high']:.1f}] / 84.84"


def test_pages_say_what_they_are(four, monkeypatch, tmp_path):
    text, tex = layout.markdown(four[0]), layout.latex(four[0])
    assert "synthetic demo data; not comparable with the paper" in text.split("## Notes")[0]
    assert "one training per cell" in text and "another training may come out otherwise" in text
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1 and "not comparable" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body[2:]}) == 1
    assert not re.search(r"(?<!\\)[#_](?![^%]*$)", "".join(body))
    known = {run for line in four[0].lines for run in line.run_ids}
    assert known and all(run in tex and run in text for run in known)
    part = tables.collect("table4", "demo", Selection(("phantom_slake",), only=("3", "6")))
    assert "without the paper's row 1, 2, 4, 5." in layout.markdown(part)


def test_notes_say_what_a_rows_knowledge_leaves_out(demo):
    run = Selection(only=("5",)).rows("table4", "demo")[0].runs[0]
    write_run(run, wrong_at(0), blank=wrong_at(*range(8)), metrics={"knowledge_texts_left_out": 7, "answers_cut": 0})
    said = " ".join(table_notes.notes(tables.collect("table4", "demo")))
    assert "knowledge texts left out: row 5 7 (phantom VQA-RAD)." in said and "answers cut" not in said


def test_written_files(demo):
    written = tables.write("table4", "demo")
    assert [p.name for p in written] == ["table4" + ending for ending in tables.FILES]
    numbers = ["ours", "ours_sd", "ci_low", "ci_high", "paper", "delta", "n_seeds", "n_questions"]
    back, cells = pd.read_csv(written[0], dtype={"row": str}), tables.collect("table4", "demo").cells
    assert list(back.columns) == tables.COLUMNS and list(back["row"]) == list(cells["row"])
    np.testing.assert_allclose(back[numbers].astype(float), cells[numbers].astype(float), atol=6e-5)
    assert str(paths.results()) not in written[3].read_text(encoding="utf-8")
    before = [p.read_bytes() for p in written]
    assert [p.read_bytes() for p in tables.write("table4", "demo")] == before  # same input, same bytes
