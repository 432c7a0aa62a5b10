"""Tables from made-up runs with hand-computed numbers, and the published numbers against recomputation."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from amif_lib.core.errors import InputError
from amif_lib.experiments import run_spec
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import write_predictions
from amif_lib.reporting import contrasts, layout, table_rows, tables
from amif_lib.reporting.table_rows import Selection
from amif_lib.scoring import inference
from tests import fabricated
from tests.fabricated import write_run, write_table, wrong_at

WRONG = {"1": (0, 1, 3, 5, 6, 8), "2": (0, 1, 3, 5, 8), "3": (0, 1, 5, 8), "4": (0, 5, 8), "5": (0, 5), "6": (5,)}


IMAGES = [image for image, *_ in fabricated.TEST]


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
    # strict: `mri` (questions 5 and 9) is no training answer, so both are lost; row 6 answers 5 as `left lung` anyway
    assert cell(got, "6", "overall", "strict@1")["ours"] == pytest.approx(100 * 10 / 12)
    assert set(got["scale"]) == {"demo"} and set(got["table"]) == {"table4"}
    # the data are synthetic: no difference to the paper's number
    assert cell(got, "6", "overall")["paper"] == 80.49 and got["delta"].isna().all()
    assert got.loc[(got["protocol"] != "paper") | (got["row"] == "most_frequent"), "paper"].isna().all()


def test_baseline_rows(demo):
    whole = tables.collect("table4", "demo")
    # `no` is the commonest training answer (2 of 7) and right for 4 of 12
    right = {"most_frequent": 4, "nearest_question": 2, "question_only:demo": 3, "blank_at_test:demo": 4}
    for row, count in (right | {"shuffled_at_test:demo": 4}).items():
        assert cell(whole.cells, row, "overall")["ours"] == pytest.approx(100 * count / 12), row
    # baselines that rank nothing are the same under both protocols
    assert cell(whole.cells, "most_frequent", "overall", "strict@1")["ours"] == pytest.approx(100 * 4 / 12)
    said = "The full model answers 91.7 ["
    assert layout.full_model(whole).startswith(said) and "shown another case's image 33.3 [" in layout.full_model(whole)
    # with other images the answers 0 to 7 are wrong, and answer 5 is as wrong with its own: seven of twelve change
    assert "58% of its answers change with the image" in layout.full_model(whole)


def test_delta_on_real_data_at_paper_scale_and_none_at_small(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "paper", {"hub": (2,)})
    got = tables.collect("table1", "paper").cells
    assert set(table_rows.PAPER_SETS) <= {*got["dataset"]}
    got = got[got["dataset"] == "vqa_rad"]
    assert cell(got, "hub", "overall")["delta"] == pytest.approx(100 * 11 / 12 - 80.49)
    assert cell(got, "hub", "closed")["delta"] == pytest.approx(100 - 87.25)
    assert np.isnan(cell(got, "hub", "overall", "strict@1")["delta"])
    assert np.isnan(cell(got, "hub", "closed", "paper/answer_type")["delta"])
    write_table("table1", "small", {"lite0": (0,)})
    whole = tables.collect("table1", "small")
    rows = whole.cells[whole.cells["dataset"] == "vqa_rad"]
    assert cell(rows, "lite0", "open")["paper"] == 72.00 and whole.cells["delta"].isna().all()
    against = set(whole.tests[whole.tests["row"] == "lite0"]["against"])
    assert {"question_only:lite0", "blank_at_test:lite0", "shuffled_at_test:lite0"} <= against


def test_differences_by_hand(demo):
    got = tables.collect("table4", "demo").tests
    assert list(got.columns) == tables.TEST_COLUMNS and set(got["protocol"]) == {"paper"}
    own = got[~got["against"].map(table_rows.is_baseline)]
    pairs = {pair for pair in zip(own["row"], own["against"], strict=True) if "2" not in pair}
    assert pairs == {("3", "1"), ("4", "3"), ("5", "4"), ("5", "3"), ("6", "5")}
    assert set(got.loc[got["against"].map(table_rows.is_baseline), "row"]) == {"6"}  # the headline row alone
    one = own[(own["row"] == "3") & (own["against"] == "1") & (own["split"] == "overall")].iloc[0]
    assert one["difference"] == pytest.approx(100 * 2 / 12)
    right = [np.array([n not in WRONG[row] for n in range(12)], dtype=float) for row in ("3", "1")]
    expected = inference.bootstrap(right[0] - right[1], IMAGES)
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert one["detectable"] == pytest.approx(100 * inference.detectable(expected))
    alone = tables.collect("table4", "demo", Selection(only=("1",)))
    assert alone.tests.empty and layout.write(alone)[3].is_file()


def test_rows_that_saw_test_answers_are_marked_and_never_strict(monkeypatch, demo):
    monkeypatch.setattr(run_spec, "LEAKING_FILES", ("official1797",))
    whole = tables.collect("table4", "demo")
    strict = whole.cells[whole.cells["protocol"].str.startswith("strict")]
    assert set(strict["row"]) == {"most_frequent", "nearest_question"}
    assert "gate†" in layout.markdown(whole)


def test_what_a_rows_knowledge_leaves_out_is_noted_under_its_table(demo):
    metrics = Selection().rows("table4", "demo")[3].runs[0].directory / "metrics.json"
    metrics.write_text('{"knowledge_texts": 433, "knowledge_texts_left_out": 365}', encoding="utf-8")
    assert layout.markdown(tables.collect("table4", "demo")).count("of row 4 has no room for 365 of 433") == 1


def test_required_runs_are_what_a_missing_one_is_missed_from(demo):
    needed = table_rows.required_runs("table4", "demo")
    assert len(needed) == 1 + len(Selection().rows("table4", "demo"))
    assert sum(run.data.blank_images for run in needed) == 1
    assert results.missing(needed) == []
    lost = Selection(only=("3",)).rows("table4", "demo")[0].runs[0]
    (lost.directory / "predictions.parquet").unlink()
    assert [run.run_id for run in results.missing(needed)] == [lost.run_id]
    said = rf"row 3 \(phantom_vqa_rad, seed 0\) = run {lost.run_id}; run `make reproduce"
    with pytest.raises(InputError, match=said):
        tables.collect("table4", "demo")


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_id", "i9"), ("gold", ["no"]), ("closed_field", False), ("closed_yes_no", False), ("question_id", "other")],
)
def test_a_run_on_other_questions_is_refused(demo, field, value):
    run = Selection(only=("1",)).rows("table4", "demo")[0].runs[0]
    frame = fabricated.predictions(wrong_at())
    frame.at[0, field] = value
    write_predictions(run.directory, frame, fabricated.candidates())
    with pytest.raises(InputError, match=rf"row 1 \(run {run.run_id}\): its questions on phantom_vqa_rad are not"):
        tables.collect("table4", "demo")


# --- several question sets, replicates ---

SETS = ("phantom_vqa_rad", "phantom_slake", "phantom_pathvqa", "phantom_vqa_med_2019")


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("four sets"), SETS)
        write_table("table4", "demo", WRONG, Selection(SETS))
        for row in Selection(("phantom_slake",), only=("5",)).rows("table4", "demo"):
            write_run(row.runs[0], wrong_at(0, 3, 5, 6), blank=wrong_at(*range(8)))
        write_table("table1", "demo", {"demo": (5,)}, Selection(SETS))
        yield tables.collect("table4", "demo", Selection(SETS)), tables.collect("table1", "demo", Selection(SETS))


def test_averages_over_four_sets(four):
    cells, tested = four[0].cells, four[0].tests
    average = cells[(cells["row"] == "5") & (cells["dataset"] == "avg") & (cells["protocol"] == "paper")]
    assert list(average["split"]) == list(tables.SPLITS)
    whole = average[average["split"] == "overall"].iloc[0]
    assert whole["ours"] == pytest.approx((3 * 100 * 10 / 12 + 100 * 8 / 12) / 4) and whole["paper"] == 77.71
    assert whole["n_questions"] == 48 and len(whole["run_ids"].split()) == 4
    found = tested[(tested["dataset"] == "avg") & (tested["split"] == "overall")]
    one = found[(found["row"] == "5") & (found["against"] == "3")].iloc[0]
    assert one["difference"] == pytest.approx((3 * 100 * 2 / 12 + 0) / 4) and one["n_questions"] == 48


def test_no_published_number_stands_in_a_table_of_ours(four):
    frame, paper = layout.accuracies(four[0], ["overall"]), layout.published(four[0])
    sets = ("VQA-RAD", "SLAKE", "PathVQA", "VQA-2019")
    assert list(frame) == ["row", "trainings", "Avg", *(f"phantom {name}" for name in sets)]
    own = frame.set_index("row").loc["6: ours, answer vocabulary, gate"]
    assert own["trainings"] == "1" and own["phantom VQA-RAD"].startswith("91.7 [")
    assert list(paper) == ["row", "Avg", *sets] and paper["VQA-RAD"].iloc[-1] == "80.49"
    assert not any("80.49" in text for column in frame for text in frame[column])
    first = layout.published(four[1])
    assert len(first) == 15 and {"VQA-RAD open", "VQA-RAD closed", "VQA-RAD overall"} <= {*first}


def test_pages_say_what_they_are(four):
    text, tex = layout.markdown(four[0]), layout.latex(four[0])
    assert "synthetic demo data; not comparable with the paper" in text.split("## Notes")[0]
    assert "Teaching run: each row was trained once" in text.split("## Notes")[0]
    assert not re.search("supported|significant|\\*\\*[0-9]", text)
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1 and "not comparable" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body}) == 1
    assert not re.search(r"(?<!\\)[#_](?![^%]*$)", "".join(body))


def test_lambda_sweep_is_compared_with_its_middle_and_has_no_paper_column(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("lambda_sweep", "demo", {"0": (0, 1), "0.01": (0,), "0.05": (0, 5)})
    whole = tables.collect("lambda_sweep", "demo")
    assert whole.cells["paper"].isna().all() and "What the paper prints" not in layout.markdown(whole)
    found = whole.tests[~whole.tests["against"].map(table_rows.is_baseline)]
    assert set(found["against"]) == {"0.01"} and "0.01" not in set(found["row"]) and found["row"].nunique() == 3


def test_written_files_are_the_same_each_time_and_an_edited_one_is_made_anew(demo):
    written = layout.write(tables.collect("table4", "demo"))
    names = [f"table4{ending}" for ending in (".csv", "_tests.csv", "_seeds.csv", ".md", ".tex")]
    assert [path.name for path in written] == names
    numbers = ["ours", "ours_sd", "ci_low", "ci_high", "paper", "delta", "n_seeds", "n_questions"]
    back, cells = pd.read_csv(written[0], dtype={"row": str}), tables.collect("table4", "demo").cells
    assert list(back.columns) == tables.COLUMNS and list(back["row"]) == list(cells["row"])
    np.testing.assert_allclose(back[numbers].astype(float), cells[numbers].astype(float), atol=6e-5)
    before = [path.read_bytes() for path in written]
    written[0].write_text("edited by hand", encoding="utf-8")
    layout.write(tables.collect("table4", "demo"))
    assert [path.read_bytes() for path in written] == before


# --- contrasts ---

CHANGES = {"full": (5,), "no_pretraining": (0, 1, 3, 5, 6), "no_gate": (5, 8), "no_hard_negatives": (5,)}


def with_contrasts(monkeypatch, folder, replicates: int) -> tables.Table:
    """Replicate r of each configuration is also wrong at question r, so that trainings vary and pairs do not."""
    fabricated.install(monkeypatch, folder, SETS[:2])
    selection = Selection(SETS[:2], pretrain_seeds=replicates)
    write_table("contrasts", "demo", CHANGES, selection)
    for row in selection.rows("contrasts", "demo"):
        for run in row.runs:
            wrong = {*CHANGES.get(row.row, (5, 8)), run.seed} if row.row != "no_pretraining" else {*CHANGES[row.row]}
            write_run(run, wrong_at(*wrong), blank=wrong_at(*range(8)))
    return tables.collect("contrasts", "demo", selection)


def test_contrasts_are_tested_over_replicates_and_images(monkeypatch, tmp_path):
    whole = with_contrasts(monkeypatch, tmp_path, 5)
    found = contrasts.contrasts(whole)
    assert list(found) == contrasts.COLUMNS and len(found) == 12 and set(found["replicates"]) == {5}
    one = found[(found["contrast"] == "pre-training") & (found["outcome"] == "closed")].iloc[0]
    closed = np.array([answer in ("yes", "no") for answer in fabricated.GOLD])
    full = np.array([[n not in (5, r) for n in range(12)] for r in range(5)], dtype=float)
    plain = np.array([n not in CHANGES["no_pretraining"] for n in range(12)], dtype=float)
    expected = inference.contrast([((full - plain)[:, closed], np.array(IMAGES)[closed])] * 2)
    assert one["difference"] == pytest.approx(100 * expected.value) and one["p"] == pytest.approx(expected.p)
    known = found["p"].count()  # configurations that never differ are not tested
    assert one["detectable"] == pytest.approx(100 * expected.detectable(known)) and one["n_questions"] == 14
    assert list(found["p_holm"]) == pytest.approx(list(inference.holm(found["p"])), nan_ok=True)
    said = layout.markdown(whole)
    assert "of 12 comparisons over 5 replicates" in said and "differences beyond ±" in said
    assert "on 24 test questions (phantom VQA-RAD, phantom SLAKE)" in said
    written = {path.name: path for path in layout.write(whole)}
    assert set(written) == {"contrasts.csv", "contrasts_seeds.csv", "contrasts.md"}
    assert list(pd.read_csv(written["contrasts.csv"])) == contrasts.COLUMNS
    # Table 4's rows that are configurations of the contrasts have their replicates, the others one training
    write_table("table4", "demo", WRONG, Selection(SETS[:2], only=("1", "2", "4")))
    table = tables.collect("table4", "demo", Selection(SETS[:2]))
    cells = table.cells
    counts = cells[cells["protocol"] == "paper"].groupby("row")["n_seeds"].max()
    assert counts[["3", "5", "6"]].tolist() == [5, 5, 5] and counts[["1", "2", "4"]].tolist() == [1, 1, 1]
    first = next(line for line in table.lines if line.row == "3")  # of one question set it has one training
    table.lines[table.lines.index(first)] = replace(first, runs=first.runs[:1])
    assert layout.accuracies(table)["trainings"].tolist()[:6] == ["1", "1", "1 to 5", "1", "5", "5"]
    # without one replicate of row 5, those of row 6 are still paired by seed: both are wrong at question r
    lost = next(line for line in table.lines if line.row == "5").runs[1]
    (lost.directory / "predictions.parquet").unlink()
    left = tables.collect("table4", "demo", Selection(SETS[:2])).tests
    left = left[(left["row"] == "6") & (left["against"] == "5") & (left["split"] == "overall")]
    assert left["n_seeds"].tolist() == [4, 5, 4]  # the last line is the average
    alone = inference.bootstrap([n == 8 for n in range(12)], IMAGES)  # where row 5 alone is wrong
    assert (left["ci_low"].iloc[0], left["ci_high"].iloc[0]) == pytest.approx((100 * alone.low, 100 * alone.high))


def test_of_a_set_with_cases_these_are_resampled_and_of_others_the_images(monkeypatch, tmp_path):
    """Small's Table 1 has a set of either kind; here five images are of three cases."""
    cases = {"i1": "A", "i2": "A", "i3": "B", "i4": "B", "i5": "C"}
    for name in ("TEST", "TRAIN"):
        asked = [(f"{cases[image]}_synpic{image}", *rest) for image, *rest in getattr(fabricated, name)]
        monkeypatch.setattr(fabricated, name, asked)
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "small", {"lite0": (0, 5)})
    whole, right = tables.collect("table1", "small"), np.array([n not in (0, 5) for n in range(12)], dtype=float)
    change = right - [n not in range(8) for n in range(12)]  # shown another case's image, 0 to 7 are wrong
    for name, clusters in (("medpix2_questions", [cases[image] for image in IMAGES]), ("vqa_rad", IMAGES)):
        got = cell(whole.cells[whole.cells["dataset"] == name], "lite0", "overall")
        expected = inference.bootstrap(right, clusters)
        assert (got["ci_low"], got["ci_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
        tests = whole.tests[(whole.tests["dataset"] == name) & (whole.tests["split"] == "overall")]
        got = tests[(tests["row"] == "lite0") & (tests["against"] == "shuffled_at_test:lite0")].iloc[0]
        expected = inference.bootstrap(change, clusters)
        assert (got["ci_low"], got["ci_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
        assert got["detectable"] == pytest.approx(100 * inference.detectable(expected))
    selection = Selection(pretrain_seeds=3)
    write_table("contrasts", "small", {"full": (5,), "blank": tuple(range(9))}, selection)
    for row in selection.rows("contrasts", "small"):
        for run in row.runs if row.row == "full" else ():
            write_run(run, wrong_at(5, run.seed), blank=wrong_at(*range(8)))
    found = contrasts.contrasts(tables.collect("contrasts", "small", selection)).iloc[1]  # the image, closed questions
    closed = np.array([answer in ("yes", "no") for answer in fabricated.GOLD])
    gaps = [[(n not in (5, r)) - (n not in range(9)) for n in range(12)] for r in range(3)]
    by_case = np.array([cases[image] for image in IMAGES])[closed]
    expected = inference.contrast([(np.array(gaps)[:, closed], by_case)])
    assert found["p"] == pytest.approx(expected.p) and np.isnan(found["detectable"])  # three give no finding


@pytest.mark.parametrize(("replicates", "said"), [(1, "Teaching run"), (2, "too few"), (3, "too few for a verdict")])
def test_few_replicates_give_no_verdict(monkeypatch, tmp_path, replicates, said):
    found = contrasts.contrasts(with_contrasts(monkeypatch, tmp_path, replicates))
    assert said in contrasts.sentence(found) and found["p_holm"].isna().all()
    assert found["ci_low"].notna().any() == (replicates == 3)
    assert not set(found["finding"]) & {"higher", "lower"}
