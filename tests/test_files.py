"""Files are written whole or not at all: full disks and folders that cannot be written end in one line and no rest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from amif_lib.app import cli
from amif_lib.core import files

FULL = Path("/dev/full")  # every write to it fails as on a full disk


def test_what_is_whole_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "one\n")
    files.write_text(path, "zwei ü\n")
    assert path.read_bytes() == "zwei ü\n".encode() and list(path.parent.iterdir()) == [path]
    with pytest.raises(KeyError), files.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_bytes() == "zwei ü\n".encode() and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("reason", ["Not a directory", "it is a folder", "No space left on device"])
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path, capsys, reason: str) -> None:
    common = {"image": "a.jpg", "question": "Is it?", "answer": "yes"}
    given, out = tmp_path / "questions.json", tmp_path / "out" / "table.csv"
    given.write_text(json.dumps([{"split": split, **common} for split in ("train", "test")]), encoding="utf-8")
    out.parent.mkdir()
    if reason == "Not a directory":
        out = given / "below" / "table.csv"
    elif reason == "it is a folder":
        out = out.parent
    elif FULL.exists():
        out.with_name(f".{out.name}.{os.getpid()}").symlink_to(FULL)  # where it is written before it is renamed
    else:
        pytest.skip("needs /dev/full")
    assert cli.main(["leaks", str(given), "--out", str(out)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {out}: cannot be written ({reason}); give ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == []
