"""What a trained run looks at, stored once right after training (notebooks 03 to 05), for figures without torch or data.

`ensure(run)` writes into `results/runs/<run_id>/`:

- fine-tuning: `maps.npz`, patch maps of attention, gate and transport plan for the test questions that name a finding whose
  region is known and not empty;
- stage 2: `maps.npz`, the same (without gate) for reports, on studies that no student is trained on, and
  `hard_negatives.csv`, the negatives that were drawn in the run's last step;
- stage 1: `soft_labels.npz`, the teacher's labels beside the student's probabilities on the run's first batch.

Regions are known of generated data only, so that runs on real data have no `maps.npz`. None of it is read by training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amif_lib import explain, map_files, paths, redistribution, regions, results, teachers, tokenizers
from amif_lib.batches import ImageCache, PretrainingData, pad
from amif_lib.datasets import load_questions, load_studies, prepared
from amif_lib.errors import InputError
from amif_lib.experiments import RunSpec
from amif_lib.map_files import HARD_NEGATIVES, MAPS, SOFT_LABELS, Maps
from amif_lib.map_scores import untrained_file
from amif_lib.model import AMiF, AMiFForVQA
from amif_lib.objectives.amif import Pretraining
from amif_lib.results import Run

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT = "phantom_teacher"  # studies drawn apart: the soft labels' teacher is trained on them, no student ever is
MOST = 150  # questions or reports per run, the first in file order
EXAMPLES = 4
BATCH = 50
SHOWN = 32  # samples of the soft-label heat maps


def ensure(run: Run | RunSpec | str) -> list[Path]:
    """Store what figures need of a finished run, unless it is there; returns the files. Says in one line why there are none."""
    run = run if isinstance(run, Run) else results.load_run(run)
    spec = run.spec
    if not results.is_finished(spec):
        raise InputError(f"{paths.shown(run.directory)}: the run is not finished; train it first")
    if spec.stage == "stage1":
        return [_once(run.directory / SOFT_LABELS, lambda path: map_files.write_arrays(path, soft_labels(run)))]
    out = []
    if spec.stage == "stage2" and spec.objective.weight_hard_negatives > 0:
        out.append(_once(run.directory / HARD_NEGATIVES, lambda path: _write_table(path, mined_negatives(run))))
    if reason := _no_maps(spec):
        print(f"{spec.stage} {run.run_id}: no maps: {reason}")
        return out
    make = question_maps if spec.stage == "finetune" else report_maps
    out.append(_once(run.directory / MAPS, lambda path: map_files.write(path, make(run))))
    if spec.stage == "stage2" or (spec.knowledge.source == "answers" and spec.knowledge.gate):
        out.append(
            _once(untrained_file(spec, _data_set(spec)), lambda path: map_files.write(path, make(run, trained=False)))
        )
    return out


def _data_set(spec: RunSpec) -> str:
    return spec.data.questions if spec.stage == "finetune" else HELD_OUT


def _no_maps(spec: RunSpec) -> str:
    """Why a fine-tuning or stage-2 run has no maps; empty where it has."""
    if spec.stage == "finetune" and spec.data.blank_images:
        return "it is trained on blank images"
    names = [spec.data.questions] if spec.stage == "finetune" else list(spec.data.pretrain)
    if unknown := [name for name in names if not regions.known(name)]:
        return f"no regions are known of {', '.join(unknown)}"
    if spec.stage == "stage2" and HELD_OUT in names:
        return f"it is trained on {HELD_OUT}, whose regions would score it"
    return ""


def _once(path: Path, make: Callable[[Path], Any]) -> Path:
    current = map_files.is_current(path) if path.suffix == ".npz" else path.is_file()
    if not current:
        make(path)
    return path


# --- patch maps ------------------------------------------------------------------------------------------------------


def question_maps(run: Run, trained: bool = True) -> Maps:
    """Maps of the first `MOST` test questions, in file order, that name a finding which the image shows."""
    spec, name = run.spec, run.spec.data.questions
    model = AMiFForVQA.from_pretrained(run.directory / "model")
    if not trained:
        model = _untrained(model)
    asked, found = regions.of_questions(name), []
    for question in load_questions(name, **spec.data.question_settings):
        if question.split != "test" or question.language != "en":
            continue
        for label in asked.get(question.question_id, ()):
            word = regions.naming_word(question.question, label)
            if word and label in regions.findings(name, question.image_id):
                found.append((question.question_id, question.image_id, label, word, question.question))
    ids = [model.tokenizer(row[4], truncation=True, max_length=spec.data.question_length)["input_ids"] for row in found]
    return _collect(
        name, spec, found, ids, model.tokenizer, lambda *batch: explain.batch_maps(model, *batch), run.run_id
    )


def report_maps(run: Run, trained: bool = True) -> Maps:
    """Maps of the first `MOST` (image, finding) pairs of the held-out studies whose report names the finding."""
    spec = run.spec
    tokenizer = tokenizers.load(run.directory / "model")
    module = _pretraining(run, tokenizer, trained)
    side = spec.model.stored_side
    found, ids = [], []
    for study in load_studies(HELD_OUT, stored_side=side, **teachers.reading(spec)):
        tokens = tokenizer(study.text, truncation=True, max_length=spec.data.text_length)["input_ids"]
        for image in study.images:
            for label in regions.findings(HELD_OUT, image.image_id):
                if word := regions.naming_word(study.text, label):
                    found.append((study.study_id, image.image_id, label, word, _sentence(study.text, word)))
                    ids.append(tokens)
        if len(found) > 4 * MOST:  # some words lie behind the text length
            break
    return _collect(HELD_OUT, spec, found, ids, tokenizer, lambda *batch: _plan_maps(module, *batch), run.run_id)


def _collect(
    name: str,
    spec: RunSpec,
    found: Sequence[tuple[str, str, str, str, str]],
    ids: Sequence[list[int]],
    tokenizer: Any,
    maps_of: Callable[..., dict[str, Tensor]],
    run_id: str,
) -> Maps:
    """Maps of the rows `(id, image id, label, word, text)` whose word lies within the text length, in batches."""
    rows, places = [], []
    for row, tokens in zip(found, ids, strict=True):
        try:
            places.append(explain.word_positions(tokenizer, torch.tensor(tokens), row[3]))
        except InputError:  # cut off
            continue
        rows.append((row, tokens))
        if len(rows) == MOST:
            break
    if not rows:
        raise InputError(f"run {run_id}: no text of {name} names a finding that its image shows; raise the text length")
    cache = ImageCache(prepared.pictures([name], spec.model.stored_side), spec.model.image_size, spec.model.stored_side)
    parts = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        tokens, mask = pad([own for _, own in part], tokenizer.pad_token_id)
        pixels = torch.stack([cache.tensor(row[1]) for row, _ in part])  # (B, 3, H, W)
        parts.append(maps_of(pixels, tokens, mask, places[start : start + BATCH]))
    values = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
    values = {
        key: v if key == "gate" else v / v.sum((1, 2), keepdims=True)
        for key, v in values.items()
        if key != "gate" or spec.knowledge.gate
    }
    side = spec.model.image_size // spec.model.patch_size
    masks = [regions.mask(name, row[1], row[2]) for row, _ in rows]
    ids_, images_, labels, words, texts = (list(column) for column in zip(*(row for row, _ in rows), strict=True))
    out = Maps(name, ids_, images_, labels, words, texts, np.stack([regions.coverage(m, side) for m in masks]), values)
    if not redistribution.may_show(name, "texts"):
        out.texts, out.words = [""] * len(out), [""] * len(out)
    if redistribution.may_show(name, "images"):
        out.examples = first_of_each(out.labels, out.image_ids)
        out.pictures = np.stack([_grey(cache[out.image_ids[i]]) for i in out.examples])
        out.outlines = np.stack([regions.coverage(masks[i], map_files.PICTURE) >= 0.5 for i in out.examples])
    return out


def first_of_each(labels: Sequence[str], images: Sequence[str], number: int = EXAMPLES) -> list[int]:
    """The rows shown as examples, by a rule and never by looking: in order, the first of a label and image not yet shown."""
    out: list[int] = []
    for row, (label, image) in enumerate(zip(labels, images, strict=True)):
        if len(out) < number and all(label != labels[i] and image != images[i] for i in out):
            out.append(row)
    return out


def _grey(picture: Image.Image) -> np.ndarray:
    size = (map_files.PICTURE, map_files.PICTURE)
    return np.asarray(picture.convert("L").resize(size, Image.Resampling.BICUBIC))


def _sentence(text: str, word: str) -> str:
    return next(part for part in text.split(". ") if word in part).strip(" .")[:120]


def _untrained(model: AMiFForVQA) -> AMiFForVQA:
    """The same network before any training: random weights, the same tokenizer and knowledge."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = AMiFForVQA(
            model.spec,
            model.knowledge,
            model.knowledge_ids,
            model.knowledge_answer,
            model.tokenizer,
            model.question_length,
            model.answer_length,
        ).eval()
    with torch.no_grad():
        fresh.freeze_knowledge()
    return fresh


def _pretraining(run: Run, tokenizer: Any, trained: bool = True, teacher_dim: int = 1) -> Pretraining:
    """The stored pre-training network with its objective, in evaluation mode."""
    spec = run.spec
    with torch.random.fork_rng():
        torch.manual_seed(0)
        amif = AMiF(spec.model)
        special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        module = Pretraining(amif, spec.objective, spec.stage, spec.seed, special, teacher_dim)
    if trained:
        amif.load(run.directory / "model")
    return module.eval()


@torch.inference_mode()
def _plan_maps(
    module: Pretraining, images: Tensor, ids: Tensor, mask: Tensor, columns: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Transport plan, as the run's objective has it, and attention for a word of each report, (B, n, n) each."""
    amif = module.amif
    image, text = amif.image_encoder(images), amif.text_encoder(ids, mask)  # (B, p+1, d), (B, t, d)
    *fused, attentions = amif.co_attention(image, text, None, mask, "image_text", return_weights=True)
    x, y = fused if module.objective.transport_on == "fused" else (image, text)
    weights = attentions[-1] if attentions else None
    plan = module._transport(x, y, ids, mask, weights)[1]  # (B, p, t) or, with [CLS], (B, p+1, t)
    word = explain.chosen(columns, ids)  # (B, t)
    side = amif.spec.image_size // amif.spec.patch_size
    out = {"transport_plan": explain.of_word(plan, word)[:, -side * side :]}
    if weights is not None:
        out["attention"] = explain.of_word(weights[1].mean(1)[..., 1:].transpose(1, 2), word)
    return {name: values.float().unflatten(1, (side, side)) for name, values in out.items()}


# --- soft labels and hard negatives ----------------------------------------------------------------------------------


@torch.inference_mode()
def soft_labels(run: Run) -> dict[str, np.ndarray]:
    """Teacher's and student's distributions over the run's first batch: arrays `<pair>_teacher`, `_labels`, `_student`.

    The pairs are image to text (`i2t`) and text to text (`t2t`), each (N, N) with N at most `SHOWN`; the distributions are
    those over these N samples, with the run's temperatures. Without a teacher there is no `_teacher`.
    """
    from amif_lib.objectives import contrastive

    spec, o = run.spec, run.spec.objective
    data, module = _data(run)
    keys = _steps(data, spec)[0][2]
    batch = data.collate([data[key] for key in keys[:SHOWN]])
    first, second = (module.amif.image_encoder(batch.views[:, k])[:, 0] for k in (0, 1))
    own = module.features(batch, first, second, module.amif.text_encoder(batch.ids, batch.mask)[:, 0])
    which = torch.arange(len(batch.view)), batch.view
    student = {"i2t": (own["image"][which], own["text"]), "t2t": (own.get("intra_text", own["text"]),) * 2}
    teacher = {}
    if batch.teacher_text is not None:
        teacher = {"i2t": (batch.teacher_views[which], batch.teacher_text), "t2t": (batch.teacher_text,) * 2}
    positive = torch.arange(len(batch.view))
    temperature = o.temperature * module.amif.log_temperature.exp()
    out: dict[str, Tensor] = {}
    for pair, (a, b) in student.items():
        own_column = torch.eye(len(positive), dtype=torch.bool)
        masked = own_column if pair == "t2t" and o.text_text_diagonal == "mask" else None
        logits = contrastive.similarity(a, b) / temperature  # (N, N)
        logits = logits if masked is None else logits.masked_fill(masked, float("-inf"))
        out[f"{pair}_student"] = logits.softmax(1)
        out[f"{pair}_labels"] = own_column.float()
        if teacher:
            similar, tau = contrastive.similarity(*teacher[pair]), o.teacher_temperature
            out[f"{pair}_teacher"] = contrastive.soft_labels(similar, tau, 0.0, positive)
            if o.labels == "soft":
                out[f"{pair}_labels"] = contrastive.soft_labels(
                    similar, tau, o.positive_weight, positive, renormalise=o.renormalise_labels, mask=masked
                )
    indices = [key[1] for key in keys[:SHOWN]]
    named = _named(spec)
    return {
        "version": np.array(map_files.VERSION),
        "ids": np.array([data.studies[i].study_id if named else str(i) for i in indices]),
        "findings": np.array(["; ".join(_shows(data.studies[i])) for i in indices]),
        **{name: values.float().numpy().astype(np.float16) for name, values in out.items()},
    }


@torch.inference_mode()
def mined_negatives(run: Run) -> pd.DataFrame:
    """The hard negatives of the run's last step, one line per sample and kind of pair.

    Columns: `step, pair, id, negative_id, probability` (of being drawn), `uniform` (the same, were all allowed samples
    equally likely), `rank` (1: the most probable), `findings, negative_findings, same_findings`, and over all that could have
    been drawn the share with the same findings, weighted by probability (`p_same`) and not (`uniform_same`); `text,
    negative_text` where these may be shown. What an image shows is known of generated data only. Negatives drawn from the
    teacher are those of training (of its clean images, where it sees augmented ones); of a student they are drawn anew
    with its final weights.
    """
    import pandas as pd

    from amif_lib.fusion import PAIR_TYPES
    from amif_lib.objectives import contrastive, hard_negatives
    from amif_lib.objectives.global_alignment import pick

    spec, o = run.spec, run.spec.objective
    data, module = _data(run)
    steps = _steps(data, spec)
    _, step, keys = steps[min(len(steps), spec.train.max_steps or len(steps)) - 1]
    batch = data.collate([data[key] for key in keys])
    both = [module.amif.image_encoder(batch.views[:, k]) for k in (0, 1)]
    image = pick(torch.stack(both, 1), batch.view)
    text = module.amif.text_encoder(batch.ids, batch.mask)
    drawn = module.mine(batch, image, both, text)
    sides, temperature = module._similar_sides(batch, image, both, text)
    studies, named = [data.studies[key[1]] for key in keys], _named(spec)
    shown = [_shows(study) for study in studies]
    same = torch.tensor([[a == b for b in shown] for a in shown])  # (N, N)
    known = all(regions.known(name) for name in spec.data.pretrain)
    positive, rows = torch.arange(len(studies)), []
    for kind in (kind for kind in PAIR_TYPES if kind in drawn):
        weights = contrastive.soft_labels(contrastive.similarity(*sides[kind]), temperature, 0.0, positive).double()
        barred = torch.eye(len(studies), dtype=torch.bool)
        if o.exclude_duplicates:
            barred |= hard_negatives.duplicates(batch.group, batch.text_key)
        if kind == "image_image" and o.same_view_negatives:
            barred |= batch.view_label[:, 1, None] != batch.view_label[None, :, 1]
        weights = weights.masked_fill(barred, 0)
        if o.negative_distribution == "top_k":
            order = weights.argsort(1, descending=True, stable=True).argsort(1)
            weights = ((order < o.negative_top_k) & (weights > 0)).double()
        weights = (weights / weights.amax(1, keepdim=True).clamp_min(1e-300)) ** (1 / o.negative_temperature)
        share = weights / weights.sum(1, keepdim=True).clamp_min(1e-300)  # (N, N)
        allowed = (~barred).double()
        uniform = allowed / allowed.sum(1, keepdim=True).clamp_min(1)
        for i, study in enumerate(studies):
            if not drawn[kind].valid[i]:
                continue
            j = int(drawn[kind].index[i])
            row = {
                "step": step,
                "pair": kind,
                "id": study.study_id if named else str(keys[i][1]),
                "negative_id": studies[j].study_id if named else str(keys[j][1]),
                "probability": float(share[i, j]),
                "uniform": float(uniform[i, j]),
                "rank": 1 + int((share[i] > share[i, j]).sum()),
            }
            if known:
                row |= {
                    "findings": "; ".join(shown[i]),
                    "negative_findings": "; ".join(shown[j]),
                    "same_findings": bool(same[i, j]),
                    "p_same": float((share[i] * same[i]).sum()),
                    "uniform_same": float((uniform[i] * same[i]).sum()),
                }
            if named:
                row |= {"text": study.text[:400], "negative_text": studies[j].text[:400]}
            rows.append(row)
    return pd.DataFrame(rows)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    from amif_lib import files

    files.write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def _data(run: Run) -> tuple[PretrainingData, Pretraining]:
    """A pre-training run's samples and its stored network."""
    spec = run.spec
    studies = teachers.student_studies(spec)
    embeddings = teachers.read(teachers.ensure(spec, studies)) if spec.teacher is not None else None
    tokenizer = tokenizers.load(run.directory / "model")
    dim = 1 if embeddings is None else embeddings.text_vectors.shape[1]
    return PretrainingData(studies, spec, tokenizer, embeddings), _pretraining(run, tokenizer, teacher_dim=dim)


def _steps(data: PretrainingData, spec: RunSpec) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """(epoch, step, sample keys) of every step of the training."""
    from amif_lib.train import epoch_keys

    return list(epoch_keys(SimpleNamespace(data=data, folds=data.folds), spec, 0))


def _shows(study: Any) -> list[str]:
    """The findings that a study's images show, where regions are known."""
    if not study.data_set or not regions.known(study.data_set):
        return []
    return sorted({label for image in study.images for label in regions.findings(study.data_set, image.image_id)})


def _named(spec: RunSpec) -> bool:
    """Whether ids and texts of the pre-training sets may stand in a run's files."""
    return not redistribution.withheld(spec.data.pretrain, "texts")
