"""Previews: pictures of latents for a small part of what the autoencoder's decoder costs. Approximate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .latent_model import LatentModel
from .pretrained import read_pretrained

FITTED = 4
"""Frames that are decoded in full to fit the linear preview."""


def linear_preview(model: LatentModel, latents: Tensor, *, chunk: int = 8) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of latents (1, C, F, h, w): rgb = A z + b at every latent pixel, enlarged bilinearly.

    A (3, C) and b come from least squares between the latents of FITTED frames, spread over the video, and what the
    model's own decoder makes of them, averaged over each latent's square. Colours and layout are right; edges are
    as soft as the latents are coarse. chunk: frames at a time.
    """
    z = latents[0].float().transpose(0, 1)
    chosen = torch.linspace(0, len(z) - 1, min(FITTED, len(z))).round().long().unique()
    decoded = np.stack(list(model.decode_latents(latents[:, :, chosen.to(latents.device)], chunk=chunk)))
    pixels = torch.from_numpy(decoded).permute(0, 3, 1, 2).float()
    size = tuple(pixels.shape[-2:])
    wanted = F.adaptive_avg_pool2d(pixels, z.shape[-2:]).permute(0, 2, 3, 1).flatten(0, 2)
    # On the CPU, whose solver does not mind latents that are all alike.
    weights = torch.linalg.lstsq(_with_one(z[chosen.to(z.device)]).cpu().flatten(0, 2), wanted).solution
    for part in z.split(chunk):
        part = part.to(model.device)
        rgb = (_with_one(part) @ weights.to(part.device)).permute(0, 3, 1, 2)
        large = F.interpolate(rgb, size=size, mode="bilinear", align_corners=False)
        yield from large.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _with_one(z: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, h, w, C + 1), the last a constant."""
    return F.pad(z.permute(0, 2, 3, 1), (0, 1), value=1.0)


class TinyDecoder:
    """A diffusers AutoencoderTiny in place of the model's decoder.

    path: its directory. model: whose latents it decodes; it is placed where the model is.
    Raises ValueError for a directory that holds something else, or an autoencoder of other latents.
    """

    def __init__(self, path: str | os.PathLike, model: LatentModel):
        from diffusers import AutoencoderTiny

        if not (Path(path) / "config.json").is_file():
            raise ValueError(
                f"decoder: expected full, linear or the directory of an AutoencoderTiny, got {str(path)!r}"
            )
        try:
            tiny = read_pretrained(AutoencoderTiny, path, local_files_only=True, low_cpu_mem_usage=False)
        except ValueError as error:
            raise ValueError(f"decoder: {path} does not load as an AutoencoderTiny ({error})") from None
        config = tiny.config
        channels = config.latent_channels
        scale = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
        if (channels, scale) != (model.latent_channels, model.downsampling):
            raise ValueError(
                f"decoder: expected {model.latent_channels} latent channels and {model.downsampling} pixels per "
                f"latent, got {channels} and {scale} from {path}"
            )
        self._tiny = tiny.to(model.device, model.dtype).eval()

    @torch.inference_mode()
    def __call__(self, latents: Tensor, *, chunk: int = 8) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) uint8 of latents (1, C, F, h, w), `chunk` of them decoded at a time."""
        for part in latents[0].transpose(0, 1).split(chunk):
            z = part.to(self._tiny.device, self._tiny.dtype) / self._tiny.config.scaling_factor
            pixels = (self._tiny.decode(z, return_dict=False)[0].float() + 1) * 127.5
            yield from pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
