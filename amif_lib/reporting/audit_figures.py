"""Figures of the paper audit. Each function returns a figure of what the audit's tables hold; `CAPTIONS` names them all."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from amif_lib.reporting import audit_power
from amif_lib.reporting.audit_sources import OURS, SETS
from amif_lib.reporting.layout import dataset_name

OWN, OTHER, SOFT = "#d55e00", "#767676", "#0173b2"
VERDICTS = {  # of `audit_power.steps`, with a colour and a marker each
    "cannot be significant": ("#949494", "X"),
    "within noise": ("#de8f05", "o"),
    "beyond noise": ("#029e73", "D"),
    "no gain": ("#d55e00", "v"),
}
DEFINITIONS = {"answer_type": "by the set's own field", "yes_no": "the answer is yes or no"}
SERIES = (("#56b4e9", "-"), ("#0173b2", "--"), ("#023858", ":"))  # pale to dark, and told apart without colour


def intervals(wilson: pd.DataFrame, leads: pd.DataFrame) -> Figure:
    """Overall accuracies of Table 1 with Wilson's intervals, a panel per set, and AMiF's lead over the next method."""
    leads = leads[leads["split"] == "overall"].set_index("data_set")
    counts = [int((wilson["data_set"] == name).sum()) for name in SETS]
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 1.9 + 0.26 * (max(counts[:2]) + max(counts[2:]))),
                                height_ratios=(max(counts[:2]) + 2, max(counts[2:]) + 2))  # fmt: skip
    for axis, name in zip(axes.flat, SETS, strict=True):
        part = wilson[wilson["data_set"] == name].sort_values("value", ignore_index=True)
        own, lead = part[part["row"] == OURS].iloc[0], leads.loc[name]
        axis.axvspan(own["low"], own["high"], color=OWN, alpha=0.10, linewidth=0, zorder=0)
        colours = [OWN if row == OURS else OTHER for row in part["row"]]
        axis.hlines(part.index, part["low"], part["high"], color=colours, linewidth=1.6)
        axis.scatter(part["value"], part.index, color=colours, s=26, zorder=3)
        axis.set_yticks(part.index, part["row"])
        axis.set_ylim(-0.7, len(part) - 0.3)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x", color="0.92", linewidth=0.8, zorder=0)
        axis.set_title(
            f"{dataset_name(name)}, n = {lead['n']:,}: lead {lead['lead']:.2f} points, {lead['questions']:.0f} questions"
        )
        axis.set_xlabel("overall accuracy, %")
    return figure


def open_shares(shares: pd.DataFrame) -> Figure:
    """The share of open questions that each row of Table 1 implies, beside the real shares under both definitions."""
    sets = [name for name in SETS if name in set(shares["data_set"])]
    rows = [row for row in dict.fromkeys(shares["row"]) if row != OURS]
    height = {row: position for position, row in enumerate([OURS, *reversed(rows)])}
    figure, axes = plt.subplots(1, len(sets), sharey=True, figsize=(3.4 * len(sets) + 0.6, 1.6 + 0.27 * len(height)))
    for axis, name in zip(np.atleast_1d(axes), sets, strict=True):
        part = shares[shares["data_set"] == name]
        for (definition, words), colour, style in zip(DEFINITIONS.items(), (SOFT, OWN), ("-", "--"), strict=True):
            axis.axvline(
                100 * part[definition].iloc[0],
                color=colour,
                linestyle=style,
                label=f"real share, closed: {words}",
                zorder=1,
            )
        y = part["row"].map(height)
        colours = [OWN if row == OURS else OTHER for row in part["row"]]
        axis.hlines(y, 100 * part["low"], 100 * part["high"], color=colours, linewidth=1.6, zorder=2)
        axis.scatter(100 * part["open_share"], y, color=colours, s=26, zorder=3)
        axis.set(title=dataset_name(name), xlabel="implied share of open questions, %", yticks=list(height.values()))
        axis.set_yticklabels(list(height))
        axis.margins(x=0.12)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


def power_curves(curve: pd.DataFrame, steps: pd.DataFrame) -> Figure:
    """Questions (left) and runs (right) that a difference needs; the four test sets and the ablations' averages marked."""
    sizes = dict(zip(SETS, audit_power.sizes(), strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.4))
    titles = {
        "questions": ("Test questions for 80% power", "{:.0%} of the questions discordant"),
        "seeds": ("Runs of each system for 80% power", "single runs spread by {:.1f} points"),
    }
    average = steps[(steps["data_set"] == "avg") & (steps["difference"] > 0)]["difference"]
    for axis, (needs, (title, words)) in zip(axes, titles.items(), strict=True):
        for (given, line), (colour, style) in zip(curve[curve["needs"] == needs].groupby("given"), SERIES, strict=True):
            axis.plot(line["difference"], line["number"], style, color=colour, label=words.format(given))
        axis.set(xscale="log", yscale="log", title=title, xlabel="true difference, points", xlim=(0.19, 4.2))
        axis.set_xticks([0.2, 0.5, 1, 2, 4], ["0.2", "0.5", "1", "2", "4"])
        axis.minorticks_off()
        axis.legend(loc="upper right")
        inside = average[average.between(*axis.get_xlim())]
        axis.plot(
            inside, np.full(len(inside), 0.015), "|", color=OWN, markersize=9, transform=axis.get_xaxis_transform()
        )
        axis.text(
            0.02, 0.045, "ticks: Avg differences of Tables 2 to 5", color=OWN, fontsize=7.5, transform=axis.transAxes
        )
    for name, n in sizes.items():
        axes[0].axhline(n, color="0.75", linewidth=0.8, zorder=0)
        below = name == "vqa_rad"
        axes[0].annotate(f"{dataset_name(name)} {n:,}", (0.2, n), (0, -2 if below else 2), textcoords="offset points",
                         fontsize=7.5, color="0.35", va="top" if below else "bottom")  # fmt: skip
    return figure


def deltas(steps: pd.DataFrame, discordance: float) -> Figure:
    """Every ablation difference per set and on average, against the smallest that is significant there."""
    names = [*SETS, "avg"]
    labels = [
        f"{s.step}   T{s.table[-1]} {s.row}-{s.reference}" for s in steps[steps["data_set"] == "avg"].itertuples()
    ]
    y = np.arange(len(labels))[::-1]
    figure, axes = plt.subplots(1, len(names), sharey=True, figsize=(11.6, 1.7 + 0.235 * len(labels)))
    for axis, name in zip(axes, names, strict=True):
        part = steps[steps["data_set"] == name]
        needed = part["needed"].iloc[0]
        axis.axvspan(-needed, needed, color="0.93", linewidth=0, zorder=0)
        if name != "avg":
            least = audit_power.smallest_difference(audit_power.sizes()[SETS.index(name)])
            axis.axvspan(-least, least, color="0.82", linewidth=0, zorder=0)
        axis.axvline(0, color="0.4", linewidth=0.8, zorder=1)
        for verdict, (colour, marker) in VERDICTS.items():
            mine = (part["verdict"] == verdict).to_numpy()
            axis.scatter(part["difference"][mine], y[mine], color=colour, marker=marker, s=22, zorder=3, label=verdict)
        title = (
            dataset_name(name)
            if name == "avg"
            else f"{dataset_name(name)}, n = {audit_power.sizes()[SETS.index(name)]:,}"
        )
        axis.set(xlim=(-1.6, 4.6), xlabel="difference, points", yticks=y)
        axis.set_title(title, fontsize=9)
        axis.set_yticklabels(labels, fontsize=7.5)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    for position in np.flatnonzero(np.diff([int(s.table[-1]) for s in steps[steps["data_set"] == "avg"].itertuples()])):
        for axis in axes:
            axis.axhline(y[position] - 0.5, color="0.8", linewidth=0.6)
    handles, words = axes[0].get_legend_handles_labels()
    handles += [plt.Rectangle((0, 0), 1, 1, color=shade) for shade in ("0.82", "0.93")]
    words += ["not significant in the best case", f"not significant with {discordance:.0%} discordant questions"]
    figure.legend(handles, words, loc="outside upper left", ncols=3, fontsize=8)
    return figure


CAPTIONS: dict[str, str] = {
    "table1_intervals": "Table 1, overall accuracy with Wilson 95% intervals (test questions drawn at random; no variance "
    "over seeds is in them). Shaded: AMiF's interval. Intervals of two methods on the same questions may overlap and the "
    "difference still be significant; what it takes is in the table of leads.",
    "open_shares": "Table 1: the share of open questions that follows from a row's three figures, (closed - overall) / "
    "(closed - open), with what rounding leaves open. Lines: the real shares under the two definitions. PathVQA has one.",
    "power_curves": "Left: test questions that exact McNemar tests need to find a true difference with 80% power at the 5% "
    "level. Right: runs of each system, if single runs spread by so much (assumed: the paper reports no spread); runs "
    "speak of this test set only and do not make up for questions.",
    "ablation_deltas": "Every difference that the ablation tables invite to read, per test set. Grey: what exact McNemar "
    "tests cannot call significant, with no question lost (dark) and at the stated share of discordant questions (pale). "
    "Verdicts count questions to the nearest, so that a marker at the edge may be of either side.",
}
