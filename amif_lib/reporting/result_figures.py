"""Pictures of results: Fig. 6 (lambda), accuracy by type of question, calibration of answer probabilities, cost of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import PREDICTIONS, read_predictions
from amif_lib.experiments.rows import RunSpec
from amif_lib.reporting import tables
from amif_lib.reporting.figures import BASELINE, OURS, Drawn, note
from amif_lib.reporting.layout import dataset_name
from amif_lib.reporting.map_scores import rows_of
from amif_lib.reporting.table_notes import seed_counts
from amif_lib.reporting.table_rows import seeds_of
from amif_lib.scoring import protocols
from amif_lib.scoring.statistics import bootstrap, over_runs, resampled_sums, wilson

PAPERS_LAMBDA = 0.01
BINS = 10
STAGES = {"stage1": "stage 1", "stage2": "stage 2", "finetune": "fine-tuning"}
PAPER = protocols.PROTOCOLS["paper"]
Headline = tuple[str, list[RunSpec], list[RunSpec]]  # question set, the full model's runs, its question-only baseline's


# --- Fig. 6 ----------------------------------------------------------------------------------------------------------


def lambda_curve(scale: str) -> Drawn:
    """Fig. 6: overall accuracy against lambda, one panel per question set, from the stored runs of `lambda_sweep`.

    The paper's values are not in its text, so none are drawn. The axis is linear near 0 and logarithmic beyond. Raises
    InputError as `tables.collect` does: a curve lacks no point. No CSV of a table is read.
    """
    whole = tables.collect("lambda_sweep", scale)
    table = whole.cells
    part = table[(table["split"] == "overall") & (table["protocol"] == PAPER.title)].copy()
    part["lambda"] = pd.to_numeric(part["row"], errors="coerce")  # baselines have names
    part = part[part["lambda"].notna()].sort_values(["dataset", "lambda"])
    if part["lambda"].nunique() < 2:
        raise InputError(
            f"lambda_sweep at scale {scale}: {part['lambda'].nunique()} value of lambda in the plan; a curve needs two or more"
        )
    names = list(dict.fromkeys(table.loc[table["dataset"].isin(set(part["dataset"])), "dataset"]))
    across = min(3, len(names))
    figure, axes = plt.subplots(
        -(-len(names) // across), across, figsize=(3.3 * across + 0.4, 2.7 * -(-len(names) // across)), squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        own = part[part["dataset"] == name]
        axis.vlines(own["lambda"], own["ci_low"], own["ci_high"], color=OURS, linewidth=1.4)
        axis.plot(own["lambda"], own["ours"], marker="o", markersize=5, color=OURS)
        axis.axvline(PAPERS_LAMBDA, color=BASELINE, linestyle=":", linewidth=1, zorder=0)
        axis.set_xscale("symlog", linthresh=0.001, linscale=0.5)
        ticks = [value for value in (0, 0.001, 0.01, 0.1, 1) if own["lambda"].min() <= value <= own["lambda"].max()]
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axis.minorticks_off()
        axis.set_xlim(-0.0004, 1.6 * own["lambda"].max())
        axis.set(title=dataset_name(name), xlabel="λ", ylabel="accuracy, %" if axis in axes[:, 0] else "")
        axis.grid(axis="y", color="0.92", linewidth=0.8)
    columns = ["dataset", "lambda", "ours", "ours_sd", "ci_low", "ci_high", "n_seeds", "n_questions", "run_ids"]
    caption = (
        "Fig. 6 of the paper: overall accuracy (protocol paper) against the weight λ of the positive pair, with 95% "
        f"intervals from resampling images; {spread(*seed_counts(whole.lines))} Dotted: the paper's choice, 0.01. The paper "
        "prints no numbers for this figure. Each panel has an axis of its own. " + note(scale)
    )
    return figure, part[columns], caption


# --- accuracy by type of question ------------------------------------------------------------------------------------


def accuracy_by_type(scale: str) -> Drawn:
    """Accuracy of the full model per question type and set, beside the question-only baseline of the same questions."""
    rows = []
    sets = list(_headlines(scale))
    for dataset, ours, blank in sets:
        for kind, runs in (("full model", ours), ("question only", blank)):
            if not runs:
                continue
            scored = [
                protocols.score(*_answers(run.run_id), PAPER).set_index("question_id").sort_index() for run in runs
            ]
            for name, part in scored[0].groupby("question_type"):
                correct = np.stack([each.loc[part.index, "correct"] for each in scored])  # (S, n)
                estimate = bootstrap(correct, part["image_id"], pretrainings=_pretrainings(runs))
                rows.append(
                    {
                        "dataset": dataset,
                        "question_type": name or "(none given)",
                        "kind": kind,
                        "accuracy": 100 * estimate.value,
                        "ci_low": 100 * estimate.low,
                        "ci_high": 100 * estimate.high,
                        "n_questions": len(part),
                        "n_images": part["image_id"].nunique(),
                        "run_ids": _ids(runs),
                    }
                )
    data = pd.DataFrame(rows)
    names = list(dict.fromkeys(data["dataset"]))
    number = [data.loc[data["dataset"] == name, "question_type"].nunique() for name in names]
    figure, axes = plt.subplots(
        len(names), 1, figsize=(6.6, 0.7 * len(names) + 0.34 * sum(number) + 0.3), height_ratios=number, squeeze=False
    )
    for axis, name in zip(axes[:, 0], names, strict=True):
        own = data[data["dataset"] == name]
        kinds = own[own["kind"] == own["kind"].iloc[0]].sort_values("n_questions", ascending=False)
        height = {kind: -place for place, kind in enumerate(kinds["question_type"])}
        for kind, shift, colour, marker in (("full model", 0.12, OURS, "o"), ("question only", -0.18, BASELINE, "s")):
            line = own[own["kind"] == kind]
            if line.empty:
                continue
            y = np.array([height[name] + shift for name in line["question_type"]])
            axis.hlines(y, line["ci_low"], line["ci_high"], color=colour, linewidth=1.5)
            axis.scatter(line["accuracy"], y, color=colour, marker=marker, s=26, zorder=3, label=kind)
        axis.set_yticks(
            list(height.values()), [f"{k} (n = {n})" for k, n in zip(height, kinds["n_questions"], strict=True)]
        )
        axis.set(title=dataset_name(name), xlim=(-2, 102), ylim=(min(height.values()) - 0.6, 0.6))
        axis.set_xticks(range(0, 101, 25))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x", color="0.92", linewidth=0.8, zorder=0)
    axes[-1, 0].set_xlabel("accuracy, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    caption = (
        "Accuracy of the full model (protocol paper) by the data set's own type of question, with 95% intervals from "
        f"resampling images, beside the same network trained and tested on blank images; {_variance(sets)} "
        + note(scale)
    )
    return figure, data, caption


# --- calibration -----------------------------------------------------------------------------------------------------


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Reliability diagram in bins of equal width: `low, high, n, confidence (mean), accuracy`, empty bins left out.

    A confidence on a border belongs to the lower bin, as in Guo et al. 2017.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for number in np.unique(place):
        own = place == number
        rows.append((number / bins, (number + 1) / bins, int(own.sum()), confidence[own].mean(), correct[own].mean()))
    return pd.DataFrame(rows, columns=["low", "high", "n", "confidence", "accuracy"])


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """ECE (Guo et al. 2017, Eq. 3): mean distance of accuracy and confidence over bins, weighted by their questions."""
    table = calibration_bins(confidence, correct, bins)
    return float((table["n"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["n"].sum())


def confidences(frame: pd.DataFrame, candidates: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the chosen answer among the test answers, and whether it is right, (n,) each.

    The probability is the softmax of the stored log-likelihoods over the candidates of the protocol `paper`: every
    distinct answer of the test questions.
    """
    scores = np.stack([np.asarray(row, dtype=float) for row in frame["log_likelihoods"]])  # (n, K)
    scores = scores[:, candidates["in_test"].to_numpy(dtype=bool)]
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return (shifted / shifted.sum(1, keepdims=True)).max(1), protocols.score(frame, candidates, PAPER)[
        "correct"
    ].to_numpy()


def calibration(scale: str) -> Drawn:
    """Reliability diagrams of the full model, a panel per question set: is an answer as often right as it is probable?

    Of several runs the bins hold the answers of all together; the ECE is the mean of each run's own.
    """
    sets = [one for one in _headlines(scale) if one[1]]
    figure, axes = plt.subplots(
        2, len(sets), figsize=(2.7 * len(sets) + 0.6, 3.6), height_ratios=(3, 1), sharex=True, squeeze=False
    )
    plotted = []
    for (dataset, runs, _), (axis, below) in zip(sets, axes.T, strict=True):
        each = [_answers(run.run_id) for run in runs]
        each = [(frame.sort_values("question_id"), candidates) for frame, candidates in each]
        confidence, correct = (np.stack(part) for part in zip(*(confidences(*one) for one in each), strict=True))
        images = each[0][0]["image_id"].to_numpy(dtype=str)
        bins = calibration_bins(confidence.ravel(), correct.ravel())
        error = float(np.mean([expected_calibration_error(*one) for one in zip(confidence, correct, strict=True)]))
        intervals, (low, high) = calibration_intervals(confidence, correct, images, _pretrainings(runs))
        bins["ci_low"], bins["ci_high"] = intervals.T
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        axis.vlines(bins["confidence"], bins["ci_low"], bins["ci_high"], color=OURS, linewidth=1.3)
        axis.plot(bins["confidence"], bins["accuracy"], marker="o", markersize=4.5, color=OURS, clip_on=False)
        axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right" if axis is axes[0, 0] else "")
        axis.set_title(dataset_name(dataset).replace(" (", "\n("), fontsize="small")
        axis.text(
            0.03,
            0.97,
            f"ECE {100 * error:.1f}%\n({100 * low:.1f} to {100 * high:.1f})",
            transform=axis.transAxes,
            va="top",
            fontsize=7.5,
        )
        below.bar(bins["low"], bins["n"] / len(runs), width=1 / BINS, align="edge", color="#56b4e9", edgecolor="white")
        below.set(xlabel="probability of the answer", ylabel="questions" if axis is axes[0, 0] else "")
        about = {"dataset": dataset, "run_ids": _ids(runs), "ece": error, "ece_low": low, "ece_high": high}
        plotted.append(bins.assign(**about))
    several = max(len(runs) for _, runs, _ in sets) > 1
    pooled = "Bins hold the answers of all runs together; the ECE is the mean of each run's own. " if several else ""
    caption = (
        "Calibration of the full model: share of right answers against the probability of the chosen answer, which is the "
        "softmax of the log-likelihoods over the candidates of the protocol paper (all distinct test answers). Bins of equal "
        f"width; ECE is the expected calibration error over {BINS} bins. {pooled}95% intervals from resampling images; "
        f"{_variance(sets)} The ECE of a finite sample is biased upwards, and so is its interval. " + note(scale)
    )
    return figure, pd.concat(plotted, ignore_index=True), caption


def calibration_intervals(
    confidence: np.ndarray, correct: np.ndarray, images: np.ndarray, pretrainings: Sequence[int] | None = None
) -> tuple[np.ndarray, tuple[float, float]]:
    """95% intervals of the accuracy in each bin that is not empty, (B, 2), and of the ECE, from resampling images and runs.

    `confidence` and `correct` are (S, n), one row per run. A bin with all answers right or all wrong has Wilson's interval
    over its images, as in `statistics.bootstrap`.
    """
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (S, n)
    intervals, gap = [], np.zeros(())
    for number in np.unique(place):
        own = (place == number).astype(float)
        share, inside = (own * correct).sum() / own.sum(), len(set(images[own.any(0)]))
        if share in (0, 1):
            intervals.append(wilson(int(share) * inside, inside))
        else:  # a ratio of sums, to first order: other draws have another number of answers in the bin
            above = over_runs(resampled_sums(own * (correct - share), images), pretrainings)
            below = resampled_sums(own, images).mean(1)
            intervals.append(share + np.percentile(above[below > 0] / below[below > 0], [2.5, 97.5]))
        gap = gap + np.abs(resampled_sums(own * (correct - confidence), images))  # (draws, S)
    error = over_runs(gap / resampled_sums(np.ones_like(confidence), images), pretrainings)
    low, high = np.clip(np.percentile(error, [2.5, 97.5]), 0, 1)
    return np.clip(intervals, 0, 1), (float(low), float(high))


# --- cost of runs ----------------------------------------------------------------------------------------------------


def run_costs(scale: str, tables: Iterable[str]) -> Drawn:
    """Wall time of every finished run of the tables: one point per run, and the sum of each stage."""
    rows, seen = [], set()
    for name in tables:
        for row in rows_of(name, scale):
            for run in (
                run for tip in (*row.runs, *map(experiments.blank_image_run, row.runs)) for run in tip.lineage()
            ):
                if run.run_id in seen or not (paths.run_dir(run.run_id) / "metrics.json").is_file():
                    continue
                seen.add(run.run_id)
                stored = results.load_run(run.run_id)
                whole, training = stored.provenance.get("wall_time_s", np.nan), stored.metrics["train_time_s"]
                about = {
                    "run_id": run.run_id,
                    "stage": run.stage,
                    "dataset": run.data.questions if run.stage == "finetune" else "",
                }
                rows.append(
                    about | {"training_s": training, "evaluation_s": max(0.0, whole - training), "wall_time_s": whole}
                )
    data = pd.DataFrame(rows)
    if data.empty:
        raise InputError(f"no finished run of SCALE={scale}")
    stages = [stage for stage in STAGES if stage in set(data["stage"])]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 1.4 + 0.45 * len(stages)), sharey=True)
    y = -np.arange(len(stages), dtype=float)
    sums = data.groupby("stage")[["training_s", "evaluation_s"]].sum().reindex(stages) / 60
    left.barh(y, sums["training_s"], color=OURS, height=0.6, label="training")
    bars = left.barh(y, sums["evaluation_s"], left=sums["training_s"], color="#de8f05", height=0.6, label="answering")
    counts = data["stage"].value_counts().reindex(stages)
    left.bar_label(bars, [f" {s:.1f} min, {n} runs" for s, n in zip(sums.sum(axis=1), counts, strict=True)], size=8)
    left.set_yticks(y, [STAGES[stage] for stage in stages])
    left.set(xlabel="minutes, all runs together", xlim=(0, 1.45 * sums.sum(axis=1).max()))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    rng = np.random.default_rng(0)
    for stage, level in zip(stages, y, strict=True):
        own = data.loc[data["stage"] == stage, "wall_time_s"]
        right.scatter(own, level + rng.uniform(-0.22, 0.22, len(own)), s=14, color=OURS, alpha=0.6, linewidth=0)
        right.vlines(own.median(), level - 0.32, level + 0.32, color="#d55e00", linewidth=2)
    right.set(xlabel="seconds per run (line: median)", xlim=(0, None))
    right.grid(axis="x", color="0.92", linewidth=0.8, zorder=0)
    caption = (
        f"Wall time of the {len(data)} finished runs behind the tables, each shared run once, as stored with the runs; "
        "teachers are not in it. " + note(scale)
    )
    return figure, data, caption


# --- stored runs -----------------------------------------------------------------------------------------------------


def _headlines(scale: str) -> Iterator[Headline]:
    """Per question set: the full model's runs (one per seed) and those of its question-only baseline that have predictions."""
    found: dict[str, tuple[dict[str, RunSpec], dict[str, RunSpec]]] = {}
    rows = [row for row in rows_of("table1", scale) if not row.extra][:1]
    for run in (run for row in rows for run in row.runs):
        ours, blank = found.setdefault(run.data.questions, ({}, {}))
        for wanted, runs in ((run, ours), (experiments.blank_image_run(run), blank)):
            if _has_predictions(wanted):
                runs[wanted.run_id] = wanted
    found = {dataset: runs for dataset, runs in found.items() if runs[0]}
    if not found:
        raise InputError(f"no finished fine-tuning of the full model at SCALE={scale}; make table1 trains it")
    for dataset, (ours, blank) in found.items():
        yield dataset, list(ours.values()), list(blank.values())


def _pretrainings(runs: Sequence[RunSpec]) -> list[int] | None:
    """Each run's pre-training seed, where there are several, as tables have it."""
    first = [seeds_of(run)[0] for run in runs]
    return first if len(set(first)) > 1 else None


def _ids(runs: Iterable[RunSpec]) -> str:
    return " ".join(run.run_id for run in runs)


def _variance(sets: Iterable[Headline]) -> str:
    """Which variance the full model's intervals hold."""
    counts = [[seeds_of(run)[0] for run in runs] for _, runs, _ in sets]
    return spread(max(max(map(each.count, each)) for each in counts), max(len(set(each)) for each in counts))


def spread(own: int, first: int) -> str:
    """The end of a caption's sentence on intervals: which variance they hold, by fine-tunings per pre-training and
    pre-trainings."""
    if own == first == 1:
        return "one training per point, so that they hold no spread between trainings."
    if first == 1:
        return f"crossed with {own} fine-tunings of one pre-training: they hold no spread between pre-trainings."
    of_each = f"{own} fine-tunings of each" if own > 1 else "each fine-tuned once"
    return f"crossed with {first} pre-trainings, drawn first, {of_each}: they hold the spread between whole trainings."


def _has_predictions(run: RunSpec) -> bool:
    return (paths.run_dir(run.run_id) / PREDICTIONS).is_file()


@lru_cache(maxsize=64)
def _read(folder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_predictions(folder)


def _answers(run_id: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    return _read(str(paths.run_dir(run_id)))
