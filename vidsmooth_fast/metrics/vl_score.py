"""VL score: neighbouring frames compared in an autoencoder's latents, after the best small shift."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vidsmooth_fast.metrics.base import Metric, Pair

TOGETHER = 12
"""Pairs scored in one batch: fewer calls of small operators, and memory that the caches hold."""
TINY = 1e-30


class VLScore(Metric):
    """100 times the mean over neighbouring frames of the best cosine between one frame's central crop of latents and
    the equally large crops of the frame before.

    With latents of h x w elements there are (k + 1) x (k + 1) shifts, k = 2 round(4 min(h, w) / 64), at least 2: 8 for
    the 64 x 64 latents of the paper. A zoom is not undone.
    """

    name = "vl_score"
    title = "video latent score"
    low, high = -100.0, 100.0
    better = "higher"
    unit = "cosine, hundredths"
    source = "[003] eq. 6"
    cost = "one encoding a frame; the embedded autoencoder: 15 ms at 128 x 128; shifts: under 0.1 ms"
    needs = ("autoencoder",)
    least = 2

    def __init__(self, setting) -> None:
        super().__init__(setting)
        self._waiting: list[tuple[int, np.ndarray, np.ndarray]] = []

    def pair(self, pair: Pair) -> None:
        self._waiting.append((pair.after.number, pair.before.latents, pair.after.latents))
        if len(self._waiting) == TOGETHER:
            self._score()

    def result(self) -> float:
        if self._waiting:
            self._score()
        return super().result()

    def _score(self) -> None:
        numbers, before, after = zip(*self._waiting, strict=True)
        found = vl_scores(torch.from_numpy(np.stack(before)), torch.from_numpy(np.stack(after)))
        self.series.update(zip(numbers, found.tolist(), strict=True))
        self._waiting.clear()

    @classmethod
    def objection(cls, setting, frames, size) -> str | None:
        if setting.autoencoder is not None and size is not None:
            height, width = (side // setting.autoencoder.downsampling for side in size)
            if min(height, width) < 4:
                return f"needs latents of at least 4x4, got {height}x{width}"
        return super().objection(setting, frames, size)


def shifts(height: int, width: int) -> int:
    """k for latents of this size."""
    return max(2, 2 * math.floor(4 * min(height, width) / 64 + 0.5))


def vl_scores(before: Tensor, after: Tensor, k: int | None = None) -> Tensor:
    """100 max_(i,j in 0..k) cos(centre crop of after, crop of before at (i, j)), crops of (h - k, w - k).

    before, after: (N, C, h, w), floating; all but float64 is computed in float32. k: even, at least 2; by default that
    of the size. Returns (N,) float64.

    The inner products of all shifts are one correlation, by FFT, of `before` without its mean, which is added after (no
    wrap-around: the crop is k smaller); the norms are box sums, two small products with bands of ones. They choose the
    shift; the inner product there is computed anew in float64.
    """
    height, width = before.shape[-2:]
    k = shifts(height, width) if k is None else k
    h, w = height - k, width - k
    if before.shape != after.shape or before.dim() != 4 or k < 2 or k % 2 or min(h, w) < 1:
        raise ValueError(
            f"before, after: expected equal shapes (N, C, h, w) with h, w > k = {k} (even, >= 2), "
            f"got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    before, after = (x if x.dtype == torch.float64 else x.float() for x in (before, after))
    crop = after[..., k // 2 : k // 2 + h, k // 2 : k // 2 + w]
    exact = crop.double()
    mean = before.mean((2, 3), keepdim=True)
    spectrum = torch.fft.rfft2(before - mean)
    spectrum.mul_(torch.fft.rfft2(crop, s=(height, width)).conj())
    inner = torch.fft.irfft2(spectrum.sum(1), s=(height, width))[:, : k + 1, : k + 1].double()
    inner += (mean * exact.sum((2, 3), keepdim=True)).sum((1, 2, 3))[:, None, None]
    energy = band(k, h) @ before.square().sum(1, dtype=torch.float64) @ band(k, w).T
    best = (inner / energy.clamp_min(TINY).sqrt()).flatten(1).argmax(1)
    corners = [divmod(b, k + 1) for b in best.tolist()]
    windows = torch.stack([x[:, i : i + h, j : j + w] for x, (i, j) in zip(before, corners, strict=True)])
    exact = exact.flatten(1)
    norms = torch.linalg.vecdot(exact, exact) * energy.flatten(1).gather(1, best[:, None])[:, 0]
    return 100 * torch.linalg.vecdot(exact, windows.flatten(1).double()) / norms.clamp_min(TINY).sqrt()


def band(k: int, length: int) -> Tensor:
    """Row i adds elements i ... i + length - 1: (k + 1, k + length) of ones and zeros, float64."""
    return torch.ones(k + 1, k + length, dtype=torch.float64).triu().tril(length - 1)
