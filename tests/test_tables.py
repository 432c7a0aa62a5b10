"""Tables from made-up runs with hand-computed numbers, and the published numbers against recomputation."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pandas as pd
import pytest

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import run_spec
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import write_predictions
from amif_lib.reporting import layout, layout_latex, table_tests, tables
from amif_lib.reporting.tables import Selection
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
    got = tables.table("table4", "demo")
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


def test_interval_is_the_image_bootstrap(demo):
    got = cell(tables.table("table4", "demo"), "3", "overall")
    correct = [n not in WRONG["3"] for n in range(12)]
    expected = statistics.bootstrap(correct, [image for image, *_ in fabricated.TEST])
    assert (got["ci_low"], got["ci_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_baseline_rows(demo):
    got = tables.table("table4", "demo")
    # `no` is the commonest training answer (2 of 7) and right for 4 of 12
    assert cell(got, "most_frequent", "overall")["ours"] == pytest.approx(100 * 4 / 12)
    # nearest question on the same image, by hand: no, no, no / no, no, ct / right, right / yes, yes / left lung twice
    assert cell(got, "nearest_question", "overall")["ours"] == pytest.approx(100 * 2 / 12)
    assert cell(got, "question_only:demo", "overall")["ours"] == pytest.approx(100 * 3 / 12)
    assert cell(got, "blank_at_test:demo", "overall")["ours"] == pytest.approx(100 * 4 / 12)
    # baselines that rank nothing are the same under both protocols
    assert cell(got, "most_frequent", "overall", "strict@1")["ours"] == pytest.approx(100 * 4 / 12)


def test_published_numbers_beside_but_no_delta_for_synthetic_data(demo):
    got = tables.table("table4", "demo")
    assert cell(got, "6", "overall")["paper"] == 80.49 and cell(got, "1", "overall")["paper"] == 75.64
    assert got["delta"].isna().all()
    assert got.loc[got["protocol"] != "paper", "paper"].isna().all()
    assert got.loc[got["row"] == "most_frequent", "paper"].isna().all()


def test_delta_on_real_data_at_paper_scale(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "paper", {"hub": (2,)})
    got = tables.table("table1", "paper")
    assert set(tables.PAPER_SETS) <= {*got["dataset"]}
    got = got[got["dataset"] == "vqa_rad"]
    assert cell(got, "hub", "overall")["delta"] == pytest.approx(100 * 11 / 12 - 80.49)
    assert cell(got, "hub", "open")["delta"] == pytest.approx(100 * 4 / 5 - 72.00)
    assert cell(got, "hub", "closed")["delta"] == pytest.approx(100 - 87.25)
    assert np.isnan(cell(got, "hub", "overall", "strict@1")["delta"])
    assert np.isnan(cell(got, "hub", "closed", "paper/answer_type")["delta"])
    verdicts = tables.tests("table1", "paper")["replication"]
    assert set(verdicts) == {table_tests.ONE_TRAINING}


def test_latex_prints_the_difference_where_it_is_like_for_like(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    chosen = Selection(("vqa_rad", "slake"), only=("hub",))
    write_table("table1", "paper", {"hub": (0, 1, 2)}, chosen)
    table = tables.Table("table1", "paper", chosen)
    line = next(x for x in layout_latex.latex(table).splitlines() if x.startswith(r"\quad the paper's"))
    own = cell(table.cells[table.cells["dataset"] == "slake"], "hub", "overall")
    assert line.split(" & ")[6].removesuffix(r" \\") == f"86.71 ({own['ours'] - 86.71:+.2f})"


def test_small_scale_prints_the_paper_but_no_difference_and_no_verdict(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "small", {"random": (0, 1, 2), "minilm": (0,)})
    got = tables.table("table1", "small")
    assert cell(got, "minilm", "open")["paper"] == 72.00 and got["delta"].isna().all()
    tested = tables.tests("table1", "small")
    assert set(tested["replication"]) == {"not tested at this scale"}
    against = tested.groupby("row")["against"].agg(set)  # the first start's question-only network stands beside both
    assert all("question_only:minilm" in against[row] for row in ("minilm", "random"))
    assert "blank_at_test:minilm" in against["minilm"] and "blank_at_test:minilm" not in against["random"]


def test_paired_tests_by_hand(demo):
    got = tables.tests("table4", "demo")
    assert list(got.columns) == tables.TEST_COLUMNS
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
    whole = tables.Table("table4", "demo", Selection(only=("1",)))
    assert whole.tests.empty and list(whole.tests.columns) == tables.TEST_COLUMNS
    assert "None in this selection" in tables.store(whole)[3].read_text(encoding="utf-8")


def test_rows_that_saw_test_answers_are_marked_and_never_strict(monkeypatch, demo):
    monkeypatch.setattr(run_spec, "LEAKING_FILES", ("official1797",))
    whole = tables.Table("table4", "demo")
    strict = whole.cells[whole.cells["protocol"].str.startswith("strict")]
    assert set(strict["row"]) == {"most_frequent", "nearest_question"}
    assert set(whole.tests["protocol"]) == {"paper"}
    assert tables.store(whole)[3].read_text(encoding="utf-8").count("gate†") == 1


def test_seeds(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    selection = Selection(seeds=2)
    write_table("table4", "demo", WRONG, selection)
    second = selection.rows("table4", "demo")[-1].runs[1]
    write_run(second, wrong_at(5, 6, 7), blank=wrong_at(*range(8)))
    got = cell(tables.table("table4", "demo", selection), "6", "overall")
    assert got["ours"] == pytest.approx(100 * (11 + 9) / 24) and got["n_seeds"] == 2
    assert got["ours_sd"] == pytest.approx(100 * np.std([11 / 12, 9 / 12], ddof=1))
    assert len(got["run_ids"].split()) == 2
    tested = tables.tests("table4", "demo", selection)
    assert all(len(p.split()) == 2 for p in tested["mcnemar_p"])
    assert np.isnan(cell(tables.table("table4", "demo", Selection()), "6", "overall")["ours_sd"])


def test_the_scale_plan_decides_what_a_table_holds(demo):
    paths.scale_dir("demo").mkdir()
    plan = {"selection": {"scale": "demo", "question_sets": [], "rows": ["5", "6", "hub"], "seeds": 1}}
    (paths.scale_dir("demo") / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    got = tables.table("table4", "demo")
    assert {row for row in got["row"] if row.isdigit()} == {"5", "6"}


def test_average_over_sets_is_marked_as_partial(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path, ("phantom_vqa_rad", "phantom_slake"))
    write_table("table4", "demo", WRONG)
    for run in Selection(("phantom_slake",)).rows("table4", "demo")[-1].runs:
        write_run(run, wrong_at(5, 6, 7), blank=wrong_at(*range(8)))
    got = tables.table("table4", "demo")
    average = got[(got["row"] == "6") & (got["dataset"] == "avg (2 of 4 sets)") & (got["protocol"] == "paper")].iloc[0]
    assert average["ours"] == pytest.approx(100 * (11 + 9) / 24) and average["n_questions"] == 24
    assert average["ci_low"] < average["ours"] < average["ci_high"]
    assert np.isnan(average["paper"])  # the paper's Avg is over four sets


def test_required_runs_are_what_a_missing_one_is_missed_from(demo):
    needed = tables.required_runs("table4", "demo")
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
        tables.table("table4", "demo")


def test_headline_row_and_its_table4_row_are_one_run():
    head, row = (Selection(only=(row,)).rows(name, "demo")[0] for name, row in (("table1", "demo"), ("table4", "6")))
    assert [run.run_id for run in head.runs] == [run.run_id for run in row.runs] and len(head.runs) == 4


def test_missing_question_and_unknown_question_are_refused(demo):
    run = Selection(only=("1",)).rows("table4", "demo")[0].runs[0]
    frame = fabricated.predictions(wrong_at())
    write_predictions(run.directory, frame.iloc[:-1], fabricated.candidates())
    with pytest.raises(InputError, match=r"row 1 .*lacks question test-11"):
        tables.table("table4", "demo")
    frame.loc[11, "question_id"] = "other"
    write_predictions(run.directory, frame, fabricated.candidates())
    with pytest.raises(InputError, match=r"row 1 .*lacks question test-11"):
        tables.table("table4", "demo")
    more = pd.concat([fabricated.predictions(wrong_at()), frame.iloc[[11]]], ignore_index=True)
    write_predictions(run.directory, more, fabricated.candidates())
    with pytest.raises(InputError, match=r"row 1 .*has the unknown question other"):
        tables.table("table4", "demo")


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [("image_id", "i9", "image_id is i9, in the present data i1"), ("gold", ["no"], r"gold is \['no'\], .* \['yes'\]"),
     ("closed_field", False, "closed_field is False"), ("closed_yes_no", False, "closed_yes_no is False")],
)  # fmt: skip
def test_questions_of_other_data_are_refused(demo, field, value, shown):
    """The same question ids, of which one has another image, answer or definition of closed."""
    run = Selection(only=("1",)).rows("table4", "demo")[0].runs[0]
    frame = fabricated.predictions(wrong_at())
    frame.at[0, field] = value
    write_predictions(run.directory, frame, fabricated.candidates())
    with pytest.raises(InputError, match=rf"row 1 \(run {run.run_id}\): question test-00 of phantom_vqa_rad: {shown}"):
        tables.table("table4", "demo")


def test_written_files(demo):
    written = tables.write("table4", "demo")
    assert [p.name for p in written] == ["table4" + ending for ending in tables.FILES]
    numbers = ["ours", "ours_sd", "ci_low", "ci_high", "paper", "delta", "n_seeds", "n_questions"]
    back, cells = pd.read_csv(written[0], dtype={"row": str}), tables.table("table4", "demo")
    assert list(back.columns) == tables.COLUMNS and list(back["row"]) == list(cells["row"])
    np.testing.assert_allclose(back[numbers].astype(float), cells[numbers].astype(float), atol=6e-5)
    for page in written[3:]:
        text = page.read_text(encoding="utf-8")
        assert "synthetic demo data; not comparable with the paper" in text
        assert "91.67 [" in text and "80.49" in text and "MIXED" not in text
    tex = written[4].read_text(encoding="utf-8")
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1
    widths = {line.count("&") for line in tex.splitlines() if line.endswith(r"\\")}
    assert len(widths) == 1
    assert "Bold: better than each of the row's references" in tex and "one training per cell" in tex
    assert str(paths.results()) not in written[3].read_text(encoding="utf-8")
    before = [p.read_bytes() for p in written]
    assert [p.read_bytes() for p in tables.write("table4", "demo")] == before  # same input, same bytes


def test_mixed_code_is_said_visibly(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table4", "demo", WRONG, digests={"3": "code2"})
    text = next(p for p in tables.write("table4", "demo") if p.suffix == ".md").read_text(encoding="utf-8")
    assert "MIXED CODE" in text.split("##")[0] and "code2" in text


def test_bold_needs_support(monkeypatch, tmp_path):
    from amif_lib.reporting.layout import supported_cells

    fabricated.install(monkeypatch, tmp_path)
    write_table("table4", "demo", WRONG)
    whole = tables.Table("table4", "demo")
    tested = whole.tests
    assert supported_cells(tested, whole.lines) == set()
    sure = tested.assign(supported=(tested["row"] == "5") & (tested["kind"] == "reference"))
    assert {row for row, *_ in supported_cells(sure, whole.lines)} == {"5"}
    leaking = [replace(line, leaks=line.row == "5") for line in whole.lines]
    assert supported_cells(sure, leaking) == set()  # it saw test answers
    part = sure[
        (sure["row"] == "5") & (sure["against"] != "3")
    ]  # of the references 4 and 3 one is not in the selection
    assert supported_cells(part, [line for line in whole.lines if line.row != "3"]) == set()
    assert supported_cells(sure.assign(replication=table_tests.ONE_TRAINING), whole.lines) == set()
    worse = sure.assign(difference=-1.0)
    assert supported_cells(worse, whole.lines) == set()
    baselines = tested[(tested["kind"] == "baseline") & (tested["row"] == "6")].assign(supported=True, difference=1.0)
    assert supported_cells(baselines, whole.lines) == set()  # above its baselines, which says nothing about other rows
    head = [replace(line, references=()) for line in whole.lines]  # as the full model in Table 1
    assert {row for row, *_ in supported_cells(baselines.assign(table="table1"), head)} == {"6"}
    one_fails = baselines["against"] != "question_only:demo"
    assert supported_cells(baselines.assign(table="table1", supported=one_fails), head) == set()


def test_references_that_a_selection_leaves_out_are_named(demo):
    part = tables.Table("table4", "demo", Selection(only=("4", "5")))
    assert table_tests.lacking_references(part.lines) == {"4": ["3"], "5": ["3"]}
    assert "not tested: row 4 without 3; row 5 without 3." in " ".join(layout.notes(part))
    assert "Never bold here" not in " ".join(layout.notes(tables.Table("table4", "demo")))


def test_one_training_is_not_judged(monkeypatch, tmp_path):
    """Row 4 is right where row 3 is wrong, everywhere: with one training each no verdict and no bold, with two both."""
    fabricated.install(monkeypatch, tmp_path)
    for seeds, said, bold in ((1, table_tests.ONE_TRAINING, False), (2, "better", True)):
        selection = Selection(("vqa_rad",), only=("3", "4"), seeds=seeds)
        write_table("table4", "paper", {"3": tuple(range(12)), "4": ()}, selection)
        whole = tables.Table("table4", "paper", selection)
        one = whole.tests[(whole.tests["split"] == "overall") & (whole.tests["protocol"] == "paper")].iloc[0]
        assert (one["row"], one["against"], one["replication"]) == ("4", "3", said) and one["supported"]
        assert (("4", "vqa_rad", "overall") in whole.supported) is bold
        assert (table_tests.HOLM in " ".join(layout.notes(whole))) and ("SEEDS=3" in layout.markdown(whole)) is not bold


def test_nearest_question_is_left_out_where_no_test_image_is_in_training(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    monkeypatch.setattr(fabricated, "TRAIN", [(f"other {image}", *rest) for image, *rest in fabricated.TRAIN])
    write_table("table4", "demo", WRONG)
    whole = tables.Table("table4", "demo")
    assert "nearest_question" not in {line.row for line in whole.lines} | set(whole.tests["against"])
    assert "most_frequent" in {line.row for line in whole.lines}
    assert "it is left out" in " ".join(layout.notes(whole))


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
        yield tables.Table("table4", "demo"), tables.Table("table1", "demo")


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


def test_compact_table_stands_first_and_details_below(four):
    text = layout.markdown(four[0])
    first, _, rest = text.partition("\n## Notes")
    header = next(line for line in first.splitlines() if line.startswith("| #"))
    shown = [name.strip() for name in header.strip("|").split("|")]
    assert shown == ["#", "row", "Avg", *(f"phantom {n}" for n in ("VQA-RAD", "SLAKE", "PathVQA", "VQA-2019"))]
    row = next(line for line in first.splitlines() if line.startswith("| 6 "))
    assert row.count(" / ") == 5 and "/ 78.93" in row and "91.7 [" in row and "/ 80.49" in row
    assert max(map(len, first.splitlines())) < 400 and len(first.splitlines()) < 30
    for dataset in SETS:
        assert f"\n## {layout.dataset_name(dataset)}\n" in rest
    lacking = sorted({"1", "2", "3", "4", "5", "6"} - {row.row for row in four[0].rows})
    assert ("without the paper's row" in first) == bool(lacking)


def test_latex_of_several_sets_has_one_column_each(four):
    tex = layout_latex.latex(four[0])
    header = next(line for line in tex.splitlines() if line.startswith(r"\# & row"))
    assert header == r"\# & row & Avg & phantom VQA-RAD & phantom SLAKE & phantom PathVQA & phantom VQA-2019 \\"
    listed = [line for line in tex.splitlines() if line.startswith("% runs: ")]
    known = {run for line in four[0].lines for run in line.run_ids}
    assert known == {word.strip(";") for line in listed for word in line.split()} & known and known
    assert "(extra)" not in tex and r"$\dagger$" not in tex
    assert r"\resizebox{\textwidth}{!}{%" + "\n" in tex


def test_latex_of_table_1_has_open_and_closed_where_the_paper_prints_them(four):
    """As many columns in every line; the paper's numbers in the paper's order; ours as in the cells."""
    table = four[1]
    tex = layout_latex.latex(table)
    lines = [line.removesuffix(r" \\") for line in tex.splitlines() if line.endswith(r" \\")]
    splits = lines[1].split(" & ")
    assert splits == ["", *["open", "closed", "overall"] * 3, "overall", "overall"]
    assert all(line.count(" & ") == 11 for line in lines[1:])
    spans = [int(n) for n in re.findall(r"multicolumn\{(\d+)\}", lines[0])]
    assert spans == [3, 3, 3, 1, 1] and lines[0].endswith("{Avg}")
    mumc = next(line for line in lines if line.startswith("MUMC"))
    assert mumc == "MUMC [29] & 71.50 & 84.20 & 79.20 & - & - & 84.90 & 39.00 & 90.40 & 65.10 & - & -"
    own = next(place for place, line in enumerate(lines) if line.startswith("AMiF &"))
    assert lines[own + 2] == (
        r"\quad the paper's & 72.00 & 87.25 & 80.49 & 84.84 & 90.23 & 86.71 & 40.33 & 90.18 & 65.33 & 83.20 & -"
    )
    cell = table.cells.query("row == 'demo' and dataset == 'phantom_slake' and split == 'open' and protocol == 'paper'")
    plain = re.sub(r"\\textbf\{([^}]*)\}", r"\1", lines[own]).split(" & ")
    assert plain[4] == f"{cell['ours'].item():.1f}"
    assert (
        lines[own + 1].split(" & ")[4]
        == rf"{{\scriptsize [{cell['ci_low'].item():.1f}, {cell['ci_high'].item():.1f}]}}"
    )
    bold = {
        (column, split)
        for column, split, text in zip(range(1, 12), splits[1:], lines[own].split(" & ")[1:], strict=True)
        if "textbf" in text
    }
    assert len(bold) == sum(row == "demo" for row, _, _ in table.supported)
    listed = [line for line in tex.splitlines() if line.startswith("% runs: ")]
    known = {run for line in table.lines for run in line.run_ids}
    assert known == {word.strip(";") for line in listed for word in line.split()} & known and known
    caption = next(line for line in tex.splitlines() if line.startswith(r"\caption"))
    for words in (
        "Test questions: phantom VQA-RAD",
        "better than every baseline below",
        "not a comparison with published rows",
        r"$\dagger$: saw",
        "(extra): not",
    ):
        assert words in caption


def test_rows_of_the_paper_that_are_left_out_are_named(four):
    part = tables.Table("table4", "demo", Selection(("phantom_slake",), only=("3", "6")))
    assert "Part of the table: without the paper's rows 1, 2, 4, 5." in layout.markdown(part)
    assert layout.markdown(part).count("Part of the table") == 1


def test_table1_holds_other_methods_with_their_printed_numbers_alone(four):
    frame = layout.compact(four[1])
    others = frame[frame["#"] == ""]["row"].tolist()[:14]
    assert others[0] == "MMQ [13]" and others[-1] == "BiomedCLIP [57]"
    lapa = frame[frame["row"] == "LaPA [16]"].iloc[0]
    assert lapa["phantom VQA-RAD"] == "- / 79.38" and lapa["phantom PathVQA"] == "" and lapa["Avg"] == ""
    ours = frame[frame["#"] == "ours"].set_index("row")
    assert list(ours.index) == ["AMiF", "AMiF, trained on published3064† (extra)"]
    assert ours.loc["AMiF", "phantom VQA-RAD"].endswith("/ 80.49")
    assert [bool(text) for text in ours.iloc[1]] == [True, False, True, False, False, False]
    wide = layout.paper_layout(four[1], datasets=["phantom_vqa_rad"]).set_index("row")
    assert wide.loc["MUMC [29]", "paper (real VQA-RAD), open"] == "71.50" and wide.loc["MUMC [29]", "open"] == ""
    assert wide.loc["AMiF", "open"].startswith("80.00 [") and len(wide) == 14 + 2 + 4
    notes = " ".join(layout.notes(four[1]))  # 13 and 10 of the other methods have open and closed figures
    assert "mixes two definitions on phantom" not in notes and "mixes two definitions on VQA-RAD" in notes
    assert "13 of 13 other methods" in notes and "10 of 10 other methods" in notes
    assert set(four[1].cells["row"]) == {
        "demo", "published3064", "most_frequent", "nearest_question", "question_only:demo", "blank_at_test:demo"
    }  # fmt: skip


def test_the_leaking_row_is_never_strict_nor_averaged(four):
    extra = four[1].cells[four[1].cells["row"] == "published3064"]
    assert set(extra["protocol"]) == {"paper", "paper/answer_type"} and set(extra["dataset"]) == {"phantom_vqa_rad"}
    assert extra["paper"].isna().all()
    against = four[1].tests[four[1].tests["row"] == "published3064"]
    assert set(against["against"]) == {"demo"} and set(against["protocol"]) == {"paper"}


def test_lambda_sweep_is_compared_with_its_middle_and_has_no_paper_column(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("lambda_sweep", "demo", {"0": (0, 1), "0.01": (0,), "0.05": (0, 5)})
    whole = tables.Table("lambda_sweep", "demo")
    assert whole.cells["paper"].isna().all()
    found = whole.tests[whole.tests["kind"] == "reference"]
    assert set(found["against"]) == {"0.01"} and "0.01" not in set(found["row"]) and found["row"].nunique() == 7
    assert layout.heading(whole).startswith("Lambda sweep:")
    assert not [name for name in layout.compact(whole) if "paper" in name]


def test_pretraining_seeds(monkeypatch, tmp_path):
    """Row 1 has no pre-training: its runs are the same for every pre-training seed, and each counts once."""
    fabricated.install(monkeypatch, tmp_path)
    selection = Selection(seeds=2, pretrain_seeds=2, only=("1", "3"))
    write_table("table4", "demo", WRONG, selection)
    second = [run for run in selection.rows("table4", "demo")[1].runs if run.parent.seed == 1]
    for run, wrong in zip(second, ((0,), (0, 1)), strict=True):
        write_run(run, wrong_at(*wrong), blank=wrong_at(*range(8)))
    whole = tables.Table("table4", "demo", selection)
    one, three = (cell(whole.cells, row, "overall") for row in ("1", "3"))
    assert one["n_seeds"] == 2 and len(one["run_ids"].split()) == 2 and one["ours_sd"] == 0
    assert three["n_seeds"] == 4 and three["ours"] == pytest.approx(100 * (8 + 8 + 11 + 10) / 48)
    right = [[n not in wrong for n in range(12)] for wrong in (WRONG["3"], WRONG["3"], (0,), (0, 1))]
    images = [image for image, *_ in fabricated.TEST]
    expected = statistics.bootstrap(right, images, pretrainings=[0, 0, 1, 1])
    assert (three["ci_low"], three["ci_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    tested = whole.tests[(whole.tests["row"] == "3") & (whole.tests["split"] == "overall")].iloc[0]
    assert tested["wins"].split() == ["2", "2", "5", "4"]  # each run of row 3 with row 1's of the same seed
    each = whole.seeds[(whole.seeds["row"] == "3") & (whole.seeds["split"] == "overall")]
    each = each[each["protocol"] == "paper"]
    assert list(zip(each["pretrain_seed"], each["seed"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert list(each["ours"]) == pytest.approx([100 * k / 12 for k in (8, 8, 11, 10)])
    text = layout.markdown(whole)
    assert "2 pre-trainings (PRETRAIN_SEEDS), drawn first, and 2 fine-tunings (SEEDS)" in text
    assert "## Each run" not in text  # more than three


def test_each_seed_is_printed_where_there_are_two_or_three(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    selection = Selection(seeds=3, only=("6",))
    write_table("table4", "demo", WRONG, selection)
    last = selection.rows("table4", "demo")[0].runs[2]
    write_run(last, wrong_at(5, 6, 7), blank=wrong_at(*range(8)))
    whole = tables.Table("table4", "demo", selection)
    shown = layout.seeds_layout(whole).set_index("row")
    assert shown.loc["6: ours, answer vocabulary, gate"].tolist() == ["91.67, 91.67, 75.00"]
    text = layout.markdown(whole)
    assert "91.67, 91.67, 75.00" in text and "3 fine-tunings (SEEDS) of one pre-training" in text
    single = tables.Table("table4", "demo", Selection(only=("6",)))
    assert layout.seeds_layout(single).empty and "one training per cell" in layout.markdown(single)


def test_rows_made_by_different_code_are_not_judged(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table4", "paper", {"1": tuple(range(12)), "3": ()}, Selection(("vqa_rad",)), digests={"3": "code2"})
    tested = tables.Table("table4", "paper", Selection(("vqa_rad",))).tests
    mixed = tested[(tested["row"] == "3") & (tested["against"] == "1") & (tested["split"] == "overall")]
    assert not mixed["supported"].any() and set(mixed["replication"]) == {table_tests.MIXED}
    as_in_the_paper = mixed[mixed["protocol"] == "paper"].iloc[0]
    assert as_in_the_paper["difference"] == 100 and as_in_the_paper["p_holm"] < 0.05
    same = tested[(tested["row"] == "6") & (tested["against"] == "5")]
    assert table_tests.MIXED not in set(same["replication"])


def test_a_csv_edited_by_hand_changes_nothing_and_is_written_anew(demo, capsys):
    written = tables.write("table4", "demo")
    before = [path.read_bytes() for path in written]
    assert "note" not in capsys.readouterr().out
    text = written[0].read_text(encoding="utf-8")
    written[0].write_text(text.replace("91.6667", "99.9999"), encoding="utf-8")
    cells = tables.table("table4", "demo")
    assert cell(cells, "6", "overall")["ours"] == pytest.approx(100 * 11 / 12)
    tables.store(tables.Table("table4", "demo"))
    assert [path.read_bytes() for path in written] == before
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and "table4.csv did not hold what the stored runs say" in said


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(only=("7",)), r"ROWS: table4 has no row '7'; choose from 1, "),
        (Selection(("vqa_rad",)), r"DATASETS: 'vqa_rad' is not a question set of scale demo"),
        (Selection(seeds=0), r"SEEDS=0 PRETRAIN_SEEDS=1: at least 1 each"),
    ],
)
def test_impossible_selections(demo, selection, message):
    with pytest.raises(InputError, match=message):
        tables.table("table4", "demo", selection)


def test_a_doubled_question_and_a_deleted_file_are_refused(demo):
    run = Selection(only=("3",)).rows("table4", "demo")[0].runs[0]
    path = run.directory / "predictions.parquet"
    frame = pd.read_parquet(path)
    pd.concat([frame, frame.iloc[[4]]]).to_parquet(path)
    with pytest.raises(InputError, match=r"question test-04 is predicted twice"):
        tables.table("table4", "demo")
    assert not (paths.scale_dir("demo") / "tables").exists()
    path.unlink()
    with pytest.raises(InputError, match=rf"lacks row 3 \(phantom_vqa_rad, seed 0\) = run {run.run_id}"):
        tables.write("table4", "demo")
    assert not (paths.scale_dir("demo") / "tables").exists()


# --- the published numbers ---


@pytest.mark.parametrize(("table", "rows"), [("table2", 8), ("table3", 5), ("table4", 6), ("table5", 6)])
def test_published_averages(table, rows):
    """25 printed averages recomputed exactly: one is wrong, one is cut instead of rounded, the rest are right."""
    frame = pd.read_csv(paths.published() / f"{table}.csv", dtype=str)
    assert frame["row"].nunique() == rows and len(frame) == 5 * rows
    odd = {}
    for row, group in frame.groupby("row"):
        values = {d: Decimal(v) for d, v in zip(group["dataset"], group["value"], strict=True)}
        printed = values.pop("avg")
        assert set(values) == set(tables.PAPER_SETS)
        mean = sum(values.values()) / 4
        if mean.quantize(Decimal("0.01"), ROUND_HALF_UP) != printed:
            odd[row] = (mean, printed)
    expected = {
        "table4": {"4": (Decimal("77.6625"), Decimal("77.36"))},
        "table2": {"2": (Decimal("75.2875"), Decimal("75.28"))},
    }
    assert odd == expected.get(table, {})


def test_rows_that_tables_share():
    published = {
        name: results.published(name).pivot(index="row", columns="dataset", values="value")
        for name in ("table2", "table3", "table4", "table5")
    }
    for first, second in (
        (("table2", "8"), ("table3", "1")),
        (("table2", "8"), ("table4", "6")),
        (("table4", "1"), ("table5", "1")),
        (("table4", "5"), ("table5", "6")),
    ):
        pd.testing.assert_series_equal(
            published[first[0]].loc[first[1]], published[second[0]].loc[second[1]], check_names=False
        )


def test_published_table1():
    frame = results.published("table1")
    assert frame["row"].nunique() == 15 and not frame.duplicated(["row", "dataset", "split"]).any()
    wide = frame.pivot(index="row", columns=["dataset", "split"], values="value")
    assert wide.loc["AMiF"].notna().all() and len(wide.loc["AMiF"]) == 10
    own = wide.loc["AMiF"]
    assert own["vqa_rad"].to_dict() == {"open": 72.00, "closed": 87.25, "overall": 80.49}
    # the unique integer solution of the headline row: 144/200, 219/251, 363/451
    assert [round(100 * c / n, 2) for c, n in ((144, 200), (219, 251), (363, 451))] == list(
        own["vqa_rad"][["open", "closed", "overall"]]
    )
    for dataset, rival in (("vqa_rad", "LaPA"), ("slake", "RAMM"), ("pathvqa", "MUMC"), ("vqa_med_2019", "RAMM")):
        others = wide[dataset, "overall"].drop("AMiF")
        assert others.idxmax() == rival and own[dataset, "overall"] > others.max()
    leads = {d: round(own[d, "overall"] - wide[d, "overall"].drop("AMiF").max(), 2) for d in tables.PAPER_SETS}
    assert leads == {"vqa_rad": 1.11, "slake": 0.66, "pathvqa": 0.23, "vqa_med_2019": 1.07}
    final = results.published("table4")
    overall = final[(final["row"] == "6") & (final["dataset"] != "avg")].set_index("dataset")["value"]
    assert all(overall[d] == own[d, "overall"] for d in tables.PAPER_SETS)


def test_damaged_published_file(monkeypatch, tmp_path):
    (tmp_path / "table4.csv").write_text("row,label,dataset,split,value\n1,x,vqa_rad,overall,75.x\n", encoding="utf-8")
    monkeypatch.setattr(paths, "published", lambda: tmp_path)
    with pytest.raises(InputError, match=r"line 2: value '75\.x'"):
        results.published("table4")
    with pytest.raises(InputError, match=r"table9\.csv: no such file"):
        results.published("table9")


def test_notebooks_say_the_same_of_holms_families():
    found = sorted((paths.PACKAGE.parent / "notebooks").glob("1[1-6]_*.ipynb"))
    assert len(found) == 6
    for path in found:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        assert table_tests.HOLM in " ".join(text.split()), path.name
