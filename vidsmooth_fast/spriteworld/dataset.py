"""Latents of rendered clips, made once and kept: (N, F, 4, h, w) fp16, with the scenes they show."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
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


@contextmanager
def _drawing(device: torch.device) -> Iterator[Callable[[Callable, Iterable], Iterable]]:
    """`map`; on all cores where a GPU trains and leaves them free."""
    if device.type == "cpu":
        yield map
        return
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=4)


def _mask(seed: int, frames: int, size: int, i: int) -> np.ndarray:
    scene, start = _scene(seed, frames, i)
    return np.stack([object_mask(scene, start + f, size) for f in range(frames)])


def object_masks(count: int, frames: int, *, seed: int, size: int, device: torch.device) -> Tensor:
    """Where the objects of `clip_latents` are: (count, frames, size, size) bool, on the device."""
    with _drawing(device) as over:
        return torch.from_numpy(np.stack(list(over(partial(_mask, seed, frames, size), range(count))))).to(
            device
        )


def _draw(seed: int, frames: int, size: int, i: int) -> tuple[np.ndarray, dict]:
    scene, start = _scene(seed, frames, i)
    return render_clip(scene, frames, size, start=start, truth=False).frames, asdict(scene)


def clip_latents(
    vae: AutoencoderKL, cache: Path, count: int, frames: int, *, seed: int = 0, size: int = 128, part: int = 100,
    log=print,
) -> tuple[Tensor, list[Scene]]:  # fmt: skip
    """`count` random clips of `frames` consecutive frames, as scaled latents (count, frames, 4, h, w) fp16.

    Made where the autoencoder is, in parts of `part` clips that are kept in the folder `cache`, shared out among the
    workers; an interrupted run continues with the missing parts. The autoencoder's scaling factor is applied.
    """
    cache.mkdir(parents=True, exist_ok=True)
    rank, workers = rank_and_workers()
    bounds = [(a, min(a + part, count)) for a in range(0, count, part)]
    files = [cache / f"{frames}x{a}-{b}.pt" for a, b in bounds]
    with _drawing(vae.device) as over:
        for i, ((a, b), file) in enumerate(zip(bounds, files, strict=True)):
            if i % workers == rank and not file.exists():
                drawn = list(over(partial(_draw, seed, frames, size), range(a, b)))
                z = torch.stack([latents(vae, pictures).half().cpu() for pictures, _ in drawn])
                temporary = file.with_suffix(".writing")
                torch.save((z, [scene for _, scene in drawn]), temporary)
                os.replace(temporary, file)
                if i % (4 * workers) == rank:
                    log(f"latents: part {i + 1} of {len(bounds)}")
    if workers > 1:
        torch.distributed.barrier()
    parts = [torch.load(f, weights_only=True) for f in files]
    scenes = [Scene(**s) for _, some in parts for s in some]
    return (torch.cat([z for z, _ in parts]) * vae.config.scaling_factor).to(vae.device), scenes
