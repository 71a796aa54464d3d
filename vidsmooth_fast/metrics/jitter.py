"""Jitter: the second difference in time, which even motion and even fades lack."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from vidsmooth_fast.metrics.base import Metric, Pair
from vidsmooth_fast.metrics.flicker import measure


class Jitter(Metric):
    """Mean |2 y_n - y_(n-1) - y_(n+1)| over pixels, channels and interior n.

    Even fades score 0; what alternates from frame to frame scores twice its flicker. It is the difference that the
    noise constraint shrinks, seen in the picture.
    """

    name = "jitter"
    title = "second difference in time"
    high = 510.0
    unit = "8-bit levels"
    source = "the difference of [003] eq. 3, in the picture"
    cost = "0.1 ms a frame at 256 x 256"
    least = 3

    def __init__(self, setting) -> None:
        super().__init__(setting)
        self._opening = self._last = None

    def pair(self, pair: Pair) -> None:
        change = np.subtract(pair.after.frame, pair.before.frame, dtype=np.int16)
        if self._last is not None:
            self.series[pair.before.number] = cv2.norm(change, self._last, cv2.NORM_L1) / change.size
        if pair.closing and pair.before.number > 1:
            self.series[0] = cv2.norm(self._opening, change, cv2.NORM_L1) / change.size
        if self._opening is None:
            self._opening = change if self.setting.loop else ()
        self._last = change


def jitter(frames: Iterable[np.ndarray], *, loop: bool = False) -> float:
    """`Jitter` of (H, W, 3) uint8 frames, at least three; loop: the first and last frames are interior too.

    Returns 8-bit levels, lower is smoother. Raises: ValueError for fewer frames, or frames of different shapes.
    """
    return measure(Jitter, frames, loop=loop)
