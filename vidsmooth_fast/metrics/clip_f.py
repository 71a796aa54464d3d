"""CLIP-F over all pairs of frames: whether the video shows one thing throughout."""

from __future__ import annotations

import math

from vidsmooth_fast.metrics.base import Metric, Moment


class ClipF(Metric):
    """100 times the mean cosine between CLIP's embeddings of any two frames.

    Blind to order: shuffled frames score the same ([003] section 3.6). Computed from a running sum S of embeddings,
    because the pairs with later frame n add e_n . S_(n-1). The number of a frame is its mean cosine with those before.
    """

    name = "clip_f"
    title = "frame consistency, all pairs (CLIP-F)"
    low, high = -100.0, 100.0
    better = "higher"
    unit = "cosine, hundredths"
    source = "[003] section 3.6"
    cost = "one CLIP image embedding a frame, shared; the embedded model: 3 ms at 256 x 256"
    needs = ("clip",)
    least = 2

    def __init__(self, setting) -> None:
        super().__init__(setting)
        self._sum, self._total, self._pairs = None, 0.0, 0

    def frame(self, moment: Moment) -> None:
        if self._sum is None:
            self._sum = moment.embedding.copy()
            return
        cosines = float(moment.embedding @ self._sum)
        self._total += cosines
        self._pairs += moment.number
        self.series[moment.number] = 100 * cosines / moment.number
        self._sum += moment.embedding

    def result(self) -> float:
        return 100 * self._total / self._pairs if self._pairs else math.nan
