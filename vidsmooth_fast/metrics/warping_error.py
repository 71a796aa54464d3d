"""Warping error: what is left between neighbouring frames after the motion is undone, squared."""

from __future__ import annotations

from vidsmooth_fast.metrics.base import Metric, Pair
from vidsmooth_fast.metrics.flicker import CERTAIN


class WarpingError(Metric):
    """1000 mean (y_n(p + f(p)) - y_(n-1)(p))^2, pictures from 0 to 1, over pixels whose flow f is certain.

    Each pair counts equally; cuts are left out as for `flicker`; nan when no pair is left.
    """

    name = "warping_error"
    title = "warping error"
    high = 1000.0
    unit = "thousandths of full scale, squared"
    source = "Lai et al. 2018 eq. 12, averaged over channels; occlusion by the forward-backward check of Sundaram 2010"
    cost = "shared with flicker: 16 ms a frame at 256 x 256"
    needs = ("flow",)
    least = 2

    def pair(self, pair: Pair) -> None:
        difference, certain = pair.compensated
        if certain.mean() >= CERTAIN:
            missed = difference[certain].astype("float32")
            self.series[pair.after.number] = 1000 * float((missed * missed).mean()) / 255**2
