"""Latents of rendered clips, made once and kept: (N, F, 4, h, w) fp16, with the scenes they show."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .autoencoder import latents
from .render import Scene, object_mask, random_scene, render_clip
from .runner import rank_and_workers


def _scene(seed: int, frames: int, i: int) -> tuple[Scene, float]:
    """The i-th scene of a set, and its first frame's time."""
    rng = np.random.default_rng([seed, frames, i])
    return random_scene(rng), float(rng.uniform(0, 400))


def object_masks(count: int, frames: int, *, seed: int, size: int) -> Tensor:
    """Where the objects of `clip_latents` are: (count, frames, size, size) bool."""
    out = np.empty((count, frames, size, size), bool)
    for i in range(count):
        scene, start = _scene(seed, frames, i)
        for f in range(frames):
            out[i, f] = object_mask(scene, start + f, size)
    return torch.from_numpy(out)


def _make(vae: AutoencoderKL, indices, frames: int, seed: int, size: int) -> tuple[Tensor, list[dict]]:
    found, scenes = [], []
    for i in indices:
        scene, start = _scene(seed, frames, i)
        clip = render_clip(scene, frames, size, start=start, truth=False)
        found.append(latents(vae, clip.frames).half())
        scenes.append(asdict(scene))
    return torch.stack(found), scenes


def clip_latents(
    vae: AutoencoderKL, cache: Path, count: int, frames: int, *, seed: int = 0, size: int = 128, part: int = 100,
    log=print,
) -> tuple[Tensor, list[Scene]]:  # fmt: skip
    """`count` random clips of `frames` consecutive frames, as scaled latents (count, frames, 4, h, w) fp16.

    Made in parts of `part` clips that are kept in the folder `cache`, shared out among the workers; an interrupted run
    continues with the missing parts. The autoencoder's scaling factor is applied.
    """
    cache.mkdir(parents=True, exist_ok=True)
    rank, workers = rank_and_workers()
    bounds = [(a, min(a + part, count)) for a in range(0, count, part)]
    files = [cache / f"{frames}x{a}-{b}.pt" for a, b in bounds]
    for i, ((a, b), file) in enumerate(zip(bounds, files, strict=True)):
        if i % workers == rank and not file.exists():
            temporary = file.with_suffix(".writing")
            torch.save(_make(vae, range(a, b), frames, seed, size), temporary)
            os.replace(temporary, file)
            if i % (4 * workers) == rank:
                log(f"latents: part {i + 1} of {len(bounds)}")
    if workers > 1:
        torch.distributed.barrier()
    parts = [torch.load(f, weights_only=True) for f in files]
    scenes = [Scene(**s) for _, some in parts for s in some]
    return torch.cat([z for z, _ in parts]) * vae.config.scaling_factor, scenes
