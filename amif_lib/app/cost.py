"""What trainings cost before they start: hours and disk, from operations counted by hand and rates of stored runs.

An operation is half of a multiply-accumulate; only matrix products are counted, with texts at their longest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.networks.sizes import ModelSpec

GPU_RATE = 0.3 * 312e12  # FLOP/s assumed where nothing was measured: 30% of an A100's dense bf16 peak
CPU_RATE = 3e10
SIDE_BY_SIDE = {"demo": 2, "small": 2, "base": 1, "paper": 1}  # trainings at a time (`reproduce.shares`)
START = 15.0  # seconds that a job spends before its first step
ANSWER_TOKENS, CANDIDATE_TOKENS = 10, 4
DOCUMENTED = {"medicat": 217_060}  # all figures; how many are flagged as radiology is not known
IMAGE_BYTES = 0.45  # of a stored image, per squared pixel of its short side (measured on VQA-RAD and MedPix-2.0)


def block(d: int, s: int, t: int = 0) -> int:
    """Multiply-accumulates of a transformer block over s tokens of width d that, with t, also attends to t others."""
    return 12 * d * d * s + 2 * s * s * d + (2 * d * d * (s + t) + 2 * s * t * d if t else 0)


def forward(run: RunSpec) -> float:
    """Multiply-accumulates of one sample's forward pass in the stage of a run."""
    m, d = run.model, run.model.width
    p, t = (m.image_size // m.patch_size) ** 2 + 1, run.data.text_length

    def pair(s: int, u: int) -> int:
        return m.fusion_layers * (block(d, s, u) + block(d, u, s))

    image = m.image_layers * block(d, p) + p * 3 * m.patch_size**2 * d
    text = m.text_layers * block(d, t)
    if run.stage == "stage1":
        return (2 if run.objective.global_intra == "both" else 1) * image + text
    if run.stage == "stage2":  # both views, the report and its copy; a positive and a negative of each kind of pair
        negatives = 2 if run.objective.weight_hard_negatives else 0
        return 2 * image + 2 * text + pair(p, t) + negatives * (pair(p, t) + pair(p, p) + pair(t, t))
    q = run.data.question_length
    encoded = image + m.text_layers * block(d, q) + pair(p, q)
    if run.knowledge.source != "none":
        encoded += block(d, p + q, run.knowledge.max_tokens)
    own = m.decoder_layers * block(d, ANSWER_TOKENS) + ANSWER_TOKENS * d * m.vocab_size
    return encoded + own + m.decoder_cross_layers * 2 * d * d * (p + q)


def work(run: RunSpec) -> float:
    """FLOP of a training; three forward passes make a step."""
    return 2.0 * 3 * forward(run) * samples(run)


def samples(run: RunSpec) -> int:
    """Samples that a training passes over, by its manifests' counts before decontamination."""
    if run.stage == "finetune":
        manifest = manifests.load(run.data.questions)
        counts = {variant.name: variant.train for variant in manifest.variants if variant.train}
        counts |= {"": next(split.questions for split in manifest.splits if split.name == "train")}
        count = counts.get(run.data.training_file) or counts.get(run.data.language) or counts[""]
        limit = run.data.max_questions
    else:
        count, limit = sum(map(studies, run.data.pretrain)), run.data.max_studies
    steps = max(1, min(count, limit or count) // run.train.batch_size) * run.train.epochs
    return min(steps, run.train.max_steps or steps) * run.train.batch_size


def studies(name: str) -> int:
    """Studies of a pre-training set: of its training split, or all where it has none."""
    splits = {split.name: split.studies for split in manifests.load(name).splits}
    count = splits.get("all") or splits.get("train") or DOCUMENTED.get(name)
    if not count:
        raise InputError(f"data_manifests/{name}.yaml: splits: no number of studies to plan with; add it")
    return count


def rates(scale: str) -> tuple[dict[str, float], str]:
    """FLOP/s by stage, and in words where they were measured: on this machine, in the reference, or assumed."""
    assumed = GPU_RATE if scale in ("base", "paper") else CPU_RATE
    for where, root in (("on this machine", paths.results()), ("for the reference", paths.reference(scale))):
        found = measured(root / "runs", scale)
        if found:
            mean = sum(found.values()) / len(found)
            return {stage: found.get(stage, mean) for stage in ("stage1", "stage2", "finetune")}, f"measured {where}"
    return dict.fromkeys(("stage1", "stage2", "finetune"), assumed), f"assumed {assumed / 1e12:g} TFLOP/s"


def measured(folder: Path, scale: str) -> dict[str, float]:
    """FLOP/s by stage over the finished runs of a scale in a folder."""
    from amif_lib.experiments.rows import parse

    done: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            run = parse(files.read_yaml(path.with_name("spec.json")), paths.shown(path))
            metrics: dict[str, Any] = files.read_yaml(path)
            flop, seconds = 6.0 * forward(run) * metrics["samples"], metrics["train_time_s"]
        except (InputError, KeyError):
            continue  # a teacher's folder, or a run of another version
        if run.scale == scale and seconds > 0:
            total = done.setdefault(run.stage, [0.0, 0.0])
            total[0] += flop
            total[1] += seconds
    return {stage: flop / seconds for stage, (flop, seconds) in done.items()}


def parameters(m: ModelSpec) -> int:
    """Parameters of the whole network, norms and biases aside."""
    layers = m.image_layers + m.text_layers + m.decoder_layers
    cross = 2 * m.fusion_layers * 4 / 3 + m.decoder_cross_layers / 3 + 4 / 3
    return round(12 * m.width**2 * (layers + cross) + m.width * 2 * m.vocab_size)


def disk(runs: Iterable[RunSpec]) -> float:
    """Bytes that runs and their prepared images take."""
    runs = list(runs)
    images = {(name, run.model.stored_side): studies(name) for run in runs for name in run.data.pretrain}
    weights = 4.0 * sum(parameters(run.model) for run in runs)
    return weights + sum(count * side**2 * IMAGE_BYTES for (_, side), count in images.items())


def in_words(scale: str, runs: list[RunSpec], missing: list[RunSpec]) -> str:
    """Hours and disk of a plan's runs, and of those that are still to do."""
    known, source = rates(scale)

    def hours(these: list[RunSpec]) -> float:
        return sum(START + work(run) / known[run.stage] for run in these) / SIDE_BY_SIDE[scale] / 3600

    device = "on one GPU (n of them take an n-th at best)" if scale in ("base", "paper") else "on two cores"
    return (
        f"time: about {hours(runs):.1f} h {device}, {hours(missing):.1f} h of it to do, "
        f"teachers and tables aside; rates {source}.\n"
        f"disk: about {disk(runs) / 1e9:.1f} GB (make data --dry-run says what a scale would download)."
    )
