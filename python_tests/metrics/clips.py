"""Pictures that move in a known way."""

from __future__ import annotations

import cv2
import numpy as np

from vidsmooth_fast.video import Video


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8, smooth enough for optical flow."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def pan(frames: int = 6, step: int = 2, size: int = 64, seed: int = 0) -> list[np.ndarray]:
    """The picture moves `step` pixels to the left each frame."""
    wide = texture(size, size + step * frames, seed)
    return [np.ascontiguousarray(wide[:, n * step : n * step + size]) for n in range(frames)]


def still(frames: int = 4, size: int = 64) -> list[np.ndarray]:
    return [texture(size, size)] * frames


def flickering(frames: list[np.ndarray], amount: int) -> list[np.ndarray]:
    """Alternately lighter and darker by `amount` levels."""
    signs = [1 if n % 2 else -1 for n in range(len(frames))]
    return [
        np.clip(f.astype(int) + s * amount, 0, 255).astype(np.uint8)
        for f, s in zip(frames, signs, strict=True)
    ]


def video(frames: list[np.ndarray], **metadata) -> Video:
    return Video.from_frames(frames, fps=8, metadata={"vidsmooth_fast": metadata})
