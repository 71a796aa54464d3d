"""PSNR to the source, frame by frame."""

from __future__ import annotations

import math

from skimage.metrics import mean_squared_error

from vidsmooth_fast.metrics.base import Metric, Moment

MOST = 100.0
"""dB given to equal pictures, whose ratio is infinite."""


class PSNR(Metric):
    """Mean over frames of 10 log10(255^2 / mean squared error) to the source's frame, at most 100 dB."""

    name = "psnr"
    title = "PSNR to the source"
    high = MOST
    better = "higher"
    unit = "dB"
    source = "scikit-image's mean squared error"
    cost = "0.2 ms a frame at 256 x 256"
    needs = ("source",)

    def frame(self, moment: Moment) -> None:
        if moment.source is not None:
            error = float(mean_squared_error(moment.frame, moment.source))
            self.series[moment.number] = min(MOST, 10 * math.log10(255**2 / error)) if error else MOST
