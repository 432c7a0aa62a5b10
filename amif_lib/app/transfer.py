"""Transfer of frozen image encoders to other tasks: features and scores of stored pre-trainings (notebook 18)."""

from __future__ import annotations

import numpy as np
import torch

from amif_lib import methods
from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.data import labelled, store
from amif_lib.data.labelled import Labelled
from amif_lib.experiments import rows, stored
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.networks import pixels, pretrained
from amif_lib.networks.encoders import ImageEncoder
from amif_lib.training.batches import seed_of

BATCH = 64
LOSSES = ("global", "local", "category", "itm", "swap")  # of MLIP, one left out in each ablation


def pretrainings(scale: str, only: tuple[str, ...] = (), ablations: bool = False) -> dict[str, list[RunSpec]]:
    """For each row of the table `methods`, by label, the first training of each replicate: its pre-training, if any.

    Of rows without pre-training only the first is kept; it is always there, since changes are measured against it. All
    rows have as many replicates as every pre-training has finished, at least one. `ablations` adds MLIP without each of
    its losses, with as many as all of these have finished. Raises InputError as `rows.rows` does.
    """
    out: dict[str, list[RunSpec]] = {}
    for row in rows.rows("methods", scale, only=only and ("no_pretraining", *only)):
        own = [run.trainings()[0] for run in row.runs if run.data.questions == row.runs[0].data.questions]
        if own[0].stage != "finetune" or all(runs[0].stage != "finetune" for runs in out.values()):
            out[row.label] = own
    out = _finished(out)
    seeds, name = range(len(next(iter(out.values())))), rows.sets_of("methods", scale)[0]
    ablated = {}
    for loss in LOSSES if ablations else ():
        settings = {"method": "mlip", "objective": {f"weight_{loss}": 0.0}}
        ablated[f"MLIP without {loss}"] = [rows.build_run(scale, settings, name, n, n).trainings()[0] for n in seeds]
    return out | _finished(ablated)


def _finished(runs: dict[str, list[RunSpec]]) -> dict[str, list[RunSpec]]:
    """As many replicates of each row as all pre-trainings among the rows have finished, at least one."""
    trained = [own for own in runs.values() if own[0].stage != "finetune"]
    finished = [sum(map(stored.is_finished, own)) for own in trained]
    return {label: own[: max(1, min(finished, default=1))] for label, own in runs.items()}


def read_data(scale: str, stored_side: int) -> Labelled:
    """The labelled images of a scale, which no pre-training may have seen. Raises InputError if it has none."""
    if not (name := rows.scale_settings(scale).get("transfer")):
        raise InputError(f"scale {scale}: no labelled images; name a set as `transfer` in specs/scales/{scale}.yaml")
    return labelled.read(name, stored_side)


def encoder(run: RunSpec) -> ImageEncoder:
    """A pre-training's image encoder, in evaluation mode; for a fine-tuning, the one that pre-trainings start from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(run.model_copy(update={"stage": methods.settings(run.method).STAGES[0]}), 0))
        found = ImageEncoder(run.model)
    if run.stage == "finetune":
        pretrained.load_image_tower(found, run.init.image)
    else:
        state, prefix = pretrained.read_state(run.directory / "model"), "image_encoder."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        pretrained.load_into(found, own, f"run {run.run_id}")
    return found.eval()


def prompts_of(data: Labelled) -> list[tuple[list[str], list[str]]]:
    """For each label the prompts that affirm it and those that deny it, from `specs/prompts.yaml`."""
    content, out = files.read_yaml(paths.SPECS / "prompts.yaml"), []
    for label, kind in data.kinds.items():
        names = [label, *content["names"].get(label, ())]
        templates = [content.get(kind, {}).get(side, []) for side in ("positive", "negative")]
        out.append(tuple([text.format(name) for text in texts for name in names] for texts in templates))
    return out


@torch.inference_mode()
def features(run: RunSpec, data: Labelled) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens of the frozen encoder (n, p+1, d), [CLS] first, and zero-shot scores (n, F); None without pre-training."""
    network, score = encoder(run), None
    if run.stage != "finetune":
        score = methods.load(run.method).zero_shot(stored.load_run(run), prompts_of(data))  # ARL may have none
    pictures, tokens, scored = store.pictures([data.data_set], run.model.stored_side), [], []
    for start in range(0, len(data.images), BATCH):
        ids = data.images["image_id"][start : start + BATCH]
        images = torch.stack([pixels.to_tensor(pictures[i], run.model.image_size) for i in ids])  # (b, 3, H, W)
        tokens.append(network(images))  # (b, p+1, d)
        scored += [score(tokens[-1])] if score else []  # (b, F)
    return torch.cat(tokens).numpy(), torch.cat(scored).numpy() if scored else None
