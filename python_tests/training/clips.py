"""Tiny clips to tune on."""

import numpy as np

from vidsmooth_fast.video import Video


def sliding(frames: int = 4, size: int = 16, seed: int = 0) -> Video:
    """Noise that slides to the left, one pixel a frame."""
    base = np.random.default_rng(seed).integers(0, 255, (size, size + frames, 3), dtype=np.uint8)
    return Video.from_frames([base[:, i : i + size].copy() for i in range(frames)], fps=8)
