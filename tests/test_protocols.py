"""Protocols and stored predictions: hand-computed scores and the real VQA-RAD file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from amif_lib.core.errors import InputError
from amif_lib.data import load, manifests
from amif_lib.experiments.predictions import COLUMNS, PREDICTIONS, read_predictions, write_predictions
from amif_lib.scoring import baselines, protocols
from amif_lib.scoring.protocols import PROTOCOLS

CANDIDATES = pd.DataFrame(
    {
        "answer": ["no", "yes", "left lower lobe", "ct", "mri"],
        "tokens": [2, 2, 4, 2, 2],
        "in_train": [True, True, True, True, False],
        "in_val": [False, False, False, False, True],
        "in_test": [True, True, True, False, True],
    }
)


def frame() -> pd.DataFrame:
    """Four questions on three images; the fourth (`mri`) cannot be answered with a training answer."""
    return pd.DataFrame(
        {
            "question_id": ["q1", "q2", "q3", "q4"],
            "image_id": ["a", "a", "b", "c"],
            "question": ["is it big", "where is it", "which side", "which modality"],
            "gold": [["yes"], ["left lower lobe", "lll"], ["no"], ["mri"]],
            "split": "test",
            "question_type": ["pres", "pos", "pres", "modality"],
            "closed_field": [True, False, True, True],
            "closed_yes_no": [True, False, True, False],
            "generated": ["yes", "LLL ", "yes", "m r i"],
            "log_likelihoods": [
                np.float32([-3.0, -1.0, -9.0, -9.0, -9.0]),  # yes
                np.float32([-4.0, -5.0, -4.4, -9.0, -9.0]),  # no
                np.float32([-1.0, -2.0, -9.0, -0.5, -9.0]),  # ct, which is no test answer; then no
                np.float32([-5.0, -6.0, -9.0, -3.0, -2.0]),
            ],
        }
    )  # mri; among training answers ct


def correct(name: str) -> list[bool]:
    return protocols.score(frame(), CANDIDATES, PROTOCOLS[name])["correct"].tolist()


def test_candidate_lists_by_hand():
    assert correct("paper") == [True, False, True, True]
    assert correct("strict") == [True, False, False, False]
    assert correct("albef") == correct("blip") == [True, False, False, True]
    assert correct("generate") == [True, True, False, False]


def test_blanks_that_a_wordpiece_decoder_puts_around_punctuation_do_not_count():
    given = {"3. 4 cm": "3.4 cm", "x - ray": "X-ray", "左 肺": "左肺", "x ray": "x-ray"}
    table = pd.concat([frame().iloc[[1]]] * len(given), ignore_index=True)
    table["generated"], table["gold"] = list(given), [[gold] for gold in given.values()]
    found = protocols.score(table, None, PROTOCOLS["generate"])["correct"].tolist()
    assert found == [True, True, True, False]
    assert PROTOCOLS["generate"].title == "generate@2"


@pytest.mark.parametrize("name", ["vqa_rad", "slake"])
def test_every_real_test_answer_can_be_generated(name, shared_data, monkeypatch):
    """Each accepted answer, cut and joined as BERT's tokenizer does it, which alters more than ten of them."""
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setattr(manifests, "location", lambda _: shared_data / {"slake": "slake_annotations"}.get(name, name))
    lower, cut = tokenizers.normalizers.BertNormalizer(lowercase=True), tokenizers.pre_tokenizers.BertPreTokenizer()
    made = baselines.vocabulary_ceiling(load.load_questions(name, images=False))
    texts = [" ".join(word for word, _ in cut.pre_tokenize_str(lower.normalize_str(gold[0]))) for gold in made["gold"]]
    assert sum(text not in gold for text, gold in zip(texts, made["gold"], strict=True)) > 10
    assert protocols.score(made.assign(generated=texts), None, PROTOCOLS["generate"])["correct"].all()


# --- on disk ---


def stored(folder: Path) -> Path:
    write_predictions(folder, frame(), CANDIDATES)
    return folder


def test_round_trip(tmp_path):
    got, candidates = read_predictions(stored(tmp_path / "a run"))
    assert got["prediction"].tolist() == ["yes", "no", "no", "mri"]  # the paper's protocol
    assert got["gold"].tolist() == frame()["gold"].tolist()
    assert got["generated"].tolist() == ["yes", "lll", "yes", "m r i"]
    assert all(np.array_equal(a, b) for a, b in zip(got["log_likelihoods"], frame()["log_likelihoods"], strict=True))
    assert list(got.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(candidates, CANDIDATES)
    assert [p.name for p in (tmp_path / "a run").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["predictions.parquet", "candidates.parquet"])
def test_deleted_or_damaged_file(tmp_path, name):
    (stored(tmp_path) / name).write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=f"{name}: not a readable Parquet file"):
        read_predictions(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: pd.concat([t, t.iloc[[1]]]), "question 'q2' occurs twice"),
        (lambda t: t.assign(log_likelihoods=[[0.0, 1.0]] * 4), "question q1 needs one finite log-likelihood"),
    ],
)
def test_edited_predictions_are_refused(tmp_path, edit, message):
    path = stored(tmp_path) / PREDICTIONS
    edit(pd.read_parquet(path)).to_parquet(path, index=False)
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path)
