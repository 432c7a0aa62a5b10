"""Stored predictions and the protocols that score them.

A fine-tuning ranks every answer of the training *and* the test questions once and stores all log-likelihoods, so that
a protocol (which candidates, which definition of a closed question, sum or mean) is a later selection and no model has
to run again. Nothing here needs torch.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data.records import normalise_answer
from amif_lib.scoring import compact
from amif_lib.scoring.statistics import wilson

PREDICTIONS, CANDIDATES = "predictions.parquet", "candidates.parquet"
COLUMNS = {
    "question_id": str,
    "image_id": str,
    "question": str,
    "gold": list,
    "split": str,
    "question_type": str,
    "closed_field": bool,
    "closed_yes_no": bool,
    "generated": str,
    "prediction": str,
    "log_likelihoods": list,
}
CANDIDATE_COLUMNS = {"answer": str, "tokens": int, "in_train": bool, "in_val": bool, "in_test": bool}
DEFINITIONS = {"yes_no": "closed_yes_no", "answer_type": "closed_field"}


class Protocol(BaseModel):
    """How stored predictions are scored. A change of meaning takes a new `version`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(description="what tables call it")
    version: int = Field(description="of its meaning")
    candidates: Literal["test", "train", "train+val", "all", "generate"] = Field(
        description="the answers of which splits are ranked, or none: free generation (point 39)"
    )
    closed: Literal["yes_no", "answer_type"] = Field(
        description="closed questions: the answer is yes or no, or the set's own field (point 42)"
    )
    closed_candidates: Literal["all", "yes_no"] = Field(
        "all",
        description="candidates of a closed question: all, or yes and no alone, which takes its being closed as known and "
        "raises the score (point 41)",
    )
    score: Literal["sum", "mean"] = Field(
        "sum", description="log-likelihood of a candidate over its tokens; their mean favours long answers (point 40)"
    )
    note: str = Field("", description="what a reader must know")

    @property
    def title(self) -> str:
        """What tables print: `paper`, and `name@version` for the rest."""
        return self.name if self.name == "paper" else f"{self.name}@{self.version}"


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            name="paper",
            version=1,
            candidates="test",
            closed="yes_no",
            note="The test answers are the candidates and the lowest language modelling loss wins (supplement section "
            "6); closed = the answer is yes or no (Table 1).",
        ),
        Protocol(
            name="strict",
            version=1,
            candidates="train",
            closed="yes_no",
            note="No test answer is seen anywhere: only answers of the training questions are candidates. Both "
            "definitions of closed are reported.",
        ),
        Protocol(
            name="albef",
            version=1,
            candidates="train+val",
            closed="answer_type",
            note="Approximate. ALBEF counts the first token twice and ranks only the 128 candidates whose first token "
            "is likeliest; neither can be told from stored sums. M2I2 and MUMC add the test answers on VQA-RAD.",
        ),
        Protocol(
            name="blip",
            version=1,
            candidates="train+val",
            closed="answer_type",
            note="Approximate. BLIP smooths labels by 0.1 while it ranks and filters by the first token; neither can "
            "be told from stored sums.",
        ),
        Protocol(
            name="generate",
            version=1,
            candidates="generate",
            closed="yes_no",
            note="The freely generated answer, no candidate list.",
        ),
        Protocol(
            name="closed_yes_no",
            version=1,
            candidates="test",
            closed="yes_no",
            closed_candidates="yes_no",
            note="As `paper`, but a closed question is ranked over yes and no alone, as if it were known to be closed.",
        ),
    )
}


# --- on disk -----------------------------------------------------------------------------------------------------


def write_predictions(folder: Path | str, frame: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Store predictions and the candidates they were ranked over, each written aside and moved into place.

    `frame` has one row per question with the columns of `COLUMNS`, `prediction` excepted: that is the likeliest test
    answer (the paper's protocol) and is computed here. `log_likelihoods` holds one number per row of `candidates`.
    `candidates` has the columns of `CANDIDATE_COLUMNS`; `in_val` may be left out where a data set has no validation
    split. Raises InputError as `read_predictions` does.
    """
    folder = Path(folder)
    candidates = candidates.copy()
    if "in_val" not in candidates:
        candidates["in_val"] = False
    frame = frame.copy()
    frame["gold"] = [[normalise_answer(answer) for answer in accepted] for accepted in frame["gold"]]
    frame["generated"] = [normalise_answer(text) for text in frame["generated"]]
    where = paths.shown(folder)
    _check_candidates(candidates, where)
    frame["prediction"] = ""
    scores = _check_frame(frame, candidates, where)
    frame["prediction"] = _choose(frame, scores, candidates, PROTOCOLS["paper"], where)
    frame["log_likelihoods"] = list(scores.astype(np.float32))
    for name, content in ((CANDIDATES, candidates[list(CANDIDATE_COLUMNS)]), (PREDICTIONS, frame[list(COLUMNS)])):
        with files.write_aside(folder / name) as aside:
            content.to_parquet(aside, index=False)


def read_predictions(folder: Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and candidates of a run folder, checked.

    Raises InputError, naming file and question, where a file or column is missing, a question id is doubled or empty,
    an accepted answer is missing, log-likelihoods are not one finite number per candidate, or the stored prediction is
    not the likeliest test answer (the file was edited).
    """
    folder = Path(folder)
    files_of = [path for name in (PREDICTIONS, CANDIDATES) if (path := folder / name).is_file()]
    stamps = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files_of)
    frame, candidates = _read(folder.resolve(), stamps)
    return frame.copy(deep=False), candidates.copy(deep=False)  # a column of one's own does no harm to other readers


@lru_cache(maxsize=1000)  # several tables and figures read the same runs
def _read(folder: Path, stamps: tuple[tuple[int, int], ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `read_predictions` returns of files as they are at this time."""
    frame = read_parquet(folder / PREDICTIONS)
    if compact.is_compact(frame):
        frame, candidates = compact.expand(folder, frame)
    else:
        candidates = read_parquet(folder / CANDIDATES)
    _check_candidates(candidates, paths.shown(folder / CANDIDATES))
    scores = _check_frame(frame, candidates, paths.shown(folder / PREDICTIONS))
    frame["gold"] = [list(accepted) for accepted in frame["gold"]]
    expected = _choose(frame, scores, candidates, PROTOCOLS["paper"], paths.shown(folder))
    edited = np.flatnonzero(expected != frame["prediction"].to_numpy())
    if len(edited):
        row = frame.iloc[edited[0]]
        raise InputError(
            f"{paths.shown(folder / PREDICTIONS)}: question {row.question_id}: prediction "
            f"{row.prediction!r} is not the likeliest test answer {expected[edited[0]]!r}; the file was "
            "edited, restore it"
        )
    return frame, candidates


def read_parquet(path: Path, remedy: str = "run the fine-tuning again (notebook 05_finetune_vqa)") -> pd.DataFrame:
    """A Parquet file. Raises InputError, which ends in `remedy`, where it is absent or damaged."""
    if not path.is_file():
        raise InputError(f"{paths.shown(path)}: no such file; {remedy}")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())[:120]
        raise InputError(
            f"{paths.shown(path)}: not a readable Parquet file ({detail}); delete it and {remedy}"
        ) from None


def _check_candidates(candidates: pd.DataFrame, where: str) -> None:
    missing = [name for name in CANDIDATE_COLUMNS if name not in candidates]
    if missing:
        raise InputError(f"{where}: candidates lack the column {missing[0]!r}; needed: {', '.join(CANDIDATE_COLUMNS)}")
    doubled = candidates["answer"][candidates["answer"].duplicated()]
    if len(doubled):
        raise InputError(f"{where}: candidate {doubled.iloc[0]!r} occurs twice; keep each answer once")
    unnormalised = candidates["answer"][candidates["answer"].map(normalise_answer) != candidates["answer"]]
    if len(unnormalised):
        raise InputError(f"{where}: candidate {unnormalised.iloc[0]!r} is not normalised; apply normalise_answer")
    if not (candidates["tokens"] >= 1).all():
        raise InputError(f"{where}: a candidate has fewer than one scored token; the end token counts as one")


def _check_frame(frame: pd.DataFrame, candidates: pd.DataFrame, where: str) -> np.ndarray:
    """Raise on the first unusable row, else return the log-likelihoods as one (questions, candidates) array."""
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise InputError(f"{where}: predictions lack the column {missing[0]!r}; needed: {', '.join(COLUMNS)}")
    if not len(frame):
        raise InputError(f"{where}: no predictions; the test split is empty")
    for row, question in enumerate(frame["question_id"]):
        if not isinstance(question, str) or not question:
            raise InputError(f"{where}: row {row}: question_id {question!r} is not a non-empty text")
    doubled = frame["question_id"][frame["question_id"].duplicated()]
    if len(doubled):
        raise InputError(f"{where}: question {doubled.iloc[0]} is predicted twice; each question counts once")
    for question, gold, scores in zip(frame["question_id"], frame["gold"], frame["log_likelihoods"], strict=True):
        if not len(gold) or not all(isinstance(answer, str) and answer for answer in gold):
            raise InputError(f"{where}: question {question} has no accepted answer, or an empty one")
        if len(scores) != len(candidates):
            raise InputError(
                f"{where}: question {question} has {len(scores)} log-likelihoods for {len(candidates)} "
                "candidates; run the fine-tuning again"
            )
    for name in DEFINITIONS.values():
        if frame[name].isna().any():
            question = frame["question_id"][frame[name].isna()].iloc[0]
            raise InputError(f"{where}: question {question}: {name} is empty; give true or false")
    stacked = np.stack([np.asarray(scores, dtype=np.float32) for scores in frame["log_likelihoods"]])  # (n, K)
    if not np.isfinite(stacked).all():
        question = frame["question_id"].iloc[int(np.flatnonzero(~np.isfinite(stacked).all(1))[0])]
        raise InputError(f"{where}: question {question} has a log-likelihood that is not finite; the training diverged")
    return stacked


# --- scoring -----------------------------------------------------------------------------------------------------


def _choose(
    frame: pd.DataFrame, scores: np.ndarray, candidates: pd.DataFrame, protocol: Protocol, where: str
) -> np.ndarray:
    """The best candidate of each question -> (n,) texts. Ties go to the candidate that is listed first."""
    member = {
        "test": candidates["in_test"],
        "train": candidates["in_train"],
        "train+val": candidates["in_train"] | candidates["in_val"],
        "all": candidates["in_train"] | candidates["in_val"] | candidates["in_test"],
    }[protocol.candidates]
    member = member.to_numpy(dtype=bool)
    if not member.any():
        raise InputError(
            f"{where}: no candidate for protocol {protocol.title} ({protocol.candidates} answers); the run stored none"
        )
    if protocol.score == "mean":
        scores = scores / candidates["tokens"].to_numpy(dtype=np.float32)  # (n, K)
    answers = candidates["answer"].to_numpy(dtype=object)
    allowed = np.broadcast_to(member, scores.shape)  # (n, K)
    if protocol.closed_candidates == "yes_no":
        yes_no = member & np.isin(answers, ("yes", "no"))
        closed = frame[DEFINITIONS[protocol.closed]].to_numpy(dtype=bool)  # (n,)
        if closed.any() and not yes_no.any():
            raise InputError(f"{where}: no candidate 'yes' or 'no' for protocol {protocol.title}; use another protocol")
        allowed = np.where(closed[:, None], yes_no, allowed)
    return answers[np.where(allowed, scores, -np.inf).argmax(1)]  # (n,)


def score(frame: pd.DataFrame, candidates: pd.DataFrame | None, protocol: Protocol) -> pd.DataFrame:
    """Correctness of each question under a protocol.

    Returns one row per question: `question_id, image_id, question_type, closed_field, closed_yes_no, prediction,
    correct`. Correct is an exact match with any accepted answer after `normalise_answer`. `candidates=None` is for
    predictions without log-likelihoods (baselines, free text): there only `candidates: generate` can be asked.
    """
    if protocol.candidates == "generate":
        chosen = frame["generated"].to_numpy(dtype=object)
    elif candidates is None:
        raise InputError(
            f"protocol {protocol.title} ranks candidates, but these predictions have no log-likelihoods; "
            "score them under the protocol generate"
        )
    else:
        stacked = np.stack([np.asarray(row, dtype=np.float32) for row in frame["log_likelihoods"]])  # (n, K)
        chosen = _choose(frame, stacked, candidates, protocol, "predictions")
    out = frame[["question_id", "image_id", "question_type", *DEFINITIONS.values()]].reset_index(drop=True)
    out["prediction"] = chosen
    texts = {text for gold in frame["gold"] for text in gold}.union(chosen)
    plain = {text: normalise_answer(text) for text in texts}  # each text once: tables score hundreds of runs
    out["correct"] = [
        plain[text] in {plain[answer] for answer in gold} for text, gold in zip(chosen, frame["gold"], strict=True)
    ]
    return out


def select(scored: pd.DataFrame, split: str, definition: str) -> pd.Series:
    """Boolean mask of the questions of a split (`open`, `closed`, `overall`) under a definition of closed."""
    if definition not in DEFINITIONS or split not in ("open", "closed", "overall"):
        raise InputError(f"split {split!r}, closed {definition!r}: use open|closed|overall and {'|'.join(DEFINITIONS)}")
    closed = scored[DEFINITIONS[definition]].astype(bool)
    return {"open": ~closed, "closed": closed, "overall": pd.Series(True, index=scored.index)}[split]


def accuracy_table(scored: pd.DataFrame, definitions: tuple[str, ...] = tuple(DEFINITIONS)) -> pd.DataFrame:
    """Accuracy per split and definition of closed, in percent.

    Rows are tidy: `split (open|closed|overall), definition (yes_no|answer_type), correct, n, accuracy, ci_low,
    ci_high`, the interval being Wilson's at 95%. It takes questions as independent; tables resample images instead
    (`statistics.bootstrap`). A split without questions has n = 0 and no accuracy.
    """
    rows = []
    for definition in definitions:
        for split in ("open", "closed", "overall"):
            part = scored["correct"][select(scored, split, definition)]
            correct, n = int(part.sum()), len(part)
            low, high = wilson(correct, n) if n else (np.nan, np.nan)
            rows.append(
                {
                    "split": split,
                    "definition": definition,
                    "correct": correct,
                    "n": n,
                    "accuracy": 100 * correct / n if n else np.nan,
                    "ci_low": 100 * low,
                    "ci_high": 100 * high,
                }
            )
    return pd.DataFrame(rows)
