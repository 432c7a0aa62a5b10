"""The paper audit against hand-computed figures, brute force and the annotation files, and what bad input says."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import subprocess
import sys
from decimal import ROUND_FLOOR, ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from amif_lib.app import cli, run_notebook
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.reporting import audit, audit_claims, audit_page, audit_power, audit_sources, audit_words

ROOT = Path(__file__).resolve().parents[1]
CENT = Decimal("0.01")
MODULES = ("audit", "audit_sources", "audit_power", "audit_claims", "audit_words", "audit_figures", "audit_page")


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    """Without annotation files, unless a test says otherwise: then every machine sees the same."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "no data"))


def printed(table: str) -> dict[tuple[str, str, str], str]:
    with (ROOT / "results" / "paper" / f"{table}.csv").open(encoding="utf-8") as file:
        return {(line["row"], line["dataset"], line["split"]): line["value"] for line in csv.DictReader(file)}


# --- the printed numbers ---


def test_every_table_of_the_paper_is_there() -> None:
    found = audit_sources.cells()
    assert found.groupby("table").size().to_dict() == {
        "table1": 100, "table2": 40, "table3": 25, "table4": 30, "table5": 30
    }  # fmt: skip
    assert found[found["table"] == "table1"]["row"].nunique() == 15
    for table, cells in found.groupby("table"):
        texts = printed(str(table))
        assert {(r.row, r.dataset, r.split): r.hundredths for r in cells.itertuples()} == {
            key: 100 * Fraction(text) for key, text in texts.items()
        }


def test_averages_by_fractions() -> None:
    found = audit.averages()
    assert len(found) == 25
    for line in found.itertuples():
        texts = printed(line.table)
        mean = sum(Fraction(texts[line.row, name, "overall"]) for name in audit_sources.SETS) / 4
        text = Fraction(texts[line.row, "avg", "overall"])
        assert Fraction(line.exact_mean).limit_denominator(10_000) == mean
        assert (line.verdict == "ok") == (abs(text - mean) <= Fraction(1, 200))
        assert line.tie == (abs(100 * mean - math.floor(100 * mean)) == Fraction(1, 2))
    odd = found[found["verdict"] != "ok"].set_index(["table", "row"])
    assert odd["verdict"].to_dict() == {("table2", "2"): "cut, not rounded", ("table4", "4"): "wrong"}
    assert odd.loc[("table4", "4"), ["exact_mean", "printed"]].tolist() == [77.6625, 77.36]
    assert odd.loc[("table2", "2"), "exact_mean"] == 75.2875
    assert found[found["tie"]][["table", "row"]].to_numpy().tolist() == [
        ["table2", "3"], ["table2", "6"], ["table5", "5"]
    ]  # fmt: skip


# --- questions ---


def test_counts_from_the_manifests_say_so() -> None:
    found = audit_sources.test_counts()
    assert found["source"].str.startswith("manifest (no folder ").all()
    whole = found[found["variant"] == "all"].set_index(["data_set", "definition"])[["total", "open", "closed"]]
    assert {key: tuple(line) for key, line in zip(whole.index, whole.to_numpy().tolist(), strict=True)} == {
        ("vqa_rad", "answer_type"): (451, 179, 272),
        ("vqa_rad", "yes_no"): (451, 200, 251),
        ("slake", "answer_type"): (1061, 645, 416),
        ("slake", "yes_no"): (1061, 706, 355),
        ("pathvqa", "answer_type"): (6761, 3370, 3391),
        ("pathvqa", "yes_no"): (6761, 3370, 3391),
        ("vqa_med_2019", "answer_type"): (500, 436, 64),
        ("vqa_med_2019", "yes_no"): (500, 436, 64),
    }
    others = found[found["variant"] != "all"].set_index("variant")["total"].to_dict()
    assert others == {"deduplicated": 6719, "without_abnormality": 375}


def test_counts_from_the_annotation_files(shared_data, monkeypatch) -> None:
    """Counted here from the JSON files by other means; SLAKE's folder holds nothing but them."""
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    found = audit_sources.test_counts().set_index(["data_set", "definition"])
    whole = json.loads((shared_data / "vqa_rad" / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    records = {"vqa_rad": [r for r in whole if r["phrase_type"].startswith("test")]}
    if (shared_data / "slake_annotations").is_dir():
        text = (shared_data / "slake_annotations" / "test.json").read_text(encoding="utf-8")
        records["slake"] = [r for r in json.loads(text) if r["q_lang"] == "en"]
    for name, test in records.items():
        closed = sum(r["answer_type"].strip() == "CLOSED" for r in test)
        yes_no = sum(str(r["answer"]).strip().lower() in ("yes", "no") for r in test)
        for definition, number in (("answer_type", closed), ("yes_no", yes_no)):
            line = found.loc[(name, definition)]
            assert (line["total"], line["closed"], line["source"]) == (len(test), number, "annotation files")
    assert found.loc[("pathvqa", "yes_no"), "source"].startswith("manifest")
    table, absent = audit_sources.leak_report()
    assert set(table["data_set"]) == set(records) and len(absent) >= 2
    assert any("PathVQA, from the manifest" in line and "988 of 6,761" in line for line in absent)
    words = audit_words.on_leaks()
    assert any("pass 42.50% on open" in line and "72.00% is above" in line for line in words)
    assert any("published3064" in line and "72.00% is below" in line for line in words)
    sizes = audit_claims.claims().query("claim == 'size'").set_index("dataset")
    assert sizes.loc["vqa_rad", "recomputed"] == len(whole) == 2248
    assert sizes["verdict"].to_dict() == {
        "vqa_rad": "differs", "slake": "differs", "pathvqa": "differs", "vqa_med_2019": "ok"
    }  # fmt: skip
    assert "published3064, which holds answers to test questions, 3,064" in sizes.loc["vqa_rad", "note"]


def test_unreadable_annotations_are_said_and_not_used(tmp_path, monkeypatch) -> None:
    (tmp_path / "slake").mkdir()
    (tmp_path / "slake" / "train.json").write_text("[{]", encoding="utf-8")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    line = audit_sources.test_counts().query("data_set == 'slake'").iloc[0]
    assert line["source"].startswith("manifest (") and "train.json, line 1" in line["source"] and line["total"] == 1061
    assert any("SLAKE" in note and "train.json" in note for note in audit_words.notes())


def test_changed_annotations_are_counted_and_said(shared_data, tmp_path, monkeypatch) -> None:
    """Three test questions fewer: other counts, no solution behind the paper's figures, and a note."""
    file = "VQA_RAD Dataset Public.json"
    records = json.loads((shared_data / "vqa_rad" / file).read_text(encoding="utf-8"))
    gone = [r["qid"] for r in records if r["phrase_type"] == "test_para"][:3]
    (tmp_path / "vqa_rad").mkdir()
    kept = json.dumps([r for r in records if r["qid"] not in gone])
    (tmp_path / "vqa_rad" / file).write_text(kept, encoding="utf-8")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    counts = audit_sources.test_counts().query("data_set == 'vqa_rad'")
    assert set(counts["total"]) == {448}
    assert any("unlike the manifest's" in note and "closed of 451" in note for note in audit_words.notes())
    assert audit.numerators().query("data_set == 'vqa_rad'")["verdict"].ne("unique").all()
    assert audit.rescored("vqa_rad").empty


# --- numerators ---


def prints(correct: int, n: int, hundredths: int) -> bool:
    """The same question by decimal arithmetic: rounded, ties either way, or cut."""
    share = Decimal(100 * correct) / Decimal(n)
    return any(share.quantize(CENT, way) * 100 == hundredths for way in (ROUND_HALF_UP, ROUND_HALF_DOWN, ROUND_FLOOR))


def test_printing_against_decimals() -> None:
    for n in (1, 7, 64, 355, 451):
        for correct in range(0, n + 1, max(1, n // 50)):
            near = 10_000 * correct // n
            for value in range(max(0, near - 2), near + 4):
                assert bool(audit.prints_as(correct, n, value)) == prints(correct, n, value), (correct, n, value)
        assert audit.counts_printing(n, 6667) == [k for k in range(n + 1) if prints(k, n, 6667)]


@pytest.mark.parametrize("values", [(5000, 7500, 6250), (3333, 8000, 6250), (6667, 6667, 6667), (5000, 7143, 6087)])
@pytest.mark.parametrize("total", [8, 23, 24])
def test_exhaustive_search_against_four_nested_loops(values, total) -> None:
    expected = {
        (right, n, rest, total - n)
        for n in range(1, total)
        for right in range(n + 1)
        for rest in range(total - n + 1)
        if prints(right, n, values[0]) and prints(rest, total - n, values[1]) and prints(right + rest, total, values[2])
    }
    assert {one[:4] for one in audit.solutions(*values, total)} == expected


def test_the_search_of_this_test_finds_something() -> None:
    assert [one[:4] for one in audit.solutions(5000, 7500, 6250, 8)] == [(2, 4, 3, 4)]
    assert audit.solutions(3333, 8000, 6250, 8)[0][:4] == (1, 3, 4, 5)


def test_numerators_of_the_headline_row() -> None:
    found = audit.numerators()
    columns = ["open_correct", "open_n", "closed_correct", "closed_n", "overall_correct", "total"]
    unique = found[found["verdict"] == "unique"].set_index("data_set")
    assert unique.loc["vqa_rad", columns].tolist() == [144, 200, 219, 251, 363, 451]
    assert unique.loc["pathvqa", columns].tolist() == [1359, 3370, 3058, 3391, 4417, 6761]
    assert unique["definition"].to_dict() == {"vqa_rad": "yes_no", "pathvqa": "answer_type and yes_no"}
    none = found[found["verdict"].str.startswith("no split")]
    assert sorted(zip(none["data_set"], none["total"], strict=True)) == [("pathvqa", 6719), ("slake", 1061)]
    both = found[found["data_set"] == "vqa_med_2019"]
    assert list(zip(both["overall_correct"], both["total"], both["verdict"], strict=True)) == [
        (416, 500, "fits"), (312, 375, "fits")
    ]  # fmt: skip


def test_what_slake_closed_would_have_to_be() -> None:
    (line,) = audit.forced_closed("slake").to_dict("records")
    counts = [line[key] for key in ("open_correct", "open_n", "overall_correct", "total", "closed_correct", "closed_n")]
    assert counts == [599, 706, 920, 1061, 321, 355] and line["definition"] == "yes_no"
    assert round(line["closed"], 2) == 90.42 and line["printed"] == 90.23 and not line["printable"]
    assert not any(prints(k, n, 9023) for n in (355, 416) for k in range(n + 1))


# --- definitions ---


def test_open_share_of_each_row() -> None:
    found = audit.open_share()
    shares = {name: part.set_index("row")["open_share"].round(3).to_dict() for name, part in found.groupby("data_set")}
    assert shares["vqa_rad"] == {
        "MMQ": 0.398, "MEVF-BAN": 0.396, "CPRD": 0.398, "MMBERT": 0.399, "ARL": 0.406, "M3AE": 0.397,
        "PubMedCLIP": 0.397, "CPCR": 0.397, "M2I2": 0.399, "MUMC": 0.394, "PeFoMed": 0.396, "LaPA": 0.397,
        "BiomedCLIP": 0.377, "AMiF": 0.443,
    }  # fmt: skip
    slake = {row: share for row, share in shares["slake"].items() if row not in ("ARL", "AMiF")}
    assert min(slake.values()) == 0.585 and max(slake.values()) == 0.611
    assert (shares["slake"]["ARL"], shares["slake"]["AMiF"]) == (0.552, 0.653)
    nearest = found[found["data_set"] != "pathvqa"].set_index("row")["nearest"]
    assert set(nearest.drop("AMiF")) == {"answer_type"} and set(nearest["AMiF"]) == {"yes_no"}
    assert set(found.loc[found["data_set"] == "pathvqa", "nearest"]) == {""}
    for line in found.itertuples():  # what rounding leaves open, by the eight corners
        texts = [Fraction(printed("table1")[line.row, line.data_set, s]) for s in ("open", "closed", "overall")]
        half = Fraction(1, 20) if all((10 * text).denominator == 1 for text in texts) else Fraction(1, 200)
        corners = [[text - half, text + half] for text in texts]
        found_here = [float((c - a) / (c - o)) for o, c, a in itertools.product(*corners)]
        assert (line.low, line.high) == pytest.approx((min(found_here), max(found_here)))
        assert line.low < line.open_share < line.high
    assert audit.comparable("vqa_rad", "overall", "LaPA") and audit.comparable("pathvqa", "open", "MUMC")
    assert not audit.comparable("vqa_rad", "open", "MUMC") and not audit.comparable("slake", "open", "BiomedCLIP")


def test_rescored_by_the_sets_own_field() -> None:
    found = audit.rescored("vqa_rad").set_index("between_right")
    assert len(found) == 22
    assert found["open"].round(2).loc[[0, 10, 15, 18, 21]].tolist() == [80.45, 74.86, 72.07, 70.39, 68.72]
    assert found["closed"].loc[21] == pytest.approx(100 * 240 / 272)
    assert [j for j, below in found["below"].items() if "MUMC" in below] == [17, 18, 19, 20, 21]
    assert "LaPA" not in "".join(found["below"])  # 68.72 is not below 68.72
    slake = audit.rescored("slake").set_index("between_right")
    assert len(slake) == 62 and slake["open"].loc[61] == pytest.approx(100 * (599 - 61) / 645)


# --- ablation tables ---


def test_share_of_values_that_are_k_of_n() -> None:
    found = audit.printable_share().set_index(["data_set", "total", "runs"])
    expected = {
        ("vqa_rad", 451, 1): (21, 4, 1.4), ("slake", 1061, 1): (20, 4, 3.2), ("vqa_med_2019", 500, 1): (20, 1, 1.0),
        ("vqa_med_2019", 375, 1): (20, 2, 1.0), ("vqa_rad", 451, 3): (21, 4, 2.8), ("slake", 1061, 5): (20, 15, 10.6),
        ("vqa_med_2019", 500, 5): (20, 5, 5.0),
    }  # fmt: skip
    for key, (values, fit, chance) in expected.items():
        line = found.loc[key]
        assert (line["values"], line["fit"], round(line["chance"], 1)) == (values, fit, chance), key
    values = {v for t in audit_sources.TABLES[1:] for (_, d, _), v in printed(t).items() if d == "vqa_rad"}
    assert sum(any(prints(k, 451, int(100 * Decimal(v))) for k in range(452)) for v in values) == 4
    assert found.loc[("pathvqa", 6761, 1), "fit"] == 21


def test_rows_that_tables_share() -> None:
    found = audit_claims.identities()
    rows = found[found["shared"] == "row"]
    pairs = {frozenset(pair) for pair in zip(rows["first"], rows["second"], strict=True)}
    named = (("table2:8", "table3:1"), ("table2:8", "table4:6"), ("table4:1", "table5:1"), ("table4:5", "table5:6"))
    assert pairs == {*map(frozenset, named), frozenset(("table3:1", "table4:6"))}
    cells = found[found["shared"] == "cell"].drop(columns="shared").to_numpy().tolist()
    assert cells == [["table3:3", "table5:3", "slake", 84.82], ["table4:3", "table5:3", "vqa_med_2019", 81.03]]


def test_what_shared_rows_imply() -> None:
    found = audit_claims.implications()
    assert found["value"].round(2).tolist()[2:] == [75.74, 75.90]
    assert found["other"].round(2).tolist()[2:] == [74.37, 74.84]
    assert (found["value"] > found["other"]).tolist() == [False, False, True, True]


# --- chance ---


def exact_p(wins: int, losses: int) -> float:
    return binomtest(wins, wins + losses, 0.5).pvalue


def test_critical_losses_against_scipys_binomial_test() -> None:
    for discordant in [*range(1, 60), 90, 451, 676]:
        passing = [k for k in range(discordant // 2 + 1) if exact_p(discordant - k, k) < 0.05]
        assert int(audit_power.most_losses(discordant)) == max(passing, default=-1), discordant
    for wins, losses in ((5, 0), (12, 2), (30, 15), (7, 7), (0, 4)):
        assert float(audit_power.mcnemar_p(wins, losses)) == pytest.approx(exact_p(wins, losses))


def test_thresholds_of_the_four_sets() -> None:
    found = audit_power.thresholds().set_index(["data_set", "n"])
    expected = {  # floor, 3, 5, 10, 15, 20% discordant
        ("vqa_rad", 451): (1.33, 2.22, 2.44, 3.33, 3.99, 4.43),
        ("slake", 1061): (0.57, 1.32, 1.60, 2.07, 2.54, 2.83),
        ("pathvqa", 6761): (0.09, 0.43, 0.56, 0.77, 0.95, 1.09),
        ("vqa_med_2019", 500): (1.20, 1.80, 2.20, 3.20, 3.80, 4.40),
    }
    columns = ["floor", "at_3", "at_5", "at_10", "at_15", "at_20"]
    for key, values in expected.items():
        assert tuple(found.loc[key, columns].astype(float).round(2)) == values, key
        assert found.loc[key, "questions"] == 6
    for share in (0.03, 0.10):  # the definition, by brute force
        m = round(451 * share)
        least = min(m - 2 * losses for losses in range(m // 2 + 1) if exact_p(m - losses, losses) < 0.05)
        assert audit_power.smallest_difference(451, share) == pytest.approx(100 * least / 451)
    assert math.isnan(audit_power.smallest_difference(50, 0.1)) and math.isnan(audit_power.smallest_difference(5))
    assert [round(audit_power.average_threshold(share), 2) for share in (0.05, 0.10, 0.15)] == [0.80, 1.13, 1.38]
    assert audit_power.unpaired_average_threshold() == pytest.approx(1.93, abs=0.01)


def test_leads_and_what_they_can_show() -> None:
    found = audit_power.leads().set_index(["data_set", "split"])
    overall = found.xs("overall", level="split")
    assert overall["lead"].to_dict() == {"vqa_rad": 1.11, "slake": 0.66, "pathvqa": 0.23, "vqa_med_2019": 1.07}
    assert overall["questions"].to_dict() == {"vqa_rad": 5, "slake": 7, "pathvqa": 16, "vqa_med_2019": 5}
    assert overall.loc["vqa_rad", "smallest_p"] == 0.0625 == exact_p(5, 0)
    assert overall.loc["vqa_rad", "most_discordant"] == 0
    # 7 questions ahead: 8 against 1 is still significant, 9 against 2 is not
    assert exact_p(8, 1) < 0.05 < exact_p(9, 2) and audit_power.most_discordant(7) == 9
    assert (overall["most_discordant"] < 5).all()  # no lead is significant at 5% discordant questions
    assert audit_power.most_discordant(5) == audit_power.most_discordant(-3) == 0
    assert found.loc[("vqa_rad", "open"), "lead"] == 0.5 and not found.loc[("vqa_rad", "open"), "same_questions"]
    assert found.loc[("pathvqa", "closed"), "rank"] == 3 and found.loc[("slake", "closed"), "rank"] == 2
    fits = overall["rival_prints"].to_dict()
    assert fits["vqa_rad"] and fits["slake"] and not fits["vqa_med_2019"]


def test_smallest_p_of_an_average_by_enumerating_signs(monkeypatch) -> None:
    sizes = {"vqa_rad": 10, "slake": 25, "pathvqa": 60, "vqa_med_2019": 11}
    monkeypatch.setattr(audit_sources, "test_size", lambda name, *_: sizes[name])
    for moved in ({"vqa_rad": 3, "slake": -2, "pathvqa": 4}, {"vqa_rad": 1, "slake": 2, "vqa_med_2019": 3}):
        weights = [1 / sizes[name] for name, value in moved.items() for _ in range(abs(value))]
        observed = abs(sum(value / sizes[name] for name, value in moved.items()))
        signs = np.array(list(itertools.product((-1, 1), repeat=len(weights))))
        expected = np.mean(np.abs(signs @ weights) >= observed - 1e-12)
        assert audit_power.smallest_p(moved) == pytest.approx(expected)
    assert audit_power.smallest_p({"vqa_rad": 0, "slake": 0}) == 1
    assert audit_power.smallest_p({"vqa_rad": 5}) == pytest.approx(exact_p(5, 0))


def test_wilson_intervals_of_the_headline_row() -> None:
    expected = {
        ("overall", "vqa_rad"): (76.58, 83.88), ("open", "vqa_rad"): (65.41, 77.76), ("closed", "vqa_rad"): (82.56, 90.82),
        ("overall", "slake"): (84.54, 88.62), ("overall", "pathvqa"): (64.19, 66.46),
        ("overall", "vqa_med_2019"): (79.67, 86.22),
    }  # fmt: skip
    for (split, name), interval in expected.items():
        line = audit_power.wilson_table(split).set_index(["data_set", "row"]).loc[(name, "AMiF")]
        assert (line["low"], line["high"]) == pytest.approx(interval, abs=0.006)
    rival = audit_power.wilson_table("open").query("data_set == 'vqa_rad' and row == 'MUMC'").iloc[0]
    assert rival["n"] == 179  # counted by the set's own field


def test_ablation_steps_against_noise() -> None:
    found = audit_power.steps(0.10).set_index(["table", "row", "reference", "data_set"])
    average = found.xs("avg", level="data_set")["verdict"]
    inside = {("table2", a, b) for a, b in ("21", "32", "43", "75", "65", "86", "87")}
    inside |= {("table4", "4", "3"), ("table4", "5", "3"), ("table3", "1", "3"), ("table3", "1", "5")}
    beyond = {("table2", "3", "1"), ("table2", "7", "4"), ("table4", "6", "5"), ("table3", "1", "4")}
    beyond |= {("table4", "3", "1"), ("table4", "3", "2"), ("table3", "1", "2"), ("table5", "6", "2")}
    assert all(average[key] == "within noise" for key in inside)
    assert all(average[key] == "beyond noise" for key in beyond)
    assert average["table4", "5", "4"] == "cannot be significant"
    strict = audit_power.steps(0.15).query("data_set == 'avg'").set_index(["table", "row", "reference"])["verdict"]
    just = [("table2", "3", "1"), ("table2", "7", "4"), ("table4", "6", "5"), ("table3", "1", "4")]
    assert all(strict[key] == "within noise" for key in just) and strict["table4", "3", "1"] == "beyond noise"
    rad = found.xs("vqa_rad", level="data_set")
    gate = rad.loc[("table4", "6", "5")]
    assert (gate["difference"], gate["questions"], gate["verdict"]) == (0.23, 1, "cannot be significant")
    assert rad.loc["table2"].drop(("7", "4"))["verdict"].eq("cannot be significant").all()
    assert (
        rad.loc[("table2", "7", "4"), "questions"] == 6 and rad.loc[("table2", "7", "4"), "verdict"] == "within noise"
    )
    path = found.xs("pathvqa", level="data_set")
    assert [path.loc[key, "difference"] for key in (("table2", "6", "5"), ("table2", "8", "7"))] == [0.06, 0.12]
    clear = [("table2", "3", "2"), ("table2", "4", "3"), ("table4", "6", "5")]
    assert all(path.loc[key, "verdict"] == "beyond noise" for key in clear)
    assert (
        path.loc[("table2", "7", "5"), "verdict"] == "no gain" and path.loc[("table2", "7", "5"), "difference"] == -0.03
    )
    with pytest.raises(InputError, match=r"discordance 10: give the share"):
        audit_power.steps(10)


def test_power_by_enumerating_outcomes() -> None:
    n, difference, discordance = 40, 0.2, 0.35
    win, lose = (discordance + difference) / 2, (discordance - difference) / 2
    expected = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            if wins + losses and exact_p(wins, losses) < 0.05:
                ways = math.comb(n, wins) * math.comb(n - wins, losses)
                expected += ways * win**wins * lose**losses * (1 - discordance) ** (n - wins - losses)
    assert audit_power.power(n, difference, discordance) == pytest.approx(expected, abs=1e-10)
    assert audit_power.power(n, -difference, discordance) == pytest.approx(expected, abs=1e-10)
    for wrong in ((0, 0.1, 0.2), (10, 0.3, 0.2), (10, 0, 0.2)):
        with pytest.raises(InputError, match="power"):
            audit_power.power(*wrong)


def test_questions_and_seeds_needed() -> None:
    n = audit_power.questions_needed(0.02, 0.10)
    assert audit_power.power(n, 0.02, 0.10) >= 0.8 > audit_power.power(n - 1, 0.02, 0.10)
    assert n == pytest.approx((1.96 + 0.8416) ** 2 * 0.10 / 0.02**2, rel=0.1)  # the usual approximation
    from statsmodels.stats.power import TTestIndPower

    for difference, sd, runs in ((1.22, 0.5, 4), (0.35, 0.5, 33), (1, 1, 2), (0.5, 1, 60)):
        expected = TTestIndPower().power(difference / sd, runs, 0.05)
        assert audit_power.seeds_power(difference, sd, runs) == pytest.approx(expected, abs=1e-5)
    assert audit_power.seeds_needed(1.22, 0.5) == 4 and audit_power.seeds_needed(50, 0.3) == 2
    curve = audit_power.power_curve()
    for _, line in curve.groupby(["needs", "given"]):
        assert line["number"].is_monotonic_decreasing
    found = audit_power.power_table().query("table == 'table4' and row == '6' and data_set == 'vqa_rad'").iloc[0]
    assert found["power"] < 0.05 and found["questions_needed"] > 100 * 451


# --- claims ---


def test_claims_and_verdicts() -> None:
    found = audit_claims.claims()
    assert len(found) == 36

    def column(name: str, claim: str, dataset: str = "avg", split: str = "overall") -> list[object]:
        line = (found["claim"] == claim) & (found["dataset"] == dataset) & (found["split"] == split)
        return found.loc[line, name].tolist()

    expected = {  # claim, data set, split: recomputed, verdict
        ("over_biomedclip", "vqa_rad", "overall"): (5.29, "ok"),
        ("over_biomedclip", "slake", "overall"): (1.31, "ok"),
        ("pathvqa_lead", "pathvqa", "overall"): (0.23, "misleading"),
        ("best_overall", "vqa_rad", "overall"): (1.11, "ok"),
        ("best_overall", "slake", "overall"): (0.66, "ok"),
        ("best_overall", "pathvqa", "overall"): (0.23, "ok"),
        ("best_overall", "vqa_med_2019", "overall"): (1.07, "ok"),
        ("best_open", "vqa_rad", "open"): (0.5, "not comparable"),
        ("best_open", "slake", "open"): (2.34, "not comparable"),
        ("best_open", "pathvqa", "open"): (1.33, "ok"),
        ("multi_view", "avg", "overall"): (0.7675, "ok"),  # printed 0.78, of averages printed with two decimals
        ("local", "avg", "overall"): (0.9075, "ok"),
        ("soft_labels", "avg", "overall"): (1.365, "ok"),
        ("soft_labels_intra", "avg", "overall"): (0.4275, "ok"),
        ("equal_weights", "avg", "overall"): (0.97, "ok"),
        ("pretraining", "avg", "overall"): (3.03, "ok"),
        ("pretraining_over_clip", "avg", "overall"): (1.53, "ok"),
        ("question_vocabulary", "avg", "overall"): (0.685, "wrong"),
        ("answer_vocabulary", "avg", "overall"): (0.05, "wrong"),
        ("gate", "avg", "overall"): (1.22, "ok"),
        ("medical_close", "avg", "overall"): (0.6975, "within noise"),
        ("medical_over_natural", "avg", "overall"): (3.345, "ok"),
    }
    for key, values in expected.items():
        assert (*column("recomputed", *key), *column("verdict", *key)) == pytest.approx(values, abs=1e-9), key
    assert column("recomputed", "intra_helps") == [1.2125, 0.4275, 0.6575]
    assert column("recomputed", "hard_negatives") == [0.375, 0.605]
    assert set(column("verdict", "intra_helps") + column("verdict", "hard_negatives")) == {"ok"}
    for claim in ("lambda", "mined_maps", "gated_maps"):
        assert column("verdict", claim) == ["cannot be checked"]
    for claim, words in (
        ("intra_helps", "PathVQA -0.03"),
        ("equal_weights", "table3:5 has 65.42"),
        ("answer_vocabulary", "VQA-2019 -0.87"),
        ("question_vocabulary", "77.36"),
        ("medical_close", "table5:3 (76.87) is left out"),
    ):
        assert any(words in str(note) for note in column("note", claim)), claim
    can = "can_be_significant"
    assert column(can, "best_overall", "vqa_rad") == column(can, "best_overall", "vqa_med_2019") == ["no"]
    assert column(can, "best_overall", "slake") == column(can, "best_overall", "pathvqa") == ["yes"]
    assert column(can, "best_open", "vqa_rad", "open") == [""] and column(can, "answer_vocabulary") == ["no"]
    assert column("beyond_noise", "gate") == ["yes"] and column("beyond_noise", "local") == ["no"]


def test_findings_name_the_numbers() -> None:
    definitions, significance, arithmetic = audit_words.findings()
    assert "144 of 200" in definitions and "23 of 23" in definitions
    assert "VQA-RAD (5 of 451 questions over LaPA, p = 0.0625" in significance
    assert "VQA-2019 (4 of 375 questions over RAMM, p = 0.125" in significance  # 308/375 prints as 82.13, no k/500 does
    assert [k for n in (375, 500) for k in range(n + 1) if prints(k, n, 8213)] == [308]
    assert "77.66, not 77.36" in arithmetic and "0.05, not 0.35" in arithmetic and "no support" in arithmetic


# --- bad input ---


@pytest.fixture
def edited(monkeypatch, tmp_path):
    """Copies of the published files in which one is edited; returns a function that does so."""
    folder = tmp_path / "paper"
    folder.mkdir()
    for name in (*audit_sources.TABLES, "claims"):
        (folder / f"{name}.csv").write_bytes((ROOT / "results" / "paper" / f"{name}.csv").read_bytes())
    monkeypatch.setattr(paths, "published", lambda: folder)

    def edit(name: str, change) -> None:
        path = folder / f"{name}.csv"
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(change(lines)) + "\n", encoding="utf-8")

    return edit


def replaced(number: int, old: str, new: str):
    def change(lines: list[str]) -> list[str]:
        assert old in lines[number - 1]
        return [*lines[: number - 1], lines[number - 1].replace(old, new), *lines[number:]]

    return change


def without(number: int):
    return lambda lines: [*lines[: number - 1], *lines[number:]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("table4", replaced(3, "81.09", "81,09"), r"table4\.csv: line 3: 9 fields, expected 8"),
        ("table4", replaced(3, "81.09", "81.o9"), r"table4\.csv: line 3: value '81\.o9' is not a percentage"),
        ("table2", replaced(2, "76.68", "176.68"), r"table2\.csv: line 2: value '176\.68'"),
        ("table2", replaced(2, "76.68", "nan"), r"table2\.csv: line 2: value 'nan'"),
        ("table4", without(4), r"table4\.csv: line 5: row '1', which ends here, lacks pathvqa overall"),
        ("table3", lambda lines: lines[:-5], r"table3\.csv: line 21: 4 rows up to here, the paper has 5"),
        ("table1", without(2), r"table1\.csv: line 3: row 'MMQ', which ends here, lacks vqa_rad open|line 6: row 'MMQ'"),
        ("table1", lambda lines: [x for x in lines if "MMBERT,vqa_med" not in x], r"line 100: 99 numbers up to here"),
        ("table5", lambda lines: [*lines, lines[3]], r"table5\.csv: line 32: repeats line 4"),
        ("table5", replaced(1, "value", "figure"), r"table5\.csv: line 1: column value is missing"),
        ("table5", replaced(4, "pathvqa", "pathqva"), r"table5\.csv: line 4: unknown dataset or split 'pathqva'"),
        ("claims", replaced(9, "5.29,", "five,"), r"claims\.csv: line 9: paper 'five' is not a number"),
        ("claims", replaced(9, ",5.29,", ",,"), r"claims\.csv: line 9: paper is empty"),
        ("claims", replaced(9, "table1:BiomedCLIP", "table1:Biomed"), r"claims\.csv: line 9: no cell table1:Biomed vqa_rad"),
        ("claims", replaced(9, "difference", "sum"), r"claims\.csv: line 9: kind 'sum'"),
        ("claims", lambda lines: [*lines, lines[1]], r"claims\.csv: line 38: repeats line 2"),
        ("claims", lambda lines: lines[:1], r"claims\.csv: line 1: no claim"),
    ],
)  # fmt: skip
def test_an_edited_file_is_one_line_with_file_and_line(
    name, change, message, edited, capsys, monkeypatch, tmp_path
) -> None:
    edited(name, change)
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(audit_page.importlib.util, "find_spec", lambda _: None)
    assert cli.main(["audit"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_corrected_file_is_read_again(edited) -> None:
    assert audit.averages().query("table == 'table4' and row == '4'")["verdict"].iloc[0] == "wrong"
    edited("table4", lambda lines: [line.replace("77.36", "77.66") for line in lines])
    os.utime(paths.published() / "table4.csv", ns=(1, 1))  # whatever the clock's grain
    assert audit.averages().query("table == 'table4' and row == '4'")["verdict"].iloc[0] == "ok"
    found = audit_claims.claims().set_index("claim")
    assert found.loc["question_vocabulary", "verdict"] == "wrong"  # the claim of 0.38 is not what the averages give now


# --- products ---


def test_light_install_makes_every_product(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(audit_page.importlib.util, "find_spec", lambda _: None)
    assert cli.main(["audit"]) == 0
    said, folder = capsys.readouterr().out, tmp_path / "results" / "audit"
    assert "audit.html" in said and all(f"{number}. " in said for number in (1, 2, 3)) and "0.0625" in said
    assert "note: VQA-RAD: counts from the manifest" in said
    page, text = ((folder / name).read_text(encoding="utf-8") for name in ("audit.html", "audit.md"))
    assert "<script" not in page and not re.search(r"""(?:src|href)=["'](?:https?:|/)""", page)
    assert page.count("data:image/png;base64,") == 4  # no leak figure without annotation files
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (folder / link).is_file(), link
    assert page.count("{{") == page.count("{%") == text.count("{{") == 0
    css = (
        (ROOT / "amif_lib" / "report.html.j2")
        .read_text(encoding="utf-8")
        .partition("<style>")[2]
        .partition("</style>")[0]
    )
    assert css.strip() in page  # the report's look, inherited
    for words in ("Paper audit".lower(), "not by the paper's authors", "Nothing was trained", "77.6625", "misleading"):
        assert words in page.lower() or words in page, words
    assert "**misleading**" in text and "![Table 1" in text and "\x01" not in page + text
    written = list(csv.DictReader((folder / "claims.csv").open(encoding="utf-8")))
    assert {"claim", "where", "paper", "recomputed", "verdict", "can_be_significant"} <= set(written[0])
    for name in ("table1_intervals", "open_shares", "power_curves", "ablation_deltas"):
        assert all(
            (folder / "figures" / f"{name}.{kind}").stat().st_size > 500 for kind in ("png", "svg", "pdf", "csv")
        )
    assert not list(folder.glob(".*"))


def test_with_notebooks_it_is_the_notebook_that_runs(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    monkeypatch.setattr(audit_page.importlib.util, "find_spec", lambda name: object())
    calls = []
    monkeypatch.setattr(run_notebook, "main", lambda arguments: calls.append(arguments) or 1)
    assert cli.main(["audit"]) == 1 and Path(calls[0][0]) == ROOT / "notebooks" / "21_paper_audit.ipynb"
    assert Path(calls[0][2]).is_relative_to(tmp_path)


def test_no_torch() -> None:
    program = "import sys\n"
    program += "".join(f"import amif_lib.{name}\n" for name in MODULES)
    program += (
        "from amif_lib.reporting import audit_words\nprint(len(audit_words.findings()), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0 and done.stdout.strip() == "3 False", done.stderr
