"""Loop gap: how visible the jump from the last frame to the first is."""

from __future__ import annotations

import math

import cv2

from vidsmooth_fast.metrics.base import Metric, Moment, Pair
from vidsmooth_fast.metrics.seam_score import FLOOR


class LoopGap(Metric):
    """(change from the last frame to the first + 1/2) / (mean change between neighbours + 1/2).

    Changes as in `flicker_raw`. 1: played as a loop, the jump is like any other step; only videos that were sampled
    as loops should reach it.
    """

    name = "loop_gap"
    title = "jump from the last frame to the first"
    unit = "times the change elsewhere"
    source = "this project"
    cost = "shared with flicker_raw"
    least = 3

    def __init__(self, setting) -> None:
        super().__init__(setting)
        self._first = self._last = None

    def frame(self, moment: Moment) -> None:
        self._first = moment.frame if self._first is None else self._first
        self._last = moment.frame

    def pair(self, pair: Pair) -> None:
        if not pair.closing:
            self.series[pair.after.number] = pair.change

    def result(self) -> float:
        gap = cv2.norm(self._last, self._first, cv2.NORM_L1) / self._first.size
        return (gap + FLOOR) / (math.fsum(self.series.values()) / len(self.series) + FLOOR)
