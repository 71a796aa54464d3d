"""The autoencoder whose latents `vl_score` compares: the embedded one, any diffusers directory, a Hub id."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from vidsmooth_fast.metrics.clip_model import find_place
from vidsmooth_fast.models.loading import choose_device
from vidsmooth_fast.models.pretrained import read_pretrained

EMBEDDED_AUTOENCODER = "sprite-world"


class Autoencoder:
    """name: what was loaded. downsampling: pixels per latent element along each side.

    name_or_path: "sprite-world" (embedded), a diffusers AutoencoderKL directory, a model directory with a folder
    `vae`, or the Hub id of an autoencoder. Raises: ValueError, one line, when it cannot be read.
    """

    def __init__(
        self, name_or_path: str | os.PathLike = EMBEDDED_AUTOENCODER, *, device: str = "auto"
    ) -> None:
        from diffusers import AutoencoderKL

        self.name = os.fspath(name_or_path)
        place, options = find_place(self.name, "autoencoder", "config.json", "vae")
        self._device = choose_device(device)
        try:
            vae = read_pretrained(
                AutoencoderKL, place, torch_dtype=torch.float32, low_cpu_mem_usage=False, **options
            )
        except ValueError as error:
            raise ValueError(f"autoencoder: cannot read {self.name!r}: {error}") from error
        self._vae = vae.eval().to(self._device, memory_format=torch.channels_last)
        self.downsampling = 2 ** (len(vae.config.block_out_channels) - 1)

    def latents(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """(n, C, h, w) float32 posterior means of (H, W, 3) uint8 frames; odd edges are cut off evenly."""
        d = self.downsampling
        height, width = (side // d * d for side in frames[0].shape[:2])
        top, left = (frames[0].shape[0] - height) // 2, (frames[0].shape[1] - width) // 2
        cut = np.stack([frame[top : top + height, left : left + width] for frame in frames])
        x = torch.from_numpy(cut).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            return self._vae.encode(x).latent_dist.mean.float().cpu().numpy()
