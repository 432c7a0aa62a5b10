"""Hygiene of the committed notebooks: what a reader, a diff and a headless run rely on."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MEDIAN_LINES, MOST_LINES, TEACHING_LINES = 7, 40, 8
ABSOLUTE = re.compile(r"""(?<![\w.:/])(?:/(?:home|root|Users|mnt|data|tmp|opt|work|scratch|var|usr)/|[A-Za-z]:\\)""")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest):
    return nbformat.read(request.param, as_version=4)


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_notebooks_are_numbered_and_named() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert names, "no notebooks"
    assert all(re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+", name) for name in names), names
    numbers = [name.split("_")[0] for name in names]
    assert len(numbers) == len(set(numbers)), "two notebooks share a number"
    assert {"00", "99"} <= set(numbers)


def test_notebook_is_valid_and_has_no_outputs(notebook) -> None:
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.source
        assert not set(cell.metadata) - {"tags", "jupyter", "slideshow"}, cell.metadata
    assert not set(notebook.metadata) - {"kernelspec", "language_info"}, "metadata of an editor or of an execution"


def test_one_parameters_cell_of_plain_assignments_comes_first(notebook) -> None:
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0].source == code(notebook)[0], "the parameters cell is the first code cell"
    for line in tagged[0].source.splitlines():
        assert re.fullmatch(r"\s*(#.*)?|\w+(\s*:\s*[\w\[\]| ]+)?\s*=\s*.+", line), line


def test_cells_are_small_and_the_first_and_last_do_their_part(notebook) -> None:
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    skipped = re.compile(r"\s*(#|$)|import |from \S+ import ")  # and, of 02a to 02c, the checks of exercises
    cells = [c.source for c in notebook.cells if c.cell_type == "code" and "check" not in c.metadata.get("tags", ())]
    lines = [len([line for line in source.splitlines() if not skipped.match(line)]) for source in cells]
    most = TEACHING_LINES if first.source.startswith("# 02") else MOST_LINES
    assert statistics.median(lines) <= MEDIAN_LINES and max(lines) <= most, lines
    assert re.search(r"^\s*assert ", code(notebook)[-1], flags=re.M), (
        "the last code cell asserts what the notebook promises"
    )


def test_no_magics_no_shell_no_paths_of_a_machine(notebook) -> None:
    for cell in notebook.cells:
        assert not ABSOLUTE.search(cell.source), cell.source
    for source in code(notebook):
        assert not re.search(r"^\s*[%!]", source, flags=re.M), source
        assert not re.search(r"get_ipython\(|os\.system\(|subprocess", source), source


def test_the_rules_above_can_fail() -> None:
    """The patterns find what they are meant to find and leave the rest alone."""
    for text in ('open("/home/me/x.csv")', "path = '/tmp/x'", r"C:\data"):
        assert ABSOLUTE.search(text), text
    for text in ("a / b / c", "results/data/x", "https://example.org/home/x", "$DATA_ROOT/tmp/x"):
        assert not ABSOLUTE.search(text), text


COPIES = sorted((ROOT / "results" / "reference" / "demo" / "notebooks").glob("*.ipynb"))
PICTURE = {"image/png": "", "image/svg+xml": "", "image/jpeg": ""}  # kinds of output whose bytes are no text
LEARNERS = {"00", "02a", "02b", "02c", "11", "12", "20", "21"}


def test_executed_copies_are_small_whole_and_name_no_path_and_no_key() -> None:
    assert {path.name.split("_")[0] for path in COPIES} >= LEARNERS
    assert sum(path.stat().st_size for path in COPIES) <= 6_000_000
    for path in COPIES:
        assert path.stat().st_size <= 250_000, path.name
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", ()):
                assert output.output_type != "error", path.name
                text = "\n".join([output.get("text", ""), *map(str, dict(output.get("data", {}), **PICTURE).values())])
                assert not ABSOLUTE.search(text) and not re.search(r"\b(hf_|ghp_|sk-)\w{16}", text), (path.name, text)
                assert not any("widget" in kind for kind in output.get("data", {})), path.name
