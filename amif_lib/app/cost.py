"""What trainings will cost: hours, estimated from the seconds per sample of stored runs, and disk space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from amif_lib.core import files, paths
from amif_lib.data import manifests
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.networks.sizes import ModelSpec

SIDE_BY_SIDE = {"demo": 2, "small": 2, "base": 1, "paper": 1}  # trainings at a time (`reproduce.shares`)
START = 30.0  # seconds of a job beside its training: start, figures, and at demo scale steps by hand (measured there)
IMAGE_BYTES = 0.45  # of a stored image, per squared pixel of its short side (measured on VQA-RAD and MedPix-2.0)


def samples(run: RunSpec) -> int:
    """Samples that a training will see in all epochs, by its manifests' counts before decontamination."""
    if run.stage == "finetune":
        manifest = manifests.load(run.data.questions)
        counts = {variant.name: variant.train for variant in manifest.variants if variant.train}
        counts |= {"": next(split.questions for split in manifest.splits if split.name == "train")}
        count = counts.get(run.data.training_file) or counts.get(run.data.language) or counts[""]
        limit = run.data.max_questions
    else:
        count, limit = sum(map(studies, run.data.pretrain)), run.data.max_studies
    steps = max(1, min(count, limit or count) // run.train.batch_size) * run.train.epochs
    return steps * run.train.batch_size


def studies(name: str) -> int:
    """Studies of a pre-training set: all, or its training split's; 0 if its manifest gives no number."""
    splits = {split.name: split.studies for split in manifests.load(name).splits}
    return splits.get("all") or splits.get("train") or 0


def measured(folder: Path, scale: str) -> dict[str, float]:
    """Median seconds per sample, evaluation included, by stage, of a scale's finished runs in a folder; {} for none."""
    found = defaultdict(list)  # a mean would follow the few runs that trained beside other work
    for path in folder.glob("*/spec.json"):
        run, provenance = files.read_yaml(path), path.with_name("provenance.json")
        if run.get("scale") == scale and provenance.is_file():  # a teacher's folder has neither, so none is counted
            count = files.read_yaml(path.with_name("metrics.json"))["samples"]
            found[run["stage"]].append(files.read_yaml(provenance)["wall_time_s"] / count)
    return {stage: median(values) for stage, values in found.items()}


def parameters(m: ModelSpec) -> int:
    """Parameters of the whole network, without norms and biases."""
    layers = m.image_layers + m.text_layers + m.decoder_layers
    cross = 2 * m.fusion_layers * 4 / 3 + m.decoder_cross_layers / 3 + 4 / 3
    return round(12 * m.width**2 * (layers + cross) + m.width * 2 * m.vocab_size)


def disk(runs: Iterable[RunSpec]) -> float:
    """Bytes that runs and their prepared images take."""
    runs = list(runs)
    images = {(name, run.model.stored_side): studies(name) for run in runs for name in run.data.pretrain}
    weights = 4.0 * sum(parameters(run.model) for run in runs)
    return weights + sum(count * side**2 * IMAGE_BYTES for (_, side), count in images.items())


def rates(scale: str) -> tuple[dict[str, float], str]:
    """Seconds per sample, by stage, of the user's runs or else of the committed ones, and where they were measured."""
    own, reference = (measured(folder / "runs", scale) for folder in (paths.results(), paths.reference(scale)))
    place = "for the reference, on two cores"
    if own:
        place = "on this machine" if own.keys() >= reference.keys() else f"partly on this machine, partly {place}"
    return reference | own, place


def in_words(scale: str, runs: list[RunSpec], missing: list[RunSpec]) -> str:
    """Lines for `make plan`: hours of all runs and of the missing ones, and disk space."""
    seconds, where = rates(scale)

    def hours(these: list[RunSpec]) -> float:
        return sum(START + samples(run) * seconds[run.stage] for run in these) / SIDE_BY_SIDE[scale] / 3600

    if unknown := sorted({run.stage for run in runs} - set(seconds)):
        time = f"not known, since no training of {' and '.join(unknown)} was measured at this scale; finish one first."
    else:
        to_do = f"of which {hours(missing):.1f} h are still to do, without teachers and tables"
        time = f"about {hours(runs):.1f} h, {to_do}; measured {where}."
    return f"time: {time}\ndisk: about {disk(runs) / 1e9:.1f} GB (downloads: python -m amif_lib data --dry-run)."
