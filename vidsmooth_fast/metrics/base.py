"""What a metric is, and what it is shown: each frame once, and each pair of neighbours once.

One pass over the video feeds every metric. What several of them need (grey levels, optical flow, embeddings, latents)
is computed when the first asks for it and kept with the frame or the pair, which live until the next frame has come:
memory does not grow with the length of the video, but for one number per frame and metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import cv2
import numpy as np

from vidsmooth_fast.metrics.flow import SMALLEST, DisFlow


@dataclass(frozen=True)
class Setting:
    """What a metric may need beside the frames; what is absent is None.

    prompt: what the video should show. source: True when every moment has the source's frame. joins: frames at which
    the set of windows that sampled them changes. loop: the last frame is followed by the first. flow, clip,
    autoencoder: the estimators in use.
    """

    prompt: str | None = None
    source: bool = False
    joins: frozenset[int] | None = None
    loop: bool = False
    flow: object = field(default_factory=DisFlow)
    clip: object = None
    autoencoder: object = None


class Moment:
    """One frame: its number, picture (H, W, 3) uint8, the source's picture of the same moment or None.

    embedding: (D,) float64 of length 1, from CLIP, and latents: (C, h, w) float32, where a metric asked for them.
    """

    def __init__(self, number: int, frame: np.ndarray, source: np.ndarray | None = None) -> None:
        self.number, self.frame, self.source = number, frame, source
        self.embedding: np.ndarray | None = None
        self.latents: np.ndarray | None = None

    @cached_property
    def grey(self) -> np.ndarray:
        """(H, W) uint8, luma of BT.601."""
        return cv2.cvtColor(self.frame, cv2.COLOR_RGB2GRAY)

    @cached_property
    def source_grey(self) -> np.ndarray:
        return cv2.cvtColor(self.source, cv2.COLOR_RGB2GRAY)


class Pair:
    """Two neighbouring frames, `before` and `after`. closing: the last and the first of a loop."""

    def __init__(self, before: Moment, after: Moment, flow, *, closing: bool = False) -> None:
        self.before, self.after, self.closing = before, after, closing
        self._flow = flow

    @cached_property
    def change(self) -> float:
        """Mean absolute difference of the two pictures, 8-bit levels."""
        return cv2.norm(self.before.frame, self.after.frame, cv2.NORM_L1) / self.before.frame.size

    @cached_property
    def motion(self) -> tuple[np.ndarray, np.ndarray]:
        """Flow from before to after, (H, W, 2) float32 pixels, and where it is certain, (H, W) bool.

        Certain: with f the flow and b the flow back, |f(p) + b(p + f(p))|^2 < 0.01 (|f(p)|^2 + |b(p + f(p))|^2) + 0.5
        and p + f(p) lies in the picture (the check of Sundaram et al. 2010).
        """
        return self._maps[0], self._maps[3]

    @cached_property
    def compensated(self) -> tuple[np.ndarray, np.ndarray]:
        """|after(p + f(p)) - before(p)|, (H, W, 3) uint8, and where the flow is certain, (H, W) bool."""
        _, x, y, certain = self._maps
        warped = cv2.remap(self.after.frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return cv2.absdiff(warped, self.before.frame), certain

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        shape = self.before.frame.shape
        if min(shape[:2]) < SMALLEST:
            raise ValueError(f"frames must be at least {SMALLEST}x{SMALLEST} for flow, got {shape}")
        forward, backward = self._flow(self.before, self.after), self._flow(self.after, self.before)
        height, width = forward.shape[:2]
        x = forward[..., 0] + np.arange(width, dtype=np.float32)
        y = forward[..., 1] + np.arange(height, dtype=np.float32)[:, None]
        back = cv2.remap(backward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        miss = ((forward + back) ** 2).sum(-1)
        size = (forward**2).sum(-1) + (back**2).sum(-1)
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        return forward, x, y, inside & (miss < 0.01 * size + 0.5)


class Metric:
    """One number about a video, and one per frame behind it. A subclass says what; an instance sees one video.

    name: of the column. low, high: the ends of its range. better: "lower", "higher" or "neither". unit, source, cost:
    for people. needs: what of `Setting` must be there ("prompt", "source", "joins", "clip", "autoencoder"), and
    "flow" for optical flow. least: frames.

    `frame` is called for every frame in order, `pair` for every two neighbours after the later one's `frame` (and with
    `closing` at the end of a loop). Both put a number into `self.series` when they have one for the frame at hand.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = math.inf
    better: ClassVar[str] = "lower"
    unit: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[int] = 1

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.series: dict[int, float] = {}
        """Frame number -> number; for a pair, the later frame's (frame 0's for the pair that closes a loop)."""

    def frame(self, moment: Moment) -> None:
        pass

    def pair(self, pair: Pair) -> None:
        pass

    def result(self) -> float:
        """The video's number; the mean of `series` unless a metric says else. nan when there is nothing to count."""
        return math.fsum(self.series.values()) / len(self.series) if self.series else math.nan

    @classmethod
    def objection(cls, setting: Setting, frames: int | None, size: tuple[int, int] | None) -> str | None:
        """Why this metric cannot be had, or None. frames, size: of the video, where they are known."""
        for need in cls.needs:
            if need == "flow":
                smallest = getattr(setting.flow, "smallest", SMALLEST)
                if size is not None and min(size) < smallest:
                    return f"optical flow needs frames of at least {smallest}x{smallest}, got {size[0]}x{size[1]}"
            elif not getattr(setting, need):
                return MISSING[need]
        if frames is not None and frames < cls.least:
            return f"needs at least {cls.least} frames, got {frames}"
        return None


MISSING = {
    "prompt": "needs a prompt",
    "source": "needs a source",
    "joins": "needs the window and stride of sampling, and more frames than a window",
    "clip": "needs a CLIP model",
    "autoencoder": "needs an autoencoder",
}
