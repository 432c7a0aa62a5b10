"""Linting, the size of the library, and what must not stand in a committed file."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, python

MOST_LINES = 450  # of one file of the library; about 350 is the aim
BINARY = {".png", ".pdf", ".parquet", ".npz", ".safetensors"}
# Written in parts, so that this file does not find itself.
REGISTRIES = ("pypi" + ".org", "python" + "hosted", "--index" + "-url", "--find" + "-links", "--extra" + "-index")
MACHINE = ("/" + "work/", "/" + "root/", "/opt/" + "wheels", "/home/" + "runner")
UNSAFE = ("pickle" + ".load", "trust_remote_code" + "=True", "os." + "system(", "yaml." + "load(", "eval" + "(input")


def files() -> list[Path]:
    """Tracked and new files of the repository; every file where this is not a git checkout."""
    if shutil.which("git"):
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, text=True)
        if listed.returncode == 0 and listed.stdout:
            return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", ".git", "__pycache__", "data", ".snakemake", ".ruff_cache", ".pytest_cache"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


def library() -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and path.is_relative_to(ROOT / "amif_lib")]


def test_ruff_finds_nothing() -> None:
    pytest.importorskip("ruff")
    python("-m", "ruff", "check", "--no-cache", "--output-format", "concise", ".")


def test_no_file_of_the_library_is_long() -> None:
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in library()}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_no_registry_and_no_path_of_a_machine() -> None:
    found = []
    for path in files():
        if path.suffix not in BINARY and path.stat().st_size < 20e6:
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}: {word}" for word in (*REGISTRIES, *MACHINE) if word in text]
    assert found == []


def test_no_unsafe_loading_in_the_library() -> None:
    for path in library():
        text = path.read_text(encoding="utf-8")
        assert not [word for word in UNSAFE if word in text], path
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^)]*\)", text)), path


def test_every_module_says_what_it_is() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in library()}
    assert not [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)]


def test_large_and_private_files_are_not_committed() -> None:
    weights = [path for path in files() if path.match("results/reference/*/runs/*/model/*.safetensors")]
    assert (
        sum(path.stat().st_size for path in weights) < 8_000_000
    )  # the full model's; results together: test_reference
    large = [path.relative_to(ROOT).as_posix() for path in files() if path.stat().st_size > 2_000_000]
    assert set(large) <= {path.relative_to(ROOT).as_posix() for path in weights}
    private = (ROOT / "data", ROOT / "results" / "private")
    assert not [path for path in files() if any(path.is_relative_to(folder) for folder in private)]
