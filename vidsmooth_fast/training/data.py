"""What a network is tuned on: a captioned clip, or the combined dataset of [002], encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.training.noising import Noising
from vidsmooth_fast.video import Video

VISIBLE = 8
"""Levels of 255 between the darkest and the lightest value of a clip, below which nothing is to be seen in it."""


@dataclass(frozen=True)
class Pair:
    """A text-conditioned picture of the combined dataset: one frame of the clip, edited.

    frame: which frame of the clip, counted from 0. edited: (H, W, 3) uint8, the same composition with other content;
    resized and cropped like the clip. prompt: what it shows.
    Source: [002], "Text to image as the conditional dataset".
    """

    frame: int
    edited: np.ndarray
    prompt: str


@dataclass(frozen=True)
class Item:
    """One thing to learn from.

    origin: latents that are noised, (1, C, F, h, w). aim: the clean latents that the network shall find, same shape.
    text: (1, L, D). mask: foreground, (1, 1, F, h, w), or None. share: how often it is drawn, relative to others.
    """

    origin: Tensor
    aim: Tensor
    text: Tensor
    mask: Tensor | None
    share: float


@dataclass(frozen=True)
class Batch:
    """Inputs of one step: noisy (B, C, F, h, w), t (B,), text (B, L, D), target as noisy, mask or None."""

    noisy: Tensor
    t: Tensor
    text: Tensor
    target: Tensor
    mask: Tensor | None


class Dataset:
    """Items, and the batch of any step as a function of (seed, step, process) alone: no generator has to be kept.

    timesteps: (first, last + 1) from which t is drawn evenly.
    """

    def __init__(
        self, items: list[Item], noising: Noising, timesteps: tuple[int, int], batch_size: int, seed: int
    ):
        self.items = items
        self.noising = noising
        self.timesteps = timesteps
        self.batch_size = batch_size
        self.seed = seed % 2**64
        total = sum(item.share for item in items)
        self._shares = [item.share / total for item in items]

    def batch(self, step: int, process: int = 0) -> Batch:
        """Items of one step share their shape: where those differ, one is drawn for the whole batch."""
        rng = np.random.default_rng([self.seed, process, step])
        alike = len({item.origin.shape for item in self.items}) == 1
        drawn = rng.choice(len(self.items), size=self.batch_size if alike else 1, p=self._shares)
        items = [self.items[i] for i in np.resize(drawn, self.batch_size)]
        origin, aim, text = (
            torch.cat([getattr(i, name) for i in items]) for name in ("origin", "aim", "text")
        )
        t = torch.from_numpy(rng.integers(*self.timesteps, size=self.batch_size)).to(origin.device)
        noise = torch.from_numpy(rng.standard_normal(origin.shape, dtype=np.float32)).to(origin.device)
        noisy = self.noising.noisy(origin, noise, t)
        if any(item.aim is not item.origin for item in items):
            # the noised original, and the noise that would have made it of the edited frame
            noise = self.noising.implied_noise(noisy, aim, t)
        masks = [item.mask for item in items]
        mask = None if any(m is None for m in masks) else torch.cat(masks)
        return Batch(noisy, t, text, self.noising.target(aim, noise, t), mask)


def read_clip(video: Video, frames: int, size: tuple[int, int], *, pictures: bool) -> np.ndarray:
    """The first `frames` frames (all of a shorter clip) at `size` (H, W): (F, H, W, 3) uint8.

    Raises: ValueError for a clip of one frame (unless pictures) or one in which nothing is to be seen.
    """
    part = video[:frames] if len(video) > frames else video
    if len(part) < 2 and not pictures:
        raise ValueError(
            f"video: expected at least 2 frames to learn motion from, got {len(part)}; "
            "pictures=True tunes on single frames"
        )
    clip = np.stack(list(part.resized(size)))
    darkest, lightest = int(clip.min()), int(clip.max())
    if lightest - darkest < VISIBLE:
        raise ValueError(
            f"video: nothing is to be seen in these {len(clip)} frames, all values lie in {darkest}..{lightest} of 255"
        )
    return clip


def latent_mask(mask: np.ndarray, frames: int, latent_size: tuple[int, int]) -> Tensor:
    """A foreground mask (F, H, W), bool or 0 … 1, as the share of each latent element: (1, 1, F, h, w) fp32.

    Raises: ValueError for another number of frames, or when all or nothing is foreground.
    """
    mask = np.asarray(mask)
    if mask.ndim != 3 or len(mask) < frames:
        raise ValueError(f"mask: expected shape ({frames}, H, W), got {mask.shape}")
    values = torch.from_numpy(mask[:frames].astype(np.float32))
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("mask: expected values in 0..1")
    share = float(values.mean())
    if share in (0.0, 1.0):
        what = "nothing" if share == 0 else "everything"
        raise ValueError(
            f"mask: {what} is foreground in all {frames} frames: foreground and background are needed"
        )
    return F.adaptive_avg_pool2d(values[:, None], latent_size).transpose(0, 1)[None]


def clip_items(
    model: VideoModel, clip: np.ndarray, prompt: str, mask: np.ndarray | None, *, pictures: bool
) -> list[Item]:
    """The clip under its caption: one item, or with `pictures` one per frame."""
    latents, text = model.encode_video(clip), model.encode_text([prompt])
    latents, text = latents.clone(), text.clone()  # out of inference mode
    masks = None
    if mask is not None:
        masks = latent_mask(mask, len(clip), latents.shape[-2:]).to(latents.device)
    if not pictures:
        return [Item(latents, latents, text, masks, float(len(clip)))]
    return [
        Item(z, z, text, None if masks is None else masks[:, :, f : f + 1], 1.0)
        for f, z in enumerate(latents.split(1, dim=2))
    ]


def pair_items(model: VideoModel, clip: np.ndarray, pairs: Sequence[Pair]) -> list[Item]:
    """One item of one frame per pair. Raises: ValueError naming a bad pair."""
    items, size = [], clip.shape[1:3]
    for number, pair in enumerate(pairs):
        name = f"pairs[{number}]"
        if not isinstance(pair, Pair):
            raise ValueError(f"{name}: expected a Pair(frame, edited, prompt), got {type(pair).__name__}")
        if not isinstance(pair.prompt, str) or not pair.prompt.strip():
            raise ValueError(f"{name}: expected a prompt, got {pair.prompt!r}")
        if not 0 <= pair.frame < len(clip):
            raise ValueError(f"{name}: expected a frame in 0..{len(clip) - 1}, got {pair.frame!r}")
        edited = next(iter(Video.from_frames([np.asarray(pair.edited)], fps=1).resized(size)))
        latents = model.encode_video([clip[pair.frame], edited]).clone()
        text = model.encode_text([pair.prompt]).clone()
        items.append(Item(latents[:, :, :1], latents[:, :, 1:], text, None, 1.0))
    return items
