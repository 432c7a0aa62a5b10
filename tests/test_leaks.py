"""Leak report: the counts of the research on the real files, hand-made files counted by hand, and the command."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pandas as pd
import pytest

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.records import Question
from amif_lib.reporting import audit_sources
from amif_lib.scoring import leaks, question_files


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def numbers(line: pd.Series, *names: str) -> list[float]:
    return [float(line[name]) for name in names]


# --- the real files; what manifests record was counted by other means ---


@pytest.mark.parametrize("name", ["vqa_rad", "slake"])
def test_the_leaks_that_manifests_record(name: str, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location, slake = manifests.location, real_data / "slake_annotations"
    monkeypatch.setattr(manifests, "location", lambda name: slake if name == "slake" else location(name))
    measured = leaks.report(name).set_index(["training_file", "training", "test"])
    for variant in manifests.load(name).variants:
        assert variant.leaks_expected
        for expected in map(dict, variant.leaks_expected):
            row = measured.loc[variant.name, expected.pop("training", "train"), expected.pop("test", "test")]
            assert {key: row[key] for key in expected} == pytest.approx(expected, abs=0.006)


def test_official_file_by_itself_gives_the_same_line(real_data: Path) -> None:
    """The sniffing loader and the data set's reader agree in every column, on the JSON as it was released."""
    path = real_data / "vqa_rad" / "VQA_RAD Dataset Public.json"
    ours, read = question_files.compare([str(path)]).iloc[0], leaks.report("vqa_rad").iloc[0]
    for name in leaks.COLUMNS[len(leaks.ABOUT) :]:
        assert ours[name] == read[name], name


def test_training_file_given_apart(real_data: Path, tmp_path: Path) -> None:
    """The 3064 file as it circulates (no split, MEVF's fields) against the official test questions."""
    path = real_data / "vqa_rad" / "VQA_RAD Dataset Public.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    training = [r for r in content if not r["phrase_type"].startswith("test")]
    training += [{**r, "question": r["question_frame"]} for r in content if r["question_frame"] != "NULL"]
    kept = ("qid", "image_name", "question", "answer", "answer_type", "phrase_type")
    other = tmp_path / "trainset.json"
    other.write_text(json.dumps([{key: record[key] for key in kept} for record in training]), encoding="utf-8")
    line = question_files.compare([str(path)], train=[str(other)]).iloc[0]
    assert numbers(line, "n_train", "n_test", "paraphrase_in_train", "repeated_in_train") == [3064, 451, 284, 14]


# --- by hand ---

RECORDS = [  # image, question, answer, split, what else
    ("a", "Is there a mass?", "Yes", "train", {}),
    ("a", "where  is the MASS", "left lung", "train", {}),
    ("b", "what modality is this", "CT", "train", {}),
    ("b", "is this a ct", "yes", "train", {}),
    ("d", "is this a ct", "yes", "val", {}),
    ("a", "is there a mass?", "yes", "test", {}),  # repeated outright
    ("a", "Where can the mass be seen", "left  lung", "test", {"frame": "Where is the mass"}),  # paraphrase, its answer
    ("a", "Where is a mass", "right lung", "test", {"rephrase": "Where is the mass"}),  # paraphrase, another answer
    ("b", "is this an mri", "no", "test", {}),  # answer unseen
    ("c", "what modality is this", "ct", "test", {}),  # its words are in training; its image is not
    ("d", "what modality is this", "mri", "test", {"closed": True}),  # image only in validation; unseen
]


def records() -> list[dict]:
    return [
        {"image": image, "question": question, "answer": answer, "split": split, **more}
        | {"answer_type": "CLOSED" if answer.lower() in ("yes", "no") or "closed" in more else "OPEN"}
        for image, question, answer, split, more in RECORDS
    ]


def questions(folder: Path, made: list[dict]) -> list[Question]:
    names = {"rephrase": "question_rephrase", "frame": "question_frame"}
    plain = [{names.get(key, key): value for key, value in record.items()} for record in made]
    return question_files.read(write(folder / "made.json", plain))[0]


def test_counts_against_brute_force(tmp_path: Path) -> None:
    """Random small sets: every count again, by comparing each pair of a training and a test question."""
    random.seed(3)

    def any_of(train: list[dict], **wanted: str) -> bool:
        return any(all(" ".join(t[k].split()).lower() == v for k, v in wanted.items()) for t in train)

    for _ in range(15):
        made = [
            {"image": random.choice("abcdef"), "question": random.choice(["q  one", "Q two", "q three"]),
             "answer": random.choice(["yes", "No", "x", "Y y", "z"]), "split": random.choice(["train", "test"]),
             "frame": random.choice(["q two", "q nine", ""])}
            for _ in range(14)
        ]  # fmt: skip
        train, test = ([r for r in made if r["split"] == split] for split in ("train", "test"))
        plain = [{k: " ".join(v.split()).lower() for k, v in r.items()} for r in test]
        whole = [{k: r[k] for k in ("image", "question", "answer")} for r in plain]
        got = leaks.lines(questions(tmp_path, made)).iloc[0]
        assert got["on_train_image"] == sum(any_of(train, image=r["image"]) for r in plain)
        assert got["unseen_answer"] == sum(not any_of(train, answer=r["answer"]) for r in plain)
        repeated = [any_of(train, **own) for own in whole]
        reworded = [any_of(train, **own | {"question": r["frame"]}) for own, r in zip(whole, plain, strict=True)]
        assert got["repeated_in_train"] == sum(repeated)
        assert got["paraphrase_in_train"] == sum(map(max, repeated, reworded))


def test_counts_by_hand(tmp_path: Path) -> None:
    table = leaks.lines(questions(tmp_path, records()))
    assert list(table["training"]) == ["train"]
    line = table.iloc[0]
    assert numbers(line, "n_train", "n_test", "train_images", "test_images") == [4, 6, 2, 4]
    assert numbers(line, "test_images_in_train", "on_train_image") == [2, 4]
    assert numbers(line, "paraphrase_in_train", "repeated_in_train", "unseen_answer") == [2, 1, 3]
    assert line["ceiling_overall"] == 50 and line["ceiling_open"] == 66.67 and line["ceiling_closed"] == 33.33
    assert line["ceiling_open_yes_no"] == 50 and line["ceiling_closed_yes_no"] == 50
    # look-up: yes, left lung (right); left lung (wrong); b: ct question -> yes (wrong); no image: yes, yes (wrong)
    assert line["lookup_overall"] == 33.33 and line["most_frequent_overall"] == 16.67


# --- files ---


def as_tuples(found: list[Question]) -> set[tuple]:
    return {(q.image_id, q.question, q.answers, q.split, q.closed_field) for q in found}


EXPECTED = {("i 1", "Is it?", ("yes",), "train", True), ("i 2", "What is it?", ("ct",), "test", False)}
LAYOUTS = {
    "plain.json": [
        {"image": "i 1.jpg", "question": "Is it?", "answer": "Yes", "split": "train"},
        {"image": "i 2.PNG", "question": " What  is it?", "answer": "CT", "split": "TEST"},
    ],
    "mevf.json": [
        {"qid": 1, "image_name": "i 1.jpg", "question": "Is it?", "answer": "Yes", "answer_type": "CLOSED ",
         "phrase_type": "para"},
        {"qid": "2", "image_name": "i 2.jpg", "question": "What is it?", "answer": "ct", "answer_type": "OPEN",
         "phrase_type": "test_freeform"},
    ],
    "vqa.json": {
        "info": "x",
        "questions": [
            {"image_id": "i 1", "question": "Is it?", "answers": [{"answer": "yes"}], "split": "training"},
            {"image_id": "i 2", "question": "What is it?", "answers": ["CT"], "split": "test"},
        ],
    },
    "table.csv": '\ufeffimg_name,question,answer,split\ni 1.jpg,"Is it?",Yes,train\ni 2.jpg,What is it?,ct,test\n',
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    assert as_tuples(question_files.read(write(tmp_path / name, LAYOUTS[name]))[0]) == EXPECTED


GOOD = LAYOUTS["plain.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", [{"picture": "a", "question": "b", "answer": "c"}], r"no column for the image .*answer, picture, q"),
        ("x.json", [GOOD[0], {**GOOD[1], "answer": None}], "record 2: answer is missing"),
        ("x.json", [{**GOOD[0], "split": "fold 3"}], r"record 1: split is 'fold 3'; use train, val or test"),
        ("x.json", [{**GOOD[0], "answer_type": "maybe"}], r"record 1: answer_type is 'maybe'"),
        ("x.json", [{k: v for k, v in GOOD[0].items() if k != "split"}], "neither a field nor its name says"),
        ("x.json", [{**GOOD[0], "answer": float("nan")}], "record 1: answer is missing"),
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        question_files.read(write(tmp_path / name, content))
    assert "\n" not in str(caught.value) and name in str(caught.value)


# --- what the leak is worth ---

NO = {"answer": "no"}  # the most frequent answer, for images without a training question


def test_what_the_leak_is_worth_by_brute_force(real_data: Path) -> None:
    """From VQA-RAD's JSON alone: which test questions leak, and what the nearest training question answers."""
    content = json.loads((real_data / "vqa_rad" / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    for r in content:
        r["answer"] = " ".join(str(r["answer"]).lower().split())
        texts = [r.get(key) for key in ("question", "question_rephrase", "question_frame")]
        r["words"] = [re.findall(r"\w+", text.lower()) for text in texts if text not in ("NULL", None)]
    test = [r for r in content if r["phrase_type"].startswith("test")]
    files: dict[str, list[dict]] = {"official1797": [], "published3064": []}
    for r in content:
        official = [] if r in test else [{**r, "words": r["words"][:1]}]
        frame = [{**r, "words": r["words"][-1:]}] if r["question_frame"] != "NULL" else []
        files["official1797"] += official
        files["published3064"] += official + frame
    assert [len(file) for file in files.values()] == [1797, 3064]

    def nearest(r: dict, training: list[dict]) -> str:
        near, own = [t for t in training if t["image_name"] == r["image_name"]], set(r["words"][0])
        return max(near, key=lambda t: len(own & {*t["words"][0]}) / len(own | {*t["words"][0]}), default=NO)["answer"]

    leaked = [
        r for r in test if any(t["image_name"] == r["image_name"] and t["answer"] == r["answer"]
                               and t["words"][0] in r["words"] for t in files["published3064"])
    ]  # fmt: skip
    audit_sources.questions.cache_clear()
    marks, names = ("import textwrap", "pictures = {}, {}", "LEAKING", "learnt"), {}
    for cell in json.loads((paths.NOTEBOOKS / "21_paper_audit.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and any(mark in "".join(cell["source"]) for mark in marks):
            exec("".join(cell["source"]), names)
    _, found, caption = names["pictures"]["leak_worth"]
    found = found.set_index(["system", "training_file", "part"]).loc["nearest question on the same image"]
    assert len(leaked) == 284 and "284 of the 451" in caption
    for name, training in files.items():
        for part, some in (("leaked", leaked), ("other", [r for r in test if r not in leaked])):
            right = sum(nearest(r, training) == r["answer"] for r in some)
            assert found.loc[(name, part), "n"] == len(some)
            assert found.loc[(name, part), "accuracy"] == pytest.approx(100 * right / len(some))


# --- what is the same in two files ---


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
        by_line = json.dumps(qa("a.jpg", other))
        content = f"image,question,answer\na.jpg,{other},lung\n" if name.endswith("csv") else by_line
        found, _ = line([write(tmp_path / name, content.replace("\\u2028", "\u2028"))], [test])
        assert (found["n_train"], found["repeated_in_train"]) == (1, 1)


def test_a_file_name_is_not_beaten_by_a_field_without_a_word(tmp_path: Path) -> None:
    """The circulating MEVF pair: `freeform` and `para` in both files."""
    records = [qa("a.jpg", phrase_type="freeform"), qa("b.jpg", phrase_type="para")]
    files = [str(write(tmp_path / name, records)) for name in ("trainset.json", "testset.json")]
    said: list[str] = []
    found = question_files.compare(files, say=said.append).iloc[0]
    assert (found["n_train"], found["n_test"]) == (2, 2)
    assert (
        "against" not in said[0] and "every record is test, by the file's name and against its phrase_type" in said[1]
    )
    question_files.compare([], [files[1]], [files[0]], said.append)
    assert "2 train; fields" in said[2] and "every record" not in said[2]
    assert pd.isna(found["paraphrase_in_train"])


# --- the command ---


def test_command_prints_the_table_and_writes_only_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = write(tmp_path / "mine.json", records())
    assert cli.main(["leaks", "mine.json"]) == 0
    out = capsys.readouterr().out
    assert "4 train, 1 val, 6 test" in out and "fields: question, answer, image, split" in out
    row = next(line for line in out.splitlines() if line.startswith("| test questions on such an image"))
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["4"]
    assert list(tmp_path.iterdir()) == [made]
    assert cli.main(["leaks", "mine.json", "--out", "made/leaks.csv"]) == 0
    stored = pd.read_csv(tmp_path / "made" / "leaks.csv")
    assert list(stored.columns) == list(leaks.COLUMNS) and stored["on_train_image"].tolist() == [4]
    assert cli.main(["leaks", "mine.json", "--out", "mine.json"]) == 2 and json.loads(made.read_text()) == records()
