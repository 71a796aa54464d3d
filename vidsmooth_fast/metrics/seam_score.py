"""Seam score: whether the joins between sampling windows show."""

from __future__ import annotations

import math

from vidsmooth_fast.metrics.base import Metric, Pair
from vidsmooth_fast.sampling.windows import plan, window_length

FLOOR = 0.5
"""Levels added to both changes: half of 8-bit rounding, so that a still video scores 1."""


class SeamScore(Metric):
    """(mean change at joins + 1/2) / (mean change elsewhere + 1/2), changes as in `flicker_raw`.

    A join is a frame whose set of covering windows is not the frame's before. 1: joins are like other frames.
    nan when every pair, or none, is at a join. The number of a frame is its own change, joins or not, over the rest's.
    """

    name = "seam_score"
    title = "change at window joins"
    unit = "times the change elsewhere"
    source = "this project"
    cost = "shared with flicker_raw"
    needs = ("joins",)
    least = 3

    def pair(self, pair: Pair) -> None:
        self.series[pair.after.number] = pair.change

    def result(self) -> float:
        joins = [v for n, v in self.series.items() if n in self.setting.joins]
        rest = [v for n, v in self.series.items() if n not in self.setting.joins]
        if not joins or not rest:
            return math.nan
        usual = math.fsum(rest) / len(rest) + FLOOR
        self.series = {n: (v + FLOOR) / usual for n, v in self.series.items()}
        return (math.fsum(joins) / len(joins) + FLOOR) / usual


def window_joins(frames: int, window: int, stride: int, *, loop: bool = False) -> frozenset[int]:
    """Frames whose set of covering windows differs from the one before's; 0 only where a loop closes.

    Empty when one window covers everything. Raises: ValueError for a window or stride that `plan` refuses.
    """
    length, covering = window_length(frames, window), [set() for _ in range(frames)]
    for index, start in enumerate(plan(frames, window, stride, loop)):
        for n in range(start, start + length):
            covering[n % frames].add(index)
    first = 0 if loop else 1
    return frozenset(n for n in range(first, frames) if covering[n] != covering[n - 1])
