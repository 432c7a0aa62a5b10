"""Scores of a frozen encoder: linear probe and zero-shot classification (AUROC, accuracy), and segmentation (Dice).

Shapes: n images, of which m are tested, F labels, d features, s * s patches, D bootstrap draws; labels that are NaN are
left out, in training and in testing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.ndimage import zoom
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm, t

from amif_lib.core.errors import InputError
from amif_lib.data import regions
from amif_lib.data.labelled import FINDING, Labelled

SHARES = (0.01, 0.1, 1.0)  # of the training studies: those whose labels are used
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression, chosen on validation for each label
ABOVE = np.geomspace(1e-4, 0.5, 20)  # shares of validation's pixels above a threshold, one chosen for each label
DRAWS = 1000
KEYS = ["task", "share", "metric", "kind", "label"]


def score(tokens: np.ndarray, zero_shot: np.ndarray | None, data: Labelled, seed: int) -> tuple[pd.DataFrame, dict]:
    """All scores of an encoder, from its tokens (n, 1 + s * s, d), [CLS] first, and zero-shot scores (n, F).

    There is a line for each label, and for each kind the mean over its labels (`label` is empty): task, share of the
    labels, metric, kind, value with a 95% interval over test studies, and `draws`: the value, then that of each
    bootstrap draw. Dice is over the images that show the label (`positives`), over all, and over all if nothing is
    predicted. `learned` counts the labels of which the training images show both classes; the others have an AUROC of
    .5 and empty masks. `seed` decides which studies a share has. The second result has for each label the row of the
    first test image that shows it (if none does, of the first), its mask and the predicted one; it is empty if no
    regions are known.
    """
    split, groups, labels = data.images["split"].to_numpy(), data.images["group"].to_numpy(), data.labels.to_numpy()
    train, val, test = (np.flatnonzero(split == name) for name in ("train", "val", "test"))
    truth, weights, out, examples = labels[test], resampled(groups[test]), [], {}

    def add(values: np.ndarray, learned: np.ndarray, kinds: pd.Series = data.kinds, **about: object) -> None:
        """Lines of a metric's values (1 + D, F), of which the first is the value itself and the others are draws."""
        for kind in kinds.unique():
            of_kind = values[:, kinds == kind]  # (1 + D, labels)
            columns = {"": np.nanmean(of_kind, axis=1)} | dict(zip(kinds.index[kinds == kind], of_kind.T, strict=True))
            for label, column in columns.items():  # (1 + D,)
                low, high = np.nanpercentile(column[1:], [2.5, 97.5])
                line = {"kind": kind, "label": label, "value": column[0], "ci_low": low, "ci_high": high}
                counted = (data.kinds == kind) & ((data.kinds.index == label) | (label == ""))  # (F,)
                out.append(about | line | {"learned": learned[counted].sum(), "draws": column})

    def rank(scores: np.ndarray, learned: np.ndarray, **about: object) -> None:
        """AUROC of scores (m, F), and for kinds of which an image has one label, accuracy of the highest score."""
        known = ~np.isnan(truth)  # (m, F)
        found = [auroc(s[k], y[k], weights[:, k]) for s, y, k in zip(scores.T, truth.T, known.T, strict=True)]
        add(np.stack(found, axis=1), learned, metric="AUROC", **about)
        for kind in data.kinds[data.kinds != FINDING].unique():
            own = (data.kinds == kind).to_numpy()  # (F,)
            shown = np.nan_to_num(truth[:, own])  # (m, labels); zeros where no training image has the answer
            right = (scores[:, own].argmax(1) == shown.argmax(1)) & shown.any(1)  # (m,)
            asked = weights * known[:, own].all(1)  # (1 + D, m)
            add(((asked @ right) / asked.sum(1))[:, None], learned, pd.Series({"": kind}), metric="accuracy", **about)

    def average(values: np.ndarray, learned: np.ndarray, metric: str, share: float) -> None:
        """Means over images of values (m, F), without those that are NaN."""
        counted = weights @ ~np.isnan(values)  # (1 + D, F)
        counted[counted == 0] = np.nan
        values = weights @ np.nan_to_num(values) / counted  # (1 + D, F)
        add(values, learned, task="segmentation", share=share, metric=metric)

    if zero_shot is not None:
        rank(zero_shot[test], np.full(len(data.kinds), np.nan), task="zero-shot", share=0.0)
    shown = np.stack(list(data.masks(test))) if data.has_regions else None  # (m, F, H, W)
    for share in SHARES:
        taught = train[subset(groups[train], share, seed)]
        predict = probe(tokens[taught, 0], labels[taught], tokens[val, 0], labels[val])
        learned = both_classes(labels[taught])  # (F,)
        rank(predict(tokens[test, 0]), learned, task="linear probe", share=share)
        if shown is not None:
            predicted = segment(tokens[:, 1:], data, taught, val, test)  # (m, F, H, W)
            overlap = np.where(np.isnan(truth), np.nan, dice(predicted, shown))  # (m, F)
            average(np.where(truth == 1, overlap, np.nan), learned, "Dice, positives", share)
            average(overlap, learned, "Dice", share)
            first, every = (truth == 1).argmax(0), np.arange(len(data.kinds))  # (F,)
            examples = {"row": test[first], "mask": shown[first, every], "predicted": predicted[first, every]}
    if shown is not None:
        empty = np.where(np.isnan(truth), np.nan, dice(np.zeros_like(shown), shown))  # (m, F)
        average(empty, np.full(len(data.kinds), np.nan), "Dice, nothing predicted", 0.0)
    return pd.DataFrame(out), examples


def subset(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which rows (n,) are in a random share of the groups (at least one). A larger share contains a smaller one."""
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    return np.isin(groups, names[: max(1, round(share * len(names)))])


def probe(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression with an L2 penalty for each of F labels, on standardised features; C by the validation loss.

    x (n, d), y (n, F) between 0 and 1 or NaN; likewise for validation. Returns a function: (m, d) -> probabilities
    (m, F). For a label of which y has one class only they are constant: without weights, its loss is lowest.
    """
    mean, deviation = x.mean(0), x.std(0) + 1e-6  # (d,)

    def with_bias(features: np.ndarray) -> np.ndarray:
        return np.column_stack([(features - mean) / deviation, np.ones(len(features))]).astype(np.float32)  # (n, d + 1)

    def objective(flat: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
        """The penalised loss of weights (d + 1, F), of which the last row is not penalised, and its gradient."""
        w = flat.reshape(-1, y.shape[1])
        logits = features @ w.astype(np.float32)  # (n, F)
        gradient = strength * (features.T @ ((expit(logits) - target) * known)).astype(float)  # (d + 1, F)
        gradient[:-1] += w[:-1]
        return strength * losses(logits, target, known).sum() + (w[:-1] ** 2).sum() / 2, gradient.ravel()

    features, held_out = with_bias(x), with_bias(x_val)
    known, target = ~np.isnan(y), np.nan_to_num(y).astype(np.float32)
    of_val, options = (np.nan_to_num(y_val).astype(np.float32), ~np.isnan(y_val)), {"maxiter": 300, "ftol": 1e-7}
    w, tried = np.zeros((features.shape[1], y.shape[1])), []
    for strength in STRENGTHS:  # from the strongest penalty on, each from the solution before
        w = minimize(objective, w.ravel(), (strength,), "L-BFGS-B", jac=True, options=options).x.reshape(w.shape)
        tried.append((losses(held_out @ w.astype(np.float32), *of_val), w))
    best = np.argmin([loss for loss, _ in tried], axis=0)  # (F,)
    w = np.stack([tried[k][1][:, label] for label, k in enumerate(best)], axis=1).astype(np.float32)  # (d + 1, F)
    w[:-1, ~both_classes(y)] = 0  # the optimum, which the optimiser only comes near
    return lambda some: expit(with_bias(some) @ w)


def both_classes(y: np.ndarray) -> np.ndarray:
    """For which labels some y (n, F) are above 0 and some below 1: (F,)."""
    return (y > 0).any(0) & (y < 1).any(0)


def losses(logits: np.ndarray, target: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Cross-entropy of each label, summed over the known ones: (n, F) each -> (F,)."""
    return ((np.logaddexp(0, logits) - target * logits) * known).sum(0, dtype=float)


def segment(patches: np.ndarray, data: Labelled, taught: np.ndarray, val: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predicted masks of the tested images (m, F, H, W), from patch tokens (n, s * s, d).

    A `probe` predicts how much of each patch a label covers; the map is enlarged to the image's size and cut at the
    threshold with the highest Dice of all validation images' pixels together. (The mean Dice over images is highest if
    nothing is ever predicted, where most images lack a finding.) Thresholds are quantiles of the map on validation, so
    that a rare label has its own. Nothing is predicted if no threshold has a Dice above 0, or the map is constant.
    """
    side, labels = round(patches.shape[1] ** 0.5), data.labels.to_numpy()

    def cells(rows: np.ndarray) -> np.ndarray:
        """The share of each patch that a label covers: (rows * s * s, F)."""
        out = np.zeros((len(rows), labels.shape[1], side, side))
        out[np.isnan(labels[rows])] = np.nan
        for own, row, shown in zip(out, rows, data.masks(rows), strict=True):
            for label in np.flatnonzero(labels[row] == 1):
                own[label] = regions.coverage(shown[label], side)
        return out.transpose(0, 2, 3, 1).reshape(-1, labels.shape[1])

    def maps(rows: np.ndarray) -> np.ndarray:
        found = predict(np.concatenate(patches[rows])).reshape(len(rows), side, side, -1)  # (n, s, s, F)
        return enlarged(found.transpose(0, 3, 1, 2), *masks.shape[2:])  # (n, F, H, W)

    masks = np.stack(list(data.masks(val)))  # (n, F, H, W)
    covered = cells(taught)  # (patches, F)
    predict = probe(np.concatenate(patches[taught]), covered, np.concatenate(patches[val]), cells(val))
    likely, best = maps(val), np.full(labels.shape[1], np.inf)  # (n, F, H, W), (F,): inf predicts nothing
    for label in np.flatnonzero(both_classes(covered) & masks.any((0, 2, 3))):
        known = ~np.isnan(labels[val, label])
        values, shown = likely[known, label], masks[known, label]  # (n, H, W) each
        cuts = np.quantile(values, 1 - ABOVE)
        overlaps = [(shown & (values > cut)).sum() / (shown.sum() + (values > cut).sum()) for cut in cuts]  # Dice / 2
        if max(overlaps) > 0:
            best[label] = cuts[np.argmax(overlaps)]
    return maps(test) > best[:, None, None]


def enlarged(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps over patches (..., s, s) at an image's size, bilinear: (..., H, W)."""
    sizes = zip(maps.shape[-2:], (height, width), strict=True)
    # What one patch row (column) gives to each pixel row: two small products take far less time than `zoom` of all.
    down, across = (zoom(np.eye(s), [n / s, 1], order=1, mode="nearest", grid_mode=True) for s, n in sizes)
    return down.astype(maps.dtype) @ maps @ across.T.astype(maps.dtype)  # (H, s) (..., s, s) (s, W) -> (..., H, W)


def dice(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """2 |A and B| / (|A| + |B|) of masks (..., H, W) -> (...): 1 if both are empty, 0 if only one is.

    Raises InputError for masks of different sizes.
    """
    if predicted.shape != truth.shape:
        raise InputError(f"Dice: masks of {predicted.shape} and {truth.shape} pixels; give both at the image's size")
    sizes = predicted.sum((-2, -1)) + truth.sum((-2, -1))
    return np.where(sizes > 0, 2 * (predicted & truth).sum((-2, -1)) / np.maximum(sizes, 1), 1.0)


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each line of weights: scores and truth (m,), weights (D, m) -> (D,).

    The share of pairs of a positive and a negative in which the positive has the higher score, ties counting half;
    NaN where there is no such pair.
    """
    values, place = np.unique(scores, return_inverse=True)
    positive, negative = np.zeros((2, len(weights), len(values)))  # weight with each score
    np.add.at(positive, (slice(None), place), weights * truth)
    np.add.at(negative, (slice(None), place), weights * (1 - truth))
    pairs = positive.sum(1) * negative.sum(1)
    won = (positive * (negative.cumsum(1) - negative / 2)).sum(1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def resampled(groups: np.ndarray) -> np.ndarray:
    """How often each of m rows counts (1 + D, m): first once, then as often as each bootstrap draw has its group."""
    names, index = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return np.vstack([np.ones_like(index), drawn[:, index]]).astype(float)


def table(found: dict[str, list[pd.DataFrame]], against: str) -> pd.DataFrame:
    """Lines of `score` of each row's replicates, with the change from the row `against` in the same replicate.

    For the 95% interval of a change, the same test studies are resampled in both rows.
    """
    out = []
    for row, replicates in found.items():
        for seed, own in enumerate(replicates):
            base = found[against][seed].set_index(KEYS)["draws"]
            for line in own.to_dict("records"):
                draws, key = line.pop("draws"), tuple(line[name] for name in KEYS)
                changes = draws - base[key] if row != against and key in base.index else np.full(1, np.nan)
                low, high = np.percentile(changes[1:], [2.5, 97.5]) if len(changes) > 1 else (np.nan, np.nan)
                change = {"change": changes[0], "change_low": low, "change_high": high}
                out.append({"row": row, "seed": seed} | line | change)
    return pd.DataFrame(out)


def summary(lines: pd.DataFrame) -> pd.DataFrame:
    """Means of a `table` over replicates, a line for each row and score, with 95% intervals and `detectable`.

    One replicate: the interval is over test studies and describes that one training. Two: none. Three or more: a t
    interval that holds for other trainings and other studies; its variance is that between replicates over their
    number, plus that of resampling studies. `detectable` (from three on) is the smallest true change that a test at 5%
    with this error finds in 80% of repetitions.
    """
    out = []
    for key, own in lines.groupby(["row", *KEYS], sort=False):
        line, number = dict(zip(["row", *KEYS], key, strict=True)) | {"replicates": len(own)}, len(own)
        for name, low, high in (("value", "ci_low", "ci_high"), ("change", "change_low", "change_high")):
            line |= {name: own[name].mean(), low: own[low].iloc[0], high: own[high].iloc[0]}
            error = (own[high] - own[low]).mean() / 2 / norm.ppf(0.975)  # of resampling studies
            error = np.sqrt(own[name].var(ddof=1) / number + error**2) if number > 2 else np.nan
            reach, power = t.ppf([0.975, 0.8], number - 1)
            if number > 1:
                line |= {low: line[name] - reach * error, high: line[name] + reach * error}
        out.append(line | {"detectable": (reach + power) * error})  # of the change
    return pd.DataFrame(out)
