"""A fine-tuning's stored answers: `predictions.parquet`, a row per test question, and `candidates.parquet`.

The log-likelihoods of all candidates are stored, so that the protocol (`scoring.protocols`) can be chosen later.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data.records import Question, normalise_answer

PREDICTIONS, CANDIDATES = "predictions.parquet", "candidates.parquet"
QUESTION_COLUMNS = (
    "question_id",
    "image_id",
    "question",
    "gold",  # accepted answers, normalised
    "split",
    "question_type",
    "closed_field",
    "closed_yes_no",
)
COLUMNS = (*QUESTION_COLUMNS, "generated", "prediction", "log_likelihoods")
CANDIDATE_COLUMNS = ("answer", "tokens", "in_train", "in_val", "in_test")
AGAIN = "run the fine-tuning again (notebook 05_finetune_vqa)"


def question_frame(questions: Sequence[Question]) -> pd.DataFrame:
    """`QUESTION_COLUMNS` of the test questions among `questions`, in their order."""
    test = [q for q in questions if q.split == "test"]
    columns = {name: [getattr(q, name) for q in test] for name in QUESTION_COLUMNS if name != "gold"}
    return pd.DataFrame(columns | {"gold": [list(q.answers) for q in test]})[list(QUESTION_COLUMNS)]


def candidate_frame(answers: Sequence[str], tokens: Sequence[int], questions: Sequence[Question]) -> pd.DataFrame:
    """`CANDIDATE_COLUMNS`: each answer, its scored tokens (the end token included) and which splits accept it."""
    frame = pd.DataFrame({"answer": list(answers), "tokens": tokens})
    for split in ("train", "val", "test"):
        frame[f"in_{split}"] = frame["answer"].isin({a for q in questions if q.split == split for a in q.answers})
    return frame


def write_predictions(folder: Path | str, frame: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Store predictions and the candidates they were ranked over.

    `frame` has one row per question with the columns of `COLUMNS`, `prediction` excepted: that is the likeliest test
    answer (the paper's protocol) and is computed here. `log_likelihoods` holds one number per row of `candidates`.
    Raises InputError as `read_predictions` does.
    """
    folder = Path(folder)
    scores = _log_likelihoods(frame, candidates, paths.shown(folder))
    best = np.where(candidates["in_test"].to_numpy(dtype=bool), scores, -np.inf).argmax(1)  # (n,), the first of equals
    frame = frame.assign(generated=frame["generated"].map(normalise_answer), log_likelihoods=list(scores))
    frame["prediction"] = candidates["answer"].to_numpy(dtype=object)[best]
    for name, content in ((CANDIDATES, candidates[list(CANDIDATE_COLUMNS)]), (PREDICTIONS, frame[list(COLUMNS)])):
        with files.atomic_write(folder / name) as temporary:
            content.to_parquet(temporary, index=False, compression="zstd")


def read_predictions(folder: Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and candidates of a run folder.

    Raises InputError if a file is missing or damaged, a question or a candidate occurs twice, or a question lacks a
    finite log-likelihood for a candidate.
    """
    folder = Path(folder).resolve()
    stats = [path.stat() for name in (PREDICTIONS, CANDIDATES) if (path := folder / name).is_file()]
    frame, candidates = _read(folder, tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))
    return frame.copy(deep=False), candidates.copy(deep=False)  # callers may add columns to theirs


@lru_cache(maxsize=1000)  # several tables and figures read the same runs
def _read(folder: Path, _changed: tuple[tuple[int, int], ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`read_predictions` for files in the state `_changed`."""
    frame, candidates = _parquet(folder / PREDICTIONS), _parquet(folder / CANDIDATES)
    _log_likelihoods(frame, candidates, paths.shown(folder / PREDICTIONS))
    return frame.assign(gold=frame["gold"].map(list)), candidates


def _parquet(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{paths.shown(path)}: no such file; {AGAIN}")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())[:120]
        raise InputError(f"{paths.shown(path)}: not a readable Parquet file ({detail}); {AGAIN}") from None


def _log_likelihoods(frame: pd.DataFrame, candidates: pd.DataFrame, where: str) -> np.ndarray:
    """The log-likelihoods as one fp32 array (n questions, K candidates). Raises InputError if they cannot be scored."""
    for name, values in (("candidate", candidates["answer"]), ("question", frame["question_id"])):
        if doubled := values[values.duplicated()].tolist():
            raise InputError(f"{where}: {name} {doubled[0]!r} occurs twice; {AGAIN}")
    for question, scores in zip(frame["question_id"], frame["log_likelihoods"], strict=True):
        if np.shape(scores) != (len(candidates),) or not np.isfinite(scores).all():
            raise InputError(f"{where}: question {question} needs one finite log-likelihood per candidate; {AGAIN}")
    return np.stack(frame["log_likelihoods"]).astype(np.float32)  # (n, K)
