"""Colour drift: how far the overall colour leaves that of the first frame."""

from __future__ import annotations

import math

import cv2
import numpy as np

from vidsmooth_fast.metrics.base import Metric, Moment


class ColourDrift(Metric):
    """Mean over frames of the distance between the frame's mean colour and the first frame's, in CIELAB.

    About 2 is a difference that people notice. A camera that turns to another scene drifts too.
    """

    name = "colour_drift"
    title = "colour drift"
    high = 375.0
    unit = "CIELAB units (Delta E 1976)"
    source = "this project"
    cost = "0.6 ms a frame at 256 x 256"
    least = 2

    def __init__(self, setting) -> None:
        super().__init__(setting)
        self._first: np.ndarray | None = None

    def frame(self, moment: Moment) -> None:
        lab = cv2.cvtColor(moment.frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        mean = np.array(cv2.mean(lab)[:3])
        self._first = mean if self._first is None else self._first
        self.series[moment.number] = math.dist(mean, self._first)
