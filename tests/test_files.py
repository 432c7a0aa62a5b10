"""Files are written whole or not at all: full disks and folders that cannot be written end in one line and no rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from amif_lib.app import cli
from amif_lib.core import files
from amif_lib.core.errors import InputError
from amif_lib.data.records import Question
from amif_lib.reporting import figures
from amif_lib.scoring import baselines

FULL = Path("/dev/full")  # every write to it fails as on a full disk
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def fill(path: Path) -> Path:
    """Let the disk be full for the next write of `path` by this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.aside_of(path).symlink_to(FULL)
    return path


def questions_file(folder: Path) -> Path:
    rows = [
        {"split": split, "image": f"{split}.jpg", "question": f"Is it {split}?", "answer": "yes"}
        for split in ("train", "test")
    ]
    (folder / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "questions.json"


def question(number: int, split: str) -> Question:
    return Question(str(number), f"i{number}", Path(f"i{number}.jpg"), "is it?", ("yes",), split, True, True, "other")


def test_what_is_whole_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "one\n")
    files.write_text(path, "zwei ü\n")
    assert path.read_bytes() == "zwei ü\n".encode() and list(path.parent.iterdir()) == [path]
    with pytest.raises(KeyError), files.write_aside(path) as aside:
        aside.write_text("half")
        raise KeyError
    assert path.read_bytes() == "zwei ü\n".encode() and list(path.parent.iterdir()) == [path]


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, Path()):
        with pytest.raises(InputError, match="cannot be written"):
            files.write_text(path, "x")
    assert list(tmp_path.iterdir()) == []


def test_out_below_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = questions_file(tmp_path)
    out = given / "sub" / "table.csv"
    assert cli.main(["leaks", str(given), "--out", str(out)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert (
        said
        == f"error: {out}: cannot be written (Not a directory); give --out a folder with room that you may write to"
    )


@needs_full
def test_out_on_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = questions_file(tmp_path), fill(tmp_path / "out" / "table.csv")
    assert cli.main(["leaks", str(given), "--out", str(out)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "table.csv: cannot be written (No space left on device)" in said and list(out.parent.iterdir()) == []
    assert cli.main(["leaks", str(given), "--out", str(out)]) == 0 and list(out.parent.iterdir()) == [out]


def _figure(folder: Path) -> None:
    figure, _ = plt.subplots()
    try:
        figures.save(figure, folder / "f", pd.DataFrame({"a": [1]}), "caption")
    finally:
        plt.close(figure)


def _baselines(folder: Path) -> None:
    baselines.stored("demo", "made", "default")


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "figure": ("f.svg", _figure),
    "figure's numbers": ("f.csv", _figure),
    "figure's caption": ("f.txt", _figure),
    "baselines": (f"demo/baselines/made-default-0-{baselines.RULES}.parquet", _baselines),
}


@needs_full
@pytest.mark.parametrize("kind", WRITERS)
def test_writers_leave_nothing_on_a_full_disk(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    monkeypatch.setenv("AMIF_RESULTS", str(folder))
    monkeypatch.setattr("amif_lib.data.manifests.derived_folder", lambda _: folder)
    monkeypatch.setattr(baselines, "data_digest", lambda _: "0")
    monkeypatch.setattr("amif_lib.data.manifests.folder_for", lambda place, **_: place)
    asked = [question(1, "train"), question(2, "test")]
    monkeypatch.setattr("amif_lib.data.load.load_questions", lambda *_, **__: asked)
    name, write = WRITERS[kind]
    path = fill(folder / name)
    with pytest.raises(InputError, match=r"cannot be written \(.*No space left on device") as caught:
        write(folder)
    assert "\n" not in str(caught.value) and path.name in str(caught.value) and "set AMIF_" in str(caught.value)
    assert not path.exists() and not [other for other in folder.rglob(".*") if other.is_symlink() or other.is_file()]
