"""Scoring of anyone's predictions: hand-counted answers, files as public tools write them, bad files, run folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from amif_lib.app import cli
from amif_lib.core.errors import InputError
from amif_lib.data import load as datasets
from amif_lib.experiments.predictions import write_predictions
from amif_lib.scoring import baselines, protocols, score
from tests import tiny
from tests.conftest import python

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
TEST = [record for record in RECORDS if str(record[1]).startswith("test")]
# Right: 11, 12 and 16. Wrong: 13; 14, which is empty; 15, which leniency would accept.
ANSWERS = {"11": "yes", "12": " left  LUNG", "13": "yes", "14": "", "15": "X ray.", "16": "YES"}
MODEL = {"11": "yes", "12": "left lung", "13": "yes", "14": "no", "15": "no", "16": "no"}  # right: 11 and 12


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATA_ROOT with the small set."""
    keys = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")
    records = [dict(zip(keys, record, strict=True)) for record in RECORDS]
    for record in records:
        record["image_name"] += ".jpg"
    folder = tmp_path / "data" / "vqa_rad"
    folder.mkdir(parents=True)
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(records), encoding="utf-8")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    return tmp_path


def write(path: Path, content: object) -> Path:
    if path.suffix == ".parquet" and not isinstance(content, str):
        pd.DataFrame(content).to_parquet(path)
    elif isinstance(content, bytes):
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
    assert len(found.table) == 20 and set(found.table["training_file"]) == {"official1797"}


def test_answers_of_the_baselines_by_hand() -> None:
    questions = datasets.load_questions("vqa_rad", images=False)
    by_form = baselines.most_frequent_answer_by_form(questions)
    assert by_form["generated"].tolist() == ["no", "left lung", "no", "left lung", "left lung", "no"]
    nearest = baselines.nearest_question(questions)  # 14 is as far from 3 as from 4: the first in the file
    assert nearest["generated"].tolist() == ["no", "left lung", "yes", "yes", "no", "no"]
    assert nearest["image_in_training"].tolist() == [True, True, True, True, False, False]
    with pytest.raises(InputError, match="'train'"):
        baselines.nearest_question([q for q in questions if q.split == "test"])


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
    assert table.loc[~table["system"].isin(score.COMPARED), "difference"].isna().all()
    same = cell(scored(write(made / "no.json", dict.fromkeys(ANSWERS, "no"))).table, "most_frequent", "overall")
    assert same[["difference_low", "difference_high", "mcnemar_p"]].tolist() == [0, 0, 1]
    assert pd.isna(same["detectable"])


def test_empty_and_lenient_answers_are_said_and_not_scored(made: Path) -> None:
    found = scored(write(made / "x.json", ANSWERS))
    assert [cell(found.table, "predictions", "overall")[name] for name in ("correct", "lenient")] == [3, 1]
    said = " ".join(found.notes)
    assert "Empty answers, counted as wrong: 1 (first: question 14)." in said
    assert "1 wrong answers contain an accepted one (not scored; first: question 15)." in said
    assert not any(record[3] in score.page(found) for record in RECORDS)  # no text of the set is printed
    found = scored(write(made / "x.json", {str(r[0]): f"It is {r[4]}." for r in TEST}))
    assert cell(found.table, "predictions", "overall")[["correct", "lenient"]].tolist() == [0, 6]


LENIENT = [  # answer, accepted answer, whether it contains that
    ("yes, it is.", "yes", True),
    ("i think that the answer is no", "no", True),
    ("yes and no", "no", False),
    ("abnormal", "no", False),
    ("the image shows the left lung.", "left lung", True),
    (r"\boxed{left lung}", "left lung", True),
    ("ＭＲＩ</s>", "mri", True),
    ("The left-lung.", "left lung", True),
    ("right lung", "left lung", False),
    ("a", "the", False),
]


@pytest.mark.parametrize(("answer", "accepted", "expected"), LENIENT)
def test_what_contains_an_accepted_answer(answer: str, accepted: str, expected: bool) -> None:
    assert score.contains(answer, accepted) is expected


def test_predictions_on_other_questions_are_left_out_and_said(made: Path) -> None:
    path = write(made / "x.json", {"1": "no", **ANSWERS, "q99": "no"})
    for training_file, said in (
        ("image_disjoint", "the 1 training questions of"),
        ("published3064", "hold answers to"),
    ):
        found = scored(path, training_file=training_file)
        assert cell(found.table, "predictions", "overall")["n"] == 6
        notes = " ".join(found.notes)
        assert "left out: 2 (first: 1)" in notes and said in notes


# --- files as people and public tools write them ---


ABOUT = [
    {"@qid": int(r[0]), "@float": f"{r[0]}.0", "@gold": r[4], "@model": MODEL[str(r[0])], "@words": r[3],
     "@picture": f"images\\{r[2]}.JPG"}
    for r in TEST
]  # fmt: skip


def rows(**columns: object) -> list[dict]:
    """A record per test question; a column is one of `ABOUT` or a constant."""
    return [{name: about.get(of, of) for name, of in columns.items()} for about in ABOUT]


def csv(records: list[dict], delimiter: str = ",") -> str:
    return pd.DataFrame(records).to_csv(index=False, sep=delimiter)


def by_lines(records: list[dict]) -> str:
    return "\n".join(map(json.dumps, records))


PLAIN = rows(qid="@qid", prediction="@model")
LMMS = [
    {"doc_id": n, "doc": {"question": r["@words"], "answer": r["@gold"]}, "target": r["@gold"],
     "filtered_resps": [r["@model"]], "resps": [[r["@model"]]]} for n, r in enumerate(ABOUT)
]  # fmt: skip
EVER = [
    {"sample_id": n, "input": {"raw": r["@words"], "reference": r["@gold"]}, "output": {"raw": r["@model"]}}
    for n, r in enumerate(ABOUT)
]
READ = {  # file -> content, and what the page says; every one has 2 of 6 right
    # 1. the gold column is never the prediction
    "response.json": (rows(qid="@qid", answer="@gold", response="@model", correct=True), "prediction = response"),
    "model_answer.csv": (csv(rows(qid="@qid", answer="@gold", model_answer="@model")),
                         "answer is read as the accepted answer"),
    # 2. known tools
    "lmms.jsonl": (by_lines(LMMS), "matched by order and words"),
    "eval_ever.jsonl": (by_lines(EVER), "prediction = output.raw"),
    "vlmevalkit.tsv": (csv(rows(index="@qid", question="@words", answer="@gold", pred="@model"), "\t"), "id = index"),
    "medevalkit.json": (rows(question="@words", answer="@gold", response="@model")[::-1],
                        "6 of 6 questions are matched by quest"),
    "pmc.csv": (csv(rows(Figure_path="@picture", Question="@words", Pred="@model", Label="@gold")[::-1]),
                "matched by image, quest"),
    "llava_med.jsonl": (by_lines(rows(question_id="@qid", prompt="p", text="@model")), "prediction = text"),
    "hub.parquet": (rows(question="@words", answer="@gold", prediction="@model"), "matched by order"),
    # 3. whole numbers
    "float_ids.csv": (csv(rows(qid="@float", pred="@model")), "question id = qid"),
    # 5. and 6. line ends, byte-order marks
    "spaces.tsv": ("id\tanswer\n" + "".join(f" {q} \t{a}\n" for q, a in reversed(MODEL.items())), "id = id"),
    "blank_lines.jsonl": ("\n\n".join(map(json.dumps, PLAIN)) + "\n", "question id = qid"),
    "bom.csv": ("\ufeff" + csv(PLAIN).replace("\n", "\r\n"), "question id = qid"),
    # 9. other forms
    "sep.csv": ("sep=;\r\n" + csv(PLAIN, ";"), "question id = qid"),
    "wrapped.json": ({"model": "x", "predictions": PLAIN}, "question id = qid"),
    "by_column.json": (pd.DataFrame(PLAIN).to_json(), "question id = qid"),
    "by_id.json": ({str(r["qid"]): {"prediction": r["prediction"]} for r in PLAIN}, "question id = question_id"),
    "index.csv": (pd.DataFrame(PLAIN).to_csv(), "question id = qid"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_files_are_read_as_they_are(made: Path, name: str) -> None:
    content, said = READ[name]
    found = scored(write(made / name, content))
    assert cell(found.table, "predictions", "overall")["correct"] == 2
    assert said in " ".join(found.notes), found.notes


CSV = "question_id,answer\n" + "".join(f"{question},no\n" for question in ANSWERS)
FULL = dict.fromkeys(ANSWERS, "no")
REFUSED = [  # file, content, and the words of the error
    # which column, which question
    ("x.csv", csv(rows(qid="@qid", answer="@gold", llava="@model")), r"\(llava, answer\); choose with --prediction"),
    ("x.csv", csv(rows(qid="@qid", remark="@model")), r"no column for the prediction.*or use --prediction COLUMN"),
    ("x.json", {"a": PLAIN, "b": PLAIN}, r"x\.json: holds the lists a, b; give one list of records"),
    ("x.csv", csv([{"id": n, "pred": "no"} for n in range(6)]), "are these the set's ids, or row numbers"),
    ("x.csv", csv(rows(question="what?", pred="@model")), "no ids of the set, and by question 6 of 6 test"),
    ("x.csv", CSV + "12,yes\n", r"x\.csv, line 8: question 12 is answered twice"),
    ("x.json", {q: a for q, a in FULL.items() if q not in ("12", "15")}, r"x\.json: 2 of 6 .* first is 12"),
    ("x.csv", CSV + ",no\n", r"line 8: question_id is missing or no id"),
    ("x.json", [{"qid": 11, "pred": "no"}, {"qid": 12}], r"record 2: pred is missing or not one text"),
    ("x.json", {**FULL, "12": ["no", "yes"]}, r"record 2: answer is missing or not one text"),
    # what is no whole file
    ("x.json", json.dumps(FULL)[:-1] + ', "16": "yes"}', r"x\.json: '16' occurs twice in an object; keep one"),
    ("x.csv", CSV.replace("answer", "question_id"), r"the header names 'question_id' twice"),
    ("x.csv", CSV + "17,left, right\n", r"line 8: not 2 cells as in the header; quote cells with ','"),
    ("x.csv", CSV + '17,"left', r"line 8: not valid CSV \(unexpected end of data\), perhaps cut off"),
    ("x.jsonl", '{"qid": 11, "pred": "no"}\n{"qid": 12, "pr', r"x\.jsonl, line 2: not valid JSON"),
    ("x.parquet", "PAR1", r"x\.parquet: cannot be read"),
    ("x.csv", b"\x80\x04N.", "a pickle may run code"),
]


@pytest.mark.parametrize(("name", "content", "said"), REFUSED)
def test_what_is_not_understood_gets_no_number(made: Path, capsys, name: str, content: object, said: str) -> None:
    path, out = write(made / name, content), made / "out.csv"
    assert cli.main(["score", str(path), "--dataset", "vqa_rad", "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert not shown.out and not out.exists()
    assert re.search(said, shown.err) and name in shown.err and shown.err.count("\n") == 1, shown.err


def test_columns_can_be_chosen(made: Path, capsys) -> None:
    path = write(made / "x.csv", csv(rows(nr="@qid", answer="@gold", llava="@model", gpt="@gold")))
    assert cli.main(["score", str(path), "--dataset", "vqa_rad", "--prediction", "llava", "--id", "nr"]) == 0
    assert "question id = nr" in capsys.readouterr().out.replace("accepted answer = answer, ", "")
    same = write(made / "y.csv", csv(rows(nr="@qid", answer="@model")))
    assert cell(scored(same, identity="nr").table, "predictions", "overall")["correct"] == 2
    assert cli.main(["score", str(path), "--dataset", "vqa_rad", "--prediction", "x"]) == 2
    assert "--prediction x: no such column" in capsys.readouterr().err


def test_answers_that_are_all_gold_are_warned_of_first_and_last(made: Path) -> None:
    for name, records in {"gold": rows(qid="@qid", answer="@gold"), "copied": rows(qid="@qid", pred="@gold")}.items():
        page = score.page(scored(write(made / f"{name}.json", records))).splitlines()
        assert page[0] == page[-1] and page[0].startswith("**WARNING**: every answer is right")


def test_questions_that_cannot_be_told_apart_are_left_out_and_said(made: Path) -> None:
    """Two questions have the same words; records without ids and images in another order."""
    path = made / "data" / "vqa_rad" / "VQA_RAD Dataset Public.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for record in content:
        record["question"] = "is it big" if record["qid"] == 13 else record["question"]
    write(path, content)
    records = [{"question": r["question"], "pred": f"answer {r['qid']}"} for r in content[:4:-1]]
    found = scored(write(made / "x.json", records))
    assert cell(found.table, "predictions", "overall")["n"] == 4
    assert found.notes[0].startswith("**WARNING**: 2 test questions are not scored")
    same = scored(write(made / "x.json", [{**r, "pred": "yes"} for r in records]))
    assert cell(same.table, "predictions", "overall")[["n", "correct"]].tolist() == [6, 2]
    one = scored(write(made / "x.json", [r for r in records if r["pred"] != "answer 13"]))  # one record for the two
    assert cell(one.table, "predictions", "overall")["n"] == 4


# --- the command and run folders ---


def test_bad_options_are_named(made: Path, capsys) -> None:
    path = write(made / "x.json", ANSWERS)
    for options, message in (
        (["--dataset", "roco"], "--dataset: roco is no question set; name one of "),
        ([], "--dataset: none given is no question set"),
    ):
        assert cli.main(["score", str(path), *options]) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and not said.out, said.err
    assert cli.main(["score", str(path), "--dataset", "vqa_rad", "--out", str(path)]) == 2
    assert "would overwrite an input file" in capsys.readouterr().err and json.loads(path.read_text()) == ANSWERS


def test_command_needs_no_torch_and_no_image(made: Path) -> None:
    path, out = write(made / "x.json", ANSWERS), made / "tables" / "out.csv"
    code = "import sys; from amif_lib.app.cli import main; status = main(); "
    code += "assert not {'torch', 'PIL'} & set(sys.modules); sys.exit(status)"
    done = python("-c", code, "score", str(path), "--dataset", "vqa_rad", "--out", str(out))
    line = next(line for line in done.stdout.splitlines() if line.startswith("| overall "))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["overall", "predictions", "6", "3", "50", "0", "100", "1"]
    stored = pd.read_csv(out, keep_default_na=False)
    assert cell(stored, "predictions", "open", "yes_no")["correct"] == 1
    assert "## as given" in done.stdout and "generate@" not in done.stdout  # whose meaning is another


def run_folder(folder: Path, training_file: str = "official1797", edit=lambda frame: frame) -> Path:
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
    spec = tiny.run(data={"questions": "vqa_rad", "training_file": training_file}).model_dump(mode="json")
    write(folder / "spec.json", spec)
    return folder


def test_a_run_folder_is_scored_under_every_protocol(made: Path) -> None:
    folder = run_folder(made / "run", edit=lambda frame: frame.iloc[::-1])
    found = score.score_file(folder)
    assert set(found.table["protocol"]) == {p.title for p in protocols.PROTOCOLS.values()}
    by_hand = {"paper": 4, "strict@1": 3, "albef@1": 3, "blip@1": 3, "generate@2": 3}
    for protocol, correct in by_hand.items():
        assert cell(found.table, "predictions", "overall", protocol=protocol)["correct"] == correct, protocol
    leaking = score.score_file(run_folder(made / "leaking", "published3064"))
    assert "strict@1" not in set(leaking.table["protocol"]) and "strict@1 is not scored" in " ".join(leaking.notes)


def test_bad_run_folders_are_named(made: Path) -> None:
    folder = run_folder(made / "run")
    with pytest.raises(InputError, match="--training-file clean2772: this run has official1797"):
        scored(folder, training_file="clean2772")
    for name, edit in (
        ("short", lambda frame: frame.iloc[:-1]),
        ("gold", lambda frame: frame.assign(gold=[["left"]] * 6)),
    ):
        with pytest.raises(InputError, match=f"{name}: its questions and accepted answers are not the data set's"):
            scored(run_folder(made / name, edit=edit))
    (folder / "spec.json").unlink()
    with pytest.raises(InputError, match=r"not a run folder"):
        scored(folder)
