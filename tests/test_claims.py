"""The paper's claims with two verdicts, from made-up runs with hand-computed numbers."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments.predictions import PREDICTIONS
from amif_lib.reporting import audit_claims, claims, table_tests, tables
from amif_lib.reporting.table_rows import Selection
from amif_lib.scoring import statistics
from tests import fabricated
from tests.fabricated import write_run, write_table, wrong_at

SETS = ("phantom_vqa_rad", "phantom_slake", "phantom_pathvqa", "phantom_vqa_med_2019")
WRONG = {"1": (0, 1, 3, 5, 6, 8), "2": (0, 1, 3, 5, 8), "3": (0, 1, 5, 8), "4": (0, 5, 8), "5": (0, 5), "6": (5,)}
IMAGES = [image for image, *_ in fabricated.TEST]


def line(frame: pd.DataFrame, claim: str, **where: str) -> pd.Series:
    found = frame[frame["claim"] == claim]
    for name, value in where.items():
        found = found[found[name] == value]
    assert len(found) == 1, found
    return found.iloc[0]


def right(*wrong: int) -> list[bool]:
    return [n not in wrong for n in range(12)]


@pytest.fixture(scope="module")
def demo_table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("claims"), SETS)
        write_table("table4", "demo", WRONG)
        whole = tables.collect("table4", "demo")
        yield claims.table("demo", known={"table4": whole}), whole


@pytest.fixture(scope="module")
def demo(demo_table):
    return demo_table[0]


def test_every_claim_has_both_verdicts_and_the_audits_are_the_audits(demo):
    assert list(demo.columns) == claims.COLUMNS and len(demo) == len(audit_claims.read_claims())
    assert demo[["audit", "replication"]].ne("").all(axis=None)
    audited = audit_claims.claims()
    assert list(demo["audit"]) == list(audited["verdict"]) and list(demo["says"]) == list(audited["says"])
    pd.testing.assert_series_equal(demo["recomputed"], audited["recomputed"])
    assert line(demo, "question_vocabulary")["audit"] == "wrong" and line(demo, "gate")["audit"] == "ok"


def test_replication_by_hand_and_not_judged_on_synthetic_data(demo):
    got = line(demo, "pretraining")  # row 3 has 8 of 12 right on each of four sets, row 1 has 6
    assert got["compared"] == "#3 - #1" and got["ours"] == pytest.approx(100 * 2 / 12)
    expected = statistics.bootstrap_mean_difference([(right(*WRONG["3"]), right(*WRONG["1"]), IMAGES)] * 4)
    assert (got["ci_low"], got["ci_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert got["p"] == expected.p and got["n_questions"] == 48 and len(got["run_ids"].split()) == 8
    assert line(demo, "question_vocabulary")["ours"] == pytest.approx(100 / 12)
    judged = demo[demo["ours"].notna()]
    assert set(judged["replication"]) == {"not tested at this scale"} and len(judged) >= 4


def test_a_comparison_has_one_adjusted_p(demo_table):
    """Where the table tests the same rows its p counts; the rest is a family in which equal comparisons count once."""
    demo, whole = demo_table
    own = whole.tests[(whole.tests["protocol"] == "paper") & (whole.tests["split"] == "overall")]
    own = own[(own["dataset"] == "avg") & (own["kind"] == "reference")].set_index(["row", "against"])["p_holm"]
    assert line(demo, "pretraining")["p_holm"] == own["3", "1"] and line(demo, "gate")["p_holm"] == own["6", "5"]
    index = [7, 3, 5, 9]
    tested = pd.DataFrame(
        {
            "table": ["table4", "table4", "table4", "table2"],
            "dataset": "avg",
            "split": "overall",
            "run_ids": ["a b", "a b", "a c", "d e"],
            "compared": ["#3 - #1", "#1 - #3", "#4 - #1", "#2 - #1"],
            "p": [0.02, 0.02, 0.03, 0.04],
        },
        index=index,
    )  # two comparisons of table 4: 2 * 0.02, then 0.03 but not below it; one of table 2
    assert claims._own_family(tested).to_dict() == pytest.approx({7: 0.04, 3: 0.04, 5: 0.04, 9: 0.04})
    tested.loc[5, "compared"], tested.loc[5, "p"] = "#4 - #1", 0.005
    assert claims._own_family(tested).to_dict() == pytest.approx({7: 0.02, 3: 0.02, 5: 0.01, 9: 0.04})
    assert claims._own_family(tested[:0]).empty


def test_what_was_not_run_says_so(demo):
    for claim in ("multi_view", "best_teacher", "equal_weights"):  # tables 2, 5 and 3 have no runs
        assert line(demo, claim)["replication"] == "not run" and pd.isna(line(demo, claim)["ours"])
    assert set(demo.loc[demo["claim"] == "size", "replication"]) == {"not about runs"}
    part = claims.table("demo", ["table2"])
    assert set(part["table"]) == {"table2"} and set(part["replication"]) == {"not run", "no maps"}


def two_seeds(**selection: list[str]) -> Selection:
    """A plan of the paper scale with two fine-tunings per row, since one training is not judged."""
    paths.scale_dir("paper").mkdir(parents=True, exist_ok=True)
    asked = {"selection": {"question_sets": [], "rows": [], "seeds": 2} | selection}
    paths.plan("paper").write_text(json.dumps(asked), encoding="utf-8")
    return Selection(tuple(selection.get("question_sets", ())), seeds=2)


@pytest.fixture
def paper(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    return monkeypatch


def test_verdicts_at_paper_scale(paper):
    """Row 3 is right where row 1 is wrong, everywhere; row 4 equals row 3; row 5 is all wrong."""
    wrong = {"1": tuple(range(12)), "2": tuple(range(12)), "3": (), "4": (), "5": tuple(range(12)), "6": (5,)}
    write_table("table4", "paper", wrong)
    assert claims.table("paper", ["table4"]).set_index("claim").loc["gate", "replication"] == table_tests.ONE_TRAINING
    write_table("table4", "paper", wrong, two_seeds())
    got = claims.table("paper", ["table4"]).set_index("claim")
    assert got.loc["pretraining", "replication"] == "holds" and got.loc["pretraining", "ours"] == 100
    assert got.loc["question_vocabulary", "replication"] == "within noise"
    assert got.loc["answer_vocabulary", "replication"] == "opposite" and got.loc["answer_vocabulary", "ours"] == -100
    assert got.loc["answer_vocabulary", "audit"] == "wrong"  # the audit is about the paper's numbers alone
    assert got.loc["gate", "replication"] == "holds"
    if got.loc["best_fusion", "replication"] != "not run":  # row 6 has one question less than rows 3 and 4
        assert (
            got.loc["best_fusion", "ours"] == pytest.approx(-100 / 12)
            and "#6 - #" in got.loc["best_fusion", "compared"]
        )


def test_a_plan_without_a_claims_rows_reads_not_run(paper):
    fabricated.write_table("table4", "demo", WRONG, Selection(only=("5", "6")))
    paths.scale_dir("demo").mkdir(exist_ok=True)
    plan = '{"selection": {"question_sets": [], "rows": ["5", "6"], "seeds": 1}}'
    (paths.scale_dir("demo") / "plan.json").write_text(plan, encoding="utf-8")
    got = claims.table("demo", ["table4"]).set_index("claim")
    assert got.loc["gate", "ours"] == pytest.approx(100 / 12)
    assert got.loc["pretraining", "replication"] == "not run" and got.loc["pretraining", "note"] == "without row 3, 1"


def test_table1_on_synthetic_data_shows_our_accuracy_and_no_difference(paper):
    write_table("table1", "demo", {"demo": (0, 1, 2), "published3064": ()})
    got = line(claims.table("demo", ["table1"]), "over_biomedclip", dataset="vqa_rad")
    expected = statistics.bootstrap(right(0, 1, 2), IMAGES)
    assert (got["ours"], got["ci_low"], got["ci_high"]) == pytest.approx((75, 100 * expected.low, 100 * expected.high))
    assert got["compared"] == "ours" and pd.isna(got["p"]) and got["replication"] == "not tested at this scale"
    assert "BiomedCLIP has 75.20 on the real set" in got["note"]


def test_table1_is_set_against_printed_numbers(paper):
    write_table("table1", "paper", {"hub": (0, 1, 2), "published3064": ()}, two_seeds())
    got = claims.table("paper", ["table1"])
    one = line(got, "over_biomedclip", dataset="vqa_rad")
    assert one["compared"] == "ours - BiomedCLIP" and one["ours"] == pytest.approx(75 - 75.20)
    assert one["replication"] == "within noise" and "not paired" in one["note"]
    lead = line(got, "best_overall", dataset="pathvqa")
    assert lead["compared"] == "ours - MUMC" and lead["ours"] == pytest.approx(75 - 65.10)
    # MUMC counts by the set's own field: 3 of the 12 questions are open then, all answered rightly
    opened = line(got, "best_open", dataset="vqa_rad")
    assert opened["n_questions"] == 3 and opened["ours"] == pytest.approx(100 * 2 / 3 - 71.50)
    assert "open by answer_type as for MUMC" in opened["note"] and opened["audit"] == "not comparable"


def test_fewer_sets_are_labelled_and_not_judged(paper, tmp_path):
    write_table("table4", "paper", WRONG, two_seeds(question_sets=["vqa_rad", "slake"]))
    got = claims.table("paper", ["table4"]).set_index("claim").loc["pretraining"]
    assert got["replication"] == "not tested: avg (2 of 4 sets)" and "2 of 4 sets" in got["note"]
    assert got["ours"] == pytest.approx(100 * 2 / 12)


def test_best_takes_the_nearest_row_and_close_the_furthest(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path, SETS)
    write_table("table3", "demo", {"1": (0,), "2": (0, 1, 2), "3": (0, 1), "4": (0, 1, 2), "5": (1, 2, 3)})
    got = claims.table("demo", ["table3"]).iloc[0]
    assert got["compared"] == "#1 - #3" and got["ours"] == pytest.approx(100 / 12)
    gaps = [
        statistics.bootstrap_mean_difference([(right(0), right(*wrong), IMAGES)] * 4)
        for wrong in ((0, 1, 2), (0, 1), (0, 1, 2), (1, 2, 3))
    ]
    assert got["p"] == max(gap.p for gap in gaps)
    for run in Selection(only=("1",)).rows("table3", "demo")[0].runs:  # now the worst
        write_run(run, wrong_at(0, 1, 2, 3, 5, 6), blank=wrong_at(*range(8)))
    worse = claims.table("demo", ["table3"]).iloc[0]
    assert worse["compared"] == "#1 - #3" and worse["ours"] == pytest.approx(-100 * 4 / 12)
    gap = statistics.bootstrap_mean_difference([(right(0, 1, 2, 3, 5, 6), right(0, 1), IMAGES)] * 4)
    assert worse["p"] == pytest.approx(min(1, 4 * gap.p))


def test_written_files_hold_both_verdicts_and_damaged_runs_are_refused(demo, monkeypatch):
    written = claims.write("demo", claims.table("demo", ["table4"]))
    assert [path.name for path in written] == ["claims.csv", "claims.md"]
    assert len(pd.read_csv(written[0])) == (demo["table"] == "table4").sum()
    page = written[1].read_text(encoding="utf-8")
    assert "synthetic demo data; not comparable with the paper" in page and "#3 - #1: 16.67 [" in page
    assert "neither follows from the other" in page
    before = written[0].read_bytes()
    written[0].write_text("edited", encoding="utf-8")
    assert claims.table("demo")["ours"].notna().sum() == demo["ours"].notna().sum()
    claims.write("demo", claims.table("demo", ["table4"]))
    assert written[0].read_bytes() == before
    run = Selection(only=("3",)).rows("table4", "demo")[0].runs[0]
    kept = (run.directory / PREDICTIONS).read_bytes()
    (run.directory / PREDICTIONS).write_bytes(kept[:100])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        claims.table("demo", ["table4"])
    (run.directory / PREDICTIONS).write_bytes(kept)
