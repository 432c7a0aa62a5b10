"""Tables from made-up runs with hand-computed numbers, and the published numbers against recomputation."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pandas as pd
import pytest

from amif_lib import evaluate, paths, results, statistics, table_rows, tables
from amif_lib.errors import InputError
from amif_lib.tables import Selection
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
    assert set(verdicts) <= {"better", "worse", "within noise"}


def test_small_scale_prints_the_paper_but_no_difference_and_no_verdict(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "small", {"random": (0, 1, 2), "minilm": (0,)})
    got = tables.table("table1", "small")
    assert cell(got, "minilm", "open")["paper"] == 72.00 and got["delta"].isna().all()
    tested = tables.tests("table1", "small")
    assert set(tested["replication"]) == {"not tested at this scale"}
    against = tested.groupby("row")["against"].agg(set)  # each start with its own question-only baseline
    assert "question_only:random" in against["random"] and "question_only:minilm" not in against["random"]


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
    one = got[(got["row"] == "3") & (got["split"] == "overall") & (got["protocol"] == "paper")].iloc[0]
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
    monkeypatch.setattr(table_rows, "LEAKING_FILES", ("official1797",))
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
    evaluate.write_predictions(run.directory, frame.iloc[:-1], fabricated.candidates())
    with pytest.raises(InputError, match=r"row 1 .*lacks question test-11"):
        tables.table("table4", "demo")
    frame.loc[11, "question_id"] = "other"
    evaluate.write_predictions(run.directory, frame, fabricated.candidates())
    with pytest.raises(InputError, match=r"row 1 .*lacks question test-11"):
        tables.table("table4", "demo")
    more = pd.concat([fabricated.predictions(wrong_at()), frame.iloc[[11]]], ignore_index=True)
    evaluate.write_predictions(run.directory, more, fabricated.candidates())
    with pytest.raises(InputError, match=r"row 1 .*has the unknown question other"):
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
    assert str(paths.results()) not in written[3].read_text(encoding="utf-8")
    before = [p.read_bytes() for p in written]
    assert [p.read_bytes() for p in tables.write("table4", "demo")] == before  # same input, same bytes


def test_mixed_code_is_said_visibly(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table4", "demo", WRONG, digests={"3": "code2"})
    text = next(p for p in tables.write("table4", "demo") if p.suffix == ".md").read_text(encoding="utf-8")
    assert "MIXED CODE" in text.split("##")[0] and "code2" in text


def test_bold_needs_support(monkeypatch, tmp_path):
    from amif_lib.layout import supported_cells

    fabricated.install(monkeypatch, tmp_path)
    write_table("table4", "demo", WRONG)
    whole = tables.Table("table4", "demo")
    tested = whole.tests
    assert supported_cells(tested) == set()
    sure = tested.assign(supported=(tested["row"] == "5") & (tested["kind"] == "reference"))
    assert {row for row, *_ in supported_cells(sure)} == {"5"}
    worse = sure.assign(difference=-1.0)
    assert supported_cells(worse) == set()


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
