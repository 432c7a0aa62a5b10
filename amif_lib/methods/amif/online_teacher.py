"""The teacher's embeddings of the student's own augmented views, at every step, in place of cached ones of clean images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from amif_lib.data import images
from amif_lib.experiments.rows import TeacherSpec
from amif_lib.methods.amif import teacher_models
from amif_lib.methods.batch import PretrainingBatch


class OnlineTeacher:
    """Frozen models, one per fold, that embed the views of a batch. Texts keep their cached embeddings."""

    def __init__(self, folder: Path, spec: TeacherSpec, folds: set[int]):
        sources = {k: f"local-dir:{folder / f'fold{k}'}" if spec.source == "trained" else spec.source for k in folds}
        self.models = {k: teacher_models.load(source)[0].requires_grad_(False) for k, source in sources.items()}

    @torch.no_grad()
    def __call__(self, batch: PretrainingBatch) -> PretrainingBatch:
        """The batch with `teacher_views` (B, 2, e) of its own views (B, 2, 3, H, W), resized to the teacher's input."""
        model = self.models[batch.fold].to(batch.views.device)

        def channels(values: object) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=batch.views.device).view(3, 1, 1)

        expected = model.visual.preprocess_cfg
        size = (expected["size"],) * 2 if isinstance(expected["size"], int) else tuple(expected["size"])
        pixels = batch.views.flatten(0, 1) * channels(images.STD) + channels(images.MEAN)  # (2B, 3, H, W) in [0, 1]
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - channels(expected["mean"])) / channels(expected["std"])
        vectors = F.normalize(model.encode_image(pixels).float(), dim=-1)  # (2B, e)
        return replace(batch, teacher_views=vectors.unflatten(0, (-1, 2)))
