"""`make audit`: every table and figure of the paper audit, one self-contained page of them, and three findings in words."""

from __future__ import annotations

import base64
import importlib.util
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import data_figures
from amif_lib.reporting import audit, audit_claims, audit_figures, audit_power, audit_words, figures, layout
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_power import DISCORDANCE, POWER
from amif_lib.reporting.layout import dataset_name
from amif_lib.scoring import leaks

NOTEBOOK = "21_paper_audit.ipynb"
PAGES = {"audit.html": "audit.html.j2", "audit.md": "audit.md.j2"}
ABOUT = (
    "It says what the paper's own numbers and the annotation files of its data sets say of each other. Whether a claim of "
    "the paper holds on data is another question, which only runs on real data can answer; no verdict here is about that."
)
LEAKS = "data_leaks"  # the figure of the leak report
# name, short title, title, texts, figures, tables (name, caption, folded away)
SECTIONS = (
    (
        "claims",
        "Claims",
        "What the text claims, recomputed",
        (
            "Each claim of sections 4 and 7 that names or implies a comparison. Differences of the Avg column are taken "
            "from the exact means, so that a wrong printed average shows. Three columns keep chance apart from arithmetic: "
            "whether the difference can be significant at all, that is if no question had been lost; the smallest difference "
            "that is significant when the stated share of questions is discordant (right for one system only); and whether "
            "the claim reaches it.",
        ),
        (),
        (("claims", "Claims with verdicts", False), ("leads", "AMiF against the next best method, Table 1", False)),
    ),
    (
        "definitions",
        "Two definitions",
        "Table 1 mixes two definitions of open and closed",
        (
            "A row's three figures imply which share of the questions it counts as open. The caption calls closed what is "
            "answered by yes or no; VQA-RAD and SLAKE have a field of their own that also calls closed what offers a choice. "
            "Overall does not depend on it.",
            "Rescoring moves the choice questions to the closed side. How many of them AMiF answered correctly is not known, "
            "so every possible number is listed, with the published rows that the open figure would then fall below.",
        ),
        ("open_shares",),
        (
            ("open_share", "Implied open share per row", True),
            ("rescored", "AMiF rescored by the sets' own field", True),
        ),
    ),
    (
        "numerators",
        "Numerators",
        "Which counts are behind the percentages",
        (
            "Every split of the test questions into open and closed, and every number of right answers, was tried: which "
            "print as the paper's three figures, rounded or cut? Where none does, one of the figures is not a share of that "
            "test set. The second table says what the closed figure would have to be, given the other two.",
        ),
        (),
        (
            ("numerators", "AMiF's row of Table 1", False),
            ("forced_closed", "SLAKE: the closed figure that open and overall force", False),
            ("test_counts", "Test questions by definition, and where each count is from", False),
        ),
    ),
    (
        "averages",
        "Averages",
        "The Avg column",
        ("The mean of the four printed accuracies, exactly. A tie may be rounded either way.",),
        (),
        (("averages", "25 rows", False),),
    ),
    (
        "ablations",
        "Ablations",
        "What the ablation tables can show",
        (
            "A difference is within noise where the exact McNemar test would not call it significant with the stated share "
            "of discordant questions, and cannot be significant where it would not even if no question had been lost. For "
            "the average the best case is an exact test over sign changes, the rest a normal approximation. All this is "
            "about the sampling of questions; the spread over seeds, which the paper does not report, comes on top.",
            "If the values were accuracies of single runs on these test sets, each would be some k of n. The last table "
            "counts how many are, beside what chance gives. Apart from the final row few are, so several runs, another "
            "metric or other subsets must be behind them; which, the numbers do not tell. PathVQA is too large to tell.",
        ),
        ("ablation_deltas",),
        (
            ("steps", "Every step on every set", True),
            ("printable_share", "Ablation values that are k of n, for the mean of 1 to 5 runs", True),
        ),
    ),
    (
        "identities",
        "Shared rows",
        "Rows that tables share, and what follows",
        ("Equal rows tell how rows were made where the text does not. Sums of effects assume that effects add up.",),
        (),
        (("implications", "What follows", False), ("identities", "Equal rows, and single equal values", True)),
    ),
    (
        "noise",
        "Noise and power",
        "How much these test sets can tell",
        (
            "Intervals of single accuracies, the smallest difference that two systems on the same questions must show, and "
            "what finding a difference of the printed size with 80% power would take. How far single runs spread is assumed.",
        ),
        ("table1_intervals", "power_curves"),
        (
            (
                "thresholds",
                "Smallest significant difference in points, by share of discordant questions in percent",
                False,
            ),
            ("wilson", "Wilson intervals of Table 1", True),
            ("power", "Power of every step that gains, and what it would take", True),
        ),
    ),
    (
        "leaks",
        "Leaks and ceilings",
        "What training questions give away, and the ceiling of their answers",
        (),
        (LEAKS,),
        (("leaks", "Counts and accuracies without a model", True),),
    ),
)


def tables(discordance: float = DISCORDANCE, wanted: float = POWER) -> dict[str, pd.DataFrame]:
    """Every table of the audit by the name of its CSV file. `discordance` and `wanted` (power) are fractions."""
    return {
        "claims": audit_claims.claims(discordance),
        "leads": audit_power.leads(),
        "open_share": audit.open_share(),
        "rescored": pd.concat([audit.rescored(name).assign(data_set=name) for name in ("vqa_rad", "slake")]),
        "numerators": audit.numerators(),
        "forced_closed": audit.forced_closed(),
        "test_counts": sources.test_counts(),
        "averages": audit.averages(),
        "steps": audit_power.steps(discordance),
        "printable_share": audit.printable_share(),
        "implications": audit_claims.implications(),
        "identities": audit_claims.identities(),
        "thresholds": audit_power.thresholds(),
        "wilson": pd.concat(
            [audit_power.wilson_table(split).assign(split=split) for split in ("overall", "open", "closed")]
        ),
        "power": audit_power.power_table(discordance, wanted),
        "power_curve": audit_power.power_curve(wanted),
        "leaks": sources.leak_report()[0],
    }


def write(discordance: float = DISCORDANCE, wanted: float = POWER) -> list[Path]:
    """Write tables, figures and pages to `results/audit/`; returns their paths, the page `audit.html` last.

    Raises InputError for published numbers that cannot be used and where the folder cannot be written.
    """
    found, folder = tables(discordance, wanted), paths.results() / "audit"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, frame in found.items():
            text = frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")
            written.append(_write(folder / f"{name}.csv", text))
        drawn = _draw(found, folder / "figures", discordance)
        written += [folder / "figures" / f"{name}.{kind}" for name in drawn for kind in ("png", "svg", "pdf", "csv")]
        words = {
            "about": f"{ABOUT} Discordant questions are taken to be {discordance:.0%} unless a table says otherwise.",
            "warnings": audit_words.notes(),
            "findings": audit_words.findings(discordance),
        }
        written += [_write(folder / name, _page(name, found, drawn, words)) for name in reversed(PAGES)]
    except OSError as error:
        raise InputError(
            f"{paths.shown(folder)}: cannot be written ({error.strerror}); set AMIF_RESULTS to a folder that you may "
            "write to"
        ) from None
    return written


def _write(path: Path, text: str) -> Path:
    files.write_text(path, text)
    return path


def _draw(found: dict[str, pd.DataFrame], folder: Path, discordance: float) -> dict[str, str]:
    """Draw and save every figure with its numbers; returns the captions by name."""
    figures.use_style()
    overall = found["wilson"].query("split == 'overall'")
    made = {
        "table1_intervals": (partial(audit_figures.intervals, overall, found["leads"]), overall),
        "open_shares": (partial(audit_figures.open_shares, found["open_share"]), found["open_share"]),
        "power_curves": (
            partial(audit_figures.power_curves, found["power_curve"], found["steps"]),
            found["power_curve"],
        ),
        "ablation_deltas": (partial(audit_figures.deltas, found["steps"], discordance), found["steps"]),
    }
    captions = dict(audit_figures.CAPTIONS)
    if len(found["leaks"]):
        lines = audit_words.of_the_paper(found["leaks"])
        made[LEAKS] = (partial(data_figures.leak_chart, lines), data_figures.leak_data(lines))
        captions[LEAKS] = (
            "Left: what training questions give away about test questions. Right: accuracy that needs no model, and the "
            "ceiling of answering with training answers; open and closed by the set's own field."
        )
    for name, (draw, data) in made.items():
        figure = draw()
        figures.save(figure, folder / name, data, captions[name])
        plt.close(figure)
    return {name: captions[name] for name in made}


def _page(name: str, found: dict[str, pd.DataFrame], drawn: dict[str, str], words: dict[str, object]) -> str:
    as_html = name.endswith(".html")
    environment = Environment(
        loader=FileSystemLoader(paths.PACKAGE / "reporting"),
        autoescape=as_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = _html if as_html else _markdown
    folder = paths.results() / "audit" / "figures"
    sections = []
    for key, short, title, texts, pictures, contents in SECTIONS:
        shown = [
            {
                "name": picture,
                "caption": drawn[picture],
                "data": base64.b64encode((folder / f"{picture}.png").read_bytes()).decode() if as_html else "",
            }
            for picture in pictures
            if picture in drawn
        ]
        parts = [
            {"name": one, "caption": caption, "folded": folded, "frame": _readable(one, found[one])}
            for one, caption, folded in contents
            if len(found[one])
        ]
        texts = [*texts, *(audit_words.on_leaks() if key == "leaks" else ())]
        sections.append(
            {"name": key, "short": short, "title": title, "texts": texts, "figures": shown, "tables": parts}
        )
    return environment.get_template(PAGES[name]).render(**words, sections=sections)


def _readable(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The table as texts: figures to two decimals, p values to two digits, sets by their usual names."""
    if name == "leaks":
        return leaks.transposed(frame)

    def text(column: str, value: object) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if value is None or pd.isna(value):
            return ""
        if isinstance(value, float) and abs(value) >= 1000:
            return f"{value:,.0f}"
        if column in ("recomputed", "difference", "exact_mean"):  # means of four have up to four decimals
            whole, _, decimals = f"{value:.4f}".partition(".")
            return f"{whole}.{decimals[:2]}{decimals[2:].rstrip('0')}"
        if isinstance(value, float):
            return f"{value:.3g}" if column in ("p", "smallest_p") else f"{value:.{3 if 'share' in name else 2}f}"
        return dataset_name(value) if column in ("data_set", "dataset") else str(value)

    out = pd.DataFrame({column: [text(column, value) for value in frame[column].tolist()] for column in frame})
    if name == "claims":  # the file has all columns
        out["dataset"] += " " + out["split"]
        out = out.drop(columns=["claim", "split", "smallest_p"]).rename(columns={"dataset": "on"})
    if "verdict" in out:
        plain = ("ok", "unique", "fits", "within noise", "beyond noise")
        out["verdict"] = [value if value in plain else f"\x01{value}\x02" for value in out["verdict"]]
    return out.rename(columns=lambda column: column.replace("_", " "))


def _html(frame: pd.DataFrame) -> Markup:
    return Markup(layout.html(frame, "words"))


def _markdown(frame: pd.DataFrame) -> str:
    plain = frame.map(lambda text: text.replace("|", "\\|").replace("\x01", "**").replace("\x02", "**"))
    return plain.to_markdown(index=False, disable_numparse=True)


def main() -> int:
    """Run the audit's notebook, or, in an install without notebooks, make the same products directly; print findings."""
    folder = paths.results() / "audit"
    if all(importlib.util.find_spec(name) for name in ("papermill", "ipykernel", "nbclient")):
        from amif_lib.app import run_notebook

        status = run_notebook.main([str(paths.NOTEBOOKS / NOTEBOOK), "--out", str(folder / "notebooks" / NOTEBOOK)])
        if status:
            return status
    else:
        write()
    for note in audit_words.notes():
        print(f"note: {note}")
    print("\nThree findings about the paper's own numbers (nothing was trained):")
    for number, finding in enumerate(audit_words.findings(), start=1):
        print(f"{number}. {finding}")
    print(f"\nPage: {paths.shown(folder / 'audit.html')}")
    return 0
