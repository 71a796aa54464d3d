"""Loop gap: how visible the jump from the last frame to the first is."""

from __future__ import annotations

import cv2
import numpy as np

from vidsmooth_fast.metrics.base import Metric, Moment, Pair
from vidsmooth_fast.metrics.seam_score import FLOOR


class LoopGap(Metric):
    """(change from the last frame to the first + 1/2) / (mean change between neighbours + 1/2).

    Changes as in `flicker_raw`. 1: played as a loop, the jump is like any other step; only videos that were sampled
    as loops should reach it. The number of a frame is the jump from it to the first.
    """

    name = "loop_gap"
    title = "jump from the last frame to the first"
    unit = "times the change elsewhere"
    source = "this project"
    cost = "shared with flicker_raw"
    least = 3

    def __init__(self, setting) -> None:
        super().__init__(setting)
        self._first: np.ndarray | None = None
        self._total, self._pairs = 0.0, 0

    def frame(self, moment: Moment) -> None:
        self._first = moment.frame if self._first is None else self._first
        self.series[moment.number] = cv2.norm(moment.frame, self._first, cv2.NORM_L1) / self._first.size

    def pair(self, pair: Pair) -> None:
        if not pair.closing:
            self._total += pair.change
            self._pairs += 1

    def result(self) -> float:
        usual = self._total / self._pairs + FLOOR
        self.series = {n: (gap + FLOOR) / usual for n, gap in self.series.items()}
        return self.series[self._pairs]
