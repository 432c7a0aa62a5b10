"""Tiny runs and batches that several tests share: seconds on one core."""

from __future__ import annotations

import shutil

import pytest
import torch

from amif_lib.data.load import load_questions
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.experiments.predictions import read_predictions
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.methods.amif.network import AMiF
from amif_lib.methods.amif.settings import ObjectiveSpec
from amif_lib.methods.amif.stage1 import Stage1
from amif_lib.methods.amif.stage2 import Stage2
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks.sizes import ModelSpec
from amif_lib.training import checkpoint, loop

MODEL = {"width": 32, "image_size": 32, "patch_size": 8, "vocab_size": 400, "text_positions": 64, "projection_dim": 16}
MODEL |= {"image_layers": 2, "text_layers": 2, "fusion_layers": 1, "decoder_layers": 2, "decoder_cross_layers": 1}
MODEL |= {"image_heads": 2, "text_heads": 2, "fusion_heads": 2, "dropout": 0.0}
SPECIAL = (2, 3)  # [CLS], [SEP]


def run(**changes) -> RunSpec:
    """A fine-tuning with both pre-training stages, on few samples; `stage1=`, `stage2=`, `finetune=` change `train`."""
    train = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    stages = {name: train | changes.pop(name, {}) for name in ("stage1", "stage2", "finetune")}
    teacher = {"source": "trained", "data": ["phantom_roco"], "epochs": 1}  # 160 studies
    teacher |= {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1}
    data = {"pretrain": ["phantom_mimic_cxr"], "questions": "phantom_vqa_rad"}
    data |= {"tokenizer_questions": ["phantom_vqa_rad"]}
    data |= {"text_length": 32, "question_length": 24, "answer_length": 12, "max_studies": 24, "max_questions": 24}
    init = {"image": "random", "text": "random", "decoder": "random", "tokenizer": "trained"}
    shared = experiments.merge({"scale": "demo", "model": MODEL, "data": data, "init": init}, changes)
    stage1 = shared | {"stage": "stage1", "teacher": teacher, "train": stages["stage1"]}
    stage2 = stage1 | {"stage": "stage2", "parent": stage1, "train": stages["stage2"]}
    return experiments.parse(shared | {"stage": "finetune", "parent": stage2, "train": stages["finetune"]}, "tests")


def pretraining(stage: str, seed: int = 0, model: dict | None = None, **objective) -> Stage1 | Stage2:
    torch.manual_seed(seed)
    amif, settings = AMiF(ModelSpec(**(MODEL | (model or {})))), ObjectiveSpec(**objective)
    return Stage1(amif, settings) if stage == "stage1" else Stage2(amif, settings, 0, SPECIAL)


def total(module: torch.nn.Module, out: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a training minimises: the named losses with the module's weights."""
    return sum(weight * out[name] for name, weight in module.weights.items())


def batch(n: int = 8, seed: int = 0, teacher: bool = True, length: int = 10, step: int = 0) -> PretrainingBatch:
    """n samples of random pixels and tokens, every one its own group and text, with random teacher embeddings."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, length + 1, (n,), generator=g)
    mask = torch.arange(length)[None] < lengths[:, None]
    ids = torch.randint(5, 400, (n, length), generator=g).masked_fill(~mask, 0)
    ids[:, 0] = SPECIAL[0]
    ids[torch.arange(n), lengths - 1] = SPECIAL[1]
    copy = torch.where(torch.rand(n, length, generator=g) < 0.2, 4, ids).masked_fill(~mask, 0)
    unit = torch.nn.functional.normalize
    views, view = torch.randn(n, 2, 3, 32, 32, generator=g), torch.randint(0, 2, (n,), generator=g)
    extras = {
        "teacher_views": unit(torch.randn(n, 2, 16, generator=g), dim=-1),
        "teacher_text": unit(torch.randn(n, 16, generator=g), dim=-1),
    }
    numbers = {"view_label": torch.zeros(n, 2, dtype=torch.long), "group": torch.arange(n), "text_key": torch.arange(n)}
    return PretrainingBatch(views, view, ids, mask, copy, **numbers, step=step, extras=extras if teacher else {})


# --- trainings and what becomes of them ---


def overfit(module: torch.nn.Module, batch: PretrainingBatch, name: str, rate: float, steps: int = 30) -> list[float]:
    """The loss of that name at each step of a training on one batch."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        loss = module(batch)[name]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(module, "after_step"):
            module.after_step()
        losses.append(float(loss.detach()))
    return losses


def trained(last: RunSpec) -> RunSpec:
    """The run, trained with all stages before it."""
    for spec in last.trainings():
        loop.fit(spec)
    return last


def same_answers_again(finished: RunSpec) -> None:
    """The stored model ranks a test question's answers as the run's predictions do, and writes one."""
    frame, candidates = read_predictions(finished.directory)
    assert len(frame) == 24 and all(len(row) == len(candidates) for row in frame.log_likelihoods)
    model, row = stored.load_run(finished).model(), frame.iloc[3]
    question = next(q for q in load_questions("phantom_vqa_rad") if q.question_id == row.question_id)
    ranked = model.rank(question.image_path, question.question, candidates.answer.tolist()).set_index("answer")
    assert ranked.log_likelihood[candidates.answer].tolist() == pytest.approx(row.log_likelihoods.tolist(), abs=1e-4)
    assert isinstance(model.answer(question.image_path, question.question), str)


def same_when_interrupted(finished: RunSpec, stage: str, monkeypatch: pytest.MonkeyPatch, *columns: str) -> None:
    """A stage trained again, stopped at step 2 and resumed, has the history of the finished one, which is put back."""
    whole = next(spec for spec in finished.trainings() if spec.stage == stage)
    expected, kept = stored.load_run(whole).history, whole.directory.with_name(f"kept-{stage}")
    whole.directory.rename(kept)
    save = checkpoint.save

    def save_then_stop(*arguments):
        save(*arguments)
        if arguments[4] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "SAVE_EVERY", -1)  # after every step
    monkeypatch.setattr(checkpoint, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(whole)
    assert not stored.is_finished(whole) and (whole.directory / checkpoint.STATE).is_file()
    (whole.directory / f".{checkpoint.STATE}.123").write_bytes(b"half of it")  # left by a killed process
    with (whole.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')  # torn by the cut-off
    monkeypatch.setattr(checkpoint, "save", save)
    loop.fit(whole)
    again = stored.load_run(whole).history
    assert again.step.tolist() == expected.step.tolist()
    for name in ("total", "gradient_norm", "learning_rate", *columns):
        assert again[name].tolist() == pytest.approx(expected[name].tolist(), rel=1e-4)
    assert not list(whole.directory.glob("*state.pt*"))
    shutil.rmtree(whole.directory)
    kept.rename(whole.directory)
