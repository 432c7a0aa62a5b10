"""How stored predictions are scored: a protocol says which answers are candidates and which questions are closed.

Nothing here runs a model, since a run stores the log-likelihood of every answer (`experiments.predictions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from amif_lib.core.errors import InputError
from amif_lib.data.records import close_punctuation, normalise_answer

DEFINITIONS = {"yes_no": "closed_yes_no", "answer_type": "closed_field"}  # of closed -> column of predictions


@dataclass(frozen=True)
class Protocol:
    """How stored predictions are scored. A change of meaning takes a new `version`."""

    name: str
    version: int
    candidates: str  # answers of which splits are ranked: test, train or train+val; or generate (point 39)
    closed: str  # yes_no: the answer is yes or no; answer_type: the set's own field says so (point 42)
    note: str  # what a reader must know

    @property
    def title(self) -> str:
        """What tables print: `paper`, `as given`, and `name@version` for the rest."""
        return self.name if self.name in ("paper", "as given") else f"{self.name}@{self.version}"


_PAPER = (
    "The test answers are the candidates and the lowest language modelling loss wins (supplement section 6); closed = "
    "the answer is yes or no (Table 1)."
)
_STRICT = (
    "No test answer is seen anywhere: only answers of the training questions are candidates. Both definitions of "
    "closed are reported."
)
_ALBEF = (
    "Approximate. ALBEF counts the first token twice and ranks only the 128 candidates whose first token is likeliest; "
    "neither can be told from stored sums. M2I2 and MUMC add the test answers on VQA-RAD."
)
_BLIP = (
    "Approximate. BLIP smooths labels by 0.1 while it ranks and filters by the first token; neither can be told from "
    "stored sums."
)
_GENERATE = "The freely generated answer; white space around punctuation does not count."
PROTOCOLS = {
    "paper": Protocol("paper", 1, "test", "yes_no", _PAPER),
    "strict": Protocol("strict", 1, "train", "yes_no", _STRICT),
    "albef": Protocol("albef", 1, "train+val", "answer_type", _ALBEF),
    "blip": Protocol("blip", 1, "train+val", "answer_type", _BLIP),
    "generate": Protocol("generate", 2, "generate", "yes_no", _GENERATE),
}


def choose(frame: pd.DataFrame, candidates: pd.DataFrame, protocol: Protocol) -> np.ndarray:
    """The likeliest candidate of each question: texts (n,), of equal ones the first. InputError if there is none."""
    splits = protocol.candidates.split("+")
    allowed = candidates[[f"in_{split}" for split in splits]].to_numpy(dtype=bool).any(1)  # (K,)
    if not allowed.any():
        said = f"protocol {protocol.title} ranks {protocol.candidates} answers, but the run stored none"
        raise InputError(f"{said}; fine-tune it again")
    log_likelihoods = np.stack(frame["log_likelihoods"]).astype(np.float32)  # (n, K)
    best = np.where(allowed, log_likelihoods, -np.inf).argmax(1)  # (n,)
    return candidates["answer"].to_numpy(dtype=object)[best]


def score(frame: pd.DataFrame, candidates: pd.DataFrame | None, protocol: Protocol) -> pd.DataFrame:
    """Correctness of each question under a protocol.

    Returns one row per question: `question_id, image_id, question_type, closed_field, closed_yes_no, prediction,
    correct`. Correct is an exact match with any accepted answer after `normalise_answer` and, of generated answers,
    `close_punctuation`: a WordPiece decoder writes "3. 4 cm" for "3.4 cm". `candidates=None` is for predictions without
    log-likelihoods (baselines, free text), which only `candidates: generate` can score.
    """
    generated = protocol.candidates == "generate"
    if not generated and candidates is None:
        raise InputError(f"protocol {protocol.title} ranks candidates, predictions lack log-likelihoods; use generate")
    chosen = frame["generated"].to_numpy(dtype=object) if generated else choose(frame, candidates, protocol)
    out = frame[["question_id", "image_id", "question_type", *DEFINITIONS.values()]].reset_index(drop=True)
    out = out.assign(prediction=chosen)
    texts = {text for gold in frame["gold"] for text in gold}.union(chosen)
    plain = {text: normalise_answer(text) for text in texts}  # each text once: tables score hundreds of runs
    if generated:
        plain = {text: close_punctuation(normal) for text, normal in plain.items()}
    pairs = zip(chosen, frame["gold"], strict=True)
    return out.assign(correct=[plain[text] in {plain[answer] for answer in gold} for text, gold in pairs])


def select(scored: pd.DataFrame, split: str, definition: str) -> pd.Series:
    """Which questions (n,) are in a split (`open`, `closed`, `overall`), by a definition of closed (`DEFINITIONS`)."""
    closed = scored[DEFINITIONS[definition]].astype(bool)
    return {"open": ~closed, "closed": closed, "overall": pd.Series(True, index=scored.index)}[split]


def accuracies(scored: pd.DataFrame) -> pd.Series:
    """Accuracy in percent by split (open, closed, overall) and definition of closed; NaN where there is no question."""
    parts = product(("open", "closed", "overall"), DEFINITIONS)
    return pd.Series({part: 100 * scored["correct"][select(scored, *part)].mean() for part in parts})
