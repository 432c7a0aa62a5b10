"""What a trained run looks at, stored once right after training (notebooks 03 to 05), for figures without torch or data.

`ensure(run)` writes into `results/runs/<run_id>/`:

- fine-tuning: `maps.npz`, patch maps of attention, gate and transport plan for the test questions that name a finding whose
  region is known and not empty;
- stage 2: `maps.npz`, the same (without gate) for reports, on studies that no student is trained on, and
  `hard_negatives.csv`, the negatives that were drawn in the run's last step;
- stage 1: `soft_labels.npz`, the teacher's labels beside the student's probabilities on the run's first batch.

Regions are known of generated data only. Runs on real data have no `maps.npz` but `example_maps.npz`: the same maps of a few test
questions, chosen by a rule, of sets whose images may be shown; there is nothing to score them by. None of it is read by training.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests, redistribution, regions, store
from amif_lib.data.load import load_questions, load_studies
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import RunSpec
from amif_lib.experiments.stored import Run
from amif_lib.methods.amif import explain
from amif_lib.methods.amif.mined import mined_negatives, network, soft_labels
from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.methods.amif.stage2 import Stage2
from amif_lib.networks import tokenizers
from amif_lib.reporting import map_files
from amif_lib.reporting.map_files import EXAMPLE_MAPS, HARD_NEGATIVES, MAPS, SOFT_LABELS, Maps
from amif_lib.reporting.map_scores import untrained_file
from amif_lib.training.batches import ImageCache, pad

if TYPE_CHECKING:
    import pandas as pd

    from amif_lib.data.records import Question

HELD_OUT = "phantom_teacher"  # studies drawn apart: the soft labels' teacher is trained on them, no student ever is
SHOWN = ("vqa_rad", "vqa_med_2019")  # for stage 2 on real data: question sets whose images may be shown
SHORTEST = 5  # letters of a word that an example is about: shorter ones of training answers are mostly no findings
COMMONEST = 0.02  # of the training questions that may hold such a word: beyond, it is how one asks ("present", "there")
MOST = 150  # questions or reports per run, the first in file order
EXAMPLES = 4
BATCH = 50


class NothingNamed(InputError):
    """A data set whose texts name no finding with a known region; VQA-Med-2019's ask "what is abnormal"."""


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
    if unknown := _without_regions(spec):
        try:
            return [*out, _once(run.directory / EXAMPLE_MAPS, lambda path: map_files.write(path, example_maps(run)))]
        except NothingNamed as error:
            print(f"{spec.stage} {run.run_id}: no regions are known of {', '.join(unknown)}, and no examples: {error}")
            return out
    make = question_maps if spec.stage == "finetune" else report_maps
    try:
        out.append(_once(run.directory / MAPS, lambda path: map_files.write(path, make(run))))
    except NothingNamed as error:
        print(f"{spec.stage} {run.run_id}: no maps: {error}")
        return out
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
    if spec.stage == "stage2" and HELD_OUT in spec.data.pretrain:
        return f"it is trained on {HELD_OUT}, whose regions would score it"
    return ""


def _without_regions(spec: RunSpec) -> list[str]:
    """The sets of a fine-tuning or stage-2 run of which no regions are known."""
    names = [spec.data.questions] if spec.stage == "finetune" else spec.data.pretrain
    return [name for name in names if not regions.known(name)]


def _once(path: Path, make: Callable[[Path], Any]) -> Path:
    current = map_files.is_current(path) if path.suffix == ".npz" else path.is_file()
    if not current:
        make(path)
    return path


def _write_table(path: Path, table: pd.DataFrame) -> None:
    files.write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


# --- patch maps ------------------------------------------------------------------------------------------------------


def question_maps(run: Run, trained: bool = True) -> Maps:
    """Maps of the first `MOST` test questions, in file order, that name a finding which the image shows."""
    spec, name = run.spec, run.spec.data.questions
    model = AMiFForVQA.from_pretrained(run.directory / "model")
    if not trained:
        model = _untrained(model)
    asked, found = regions.of_questions(name), []
    for question in _tested(load_questions(name, **spec.data.question_settings)):
        for label in asked.get(question.question_id, ()):
            word = regions.naming_word(question.question, label)
            if word and label in regions.findings(name, question.image_id):
                found.append((question.question_id, question.image_id, label, word, question.question))
    ids = [model.tokenizer(row[4], truncation=True, max_length=spec.data.question_length)["input_ids"] for row in found]
    return _collect(name, spec, found, ids, model.tokenizer, lambda *batch: explain.batch_maps(model, *batch))


def example_maps(run: Run) -> Maps:
    """Maps of up to `EXAMPLES` test questions of a set whose images may be shown, each about a word, without regions.

    By a rule and never by looking: in file order, the first test questions that hold a word of a training answer (`SHORTEST`
    letters or more, in at most the share `COMMONEST` of the training questions, since the others are how one asks; the longest
    of several), each with another word and another image. A fine-tuning's are of its own
    set, a stage-2 run's of the first of `SHOWN` that is here, of which no pre-training sees an image.
    """
    spec = run.spec
    name, questions = _shown_questions(spec)
    learnt = [q for q in questions if q.split == "train"]
    asked = Counter(word for q in learnt for word in set(_words(q.question)))
    answered = {word for q in learnt for word in _words(q.answer) if len(word) >= SHORTEST}
    known = {word for word in answered if asked[word] <= COMMONEST * len(learnt)}
    if spec.stage == "finetune":
        model = AMiFForVQA.from_pretrained(run.directory / "model")
        tokenizer, make = model.tokenizer, lambda *batch: explain.batch_maps(model, *batch)
    else:
        tokenizer = tokenizers.load(run.directory / "model")
        module = network(run, tokenizer, True)
        make = lambda *batch: _plan_maps(module, *batch)  # noqa: E731
    found, ids = [], []
    for question in _tested(questions):
        words = [word for word in _words(question.question) if word in known]
        tokens = tokenizer(question.question, truncation=True, max_length=spec.data.question_length)["input_ids"]
        if words and question.image_id not in {row[1] for row in found}:
            word = max(words, key=len)
            start = question.question.lower().index(word)
            written = question.question[start : start + len(word)]
            if word not in {row[2] for row in found} and _within(tokenizer, tokens, written):
                found.append((question.question_id, question.image_id, word, written, question.question))
                ids.append(tokens)
        if len(found) == EXAMPLES:
            break
    return _collect(name, spec, found, ids, tokenizer, make, located=False)


def _shown_questions(spec: RunSpec) -> tuple[str, list[Question]]:
    """The question set whose images stand as examples for a run on real data."""
    if spec.stage == "finetune":
        name = spec.data.questions
        if withheld := next((kind for kind in redistribution.KINDS if not redistribution.may_show(name, kind)), None):
            raise NothingNamed(redistribution.why_not(name, withheld))
        return name, load_questions(name, **spec.data.question_settings)
    unseen = [name for name in SHOWN if name in spec.data.decontaminate_against]
    for name in unseen:
        try:
            manifests.location(name)
        except InputError:  # not here
            continue
        return name, load_questions(name)
    raise NothingNamed(
        f"none of {', '.join(SHOWN)}, whose images may be shown, is under DATA_ROOT and in data.decontaminate_against"
    )


def _tested(questions: Iterable[Question]) -> Iterator[Question]:
    return (question for question in questions if question.split == "test" and question.language == "en")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _within(tokenizer: Any, tokens: list[int], word: str) -> bool:
    """Whether a word lies within a question's tokens, which are cut to a length."""
    try:
        return bool(explain.word_positions(tokenizer, torch.tensor(tokens), word))
    except InputError:
        return False


def report_maps(run: Run, trained: bool = True) -> Maps:
    """Maps of the first `MOST` (image, finding) pairs of the held-out studies whose report names the finding."""
    spec = run.spec
    tokenizer = tokenizers.load(run.directory / "model")
    module = network(run, tokenizer, trained)
    side = spec.model.stored_side
    found, ids = [], []
    for study in load_studies(HELD_OUT, stored_side=side):
        tokens = tokenizer(study.text, truncation=True, max_length=spec.data.text_length)["input_ids"]
        for image in study.images:
            for label in regions.findings(HELD_OUT, image.image_id):
                if word := regions.naming_word(study.text, label):
                    found.append((study.study_id, image.image_id, label, word, _sentence(study.text, word)))
                    ids.append(tokens)
        if len(found) > 4 * MOST:  # some words lie behind the text length
            break
    return _collect(HELD_OUT, spec, found, ids, tokenizer, lambda *batch: _plan_maps(module, *batch))


def _collect(
    name: str,
    spec: RunSpec,
    found: Sequence[tuple[str, str, str, str, str]],
    ids: Sequence[list[int]],
    tokenizer: Any,
    maps_of: Callable[..., dict[str, Tensor]],
    located: bool = True,
) -> Maps:
    """Maps of the rows `(id, image id, label, word, text)` whose word lies within the text length, in batches.

    `located`: the label's region is known; else nothing covers any cell.
    """
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
        what = "names a finding that its image shows" if located else "holds a word of a training answer"
        raise NothingNamed(f"no text of {name}, cut to its length, {what}")
    cache = ImageCache(store.pictures([name], spec.model.stored_side), spec.model.image_size, spec.model.stored_side)
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
    masks = [regions.mask(name, row[1], row[2]) if located else np.zeros((side, side), bool) for row, _ in rows]
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
        return AMiFForVQA(
            model.spec,
            model.knowledge,
            model.knowledge_ids,
            model.tokenizer,
            model.question_length,
            model.answer_length,
        ).eval()


@torch.inference_mode()
def _plan_maps(
    module: Stage2, images: Tensor, ids: Tensor, mask: Tensor, columns: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Transport plan, as the run's objective has it, and attention for a word of each report, (B, n, n) each."""
    amif = module.amif
    image, text = amif.image_encoder(images), amif.text_encoder(ids, mask)  # (B, p+1, d), (B, t, d)
    *fused, attentions = amif.co_attention(image, text, None, mask, "image_text", return_weights=True)
    x, y = fused if module.objective.transport_on == "fused" else (image, text)
    weights = attentions[-1] if attentions else None
    words = tokenizers.content_mask(ids, mask, module.special_ids)  # (B, t)
    plan = module.transport(x[:, 1:], y, words)[1]  # (B, p, t)
    word = explain.chosen(columns, ids)  # (B, t)
    side = amif.spec.image_size // amif.spec.patch_size
    out = {"transport_plan": explain.of_word(plan, word)[:, -side * side :]}
    if weights is not None:
        out["attention"] = explain.of_word(weights[1].mean(1)[..., 1:].transpose(1, 2), word)
    return {name: values.float().unflatten(1, (side, side)) for name, values in out.items()}
