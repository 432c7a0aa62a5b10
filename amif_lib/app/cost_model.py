"""What one run costs before it starts: operations, time, disk and download, from its specification and the manifests.

Time is operations over a rate: that of runs that were measured, on this machine or for the committed reference, or an
assumed one; `Basis.text` says which. Nothing here needs torch or data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amif_lib.app import flop_count
from amif_lib.app.flop_count import evaluation_flop
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import RunSpec
from amif_lib.methods.amif import teacher as teachers

Device = Literal["cpu", "gpu"]
GB = 1e9
DEVICES: dict[str, Device] = {"demo": "cpu", "small": "cpu", "base": "gpu", "paper": "gpu"}
GPU, GPU_PEAK, GPU_USED = (
    "A100",
    312e12,
    0.3,
)  # assumed: dense bf16 peak, FLOP/s, and the share of it that training reaches
CPU_RATE = 3e10  # assumed: FLOP/s of one training where nothing was measured
SIDE_BY_SIDE: dict[Device, int] = {"cpu": 2, "gpu": 1}  # trainings at a time (`workflow.engine.settings`)
JOB_SECONDS = 15.0  # assumed: starting a notebook, reading data
IMAGE_BYTES = (
    0.45  # per pixel of the squared short side: JPEG 95 of VQA-RAD and MedPix-2.0 at 142 and 320 px: .17 to .47
)
PREDICTION_BYTES = 8  # per candidate and test question
TEACHER_DIM = 512  # of external teachers' embeddings

# Sizes that no manifest has, in bytes. Approximate: from the publishers' pages, not checked here.
APPROXIMATE_SETS = {"mimic_cxr": 570e9, "slake": 0.216e9}
APPROXIMATE_WEIGHTS = {
    "openai/clip-vit-base-patch16": 0.6e9,
    "emilyalsentzer/Bio_ClinicalBERT": 0.436e9,
    "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224": 0.784e9,
    "sentence-transformers/all-MiniLM-L6-v2": 0.091e9,
    "ViT-B-16/openai": 0.6e9,
    "hf-clip:flaviagiammarino/pubmed-clip-vit-base-patch32": 0.605e9,
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract": 0.44e9,
}
DOCUMENTED_STUDIES = {"medicat": 217_060}  # all figures; how many are flagged radiology is not known


# --- counts of the data, from the manifests ------------------------------------------------------------------------


def studies(name: str) -> tuple[int, int]:
    """Studies and images that a pre-training set gives: its official train split, or all of a set that has no such use."""
    splits = {split.name: split for split in manifests.load(name).splits}
    found = splits.get("all") or splits.get("train")
    count = found.studies if found else DOCUMENTED_STUDIES.get(name)
    if not count:
        raise InputError(f"data_manifests/{name}.yaml: splits: no number of studies to count costs with; add it")
    return count, (found.images if found else None) or count


def pretraining_samples(run: RunSpec) -> tuple[int, int]:
    """Studies and images of a pre-training run before decontamination: an upper bound."""
    found = [studies(name) for name in run.data.pretrain]
    count, images = sum(n for n, _ in found), sum(n for _, n in found)
    limit = run.data.max_studies
    return (min(count, limit), min(images, 2 * limit)) if limit else (count, images)


@dataclass(frozen=True)
class Questions:
    """Counts of a question set: questions by split, and distinct answers of training and of all splits together."""

    train: int
    test: int
    train_answers: int
    all_answers: int
    images: int


def questions(run: RunSpec) -> Questions:
    """A question set's counts under the run's training file and language. Distinct answers of all splits, where the
    manifest does not say: a fifth more than the largest split has."""
    manifest, data = manifests.load(run.data.questions), run.data
    splits = {split.name: split for split in manifest.splits}
    named = {variant.name: variant for variant in manifest.variants}
    variant = named.get(data.training_file) or (named.get(data.language) if manifest.reader == "slake" else None)
    train, test = ((variant and getattr(variant, s)) or splits[s].questions for s in ("train", "test"))
    limit = data.max_questions or max(train, test)
    answers = {name: split.distinct_answers or 0 for name, split in splits.items()}
    whole = answers.get("all") or round(1.2 * max(answers.values()))
    parts = [split.images or 0 for name, split in splits.items() if name != "all"]
    images = (splits["all"].images or 0) if "all" in splits else sum(parts)
    return Questions(min(train, limit), min(test, limit), answers["train"], whole, images)


def samples(run: RunSpec) -> int:
    """Samples that a training passes over: whole batches per epoch and teacher fold in pre-training, all questions else."""
    t = run.train
    if run.stage == "finetune":
        per_epoch = questions(run).train
    else:
        folds = max(1, run.teacher.cross_fit) if run.teacher else 1
        per_epoch = pretraining_samples(run)[0] // folds // t.batch_size * t.batch_size * folds
    return min(per_epoch * t.epochs, t.max_steps * t.batch_size) if t.max_steps else per_epoch * t.epochs


def training_flop(run: RunSpec) -> float:
    """Operations of a whole training, forward and backward, evaluation aside."""
    answers = questions(run).train_answers if run.stage == "finetune" else None
    return samples(run) * flop_count.sample_flop(run, answers)


def answering_flop(run: RunSpec) -> float:
    """Operations of answering a fine-tuning's test questions, and once more on blank images (`train.finish`)."""
    q, blank = questions(run), run.model_copy(update={"data": run.data.model_copy(update={"blank_images": True})})
    asked = [blank] if run.data.blank_images else [run, blank]
    return q.test * sum(evaluation_flop(each, q.all_answers, q.train_answers) for each in asked)


def teacher_flop(run: RunSpec) -> float:
    """Operations of making a pre-training run's teacher: its training, if the kit trains it, and all embeddings."""
    t, (image, text) = run.teacher, flop_count.teacher_macs(run)
    count, images = pretraining_samples(run)
    total = images * image + count * text
    if t.source == "trained":
        own = sum(studies(name)[0] for name in t.data) * (t.cross_fit - 1 if t.cross_fit else 1)  # k folds of (k-1)/k
        total += 3 * t.epochs * own * (image + text)
    return 2.0 * total


# --- time ----------------------------------------------------------------------------------------------------------

KINDS = ("teacher", "stage1", "stage2", "finetune", "answering")
NAMES = {"stage1": "stage 1", "stage2": "stage 2", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class Basis:
    """Rates by kind of work and width of the model, FLOP/s, and in words where they are from."""

    device: Device
    rates: dict[str, dict[int, float]]
    text: str
    sets: int = 1  # question sets that a fine-tuning's notebook goes through

    def rate(self, kind: str, width: int) -> float:
        """FLOP/s of a kind of work: of the models that are nearest in width, since wider ones use a machine better."""
        known = self.rates[kind]
        return known[min(known, key=lambda other: abs(math.log(other / width)))]

    def seconds(self, work: Work) -> float:
        """Seconds of a job that does this work."""
        start = JOB_SECONDS / (self.sets if any(kind == "finetune" for kind, _ in work) else 1)
        return start + sum(flop / self.rate(*key) for key, flop in work.items())


Work = dict[tuple[str, int], float]  # operations by kind and width of the model


def work(run: RunSpec) -> Work:
    """Operations of a run, its teacher's aside."""
    out = {(run.stage, run.model.width): training_flop(run)}
    return out | ({("answering", run.model.width): answering_flop(run)} if run.stage == "finetune" else {})


def teacher_work(run: RunSpec) -> Work:
    """Operations of making a pre-training run's teacher."""
    trained = run.teacher.source == "trained"
    return {("teacher", run.teacher.width if trained else flop_count.EXTERNAL.width): teacher_flop(run)}


def basis(scale: str, here: bool = True) -> Basis:
    """Rates at a scale: of its finished runs on this machine (with `here`), else of its reference runs, else of other
    scales' reference runs on a CPU, else assumed; kind by kind."""
    device = DEVICES[scale]
    places = [("runs of this scale on this machine", _measured(paths.results() / "runs", scale, device))] * here
    root = paths.ROOT / "results" / "reference"
    places.append((f"the reference runs of SCALE={scale}", _measured(root / scale / "runs", scale, device)))
    if device == "cpu":
        others = sorted(path.name for path in root.glob("*") if path.name != scale and (path / "runs").is_dir())
        places += [
            (f"the reference runs of SCALE={s}, whose models have other sizes", _measured(root / s / "runs", s, device))
            for s in others
        ]
    rate = GPU_PEAK * GPU_USED if device == "gpu" else CPU_RATE
    assumed = f"assumed {GPU_USED:.0%} of an {GPU}'s {GPU_PEAK / 1e12:.0f} bf16 TFLOP/s"
    places.append(
        (assumed if device == "gpu" else f"assumed {rate / 1e9:.0f} GFLOP/s", {kind: {1: rate} for kind in KINDS})
    )
    rates, used = {}, {}
    for kind in KINDS:
        where, found = next(place for place in places if kind in place[1])
        rates[kind] = found[kind]
        used.setdefault(where, []).append(NAMES.get(kind, kind))
    parts = [(where if where.startswith("assumed") else f"measured in {where}", done) for where, done in used.items()]
    text = "; ".join(where if len(parts) == 1 else f"{', '.join(done)}: {where}" for where, done in parts)
    return Basis(device, rates, text, len(experiments.scale_settings(scale)["question_sets"]))


def _measured(folder: Path, scale: str, device: Device) -> dict[str, dict[int, float]]:
    """FLOP/s by kind and width over the stored runs of a scale that were made on such a device; those that cannot be read are no
    measurements and left out."""
    done: dict[tuple[str, int], list[float]] = {}
    known: set[str] = set()
    for path in sorted(folder.glob("*/provenance.json")):
        try:
            stored = results.Run(path.parent)
            metrics, made, run = stored.metrics, stored.provenance, stored.spec
            if run.scale != scale or bool(made["hardware"]["gpus"]) != (device == "gpu"):
                continue
            answers = questions(run).train_answers if run.stage == "finetune" else None
            flop = metrics["samples"] * flop_count.sample_flop(run, answers)
            found = [({(run.stage, run.model.width): flop}, metrics["train_time_s"])]
            if run.stage == "finetune":
                found.append(({("answering", run.model.width): answering_flop(run)}, metrics["evaluation_time_s"]))
            elif run.teacher and metrics.get("teacher", {}).get("id", "") not in known | {""}:
                known.add(metrics["teacher"]["id"])
                found.append((teacher_work(run), metrics["teacher"]["wall_time_s"]))
        except (OSError, ValueError, KeyError, TypeError, InputError):
            continue
        for job, seconds in found:
            for key, flop in job.items():
                total = done.setdefault(key, [0.0, 0.0])
                total[0] += flop
                total[1] += seconds * made.get("processes", 1)
    out: dict[str, dict[int, float]] = {}
    for (kind, width), (flop, seconds) in done.items():
        if seconds > 0:
            out.setdefault(kind, {})[width] = flop / seconds
    return out


# --- disk and download, bytes --------------------------------------------------------------------------------------


def disk(run: RunSpec) -> float:
    """What a run leaves: its weights in fp32, and the predictions of a fine-tuning."""
    weights = 4.0 * sum(flop_count.parameters(run).values())
    if run.stage != "finetune":
        return weights
    q = questions(run)
    return weights + PREDICTION_BYTES * q.test * q.all_answers * (1 if run.data.blank_images else 2)


def prepared(runs: Iterable[RunSpec]) -> dict[tuple[str, ...], float]:
    """What preparing the data takes, by what it is of: images at their stored size, and teachers' embeddings."""
    out: dict[tuple[str, ...], float] = {}
    for run in runs:
        side = run.model.stored_side
        if run.stage == "finetune":
            out[run.data.questions, str(side)] = questions(run).images * side**2 * IMAGE_BYTES
            continue
        for name in run.data.pretrain:
            out[name, str(side)] = studies(name)[1] * side**2 * IMAGE_BYTES
        if run.teacher:
            dim = run.teacher.embed_dim if run.teacher.source == "trained" else TEACHER_DIM
            out["teacher", teachers.teacher_id(run)] = 4.0 * dim * sum(pretraining_samples(run))
            side = teachers.stored_side(run)
            for name in {*run.data.pretrain, *run.teacher.data}:
                out[name, str(side)] = studies(name)[1] * side**2 * IMAGE_BYTES
    return out


def downloads(runs: Iterable[RunSpec]) -> dict[str, float | None]:
    """What has to be fetched, by data set or hub id: bytes, None where no size is known; nothing for generated sets."""
    runs = list(runs)
    out: dict[str, float | None] = {}
    for name in sorted({name for run in runs for name in experiments.data_sets(run)}):
        manifest = manifests.load(name)
        if manifest.generator:
            continue
        sizes = {d.target: d.bytes or d.about_bytes for d in manifest.downloads if d.official}
        recorded = sum(f.bytes for f in manifest.files) + sum(t.bytes for t in manifest.trees)
        whole = bool(sizes) and all(sizes.values()) and manifest.access.level == "open"
        known = sum(sizes.values()) if whole else recorded if all(t.bytes for t in manifest.trees) else 0
        known = known if whole or manifest.trees else 0  # annotations alone are not the set
        out[name] = APPROXIMATE_SETS.get(name) or float(known) or None
    sources = {s for r in runs for s in (r.init.image, r.init.text, r.init.decoder, r.init.tokenizer)}
    sources |= {run.teacher.source for run in runs if run.teacher}
    for source in sorted({s.removeprefix("open_clip:") for s in sources} - {"random", "trained", "teacher"}):
        if (
            not source.startswith(("local-dir:", "file:"))
            and not Path(source.removeprefix("hf-clip:")).expanduser().is_dir()
        ):
            out[source] = APPROXIMATE_WEIGHTS.get(source)
    return out
