"""The paper audit's page, which notebook 21 fills; `make audit` runs that notebook, with Jupyter or without."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.reporting import figures, layout
from amif_lib.reporting.table_rows import dataset_name

NOTEBOOK = paths.NOTEBOOKS / "21_paper_audit.ipynb"


def run_cells() -> dict[str, Any]:
    """Run the notebook's code cells in this process, without Jupyter or display; returns its variables."""
    plt.switch_backend("agg")
    names: dict[str, Any] = {"display": lambda *shown: None}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    return names


def write(
    words: Mapping[str, Sequence[str]],
    tables: Mapping[str, pd.DataFrame],
    pictures: Mapping[str, tuple[plt.Figure, pd.DataFrame, str]],
) -> list[Path]:
    """Write to `results/audit/` each table as CSV by its title, each picture (figure, its numbers, caption) by its
    name, and `audit.html` with `words` (lists by heading); returns the paths, the page last.
    """
    folder, written, frames, drawn = paths.results() / "audit", [], [], []
    for title, frame in tables.items():
        written.append(folder / f"{title.partition(':')[0].lower().replace(' ', '_')}.csv")
        files.write_text(written[-1], frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
        frames.append({"title": title, "file": written[-1].name, "frame": readable(frame)})
    for name, (figure, data, caption) in pictures.items():
        written += figures.save(figure, folder / "figures" / name, data, caption)
        drawn.append(figures.embedded(folder / "figures" / f"{name}.png", folder))
    content = {"words": words, "tables": frames, "figures": drawn}
    files.write_text(folder / "audit.html", layout.page("audit.html.j2", content))
    return [*written, folder / "audit.html"]


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as texts: up to four digits, data sets by their usual names."""

    def text(value: object) -> str:
        if isinstance(value, float) and value == value:
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return "" if pd.isna(value) else str(value)

    named = {column: frame[column].map(dataset_name) for column in ("data_set", "dataset") if column in frame}
    texts = frame.assign(**named).astype(object).map(text)
    return texts.rename(columns=lambda column: column.replace("_", " ")).rename_axis(columns=None)
