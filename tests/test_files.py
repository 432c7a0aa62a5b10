"""Files are written whole or not at all: full disks and folders that cannot be written end in one line and no rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amif_lib.app import cli
from amif_lib.core import files
from amif_lib.core.errors import InputError

FULL = Path("/dev/full")  # every write to it fails as on a full disk
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def fill(path: Path) -> Path:
    """Let the disk be full for the next write of `path` by this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.temporary_file(path).symlink_to(FULL)
    return path


def questions_file(folder: Path) -> Path:
    rows = [
        {"split": split, "image": f"{split}.jpg", "question": f"Is it {split}?", "answer": "yes"}
        for split in ("train", "test")
    ]
    (folder / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "questions.json"


def test_what_is_whole_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "one\n")
    files.write_text(path, "zwei ü\n")
    assert path.read_bytes() == "zwei ü\n".encode() and list(path.parent.iterdir()) == [path]
    with pytest.raises(KeyError), files.atomic_write(path) as aside:
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
