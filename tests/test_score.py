"""Scoring of anyone's predictions: hand-counted answers, the real VQA-RAD file, and bad files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import load as datasets
from amif_lib.data import manifests
from amif_lib.experiments.predictions import PREDICTIONS, read_predictions, write_predictions
from amif_lib.scoring import baselines, prediction_files, protocols, score
from tests import tiny

# A set in VQA-RAD's own file format: (qid, phrase_type, image, question, answer, answer_type). No image exists.
RECORDS = [
    (1, "freeform", "a", "is the heart big", "No", "CLOSED"),
    (2, "freeform", "a", "where is the mass", "left lung", "OPEN"),
    (3, "para", "b", "is there a mass", "yes", "CLOSED"),
    (4, "freeform", "b", "is it a ct", "no", "CLOSED "),
    (5, "freeform", "d", "is it a knee", "no", "CLOSED"),
    ("11", "test_freeform", "a", "is the heart large", "Yes", "CLOSED"),
    (12, "test_freeform", "a", "where's the mass", "Left Lung", "OPEN"),
    (13, "test_para", "b", "is there a mass now", "no", "CLOSED"),
    (14, "test_freeform", "b", "which side", "left", "CLOSED"),
    (15, "test_freeform", "c", "what is it", "The X-ray", "OPEN"),
    (16, "test_para", "c", "is it big", "yes", "CLOSED"),
]
# Right: 11, 12 and 16. Wrong: 13; 14, which is empty; 15, which leniency would accept.
ANSWERS = {"11": "yes", "12": " left  LUNG", "13": "yes", "14": "", "15": "X ray.", "16": "YES"}
FULL = dict.fromkeys(ANSWERS, "no")


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATA_ROOT with the small set; tests on the real files set it anew."""
    keys = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")
    records = [dict(zip(keys, record, strict=True)) for record in RECORDS]
    for record in records:
        record["image_name"] += ".jpg"
    folder = tmp_path / "data" / "vqa_rad"
    folder.mkdir(parents=True)
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(records), encoding="utf-8")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def real(shared_data: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    return shared_data


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


def scored(path: Path, **options: object) -> score.Score:
    return score.score_file(path, "vqa_rad", **options)


def cell(table: pd.DataFrame, system: str, split: str, definition: str = "", protocol: str = "as given") -> pd.Series:
    wanted = {"protocol": protocol, "system": system, "split": split, "definition": definition}
    found = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


# --- counted by hand ---


def test_accuracies_counted_by_hand(made: Path) -> None:
    found = scored(write(made / "x.json", ANSWERS))
    by_hand = {  # right answers of 6, 3, 3, 2 and 4 questions
        "predictions": (3, 1, 2, 1, 2),
        "most_frequent": (1, 0, 1, 0, 1),  # `no`: question 13
        "nearest_question": (1, 1, 0, 1, 0),  # 12; 14 is as far from 3 as from 4, and the image of 15 and 16 is new
        "vocabulary_ceiling": (4, 1, 3, 1, 3),  # all but `left` and `the x-ray`
    }
    for system, counts in by_hand.items():
        for (split, definition), correct, n in zip(score.PARTS, counts, (6, 3, 3, 2, 4), strict=True):
            line = cell(found.table, system, split, definition)
            assert (line["correct"], line["n"]) == (correct, n), (system, split, definition)
            assert line["accuracy"] == pytest.approx(100 * correct / n)
            low, high = proportion_confint(correct, n, method="wilson")
            assert (line["wilson_low"], line["wilson_high"]) == pytest.approx((100 * low, 100 * high))
    assert len(found.table) == 20 and set(found.table["training_file"]) == {"official1797"}


def test_intervals_and_paired_tests_by_hand(made: Path) -> None:
    """Each image has two questions, right of them 2 (a), 0 (b), 1 (c), of `no` 0, 1, 0. Three equal images are drawn 27
    ways, so that three times the best or worst image (1 in 27) lies beyond 2.5%."""
    table = scored(write(made / "x.json", ANSWERS)).table
    own = cell(table, "predictions", "overall")
    assert (own["ci_low"], own["ci_high"]) == (0, 100)
    line = cell(table, "most_frequent", "overall")
    assert (line["wins"], line["losses"]) == (3, 1)
    assert line["mcnemar_p"] == pytest.approx(2 * (1 + 4) / 2**4)  # at most 1 of 4 on the rarer side, two-sided
    assert line["difference"] == pytest.approx(100 * 2 / 6)
    assert (line["difference_low"], line["difference_high"]) == pytest.approx((-50, 100))  # images differ by 2, -1, 1
    draws = [sum(g) for g in np.stack(np.meshgrid(*[[2, -1, 1]] * 3)).reshape(3, -1).T]
    assert line["bootstrap_p"] == pytest.approx(2 * np.mean(np.array(draws) <= 0), abs=0.05)
    assert table.loc[~table["system"].isin(score.COMPARED), "difference"].isna().all()


def test_empty_and_lenient_answers_are_said_and_not_scored(made: Path) -> None:
    found = scored(write(made / "x.json", ANSWERS))
    assert [cell(found.table, "predictions", "overall")[name] for name in ("correct", "lenient")] == [3, 1]
    assert cell(found.table, "predictions", "closed", "yes_no")["lenient"] == 0
    said = " ".join(found.notes)
    assert "Empty answers, counted as wrong: 1 (first: question 14)." in said
    assert "would be right under a lenient reading (not scored): 1 without punctuation and articles" in said
    assert "(first: question 15: 'x ray.' for 'the x-ray')" in said
    assert [score.lenient(text) for text in ("The X-ray.", "2.5", "an", "<5 cm")] == ["x ray", "2 5", "", "<5 cm"]


def test_texts_that_may_not_be_passed_on_are_not_printed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifests.load("vqa_rad")
    closed = manifest.model_copy(update={"redistribution": manifests.Redistribution()})
    monkeypatch.setattr(manifests, "load", lambda name: closed)
    monkeypatch.setattr(manifests, "names", lambda: ["vqa_rad"])
    said = score.page(scored(write(made / "x.json", ANSWERS)))
    assert "(not scored): 1 without punctuation and articles (first: question 15)." in said
    assert not any(record[3] in said for record in RECORDS) and "x-ray" not in said and "left lung" not in said


RECORD_LIST = [{"QID": int(name), "answer": "the accepted one", "Pred": text} for name, text in ANSWERS.items()]


def test_predictions_on_other_splits_are_left_out_and_said(made: Path) -> None:
    """Training question 1 is not among the questions of `image_disjoint`, but a question of the set."""
    path = write(made / "x.json", {"1": "no", **ANSWERS})
    for training_file in ("", "image_disjoint"):
        found = scored(path, training_file=training_file)
        assert cell(found.table, "predictions", "overall")["n"] == 6
        assert "Predictions on other questions, left out: 1 (first: 1)." in found.notes
    assert "the 1 training questions of vqa_rad, image_disjoint" in " ".join(found.notes)
    assert "hold answers to test questions" in " ".join(scored(path, training_file="published3064").notes)


@pytest.mark.parametrize(
    ("content", "ceiling", "message"),
    [
        (["yes", "no", "left lung"], 4, "They are the training answers, as under strict@1;"),
        (["yes", "no"], 3, "They are no protocol's; answers that only test questions have: 0"),
        ({"yes": 0, "no": 1, "left lung": 2, "left": 3, "The x-ray": 4}, 6,
         "They are the test answers, as under protocol paper;"),
        ({"0": "yes", "1": "Left"}, 3, "They are no protocol's; answers that only test questions have: 1"),
        ("left\nyes\n\n", 3, "Candidates: 2. Answers that are not among them: 2 (first: question 12)."),
    ],
)  # fmt: skip
def test_candidates(made: Path, content: object, ceiling: int, message: str) -> None:
    path = write(made / ("c.txt" if isinstance(content, str) else "c.json"), content)
    found = scored(write(made / "x.json", ANSWERS), candidates=path)
    assert cell(found.table, "candidate_ceiling", "overall")["correct"] == ceiling
    assert message in " ".join(found.notes)


# --- bad input ---

CSV = "question_id,answer\n" + "".join(f"{question},no\n" for question in ANSWERS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", {q: a for q, a in FULL.items() if q not in ("12", "15")}, r"x\.json: 2 of 6 .* first is 12"),
        ("x.csv", CSV + "12,yes\n", r"x\.csv, line 8: question 12 is answered twice, first at line 3; keep one"),
        ("x.json", [*RECORD_LIST, {"qid": "13", "pred": "no"}], "record 7: question 13 is answered twice, .* record 3"),
        ("x.json", json.dumps(FULL)[:-1] + ', "16": "yes"}', r"x\.json: '16' occurs twice in an object; keep one"),
        ("x.json", {**FULL, "q99": "no", "98": "no"}, r"record 7: question q99 is none of vqa_rad \(2 such .* as 11\)"),
        ("x.csv", "qid,answer\n1,no\n2,no\n", r"x\.csv: 6 of 6 test questions have no prediction"),
        ("x.csv", CSV.replace("answer", "12"), r"no column for the prediction \(known .*are 12, question_id; rename"),
        ("x.csv", CSV.replace("question_id", "number"), r"no column for the question id .*are answer, number; rename"),
        ("x.csv", CSV.replace("answer", "question_id"), r"line 1: the header names 'question_id' twice"),
        ("x.csv", CSV + "17,left, right\n", r"line 8: not 2 cells as in the header; put answers with ',' in quotes"),
        ("x.csv", CSV + '17,"left', r"line 8: not valid CSV \(unexpected end of data\), perhaps cut off"),
        ("x.csv", CSV + ",no\n", r"line 8: question_id is missing or no id"),
        ("x.csv", "question_id,answer\n", "no records; give a file with one"),
        ("x.csv", "question_id,answer\n12,l\xe4nge\n".encode("latin-1"), r"x\.csv: not UTF-8 .*save it as UTF-8"),
        ("x.csv", CSV.encode("utf-16"), r"not UTF-8"),
        ("x.json", json.dumps(RECORD_LIST, indent=0)[:-20], r"x\.json, line \d+: not valid JSON .*perhaps cut off"),
        ("x.jsonl", '{"qid": 11, "pred": "no"}\n{"qid": 12, "pr', r"x\.jsonl, line 2: not valid JSON .*perhaps cut"),
        ("x.jsonl", '{"qid": 11, "pred": "no"}\n["12", "no"]', r"line 2: not an object with named fields"),
        ("x.json", [{"qid": 11, "pred": "no"}, {"qid": 12}], r"record 2: pred is missing or not one text"),
        ("x.json", {**FULL, "12": ["no", "yes"]}, r"record 2: answer is missing or not one text"),
        ("x.json", {**FULL, "12": True}, r"record 2: answer is missing or not one text"),
        ("x.json", [{"qid": 1.5, "pred": "no"}], r"record 1: question 1\.5 is none of vqa_rad"),
        ("x.json", 5, "must hold a list of records"),
        ("x.xlsx", "PK", r"x\.xlsx: (an Excel file needs the package openpyxl|cannot be read)"),
        ("x.parquet", "PAR1", r"x\.parquet: cannot be read"),
        ("x.pkl", "", r"x\.pkl: a pickle may run code"),
    ],
)  # fmt: skip
def test_bad_files_are_named(made: Path, capsys, name: str, content: object, message: str) -> None:
    path = write(made / name, content)
    with pytest.raises(InputError, match=message) as caught:
        scored(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert cli.main(["score", str(path), "--dataset", "vqa_rad", "--out", str(made / "out.csv")]) == 2
    assert capsys.readouterr().out == "" and not (made / "out.csv").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "\n", r"c\.txt: no candidate"),
        ("c.json", [["yes"]], r"c\.json: must hold a list of answers"),
        ("c.json", '["yes", ', r"c\.json, line 1: not valid JSON"),
        ("c.csv", "yes", r"c\.csv: give candidates as a \.json list, or as \.txt"),
    ],
)
def test_bad_candidates_are_named(made: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prediction_files.read_candidates(write(made / name, content))


def test_bad_options_are_named(made: Path, capsys) -> None:
    path = write(made / "x.json", ANSWERS)
    for options, message in (
        (["--dataset", "nothing"], "--dataset: nothing is no question set; name one of pathvqa,"),
        (["--dataset", "roco"], "--dataset: roco is no question set; name one of"),
        ([], "--dataset: none given is no question set"),
        (["--dataset", "vqa_rad", "--training-file", "x"], "training_file: 'x' is not one of default"),
        (["--dataset", "vqa_rad", "--language", "zh"], "English questions only"),
        (["--dataset", "vqa_rad", "--out", str(path)], "is a folder or a file that is read"),
        (["--dataset", "vqa_rad", "--candidates", str(made / "none.txt")], "none.txt: no such file"),
    ):
        assert cli.main(["score", str(path), *options]) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and not said.out, said.err
    assert cli.main(["score", str(made / "none"), "--dataset", "vqa_rad"]) == 2
    assert "none: no such file" in capsys.readouterr().err
    assert json.loads(path.read_text()) == ANSWERS


# --- the command ---


def test_command_needs_no_torch_and_no_image(made: Path) -> None:
    path, out = write(made / "x.json", ANSWERS), made / "tables" / "out.csv"
    code = "import sys; from amif_lib.app.cli import main; status = main(); "
    code += "assert not {'torch', 'PIL'} & set(sys.modules); sys.exit(status)"
    arguments = ["score", str(path), "--dataset", "vqa_rad", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=paths.ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "| overall             | 6   | 3         | 50.00      | [18.76, 81.24] | [0.00, 100.00] |" in done.stdout
    stored = pd.read_csv(out, keep_default_na=False)
    assert cell(stored, "predictions", "open", "yes_no")["correct"] == 1
    assert [p.name for p in out.parent.iterdir()] == ["out.csv"]
    assert "## as given" in done.stdout and "generated or picked from a list" in done.stdout
    assert "yes_no (the answer" in done.stdout and "generate@" not in done.stdout  # whose meaning is another


# --- run folders ---


def run_folder(folder: Path, spec: dict | None = None, edit=lambda frame: frame) -> Path:
    """`paper` chooses what ANSWERS says, but `left` for question 14 (right); `strict` falls back on `no` there."""
    frame = baselines.vocabulary_ceiling(datasets.load_questions("vqa_rad", images=False))
    answers = ["left", "left lung", "no", "the x-ray", "yes"]
    wanted = {"11": "yes", "12": "left lung", "13": "yes", "14": "left", "15": "yes", "16": "yes"}
    frame["generated"] = [ANSWERS[name] for name in frame["question_id"]]
    frame["log_likelihoods"] = [
        np.float32([-1.0 if answer == wanted[name] else -2.0 if answer == "no" else -9.0 for answer in answers])
        for name in frame["question_id"]
    ]
    candidates = pd.DataFrame(
        {"answer": answers, "tokens": 2, "in_train": [False, True, True, False, True], "in_val": False, "in_test": True}
    )
    write_predictions(folder, edit(frame), candidates)
    if spec:
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def a_spec(training_file: str) -> dict:
    return tiny.run(data={"questions": "vqa_rad", "training_file": training_file}).model_dump(mode="json")


def test_a_run_folder_is_scored_under_every_protocol(made: Path) -> None:
    folder = run_folder(made / "run", a_spec("official1797"), edit=lambda frame: frame.iloc[::-1])
    for path in (folder, folder / PREDICTIONS):
        found = score.score_file(path)
        assert set(found.table["protocol"]) == {p.title for p in protocols.PROTOCOLS.values()}
        by_hand = {"paper": 4, "strict@1": 3, "albef@1": 3, "blip@1": 3, "generate@2": 3, "closed_yes_no@1": 4}
        for protocol, correct in by_hand.items():
            assert cell(found.table, "predictions", "overall", protocol=protocol)["correct"] == correct, protocol


def records_of(folder: Path) -> list[dict]:
    """The same predictions as records that anyone may write."""
    frame, candidates = read_predictions(folder)
    names = [answer.upper() for answer in candidates["answer"]]
    scores = [dict(zip(names, map(float, row), strict=True)) for row in frame["log_likelihoods"]]
    columns = zip(frame["question_id"], frame["generated"], scores, strict=True)
    return [{"qid": q, "pred": generated, "log_likelihoods": own} for q, generated, own in columns]


def test_records_with_log_likelihoods_are_scored_as_the_run_folder_is(made: Path) -> None:
    folder = run_folder(made / "run", a_spec("official1797"))
    whole, found = score.score_file(folder).table, scored(write(made / "x.json", records_of(folder)))
    titles = ["as given", "paper", "strict@1", "albef@1", "blip@1", "closed_yes_no@1"]
    assert list(dict.fromkeys(found.table["protocol"])) == titles
    for title in titles[1:]:
        for columns in (["split", "definition", "system", "n", "correct", "ci_low", "ci_high", "wins", "mcnemar_p"],):
            ours, theirs = (t.loc[t["protocol"] == title, columns].reset_index(drop=True) for t in (found.table, whole))
            pd.testing.assert_frame_equal(ours, theirs)
    assert "not known whether the training saw test answers" in " ".join(found.notes)


def test_a_protocol_whose_answers_are_not_all_scored_is_left_out_and_said(made: Path) -> None:
    records = records_of(run_folder(made / "run"))
    for record in records:
        record["log_likelihoods"].pop("THE X-RAY")  # an answer of the test questions alone
    found = scored(write(made / "x.jsonl", "\n".join(map(json.dumps, records))))
    assert list(dict.fromkeys(found.table["protocol"])) == ["as given", "strict@1", "albef@1", "blip@1"]
    said = [note for note in found.notes if note.startswith("Not scored")]
    assert said[0] == "Not scored: paper, which ranks 5 answers; 1 of them have no log-likelihood, such as 'the x-ray'."
    assert len(said) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[2].pop("log_likelihoods"), "record 3: log_likelihoods: 'left' has no finite number"),
        (lambda r: r[2]["log_likelihoods"].pop("NO"), "record 3: log_likelihoods: 'no' has no finite number"),
        (lambda r: r[1]["log_likelihoods"].update({"no": -1.0}), "record 2: log_likelihoods: an answer occurs twice"),
        (lambda r: r[1]["log_likelihoods"].update({"NO": "x"}), "record 2: log_likelihoods: 'no' has no finite number"),
    ],
)  # fmt: skip
def test_bad_log_likelihoods_are_named(made: Path, change, message: str) -> None:
    records = records_of(run_folder(made / "run"))
    change(records)
    with pytest.raises(InputError, match=message):
        scored(write(made / "x.json", records))


def test_strict_is_not_claimed_for_a_run_that_saw_test_answers(made: Path) -> None:
    found = score.score_file(run_folder(made / "run", a_spec("published3064")))
    assert "strict@1" not in set(found.table["protocol"]) and set(found.table["training_file"]) == {"published3064"}
    assert any(note.startswith("Not scored: strict@1") for note in found.notes)
    found = scored(run_folder(made / "unknown"))
    assert "strict@1" in set(found.table["protocol"]) and "not known whether the training saw test answers" in " ".join(
        found.notes
    )


def test_bad_run_folders_are_named(made: Path) -> None:
    folder = run_folder(made / "run", a_spec("official1797"))
    with pytest.raises(InputError, match="--training-file clean2772: this run has official1797"):
        scored(folder, training_file="clean2772")
    with pytest.raises(InputError, match="--dataset slake: this run has vqa_rad"):
        score.score_file(folder, "slake")
    with pytest.raises(InputError, match="has its own candidates"):
        score.score_file(folder, candidates=made / "c.txt")
    with pytest.raises(InputError, match=r"short: 1 of 6 test questions have no prediction, the first is 16"):
        scored(run_folder(made / "short", edit=lambda frame: frame.iloc[:-1]))
    with pytest.raises(InputError, match=r"parquet: question 11: its accepted answers are not the data set's"):
        scored(run_folder(made / "gold", edit=lambda frame: frame.assign(gold=[["left"]] * 6)))
    (made / "empty").mkdir()
    with pytest.raises(InputError, match=r"predictions\.parquet: no such file"):
        scored(made / "empty")


# --- the real VQA-RAD file ---


def test_lookups_on_the_real_file(real: Path, made: Path) -> None:
    """Written as a prediction file, the look-up scores what was counted from the annotations by other means."""
    frame = baselines.nearest_question(datasets.load_questions("vqa_rad", "published3064", images=False))
    path = made / "x.csv"
    frame[["question_id", "generated"]].rename(columns={"generated": "answer"}).to_csv(path, index=False)
    table = scored(path, training_file="published3064").table
    for part, n, accuracy in (("open", 179, 46.37), ("closed", 272, 70.22)):
        line = cell(table, "predictions", part, "answer_type")
        assert (line["n"], round(line["accuracy"], 2)) == (n, accuracy)
    same = cell(table, "nearest_question", "overall")
    assert (same["difference"], same["wins"], same["losses"], same["mcnemar_p"]) == (0, 0, 0, 1)
    assert round(cell(table, "vocabulary_ceiling", "overall")["accuracy"], 2) == 89.58
