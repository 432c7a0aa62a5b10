"""The size of the house and the direction of its imports (the rooms of `amif_lib`, listed in pyproject.toml)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, python

LIBRARY = ROOT / "amif_lib"
# Ceilings, in lines; the aim of each stands behind it. They go down with every commit that deletes
# something, and up only for a repair or for something new, with the reason in its message.
MOST = {
    "reading road": 3760,
    "library": 14980,
    "tests": 10910,
    "table and page notebooks": 1200,
    "methods for comparison": 1400,
}
AIM = {"reading road": 3600, "library": 11000, "tests": 9000, "table and page notebooks": 1200}
ROAD = ("objectives", "networks", "methods/amif", "training")
BESIDE = ("arl", "mlip")  # methods for comparison, counted apart
PAGES = ("11", "12", "13", "14", "15", "16", "20", "21", "40", "90")


def lines(*paths: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def code_lines(notebook: Path) -> int:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return sum(len(source.splitlines()) for source in sources)


def counted() -> dict[str, int]:
    library = [p for p in LIBRARY.rglob("*") if p.suffix in (".py", ".j2") or p.name == "Snakefile"]
    beside = [p for p in library if any(p.is_relative_to(LIBRARY / "methods" / name) for name in BESIDE)]
    library = [p for p in library if p not in beside]
    road = [p for p in library if any(p.is_relative_to(LIBRARY / room) for room in ROAD)]
    pages = [p for p in (ROOT / "notebooks").glob("*.ipynb") if p.name.startswith(PAGES)]
    return {
        "reading road": lines(*road),
        "library": lines(*library),
        "methods for comparison": lines(*beside),
        "tests": lines(*(ROOT / "tests").rglob("*.py")),
        "table and page notebooks": sum(map(code_lines, pages)),
    }


def test_the_house_is_no_larger_than_it_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    found = counted()
    with capsys.disabled():
        print("\n" + "; ".join(f"{name}: {n} of {MOST[name]} lines" for name, n in found.items()))
    too_many = {name: n for name, n in found.items() if n > MOST[name]}
    assert too_many == {}, "delete something, or raise MOST above and give the reason in the commit's message"


def test_rooms_import_downwards_only() -> None:
    lint = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports())"
    python("-c", lint)
