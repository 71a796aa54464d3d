"""ControlNets in the loop: what they add to the network's skip connections, window by window."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidsmooth_fast.conditioning.controls import Control
from vidsmooth_fast.models.controlnet import Residuals, load_controlnet, name_of
from vidsmooth_fast.models.latent_model import LatentModel
from vidsmooth_fast.sampling.denoiser import Denoiser
from vidsmooth_fast.sampling.latents import Store, back_and_forth, read_frames
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.video import Video

CPU_IMAGES = 8
"""Images that a ControlNet is given at a time on a CPU: 32 at once take 38% longer, because they leave the caches."""


class ControlNets:
    """The ControlNets of a run on its device, and after `read_maps` the maps of every frame on the host.

    controls, videos: what was asked for, and the videos that `Control.video` gave. options: complete.
    Raises: ValueError, one line, for networks that cannot be read or do not fit.
    """

    def __init__(
        self, controls: Sequence[Control], videos: Sequence[Video], model: LatentModel, options: Options
    ):
        self.controls, self._videos = tuple(controls), tuple(videos)
        self.networks = [load_controlnet(control.network, model) for control in controls]
        self._frames, size = options.frames, (options.height, options.width)
        self._store = Store((1, 3, options.frames, *size), model.device, torch.uint8, buffers=len(controls))
        self._maps: list[Tensor] = []

    @property
    def mapped(self) -> bool:
        """Whether the maps do not fit in memory and are memory-mapped files."""
        return self._store.mapped

    @property
    def map_bytes(self) -> int:
        """What the maps take of the host's memory."""
        return 0 if self.mapped else len(self.controls) * self._store.bytes

    def read_maps(self) -> None:
        """Read every frame's maps, continued back and forth where there are fewer than frames."""
        height, width = self._store.shape[3:]
        for control, video in zip(self.controls, self._videos, strict=True):
            maps = self._store.empty()
            count = 0
            for picture in control.pictures(video, self._frames, (height, width)):
                maps.numpy()[0, :, count] = picture.transpose(2, 0, 1)
                count += 1
            for frame, where in enumerate(back_and_forth(count, self._frames).tolist()):
                if frame >= count:
                    maps[0, :, frame] = maps[0, :, where]
            self._maps.append(maps)

    def settings(self) -> list[dict[str, Any]]:
        """In the form that is written into the output's metadata."""
        return [
            {
                "network": name_of(control.network),
                "maps": "frames" if isinstance(control.maps, Video) else os.fspath(control.maps),
                "scale": control.scale,
            }
            for control in self.controls
        ]

    def weights(self) -> Iterator[Tensor]:
        for network in self.networks:
            yield from network.parameters()

    def pictures(self) -> Iterator[np.ndarray]:
        """The maps, (3, H, W) uint8 each."""
        for maps in self._maps:
            yield from maps[0].transpose(0, 1).numpy()

    def in_float32(self) -> ControlNets:
        """The same in single precision."""
        other = copy.copy(self)
        other.networks = [copy.deepcopy(network).float() for network in self.networks]
        return other

    def residuals(self, latents: Tensor, timestep: float, texts: Tensor, begin: int) -> list[Tensor]:
        """What is added for frames begin, begin + 1, ...: (n G, C, h, w) for every skip connection and the middle.

        latents: (C, n, h, w). texts: (n, G, L, D).
        """
        frames, branches = texts.shape[:2]
        images = latents.transpose(0, 1).repeat_interleave(branches, 0)
        texts = texts.flatten(0, 1)
        at_once = CPU_IMAGES if latents.device.type == "cpu" else len(images)
        time = torch.full((1,), timestep, dtype=torch.float32, device=latents.device)
        total: list[Tensor] = []
        for control, network, maps in zip(self.controls, self.networks, self._maps, strict=True):
            pictures = read_frames(maps, begin, begin + frames, latents.device)[0].transpose(0, 1)
            pictures = (pictures.to(network.dtype) / 255).repeat_interleave(branches, 0)
            pieces = [
                network(x.to(network.dtype), time, y, z, conditioning_scale=control.scale, return_dict=False)
                for x, y, z in zip(
                    images.split(at_once), texts.split(at_once), pictures.split(at_once), strict=True
                )
            ]
            parts = [
                torch.cat(part) for part in zip(*((*down, middle) for down, middle in pieces), strict=True)
            ]
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        return total


@dataclass(frozen=True)
class _Window:
    """The window that was computed last. text: the embeddings of every branch. parts: its residuals, (K G, C, h, w)."""

    timestep: float
    text: Tensor
    start: int
    parts: list[Tensor]


@dataclass(frozen=True)
class _Text:
    """Text as the denoiser wants it, and as a ControlNet does: embeddings (rows, L, D), chosen from `every`."""

    prepared: Any
    embeddings: Tensor
    every: Tensor

    def select(self, rows: Tensor) -> _Text:
        prepared, embeddings = self.prepared.select(rows), self.every.index_select(0, rows)
        return dataclasses.replace(self, prepared=prepared, embeddings=embeddings)


class ControlledDenoiser:
    """A denoiser with ControlNets beside it.

    A ControlNet looks at one frame at a time, and overlapping windows read the same latents: where the text of each
    branch is the same for both, what it made of the frames that two neighbouring windows share is computed once.
    """

    def __init__(self, denoiser: Denoiser, controls: ControlNets):
        self.denoiser, self.controls = denoiser, controls
        self.dtype, self.device = denoiser.dtype, denoiser.device
        self._before: _Window | None = None

    def prepare_text(self, text: Tensor) -> _Text:
        embeddings = text.to(self.device, self.dtype)
        return _Text(self.denoiser.prepare_text(text), embeddings, embeddings)

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: _Text,
        controls: Residuals | None = None,
        frame_offsets: Tensor | None = None,
        branches: int = 1,
        **deep: Any,
    ) -> Tensor:
        windows, frames = latents.shape[0], latents.shape[2]
        still = text.every if len(text.every) == branches else None
        texts = text.embeddings.unflatten(0, (windows, branches, -1)).expand(-1, -1, frames, -1, -1)
        found = [
            self._window(*window, timestep, still)
            for window in zip(latents, texts.transpose(1, 2), frame_offsets.tolist(), strict=True)
        ]
        *down, middle = (_branches_first(parts, branches) for parts in zip(*found, strict=True))
        residuals = Residuals(tuple(down), middle)
        return self.denoiser.predict(
            latents, timestep, text.prepared, residuals, frame_offsets, branches=branches, **deep
        )

    def _window(
        self, latents: Tensor, texts: Tensor, start: int, timestep: float, still: Tensor | None
    ) -> list[Tensor]:
        """Residuals of one window, (K G, C, h, w) each, branches faster than frames.

        latents: (C, K, h, w). texts: (K, G, L, D). still: the text of every branch, where it is the same in all frames.
        """
        frames, branches = texts.shape[:2]
        known, before = 0, self._before
        if before is not None and before.text is still and before.timestep == timestep:
            # A later step begins anew at the first frame, so that a window that starts earlier is none of this step.
            overlap = before.start + frames - start
            known = overlap if 0 < overlap < frames else 0
        parts = self.controls.residuals(latents[:, known:], timestep, texts[known:], start + known)
        if known:
            kept = [part[-known * branches :] for part in before.parts]
            parts = [torch.cat(pair) for pair in zip(kept, parts, strict=True)]
        self._before = None if still is None else _Window(timestep, still, start, parts)
        return parts

    def in_float32(self) -> ControlledDenoiser:
        return ControlledDenoiser(self.denoiser.in_float32(), self.controls.in_float32())


def _branches_first(parts: Sequence[Tensor], branches: int) -> Tensor:
    """Residuals of N windows, (K G, C, h, w) each, as the network orders them: (N G K, C, h, w), in channels_last."""
    maps = torch.stack([part.permute(0, 2, 3, 1) for part in parts])
    return maps.unflatten(1, (-1, branches)).transpose(1, 2).flatten(0, 2).permute(0, 3, 1, 2)
