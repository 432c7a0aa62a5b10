"""Files as people and public tools write them: what is read as what, and what is refused in which words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from amif_lib.app import cli
from amif_lib.core.errors import InputError
from amif_lib.scoring import question_files, score, statistics, user_files
from tests import test_score
from tests.test_score import cell, write

made = test_score.made  # DATA_ROOT with a set of 6 test questions, 11 to 16
TEST = [record for record in test_score.RECORDS if str(record[1]).startswith("test")]
GOLD = {str(record[0]): record[4] for record in TEST}
MODEL = {"11": "yes", "12": "left lung", "13": "yes", "14": "no", "15": "no", "16": "no"}  # right: 11 and 12


def rows(**columns: object) -> list[dict]:
    """A record per test question, whose fields are functions of a record of the set or constants."""
    return [{name: of(record) if callable(of) else of for name, of in columns.items()} for record in TEST]


def number(record: tuple) -> int:
    return int(record[0])


def gold(record: tuple) -> str:
    return record[4]


def model(record: tuple) -> str:
    return MODEL[str(record[0])]


def words(record: tuple) -> str:
    return record[3]


def picture(record: tuple) -> str:
    return f"images\\{record[2]}.JPG"


def csv(records: list[dict], delimiter: str = ",") -> str:
    return pd.DataFrame(records).to_csv(index=False, sep=delimiter)


def by_lines(records: list[dict]) -> str:
    return "\n".join(map(json.dumps, records))


def stored(path: Path, content: object) -> Path:
    if path.suffix == ".parquet":
        pd.DataFrame(content).to_parquet(path)
        return path
    return write(path, content)


PLAIN = rows(qid=number, prediction=model)
FLOATS = csv(rows(qid=lambda record: f"{record[0]}.0", pred=model))
LMMS = [
    {"doc_id": n, "doc": {"question": r[3], "answer": r[4]}, "target": r[4], "filtered_resps": [model(r)],
     "resps": [[model(r)]]} for n, r in enumerate(TEST)
]  # fmt: skip
READ = {  # file -> content, and what the page says; every one has 2 of 6 right
    # 1. the gold column is never the prediction
    "response.json": (rows(qid=number, answer=gold, response=model, correct=True), "prediction = response"),
    "answer_pred.json": (rows(question_id=number, answer=gold, answer_pred=model), "it is the set's in 6 of 6"),
    "model_answer.csv": (csv(rows(qid=number, answer=gold, model_answer=model)),
                         "answer is read as the accepted answer"),
    "raw.csv": (csv(rows(qid=number, answer="?", pred_answer=model)), "use --prediction answer"),
    "one_model.csv": (csv(rows(qid=number, question=words, answer=gold, llava=model)), "prediction = llava"),
    # 2. known tools
    "lmms.jsonl": (by_lines(LMMS), "matched by order and words"),
    "eval_ever.jsonl": (by_lines([{"sample_id": n, "input": {"raw": r[3], "reference": r[4]},
                                   "output": {"raw": model(r)}}
                                  for n, r in enumerate(TEST)]), "prediction = output.raw"),
    "vlmevalkit.tsv": (csv(rows(index=number, question=words, answer=gold, prediction=model), "\t"), "id = index"),
    "medevalkit.json": (rows(question=words, answer=gold, response=model)[::-1],
                        "6 of 6 questions are matched by quest"),
    "pmc.csv": (csv(rows(Figure_path=picture, Question=words, Pred=model, Label=gold)[::-1]),
                "matched by image, quest"),
    "llava_med.jsonl": (by_lines(rows(question_id=number, prompt="p", text=model, model_id="m")), "prediction = text"),
    "hub.parquet": (rows(question=words, answer=gold, prediction=model), "matched by order"),
    "row_index.json": ([{"id": n + 11, "question": r[3], "pred": model(r)} for n, r in enumerate(TEST[::-1])],
                       "6 of 6"),
    # 3. whole numbers
    "float_ids.csv": (FLOATS, "question id = qid"),
    "float_ids.parquet": (rows(qid=lambda record: float(record[0]), pred=model), "question id = qid"),
    # 5. and 6. line ends, byte-order marks
    "spaces.tsv": ("id\tanswer\n" + "".join(f" {q} \t{a}\n" for q, a in reversed(MODEL.items())), "id = id"),
    "blank_lines.jsonl": ("\n\n".join(map(json.dumps, PLAIN)) + "\n", "Not scored: paper, strict@1, albef@1, blip@1"),
    "bom.csv": ("\ufeff" + csv(PLAIN).replace("\n", "\r\n"), "question id = qid"),
    # 9. other forms
    "array.jsonl": (PLAIN, "question id = qid"),
    "semicolons.csv": (csv(PLAIN, ";"), "question id = qid"),
    "tabs.csv": (csv(PLAIN, "\t"), "question id = qid"),
    "sep.csv": ("sep=;\r\n" + csv(PLAIN, ";"), "question id = qid"),
    "wrapped.json": ({"model": "x", "predictions": PLAIN}, "question id = qid"),
    "by_column.json": (pd.DataFrame(PLAIN).to_json(), "question id = qid"),
    "by_list.json": ({key: [record[key] for record in PLAIN] for key in PLAIN[0]}, "question id = qid"),
    "by_id.json": ({str(r["qid"]): {"prediction": r["prediction"]} for r in PLAIN}, "question id = question_id"),
    "index.csv": (pd.DataFrame(PLAIN).to_csv(), "question id = qid"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_files_are_read_as_they_are(made: Path, name: str) -> None:
    content, said = READ[name]
    found = score.score_file(stored(made / name, content), "vqa_rad")
    assert cell(found.table, "predictions", "overall")["correct"] == 2
    assert said in " ".join(found.notes), found.notes


REFUSED = {  # file -> content, and the words of the error
    "two_models.csv": (csv(rows(qid=number, answer=gold, llava=model, gpt=model)),
                       r"\(llava, gpt, answer\); .*--prediction"),
    "two_names.csv": (csv(rows(qid=number, response=model, output=gold)), r"\(response, output\).*--prediction COLUMN"),
    "unsure.csv": (csv(rows(qid=number, answer="?", remark=model)), r"may be in answer or remark; choose with --pred"),
    "organ.csv": (csv(rows(qid=number, remark=model)), r"no column for the prediction.*or use --prediction COLUMN"),
    "rows.csv": (csv([{"id": n, "pred": "no"} for n in range(6)]), "0 to 5 are row numbers, as the hub's files have"),
    "one_off.csv": (csv([{"id": int(q) + 1, "pred": "no"} for q in GOLD]), "they are the set's ids plus 1"),
    "other_words.csv": (csv(rows(question="what?", pred=model)), "no ids of the set, and by question 6 of 6 test"),
    "short.csv": (csv(rows(qid=number, question=words, pred=model)[:4]), "2 of 6 test questions have no prediction"),
    "utf16.csv": (csv(PLAIN).encode("utf-16"), "not UTF-8"),
    "model.pkl": (b"\x80\x04N.", "a pickle may run code"),
    "pickle.csv": (b"\x80\x04N.", "a pickle may run code"),
    "cut.parquet": (b"PAR1", "cannot be read"),
    "columns.json": ({"qid": [1, 2], "answer": ["a"]}, "columns of different lengths"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_gets_no_number(made: Path, capsys, name: str) -> None:
    content, said = REFUSED[name]
    path = made / name
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    assert cli.main(["score", str(path), "--dataset", "vqa_rad"]) == 2
    shown = capsys.readouterr()
    assert not shown.out and re.search(said, shown.err) and shown.err.count("\n") == 1, shown.err


def test_columns_can_be_chosen(made: Path, capsys) -> None:
    path = write(made / "x.csv", csv(rows(nr=number, answer=gold, llava=model, gpt=gold)))
    assert cli.main(["score", str(path), "--dataset", "vqa_rad", "--prediction", "llava", "--id", "nr"]) == 0
    assert "question id = nr" in capsys.readouterr().out.replace("accepted answer = answer, ", "")
    assert cli.main(["score", str(path), "--dataset", "vqa_rad", "--prediction", "x"]) == 2
    assert "--prediction x: no such column" in capsys.readouterr().err


def test_answers_that_are_all_gold_are_warned_of_first_and_last(made: Path) -> None:
    for name, records in {"gold": rows(qid=number, answer=gold), "copied": rows(qid=number, pred=gold)}.items():
        page = score.page(score.score_file(write(made / f"{name}.json", records), "vqa_rad")).splitlines()
        assert page[0] == page[-1] and page[0].startswith("**WARNING**: every answer is the accepted one")


def test_questions_that_cannot_be_told_apart_are_left_out_and_said(made: Path) -> None:
    """Two questions have the same words; records without ids and images in another order."""
    path = made / "data" / "vqa_rad" / "VQA_RAD Dataset Public.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for record in content:
        record["question"] = "is it big" if record["qid"] == 13 else record["question"]
    write(path, content)
    records = [{"question": r["question"], "pred": f"answer {r['qid']}"} for r in content[:4:-1]]
    found = score.score_file(write(made / "x.json", records), "vqa_rad")
    assert cell(found.table, "predictions", "overall")["n"] == 4
    assert found.notes[0].startswith("**WARNING**: 2 test questions are not scored")
    same = score.score_file(write(made / "x.json", [{**r, "pred": "yes"} for r in records]), "vqa_rad")
    assert cell(same.table, "predictions", "overall")[["n", "correct"]].tolist() == [6, 2]


LENIENT = [  # answer, accepted answer, reading that makes it right
    ("yes, it is.", "yes", "by the yes or no in them"),
    ("i think that the answer is no", "no", "by the yes or no in them"),
    ("yes and no", "no", ""),
    ("abnormal", "no", ""),
    ("the image shows the left lung.", "left lung", "as they contain it"),
    (r"\boxed{left lung}", "left lung", "without \\boxed{}"),
    ("left lung</s>", "left lung", "without \\boxed{}"),
    ("yes<|im_end|>", "yes", "without \\boxed{}"),
    ("ＭＲＩ", "mri", "without \\boxed{}"),
    ("\u200byes", "yes", "without \\boxed{}"),
    ("The left-lung.", "left lung", "without punctuation and articles"),
    ("right lung", "left lung", ""),
]


@pytest.mark.parametrize(("answer", "accepted", "reading"), LENIENT)
def test_lenient_readings(answer: str, accepted: str, reading: str) -> None:
    assert score.reading(answer, accepted).startswith(reading) and bool(score.reading(answer, accepted)) == bool(
        reading
    )


def test_lenient_readings_stand_beside_the_score(made: Path) -> None:
    found = score.score_file(write(made / "x.json", {q: f"It is {a}." for q, a in GOLD.items()}), "vqa_rad")
    assert cell(found.table, "predictions", "overall")[["correct", "lenient"]].tolist() == [0, 6]
    assert "6 wrong answers would be right under a lenient reading (not scored)" in " ".join(found.notes)


def test_smallest_detectable_difference(made: Path) -> None:
    """With a standard error of 1, 80% power and a two-sided 5%: 1.96 + 0.84 (Bloom 1995, table 1)."""
    assert statistics.detectable(statistics.Estimate(5, 5 - 1.959964, 5 + 1.959964)) == pytest.approx(2.80, abs=0.005)
    assert "smallest detectable" in score.page(score.score_file(write(made / "x.json", PLAIN), "vqa_rad"))


@pytest.mark.parametrize("value", [2, 2.0, "2", "2.0", " 2.00 "])
def test_whole_numbers_are_one_thing(value: object) -> None:
    assert user_files.whole(value) == "2" and user_files.whole("2.5") == "2.5"


# --- questions ---


def qa(image: str, question: str = "what is it?", answer: object = "lung", **more: object) -> dict:
    return {"image": image, "question": question, "answer": answer, **more}


def line(train: list[Path], test: list[Path]) -> tuple[pd.Series, str]:
    said: list[str] = []
    return question_files.compare([], list(map(str, train)), list(map(str, test)), said.append).iloc[0], " ".join(said)


IMAGES = [  # names in training, names in test, test questions on an image of training
    (["VQA/a.jpg", "VQA/b.jpg"], ["a.jpg", "c.jpg"], 1),
    (["./imgs/x1/source.jpg", "./imgs/x2/source.jpg"], ["x1/source.jpg", "x3/source.jpg"], 1),
    (["C:\\data\\a.PNG"], ["/other/a.jpg"], 1),
    (["a/1.jpg", "b/1.jpg"], ["c/1.jpg"], 0),
]


@pytest.mark.parametrize(("train", "test", "shared"), IMAGES)
def test_an_image_is_the_same_image(tmp_path: Path, train: list[str], test: list[str], shared: int) -> None:
    files = [write(tmp_path / f"{n}.json", [qa(name) for name in names]) for n, names in enumerate((train, test))]
    found, said = line(files[:1], files[1:])
    assert found["on_train_image"] == shared and ("images compared by the last" in said or not shared)


def test_pictures_in_parquet_are_compared_by_content(tmp_path: Path) -> None:
    for name, content in (("train", b"1"), ("test", b"1"), ("other_test", b"2")):
        pd.DataFrame([qa({"bytes": content, "path": None})]).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    train, test, other = (tmp_path / f"{name}-00000-of-00001.parquet" for name in ("train", "test", "other_test"))
    assert line([train], [test])[0]["on_train_image"] == 1 and line([train], [other])[0]["on_train_image"] == 0


@pytest.mark.parametrize(
    "other", ["What  is it ?", "what is it？", "What\u2028is it?", "what\x0cis it?", "what\x85is it?"]
)
def test_questions_are_compared_without_what_is_only_typed(tmp_path: Path, other: str) -> None:
    """Neither are line separators within a record ends of it, in any format."""
    test = write(tmp_path / "test.json", [qa("a.jpg")])
    for name in ("train.csv", "train.jsonl"):
        content = (
            f"image,question,answer\na.jpg,{other},lung\n" if name.endswith("csv") else by_lines([qa("a.jpg", other)])
        )
        found, _ = line([write(tmp_path / name, content.replace("\\u2028", "\u2028"))], [test])
        assert (found["n_train"], found["repeated_in_train"]) == (1, 1)


def test_a_file_name_is_not_beaten_by_a_field_without_a_word(tmp_path: Path) -> None:
    """The circulating MEVF pair: `freeform` and `para` in both files."""
    records = [qa("a.jpg", phrase_type="freeform"), qa("b.jpg", phrase_type="para")]
    files = [str(write(tmp_path / name, records)) for name in ("trainset.json", "testset.json")]
    said: list[str] = []
    found = question_files.compare(files, say=said.append).iloc[0]
    assert (found["n_train"], found["n_test"]) == (2, 2)
    assert "CONFLICT" not in said[0]
    assert (
        "CONFLICT: its phrase_type says train, its name test, read as test; --train or --test FILE decides" in said[1]
    )
    question_files.compare([], [files[1]], [files[0]], said.append)
    assert "CONFLICT: its phrase_type says train, its name test, read as train" in said[2]
    assert "CONFLICT: its phrase_type says train, its name train, read as test" in said[3]
    assert pd.isna(found["paraphrase_in_train"])


def test_whole_numbers_and_missing_answers_in_questions(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "image,question,answer\na,how many?,2.0\n")
    test = write(tmp_path / "test.json", [qa("a", "how many?", 2)])
    assert line([train], [test])[0]["repeated_in_train"] == 1
    with pytest.raises(InputError, match="record 1: answer is missing"):
        question_files.read(write(tmp_path / "test.json", '[{"image": "a", "question": "b", "answer": NaN}]'))
