"""The paper audit's three findings in words, and its page, which notebook 21 fills; `make audit` runs that notebook."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.reporting import audit, audit_claims, audit_power, figures, layout
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_power import ALPHA, DISCORDANCE
from amif_lib.reporting.audit_sources import OURS
from amif_lib.reporting.table_rows import dataset_name
from amif_lib.scoring import leaks

NOTEBOOK = paths.NOTEBOOKS / "21_paper_audit.ipynb"


def run_cells() -> None:
    """Run the notebook's code cells in this process, for an install without Jupyter: what they display is dropped."""
    plt.switch_backend("agg")
    names = {"display": lambda *shown: None}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)


def write(
    tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, tuple[plt.Figure, pd.DataFrame, str]], discordance: float
) -> list[Path]:
    """Write to `results/audit/` each table as CSV by its title, each picture (figure, its numbers, caption) by its
    name, and `audit.html`; returns the paths, the page last. Raises InputError where the folder cannot be written."""
    folder, written, frames, drawn = paths.results() / "audit", [], [], []
    try:
        for title, frame in tables.items():
            written.append(folder / f"{title.partition(':')[0].lower().replace(' ', '_')}.csv")
            files.write_text(written[-1], frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
            frames.append({"title": title, "file": written[-1].name, "frame": readable(frame)})
        for name, (figure, data, caption) in pictures.items():
            written += figures.save(figure, folder / "figures" / name, data, caption)
            picture = base64.b64encode((folder / "figures" / f"{name}.png").read_bytes()).decode()
            drawn.append({"name": name, "caption": caption, "data": picture})
        said = {"findings": findings(discordance), "leaks": on_leaks(), "warnings": notes(), "discordance": discordance}
        content = said | {"tables": frames, "figures": drawn}
        files.write_text(folder / "audit.html", layout.page("audit.html.j2", content))
    except OSError as error:
        raise InputError(f"{paths.shown(folder)}: cannot be written ({error.strerror}); set AMIF_RESULTS") from None
    return [*written, folder / "audit.html"]


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as texts: up to four decimals, sets by their usual names, verdicts that object in bold."""

    def text(column: str, value: object) -> str:
        if value is None or pd.isna(value):
            return ""
        if isinstance(value, float):
            return (
                f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2g}" if column == "smallest_p" else f"{value:.4g}"
            )
        value = dataset_name(value) if column in ("data_set", "dataset") else str(value)
        objects = column == "verdict" and value not in ("ok", "unique", "fits", "within noise", "beyond noise")
        return f"**{value}**" if objects else value

    out = pd.DataFrame({column: [text(column, value) for value in frame[column].tolist()] for column in frame})
    return out.rename(columns=lambda column: str(column).replace("_", " "))


def notes() -> list[str]:
    """One line for each set whose questions could not be counted in its files."""
    counts = sources.test_counts().query("variant == 'all' and definition == 'yes_no'")
    absent = counts[counts["source"] != sources.FROM_FILES]
    return [f"{dataset_name(line.data_set)}: counts from the {line.source}." for line in absent.itertuples()]


def on_leaks() -> list[str]:
    """The leak report in words: the ceiling beside the paper's open figure, per line, and what was not measured."""
    (table, absent), out = sources.leak_report(), []
    english = table["training"].isin(("train", "en train")) & table["test"].isin(("test", "en test"))
    english &= table["training_file"] != "zh"
    for line in table[english].itertuples():
        printed = sources.hundredths(f"table1:{OURS}", line.data_set, "open")
        if printed is None:
            continue
        place = "above" if printed / 100 > line.ceiling_open_yes_no else "below"
        out.append(
            f"{dataset_name(line.data_set)}, training on {line.training_file}: answering with training answers can "
            f"reach {line.ceiling_open_yes_no:.2f}% on open questions (yes/no definition); the paper's "
            f"{printed / 100:.2f}% is {place} that."
            + f" {line.paraphrase_in_train:.0f} of {line.n_test} test questions have a paraphrase with their answer in "
            "training." * (line.paraphrase_in_train == line.paraphrase_in_train)  # NaN: it cannot be told
        )
    if out:
        out.append(
            "The paper can be above a ceiling because its candidates at test time are the test set's own answers "
            "(section 6), or because of another training file; its 3064 VQA-RAD questions are those of published3064."
        )
    return [*out, *absent, *leaks.in_words(table[english])]


def findings(discordance: float = DISCORDANCE) -> list[str]:
    """The three findings that matter most, each a few sentences with its numbers recomputed."""
    return [_on_definitions(), _on_significance(discordance), _on_arithmetic(discordance)]


def _on_definitions() -> str:
    shares = audit.open_share().query("data_set in ['vqa_rad', 'slake']")
    own, others = shares[shares["row"] == OURS].set_index("data_set"), shares[shares["row"] != OURS]
    apart = others["nearest"].ne(others["data_set"].map(own["nearest"]))
    counts = audit.numerators().query("data_set == 'vqa_rad' and verdict == 'unique'")
    behind = "".join(
        f" ({c.open_correct} of {c.open_n} open and {c.closed_correct} of {c.closed_n} closed on VQA-RAD)"
        for c in counts.itertuples()
    )
    return (
        f"Open and Closed of Table 1 cannot be compared on VQA-RAD and SLAKE. AMiF's figures{behind} call closed what "
        f"is answered by yes or no; the figures of {apart.sum()} of {len(others)} entries of other methods imply the "
        "sets' own field. Overall can be compared."
    )


def _on_significance(discordance: float) -> str:
    leads = audit_power.leads().query("split == 'overall'").set_index("data_set")
    never = leads[leads["smallest_p"] >= ALPHA]
    words = "; ".join(f"{dataset_name(name)} ({_lead(name, lead)})" for name, lead in never.iterrows()) or "none"
    rest = leads.drop(never.index)["most_discordant"].items()
    shares = ", ".join(f"{dataset_name(name)} {share:.2f}%" for name, share in rest)
    verdicts = audit_power.steps(discordance).query("data_set != 'avg'")["verdict"]
    hopeless, inside = (
        (verdicts == "cannot be significant").sum(),
        verdicts.isin(["within noise", "cannot be significant"]).sum(),
    )
    return (
        f"The best Overall rests on few questions. No pattern of answers makes these leads significant: {words}. The "
        f"others are significant only if the two methods differ on at most so many questions: {shares}. Of "
        f"{len(verdicts)} ablation differences on single sets {hopeless} cannot be significant, and {inside} are "
        f"within noise at {discordance:.0%} discordant questions."
    )


def _lead(name: str, lead: pd.Series) -> str:
    """A lead in questions; at the size of the test set at which both figures print, else to the nearest."""
    own, rival = (sources.hundredths(f"table1:{row}", name) for row in (OURS, lead["rival"]))
    for n in map(int, sources.test_counts().query("data_set == @name")["total"].unique()):
        both = [audit.counts_printing(n, value) for value in (own, rival)]
        if all(len(counts) == 1 for counts in both):
            ahead = both[0][0] - both[1][0]
            other = (
                f"; at {lead['n']} questions no number of right answers gives {lead['rival']}'s"
                if n != lead["n"]
                else ""
            )
            p = float(audit_power.mcnemar_p(ahead, 0))
            return f"{ahead} of {n} questions over {lead['rival']}, p = {p:.4g} at best{other}"
    return (
        f"about {lead['questions']} of {lead['n']} questions over {lead['rival']}, p = {lead['smallest_p']:.4g} at best"
    )


def _on_arithmetic(discordance: float) -> str:
    words = [
        f"row {line.row} of Table {line.table[-1]} averages {line.exact_mean:.2f}, not {line.printed:.2f}"
        for line in audit.averages().query("verdict == 'wrong'").itertuples()
    ]
    found = audit_claims.claims(discordance).query("verdict == 'wrong' and dataset == 'avg'")
    words += [
        f"the gain by {line.claim.replace('_', ' ')} is {line.recomputed:.2f}, not {line.paper:.2f}"
        for line in found.itertuples()
    ]
    text = f"Wrong arithmetic: {'; '.join(words) or 'none'}."
    if found.query("claim == 'answer_vocabulary'")["beyond_noise"].eq("no").any():
        text += " That answers serve better than questions as vocabulary has no support."
    return text
