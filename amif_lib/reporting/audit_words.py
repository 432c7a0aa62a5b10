"""The paper audit in plain words: its three findings, what leaks, and where counts could not be taken from files."""

from __future__ import annotations

import pandas as pd

from amif_lib.reporting import audit, audit_claims, audit_power
from amif_lib.reporting import audit_sources as sources
from amif_lib.reporting.audit_power import ALPHA, DISCORDANCE
from amif_lib.reporting.audit_sources import OURS
from amif_lib.reporting.layout import dataset_name
from amif_lib.scoring import leaks


def notes() -> list[str]:
    """One line for each set whose questions could not be counted in its files."""
    counts = sources.test_counts().query("variant == 'all' and definition == 'yes_no'")
    absent = counts[counts["source"] != sources.FROM_FILES]
    return [f"{dataset_name(line.data_set)}: counts from the {line.source}." for line in absent.itertuples()]


def of_the_paper(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of the leak report that Table 1 is about: English test questions, training without validation."""
    english = table["test"].isin(("test", "en test")) & (table["training_file"] != "zh")
    return table[english & ~table["training"].str.contains("val")]


def on_leaks() -> list[str]:
    """The leak report in words: the ceiling beside the paper's open figure, per line, and what was not measured."""
    (table, absent), out = sources.leak_report(), []
    for line in table.itertuples():
        printed = sources.hundredths(f"table1:{OURS}", line.data_set, "open")
        if printed is None or line.training not in ("train", "en train") or line.test not in ("test", "en test"):
            continue
        place = "above" if printed / 100 > line.ceiling_open_yes_no else "below"
        out.append(
            f"{dataset_name(line.data_set)}, training on {line.training_file}: no method that answers with answers of the "
            f"training questions can pass {line.ceiling_open_yes_no:.2f}% on open questions (yes/no definition); the "
            f"paper's {printed / 100:.2f}% is {place} that. {line.paraphrase_in_train} of {line.n_test} test questions "
            "have a paraphrase with their answer in training."
        )
    if out:
        out.append(
            "The paper can be above a ceiling because its candidates at test time are the test set's own answers "
            "(section 6), or because of another training file; its 3064 VQA-RAD questions are as many as published3064 has."
        )
    return [*out, *absent, *leaks.in_words(of_the_paper(table))]


def findings(discordance: float = DISCORDANCE) -> list[str]:
    """The three findings that matter most, each a few sentences with its numbers recomputed."""
    return [_on_definitions(), _on_significance(discordance), _on_arithmetic(discordance)]


def _on_definitions() -> str:
    shares = audit.open_share().query("data_set in ['vqa_rad', 'slake']")
    own = shares[shares["row"] == OURS].set_index("data_set")
    others = shares[shares["row"] != OURS]
    apart = others["nearest"].ne(others["data_set"].map(own["nearest"]))
    counts = audit.numerators().query("data_set == 'vqa_rad' and verdict == 'unique'")
    behind = "".join(
        f" ({c.open_correct} of {c.open_n} open and {c.closed_correct} of {c.closed_n} closed on VQA-RAD)"
        for c in counts.itertuples()
    )
    return (
        f"Open and Closed of Table 1 cannot be compared on VQA-RAD and SLAKE. AMiF's figures{behind} call closed what is "
        f"answered by yes or no; the figures of {apart.sum()} of {len(others)} entries of other methods imply the sets' own field. "
        "Overall can be compared."
    )


def _on_significance(discordance: float) -> str:
    leads = audit_power.leads().query("split == 'overall'").set_index("data_set")
    never = leads[leads["smallest_p"] >= ALPHA]
    words = [f"{dataset_name(name)} ({_lead(str(name), lead)})" for name, lead in never.iterrows()]
    rest = ", ".join(
        f"{dataset_name(name)} {lead.most_discordant:.2f}%" for name, lead in leads.drop(never.index).iterrows()
    )
    single = audit_power.steps(discordance).query("data_set != 'avg'")
    hopeless = (single["verdict"] == "cannot be significant").sum()
    inside = single["verdict"].isin(["within noise", "cannot be significant"]).sum()
    return (
        f"The best Overall rests on few questions. No pattern of answers makes these leads significant: "
        f"{'; '.join(words) or 'none'}. The others are significant only if the two methods differ on at most so many questions: {rest}. "
        f"Of {len(single)} ablation differences on single sets {hopeless} cannot be significant, and {inside} are within "
        f"noise at {discordance:.0%} discordant questions."
    )


def _lead(name: str, lead: pd.Series) -> str:
    """A lead in questions; of the test set's sizes that one at which both figures print, else to the nearest question."""
    own, rival = (sources.hundredths(f"table1:{row}", name) for row in (OURS, lead["rival"]))
    totals = sources.test_counts().query("data_set == @name")["total"].unique()
    for n in map(int, totals):
        both = [audit.counts_printing(n, value) for value in (own, rival)]
        if all(len(counts) == 1 for counts in both):
            questions = both[0][0] - both[1][0]
            p = float(audit_power.mcnemar_p(questions, 0))
            other = (
                ""
                if n == lead["n"]
                else f"; at {lead['n']} questions no number of right answers gives {lead['rival']}'s"
            )
            return f"{questions} of {n} questions over {lead['rival']}, p = {p:.4g} at best{other}"
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
