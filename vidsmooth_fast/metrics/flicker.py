"""Flicker: mean absolute difference between neighbouring frames, as it is and along the motion.

Neither knows whether the picture is any good: a grey rectangle scores best. Compare videos of the same scene, size and
frame rate only.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vidsmooth_fast.metrics.base import Metric, Pair, Setting
from vidsmooth_fast.metrics.stream import run_metrics

CERTAIN = 0.01
"""Share of pixels with certain motion below which a pair (a cut) is left out."""


class FlickerRaw(Metric):
    """Mean |y_n - y_(n-1)| over pixels, channels and n. Counts motion as well as flicker."""

    name = "flicker_raw"
    title = "flicker, motion included"
    high = 255.0
    unit = "8-bit levels"
    source = "temporal flickering of VBench (Huang et al. 2024), as a distance instead of a score"
    cost = "under 0.1 ms a frame at 256 x 256"
    least = 2

    def pair(self, pair: Pair) -> None:
        self.series[pair.after.number] = pair.change


class Flicker(Metric):
    """Mean |y_n(p + f(p)) - y_(n-1)(p)| over the pixels p whose flow f from frame n-1 to n is certain.

    Each pair counts equally; pairs in which under 1% of the pixels pass (cuts) are left out; nan when no pair is
    left. Sampling between pixels leaves about a level on moving texture even when nothing flickers.
    """

    name = "flicker"
    title = "flicker along the motion"
    high = 255.0
    unit = "8-bit levels"
    source = "Lai et al. 2018 (flow-compensated difference), mean absolute; occlusion as Sundaram et al. 2010"
    cost = "two dense flows a frame, shared with warping_error and motion: 16 ms at 256 x 256"
    needs = ("flow",)
    least = 2

    def pair(self, pair: Pair) -> None:
        difference, certain = pair.compensated
        if certain.mean() >= CERTAIN:
            self.series[pair.after.number] = float(difference[certain].mean())


def temporal_flicker(frames: Iterable[np.ndarray], *, loop: bool = False) -> float:
    """`FlickerRaw` of (H, W, 3) uint8 frames, at least two; loop: the last is also a neighbour of the first.

    Returns 8-bit levels, lower is smoother. Raises: ValueError for fewer frames, or frames of different shapes.
    """
    return measure(FlickerRaw, frames, loop=loop)


def compensated_flicker(frames: Iterable[np.ndarray], *, loop: bool = False) -> float:
    """`Flicker` of (H, W, 3) uint8 frames, at least two, at least 16 x 16; loop: the last also precedes the first.

    Returns 8-bit levels, lower is smoother. Raises: ValueError for fewer, smaller or differently shaped frames.
    """
    return measure(Flicker, frames, loop=loop)


def measure(metric: type[Metric], frames: Iterable[np.ndarray], *, loop: bool = False) -> float:
    """One weight-free metric of an iterable of frames, read once. Raises: ValueError."""
    [done], count = run_metrics([metric], frames, Setting(loop=loop))
    if count < metric.least:
        raise ValueError(f"{metric.name} needs at least {metric.least} frames, got {count}")
    return done.result()
