"""Motion: how far things move from frame to frame. Without it a still picture would win everything."""

from __future__ import annotations

import numpy as np

from vidsmooth_fast.metrics.base import Metric, Pair
from vidsmooth_fast.metrics.flicker import CERTAIN


class Motion(Metric):
    """Mean length of the optical flow over the pixels where it is certain; nan when no pair has such pixels."""

    name = "motion"
    title = "motion"
    better = "neither"
    unit = "pixels a frame"
    source = 'the "Optical flow" of [004], "Dataset and metrics"'
    cost = "shared with flicker: 16 ms a frame at 256 x 256"
    needs = ("flow",)
    least = 2

    def pair(self, pair: Pair) -> None:
        flow, certain = pair.motion
        if certain.mean() >= CERTAIN:
            self.series[pair.after.number] = float(np.hypot(*flow[certain].T).mean())
