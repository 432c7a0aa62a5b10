"""EfficientNet-lite0 (Tan and Le, 2019), frozen: the feature map that a small ViT reads in place of pixels."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from amif_lib.networks import pixels

CHANNELS, STRIDE = 1280, 32
MOST = 8192  # maps kept in memory: 1 GB at 224 px


class Lite0(nn.Module):
    """The last feature map of timm's `tf_efficientnet_lite0`; each picture's is computed once and kept in fp16.

    A training saves time by this only if it shows the same pixels again (`batches.FIXED_VIEWS`).
    """

    def __init__(self) -> None:
        super().__init__()
        import timm

        network = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="")
        self.network = network.requires_grad_(False)
        self.maps: dict[bytes, Tensor] = {}  # by digest of the pixels, (1280, H/32, W/32) each
        self.network.register_load_state_dict_post_hook(lambda *_: self.maps.clear())  # they are of other weights

    def train(self, mode: bool = True) -> Lite0:
        """Always in evaluation mode: the statistics of the batch norms are part of the frozen weights."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W), normalised as CLIP's -> (B, 1280, H/32, W/32)."""
        return torch.stack([self.one(image).float() for image in images])  # (B, 1280, H/32, W/32)

    def one(self, image: Tensor) -> Tensor:
        """The map of one picture, (3, H, W) -> (1280, H/32, W/32); alone, so that no result depends on its batch."""
        key = hashlib.blake2b(image.contiguous().cpu().numpy(), digest_size=16).digest()
        if (kept := self.maps.get(key)) is not None:
            return kept
        mean, std = pixels.MEAN.to(image.device), pixels.STD.to(image.device)
        values = image * std[:, None, None] + mean[:, None, None]  # 0 to 1
        with torch.autocast(image.device.type, enabled=False):  # the same map in every precision of training
            found = self.network(2 * values[None].float() - 1)[0].half()  # (1, 3, H, W), -1 to 1 -> (1280, ...)
        if len(self.maps) < MOST:
            self.maps[key] = found
        return found
