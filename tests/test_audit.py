"""The paper audit against hand-computed figures, brute force and the annotation files, and what bad input says."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
from decimal import ROUND_FLOOR, ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.reporting import audit, audit_claims, audit_power, audit_sources

ROOT = Path(__file__).resolve().parents[1]
CENT = Decimal("0.01")


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    """Without annotation files, unless a test says otherwise: then every machine sees the same."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "no data"))


def printed(table: str) -> dict[tuple[str, str, str], str]:
    with (ROOT / "results" / "paper" / f"{table}.csv").open(encoding="utf-8") as file:
        return {(line["row"], line["dataset"], line["split"]): line["value"] for line in csv.DictReader(file)}


def exact_p(wins: int, losses: int) -> float:
    return binomtest(wins, wins + losses, 0.5).pvalue


# --- the printed numbers ---


def test_every_number_of_the_paper_is_there() -> None:
    found = audit_sources.cells()
    assert found.groupby("table").size().tolist() == [100, 40, 25, 30, 30]
    for table, cells in found.groupby("table"):
        texts = {key: 100 * Fraction(text) for key, text in printed(str(table)).items()}
        assert {(r.row, r.dataset, r.split): r.hundredths for r in cells.itertuples()} == texts


def test_averages_by_fractions() -> None:
    found = audit.averages()
    for line in found.itertuples():
        texts = printed(line.table)
        mean = sum(Fraction(texts[line.row, name, "overall"]) for name in audit_sources.SETS) / 4
        assert Fraction(line.exact_mean).limit_denominator(10_000) == mean
        assert (line.verdict == "ok") == (abs(Fraction(texts[line.row, "avg", "overall"]) - mean) <= Fraction(1, 200))
        assert line.tie == (abs(100 * mean - math.floor(100 * mean)) == Fraction(1, 2))
    odd = found[found["verdict"] != "ok"].set_index(["table", "row"])
    assert len(found) == 25
    assert odd["verdict"].to_dict() == {("table2", "2"): "cut, not rounded", ("table4", "4"): "wrong"}
    assert odd.loc[("table4", "4"), ["exact_mean", "printed"]].tolist() == [77.6625, 77.36]


# --- questions ---


def test_counts_from_the_manifests_say_so() -> None:
    found = audit_sources.test_counts()
    assert found["source"].str.startswith("manifest (no folder ").all()
    whole = found[found["variant"] == "all"].set_index(["data_set", "definition"])[["total", "open", "closed"]]
    assert {key: tuple(line) for key, line in zip(whole.index, whole.to_numpy().tolist(), strict=True)} == {
        ("vqa_rad", "answer_type"): (451, 179, 272), ("vqa_rad", "yes_no"): (451, 200, 251),
        ("slake", "answer_type"): (1061, 645, 416), ("slake", "yes_no"): (1061, 706, 355),
        ("pathvqa", "answer_type"): (6761, 3370, 3391), ("pathvqa", "yes_no"): (6761, 3370, 3391),
        ("vqa_med_2019", "answer_type"): (500, 436, 64), ("vqa_med_2019", "yes_no"): (500, 436, 64),
    }  # fmt: skip
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
    sizes = audit_claims.claims().query("claim == 'size'").set_index("dataset")
    assert sizes.loc["vqa_rad", "recomputed"] == len(whole) == 2248
    assert sizes["verdict"].tolist() == ["differs", "differs", "differs", "ok"]
    assert "published3064, which holds answers to test questions, 3,064" in sizes.loc["vqa_rad", "note"]


def test_changed_or_unreadable_annotations_are_said(shared_data, tmp_path, monkeypatch) -> None:
    """Three test questions fewer: other counts, no solution behind the paper's figures, and a note."""
    file = "VQA_RAD Dataset Public.json"
    records = json.loads((shared_data / "vqa_rad" / file).read_text(encoding="utf-8"))
    gone = [r["qid"] for r in records if r["phrase_type"] == "test_para"][:3]
    for folder, name, text in (("vqa_rad", file, json.dumps([r for r in records if r["qid"] not in gone])),
                               ("slake", "train.json", "[{]")):  # fmt: skip
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert set(audit_sources.test_counts().query("data_set == 'vqa_rad'")["total"]) == {448}
    notes = " ".join(audit_sources.test_counts()["source"])
    assert "unlike the manifest's" in notes and "closed of 451" in notes and "train.json" in notes
    assert audit.numerators().query("data_set == 'vqa_rad'")["verdict"].ne("unique").all()


# --- numerators and definitions ---


def prints(correct: int, n: int, hundredths: int) -> bool:
    """The same question by decimal arithmetic: rounded, ties either way, or cut."""
    share = Decimal(100 * correct) / Decimal(n)
    return any(share.quantize(CENT, way) * 100 == hundredths for way in (ROUND_HALF_UP, ROUND_HALF_DOWN, ROUND_FLOOR))


def test_printing_against_decimals() -> None:
    for n in (1, 7, 64, 355, 451):
        for correct in range(0, n + 1, max(1, n // 50)):
            near = 10_000 * correct // n
            for value in range(max(0, near - 2), near + 4):
                assert audit.prints_as(correct, n, value) == prints(correct, n, value), (correct, n, value)
        assert audit.counts_printing(n, 6667) == [k for k in range(n + 1) if prints(k, n, 6667)]


@pytest.mark.parametrize("values", [(5000, 7500, 6250), (3333, 8000, 6250), (6667, 6667, 6667), (5000, 7143, 6087)])
@pytest.mark.parametrize("total", [8, 23, 24])
def test_exhaustive_search_against_four_nested_loops(values, total) -> None:
    assert set(audit.solutions(*values, total)) == {
        (right, n, rest, total - n)
        for n in range(1, total)
        for right in range(n + 1)
        for rest in range(total - n + 1)
        if prints(right, n, values[0]) and prints(rest, total - n, values[1]) and prints(right + rest, total, values[2])
    }


def test_numerators_of_the_headline_row() -> None:
    assert audit.solutions(5000, 7500, 6250, 8) == [(2, 4, 3, 4)]
    found = audit.numerators()
    columns = ["open_correct", "open_n", "closed_correct", "closed_n", "overall_correct", "total"]
    unique = found[found["verdict"] == "unique"].set_index("data_set")
    assert unique.loc["vqa_rad", columns].tolist() == [144, 200, 219, 251, 363, 451]
    assert unique.loc["pathvqa", columns].tolist() == [1359, 3370, 3058, 3391, 4417, 6761]
    assert unique["definition"].to_dict() == {"vqa_rad": "yes_no", "pathvqa": "yes_no and answer_type"}
    none = found[found["verdict"].str.startswith("no split")]
    assert sorted(zip(none["data_set"], none["total"], strict=True)) == [("pathvqa", 6719), ("slake", 1061)]
    both = found[found["data_set"] == "vqa_med_2019"]
    assert list(zip(both["overall_correct"], both["total"], strict=True)) == [(416, 500), (312, 375)]


def test_open_share_of_each_row() -> None:
    found = audit.open_share()
    shares = {name: part.set_index("row")["open_share"].round(3).to_dict() for name, part in found.groupby("data_set")}
    assert len(shares["vqa_rad"]) == 14 and shares["vqa_rad"]["AMiF"] == 0.443 and shares["vqa_rad"]["ARL"] == 0.406
    assert (shares["slake"]["ARL"], shares["slake"]["AMiF"]) == (0.552, 0.653)
    nearest = found[found["data_set"] != "pathvqa"].set_index("row")["nearest"]
    assert set(nearest.drop("AMiF")) == {"answer_type"} and set(nearest["AMiF"]) == {"yes_no"}
    for line in found.itertuples():  # what rounding leaves open, by the eight corners
        texts = [Fraction(printed("table1")[line.row, line.data_set, s]) for s in ("open", "closed", "overall")]
        half = Fraction(1, 20) if all((10 * text).denominator == 1 for text in texts) else Fraction(1, 200)
        corners = itertools.product(*([text - half, text + half] for text in texts))
        expected = [float((c - a) / (c - o)) for o, c, a in corners]
        assert (line.low, line.high) == pytest.approx((min(expected), max(expected)))
    assert audit.comparable("vqa_rad", "overall", "LaPA") and audit.comparable("pathvqa", "open", "MUMC")
    assert not audit.comparable("vqa_rad", "open", "MUMC")


# --- chance ---


def test_exact_tests_against_scipys_binomial_test() -> None:
    for discordant in [*range(1, 60), 90, 451, 676]:
        passing = [k for k in range(discordant // 2 + 1) if exact_p(discordant - k, k) < 0.05]
        assert int(audit_power.most_losses(discordant)) == max(passing, default=-1), discordant
    for wins, losses in ((5, 0), (12, 2), (30, 15), (7, 7), (0, 4)):
        assert float(audit_power.mcnemar_p(wins, losses)) == pytest.approx(exact_p(wins, losses))
    expected = {
        "vqa_rad": (1.33, 2.22, 3.33, 4.43),
        "slake": (0.57, 1.32, 2.07, 2.83),
        "pathvqa": (0.09, 0.43, 0.77, 1.09),
    }
    for name, values in expected.items():
        n = audit_sources.test_size(name)
        found = [audit_power.smallest_difference(n), *(audit_power.needed(name, share) for share in (0.03, 0.10, 0.20))]
        assert tuple(round(value, 2) for value in found) == values
    m = round(451 * 0.1)  # the definition, by brute force
    least = min(m - 2 * losses for losses in range(m // 2 + 1) if exact_p(m - losses, losses) < 0.05)
    assert audit_power.smallest_difference(451, 0.1) == pytest.approx(100 * least / 451)
    assert math.isnan(audit_power.smallest_difference(50, 0.1)) and math.isnan(audit_power.smallest_difference(5))
    assert [round(audit_power.needed("avg", share), 2) for share in (0.05, 0.10, 0.15)] == [0.80, 1.13, 1.38]
    with pytest.raises(InputError, match=r"discordance 10: give the share"):
        audit_power.steps(10)


def test_leads_and_what_they_can_show() -> None:
    found = audit_power.leads().set_index(["data_set", "split"])
    overall = found.xs("overall", level="split")
    assert overall["lead"].to_dict() == {"vqa_rad": 1.11, "slake": 0.66, "pathvqa": 0.23, "vqa_med_2019": 1.07}
    assert overall["questions"].tolist() == [5, 7, 16, 5]
    assert (
        overall.loc["vqa_rad", "smallest_p"] == 0.0625 == exact_p(5, 0)
        and overall.loc["vqa_rad", "most_discordant"] == 0
    )
    # 7 questions ahead: 8 against 1 is still significant, 9 against 2 is not
    assert exact_p(8, 1) < 0.05 < exact_p(9, 2) and audit_power.most_discordant(7) == 9
    assert audit_power.most_discordant(5) == audit_power.most_discordant(-3) == 0
    assert found.loc[("vqa_rad", "open"), "lead"] == 0.5 and not found.loc[("vqa_rad", "open"), "same_questions"]
    assert found.loc[("pathvqa", "closed"), "rank"] == 3 and not overall.loc["vqa_med_2019", "rival_prints"]


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


def test_ablation_steps_against_noise() -> None:
    found = audit_power.steps(0.10).set_index(["table", "row", "reference", "data_set"])
    average = found.xs("avg", level="data_set")["verdict"]
    beyond = {
        ("table2", "3", "1"),
        ("table2", "7", "4"),
        ("table4", "6", "5"),
        ("table3", "1", "4"),
        ("table4", "3", "1"),
    }
    assert all(average[key] == "beyond noise" for key in beyond) and len(average) == 24
    assert average["table2", "8", "7"] == "within noise" and average["table4", "5", "4"] == "cannot be significant"
    strict = audit_power.steps(0.15).query("data_set == 'avg'").set_index(["table", "row", "reference"])["verdict"]
    assert strict["table4", "6", "5"] == "within noise" and strict["table4", "3", "1"] == "beyond noise"
    gate, negative = found.loc[("table4", "6", "5", "vqa_rad")], found.loc[("table2", "7", "5", "pathvqa")]
    assert (gate["difference"], gate["questions"], gate["verdict"]) == (0.23, 1, "cannot be significant")
    assert (negative["difference"], negative["verdict"]) == (-0.03, "no gain")


# --- claims ---


def test_claims_and_verdicts() -> None:
    found = audit_claims.claims()
    assert len(found) == 36
    known = found.set_index(["claim", "dataset", "split"])
    expected = {  # claim, data set, split: recomputed, verdict
        ("over_biomedclip", "vqa_rad", "overall"): (5.29, "ok"),
        ("pathvqa_lead", "pathvqa", "overall"): (0.23, "misleading"),
        ("best_overall", "vqa_rad", "overall"): (1.11, "ok"), ("best_overall", "pathvqa", "overall"): (0.23, "ok"),
        ("best_open", "vqa_rad", "open"): (0.5, "not comparable"), ("best_open", "pathvqa", "open"): (1.33, "ok"),
        ("multi_view", "avg", "overall"): (0.7675, "ok"), ("soft_labels", "avg", "overall"): (1.365, "ok"),
        ("equal_weights", "avg", "overall"): (0.97, "ok"), ("pretraining", "avg", "overall"): (3.03, "ok"),
        ("question_vocabulary", "avg", "overall"): (0.685, "wrong"),
        ("answer_vocabulary", "avg", "overall"): (0.05, "wrong"),
        ("gate", "avg", "overall"): (1.22, "ok"), ("medical_close", "avg", "overall"): (0.6975, "within noise"),
    }  # fmt: skip
    for key, values in expected.items():
        assert known.loc[[key], ["recomputed", "verdict"]].to_numpy().tolist() == [pytest.approx(list(values))], key
    assert found.query("claim == 'intra_helps'")["recomputed"].tolist() == [1.2125, 0.4275, 0.6575]
    assert set(found.query("claim in ['lambda', 'mined_maps', 'gated_maps']")["verdict"]) == {"cannot be checked"}
    for claim, words in (("intra_helps", "PathVQA -0.03"), ("equal_weights", "table3:5 has 65.42"),
                         ("answer_vocabulary", "VQA-2019 -0.87"), ("question_vocabulary", "77.36"),
                         ("medical_close", "table5:3 (76.87) is left out")):  # fmt: skip
        assert any(words in note for note in found.loc[found["claim"] == claim, "note"]), claim
    can = found.query("claim == 'best_overall'").set_index("dataset")["can_be_significant"].to_dict()
    assert can == {"vqa_rad": "no", "slake": "yes", "pathvqa": "yes", "vqa_med_2019": "no"}
    assert found.set_index("claim").loc[["gate", "local"], "beyond_noise"].tolist() == ["yes", "no"]


# --- bad input, and the products ---


@pytest.fixture
def edit(monkeypatch, tmp_path):
    """A function that edits a copy of a published file."""
    folder = tmp_path / "paper"
    folder.mkdir()
    for file in (ROOT / "results" / "paper").glob("*.csv"):
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(paths, "published", lambda: folder)

    def change(name: str, old: str, new: str) -> None:
        text = (folder / f"{name}.csv").read_text(encoding="utf-8")
        assert old in text
        (folder / f"{name}.csv").write_text(text.replace(old, new, 1), encoding="utf-8")
        os.utime(folder / f"{name}.csv", ns=(1, 1))  # whatever the clock's grain

    return change


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("table4", "81.09", "81.o9", r"table4\.csv: line 3: value '81\.o9' is not a percentage"),
        ("table2", "76.68", "176.68", r"table2\.csv: line 2: value '176\.68'"),
        ("table2", "76.68", "76.683", r"table2\.csv: line 2 .*too exact"),
        ("table5", "pathvqa", "pathqva", r"table5\.csv: line 4 .*is unknown"),
        ("table1", "MMBERT,MMBERT,vqa_med_2019,overall,67.20,25,\n", "", r"table1\.csv: \(15, 99\) rows and numbers"),
        ("claims", ",5.29,", ",five,", r"claims\.csv: line 9: .*paper 'five'"),
        ("claims", "table1:BiomedCLIP", "table1:Biomed", r"claims\.csv: line 9: .*no cell table1:Biomed"),
        ("claims", "difference", "sum", r"claims\.csv: line 9: kind 'sum'"),
    ],
)  # fmt: skip
def test_an_edited_file_is_one_line_with_file_and_line(
    name, old, new, message, edit, capsys, monkeypatch, tmp_path
) -> None:
    edit(name, old, new)
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=message):
        audit_claims.claims()
    if name == "table4":
        assert cli.main(["audit"]) == 2 and re.match(f"error: .*{message}", capsys.readouterr().err)


def test_a_corrected_file_is_read_again(edit) -> None:
    assert audit.averages().query("table == 'table4' and row == '4'")["verdict"].iloc[0] == "wrong"
    edit("table4", "77.36", "77.66")
    assert audit.averages().query("table == 'table4' and row == '4'")["verdict"].iloc[0] == "ok"


def test_light_install_runs_the_notebooks_cells_and_makes_every_product(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert cli.main(["audit"]) == 0
    said, folder = capsys.readouterr().out, tmp_path / "results" / "audit"
    assert "VQA-RAD (5 of 451 questions over LaPA, p = 0.0625" in said and "144 of 200" in said and "23 of 23" in said
    assert "VQA-2019 (4 of 375 questions over RAMM, p = 0.125" in said  # 308/375 prints as 82.13, no k/500 does
    assert "77.66, not 77.36" in said and "0.05, not 0.35" in said and "VQA-RAD: from the manifest" in said
    page = (folder / "audit.html").read_text(encoding="utf-8")
    assert "<script" not in page and not re.search(r"""(?:src|href)=["'](?:https?:|/)""", page)
    assert page.count("data:image/png;base64,") == 4 and page.count("{{") == page.count("{%") == 0
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (folder / link).is_file(), link
    assert "<strong>misleading</strong>" in page and "not by the paper's authors" in page and "77.66" in page
    for name in ("table1_intervals", "open_shares", "power_curves", "ablation_deltas"):
        assert all(
            (folder / "figures" / f"{name}.{kind}").stat().st_size > 500 for kind in ("png", "svg", "pdf", "csv")
        )
    rescored = list(csv.DictReader((folder / "rescored.csv").open(encoding="utf-8")))
    below = [
        int(line["between_right"]) for line in rescored if line["data_set"] == "vqa_rad" and "MUMC" in line["below"]
    ]
    assert len(rescored) == 22 + 62 and below == [17, 18, 19, 20, 21]
    needed = list(csv.DictReader((folder / "power.csv").open(encoding="utf-8")))
    gate = next(line for line in needed if (line["table"], line["row"], line["data_set"]) == ("table4", "6", "vqa_rad"))
    assert float(gate["power"]) < 0.05
