"""The paper audit against hand-computed figures, brute force and the annotation files, and what bad input says."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import re
from decimal import ROUND_FLOOR, ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from scipy.stats import binomtest

from amif_lib.app import cli
from amif_lib.reporting import audit, audit_claims, audit_page, audit_power, audit_sources

ROOT = Path(__file__).resolve().parents[1]
CENT = Decimal("0.01")


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    """Without annotation files, unless a test says otherwise: then every machine sees the same."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "no data"))
    forget()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[dict, str, Path]:
    """The variables of notebook 21 after `make audit` without annotation files, what it says, and its folder."""
    names, run, folder = {}, audit_page.run_cells, tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setenv("DATA_ROOT", str(folder / "no data"))
        patch.setenv("AMIF_RESULTS", str(folder))
        patch.setattr(audit_page, "run_cells", lambda: names.update(run()))
        forget()
        assert cli.main(["audit"]) == 0
    return names, " ".join(said.getvalue().split()), folder / "audit"  # lines are wrapped


def forget() -> None:
    for read in (audit_sources.questions, audit_sources.test_counts, audit_sources.test_size):
        read.cache_clear()


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


def test_averages_by_fractions(page) -> None:
    found = page[0]["averages"]
    for line in found.itertuples():
        texts = printed(line.table)
        mean = sum(Fraction(texts[line.row, name, "overall"]) for name in audit_sources.SETS) / 4
        assert Fraction(line.exact_mean).limit_denominator(10_000) == mean
        assert (line.verdict == "ok") == (abs(Fraction(texts[line.row, "avg", "overall"]) - mean) <= Fraction(1, 200))
    odd = found[found["verdict"] != "ok"].set_index(["table", "row"])
    assert len(found) == 25
    assert odd["verdict"].to_dict() == {("table2", "2"): "cut, not rounded", ("table4", "4"): audit.DISAGREE}
    slip = odd.loc[("table4", "4")]
    assert slip[["exact_mean", "printed"]].tolist() == [77.6625, 77.36]
    cells = [float(new) for new in re.findall(r"([\d.]+) for", slip["readings"])]
    texts = [Decimal(printed("table4")["4", name, "overall"]) for name in audit_sources.SETS]
    for place, cell in enumerate(cells):  # each by itself makes the printed average right
        mean = sum((Decimal(str(cell)) if i == place else text for i, text in enumerate(texts)), Decimal(0)) / 4
        assert mean.quantize(CENT, ROUND_HALF_UP) == Decimal("77.36")
    assert cells[3] == 80.93


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


def test_counts_from_the_annotation_files(real_data) -> None:
    """Counted here from the JSON files by other means; SLAKE's folder holds nothing but them."""
    forget()
    found = audit_sources.test_counts().set_index(["data_set", "definition"])
    whole = json.loads((real_data / "vqa_rad" / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    records = {"vqa_rad": [r for r in whole if r["phrase_type"].startswith("test")]}
    if (real_data / "slake_annotations").is_dir():
        text = (real_data / "slake_annotations" / "test.json").read_text(encoding="utf-8")
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
    assert "published3064, which leaks, 3,064" in sizes.loc["vqa_rad", "note"]


# --- numerators and definitions ---


def prints(correct: int, n: int, hundredths: int) -> bool:
    """The same question by decimal arithmetic: rounded, ties either way, or cut."""
    share = Decimal(100 * correct) / Decimal(n)
    return any(share.quantize(CENT, way) * 100 == hundredths for way in (ROUND_HALF_UP, ROUND_HALF_DOWN, ROUND_FLOOR))


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


def test_numerators_of_the_headline_row(page) -> None:
    assert audit.solutions(5000, 7500, 6250, 8) == [(2, 4, 3, 4)]
    found = page[0]["numerators"]
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
    others = found[(found["row"] != "AMiF") & (found["data_set"] != "pathvqa")]
    unlike = others.loc[~others["fits"], ["row", "data_set"]].to_numpy().tolist()
    assert len(others) == 23 and unlike == [["ARL", "vqa_rad"], ["ARL", "slake"], ["BiomedCLIP", "vqa_rad"]]
    assert found.loc[found["row"] == "AMiF", "fits"].tolist() == [True, False, True]
    nearest = found[found["data_set"] != "pathvqa"].set_index("row")["nearest"]
    assert set(nearest.drop("AMiF")) == {"answer_type"} and set(nearest["AMiF"]) == {"yes_no"}
    for line in found.itertuples():  # what rounding leaves open, by the eight corners
        texts = [Fraction(printed("table1")[line.row, line.data_set, s]) for s in ("open", "closed", "overall")]
        half = Fraction(1, 20) if all((10 * text).denominator == 1 for text in texts) else Fraction(1, 200)
        corners = itertools.product(*([text - half, text + half] for text in texts))
        expected = [float((c - a) / (c - o)) for o, c, a in corners]
        assert (line.low, line.high) == pytest.approx((min(expected), max(expected)))
        assert line.fits == (line.low <= getattr(line, line.nearest or "yes_no") <= line.high)
    assert audit.comparable("vqa_rad", "overall", "LaPA") and audit.comparable("pathvqa", "open", "MUMC")
    assert not audit.comparable("vqa_rad", "open", "MUMC")


# --- chance ---


def test_exact_tests_against_scipys_binomial_test() -> None:
    for discordant in [*range(1, 60), 90, 451, 676]:
        passing = [k for k in range(discordant // 2 + 1) if exact_p(discordant - k, k) < 0.05]
        assert int(audit_power.most_losses(discordant)) == max(passing, default=-1), discordant
    thresholds = [audit_power.needed(name, 0.1) for name in audit_sources.SETS]
    assert [round(value, 2) for value in thresholds] == [3.33, 2.07, 0.77, 3.2]
    assert round(audit_power.smallest_difference(451), 2) == 1.33
    m = round(451 * 0.1)  # the definition, by brute force
    least = min(m - 2 * losses for losses in range(m // 2 + 1) if exact_p(m - losses, losses) < 0.05)
    assert audit_power.smallest_difference(451, 0.1) == pytest.approx(100 * least / 451)
    assert math.isnan(audit_power.smallest_difference(50, 0.1)) and math.isnan(audit_power.smallest_difference(5))
    assert [round(audit_power.needed("avg", share), 2) for share in (0.05, 0.10, 0.15)] == [0.80, 1.13, 1.38]


def test_leads_and_what_they_can_show() -> None:
    found = audit_power.leads().set_index(["data_set", "split"])
    overall = found.xs("overall", level="split")
    assert overall["lead"].to_dict() == {"vqa_rad": 1.11, "slake": 0.66, "pathvqa": 0.23, "vqa_med_2019": 1.07}
    assert list(zip(overall["questions"], overall["n"], strict=True)) == [(5, 451), (7, 1061), (16, 6761), (4, 375)]
    assert overall["smallest_p"].tolist() == pytest.approx([exact_p(k, 0) for k in (5, 7, 16, 4)])
    assert overall.loc["vqa_rad", ["smallest_p", "mid_p", "most_discordant"]].tolist() == [0.0625, 0.03125, 0]
    # 7 questions ahead: 8 against 1 is still significant, 9 against 2 is not
    assert exact_p(8, 1) < 0.05 < exact_p(9, 2) and audit_power.most_discordant(7) == 9
    assert audit_power.most_discordant(5) == audit_power.most_discordant(-3) == 0
    assert found.loc[("vqa_rad", "open"), "lead"] == 0.5 and not found.loc[("vqa_rad", "open"), "same_questions"]
    assert found.loc[("pathvqa", "closed"), "rank"] == 3
    assert not any(prints(k, 500, 8213) for k in range(501)) and prints(308, 375, 8213)  # RAMM on VQA-2019


def test_ablation_steps_against_noise() -> None:
    found = audit_power.steps(0.10).set_index(["table", "row", "reference", "data_set"])
    assert set(audit_power.steps(0.15)["verdict"]) >= {"beyond noise", "within noise"}
    gate, negative = found.loc[("table4", "6", "5", "vqa_rad")], found.loc[("table2", "7", "5", "pathvqa")]
    assert (gate["difference"], gate["questions"], gate["verdict"]) == (0.23, 1, audit_power.NOT_AT_BEST)
    assert (negative["difference"], negative["verdict"]) == (-0.03, "no gain")
    for step in found.xs("avg", level="data_set").itertuples():
        expected = "no gain" if step.difference <= 0 else "beyond" if step.difference >= step.needed else "within"
        assert step.verdict.startswith(expected)


# --- claims ---


def test_claims_and_verdicts() -> None:
    found = audit_claims.claims()
    assert len(found) == 36
    known = found.set_index(["claim", "dataset", "split"])
    expected = {  # claim, data set, split: recomputed, verdict
        ("over_biomedclip", "vqa_rad", "overall"): (5.29, "ok"),
        ("pathvqa_lead", "pathvqa", "overall"): (0.23, "is the Open lead"),
        ("best_overall", "vqa_rad", "overall"): (1.11, "ok"), ("best_overall", "pathvqa", "overall"): (0.23, "ok"),
        ("best_open", "vqa_rad", "open"): (0.5, "not comparable"), ("best_open", "pathvqa", "open"): (1.33, "ok"),
        ("multi_view", "avg", "overall"): (0.7675, "ok"), ("soft_labels", "avg", "overall"): (1.365, "ok"),
        ("equal_weights", "avg", "overall"): (0.97, "ok"), ("pretraining", "avg", "overall"): (3.03, "ok"),
        ("question_vocabulary", "avg", "overall"): (0.685, audit.DISAGREE),
        ("answer_vocabulary", "avg", "overall"): (0.05, audit.DISAGREE),
        ("gate", "avg", "overall"): (1.22, "ok"), ("medical_close", "avg", "overall"): (0.6975, "within noise"),
    }  # fmt: skip
    for key, values in expected.items():
        assert known.loc[[key], ["recomputed", "verdict"]].to_numpy().tolist() == [pytest.approx(list(values))], key
    assert found.query("claim == 'intra_helps'")["recomputed"].tolist() == [1.2125, 0.4275, 0.6575]
    assert set(found.query("claim in ['lambda', 'mined_maps', 'gated_maps']")["verdict"]) == {"cannot be checked"}


# --- the products ---


def test_light_install_runs_the_notebooks_cells_and_makes_every_product(page) -> None:
    _, said, folder = page
    assert "VQA-RAD, 5 of 451 questions over LaPA: p = 0.0625 (mid-p 0.031)" in said and "144 of 200" in said
    assert "the average is 77.66, or a cell" in said
    html = (folder / "audit.html").read_text(encoding="utf-8")
    assert "<script" not in html and not re.search(r"""(?:src|href)=["'](?:https?:|/)""", html)
    assert html.count("data:image/png;base64,") == 4 and html.count("{{") == html.count("{%") == 0
    assert all((folder / link).is_file() for link in re.findall(r'href="([^"#]+)"', html))
    assert all(text in html for text in (">is the Open lead<", "from the manifest", "not by the paper's authors"))
    rescored = list(csv.DictReader((folder / "rescored.csv").open(encoding="utf-8")))
    below = [int(r["between_right"]) for r in rescored if r["data_set"] == "vqa_rad" and "MUMC" in r["below"]]
    assert len(rescored) == 22 + 62 and below == [17, 18, 19, 20, 21]
