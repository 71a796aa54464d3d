"""What a ControlNet makes the frames follow: pictures of edges, depth or pose, one a frame."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import cv2
import numpy as np

from vidsmooth_fast.video import Video

CANNY = "canny"
CANNY_LOW, CANNY_HIGH = 100, 200
"""OpenCV's thresholds, those that the published ControlNet for edges was trained with."""


@dataclass(frozen=True)
class Control:
    """A ControlNet (Zhang et al., arXiv 2302.05543), and the pictures that it makes the frames follow.

    network: a diffusers ControlNet: its directory, its Hub id, or a loaded `diffusers.ControlNetModel`.
    maps: one picture a frame, as the network was trained on them: a Video, or the path of a video or a folder of
        pictures; or "canny", the edges of the run's source. They are resized to cover the frame and cropped at the
        centre; fewer than frames are continued back and forth.
    scale: weight of what the network adds; 1 as it was trained.

    Raises: ValueError naming what is wrong.
    """

    network: Any
    maps: Video | str | os.PathLike = CANNY
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.maps, Video | str | os.PathLike):
            raise ValueError(
                f"controls: expected maps as a Video, a path or {CANNY!r}, got {type(self.maps).__name__}"
            )
        number = isinstance(self.scale, Real) and not isinstance(self.scale, bool)
        try:
            scale = float(self.scale) if number else math.nan
        except OverflowError:
            scale = math.inf
        if not math.isfinite(scale):
            raise ValueError(f"controls: expected a finite number as scale, got {self.scale!r}")
        object.__setattr__(self, "scale", scale)

    @property
    def wants_edges(self) -> bool:
        return isinstance(self.maps, str) and self.maps == CANNY

    def video(self, source: Video | None) -> Video:
        """What the maps are, or are made of. source: the run's.

        Raises: ValueError where its edges are wanted and there is none, and for what is not a video; OSError for a path
        that is not there.
        """
        if not self.wants_edges:
            return self.maps if isinstance(self.maps, Video) else Video.open(self.maps)
        if source is None:
            raise ValueError(f"controls: maps {CANNY!r} are the edges of a source clip, and there is none")
        return source

    def pictures(self, video: Video, frames: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The maps, at most `frames`, (H, W, 3) uint8 of `size` = (H, W). video: as `video` gave it."""
        for frame in video[: min(frames, len(video))].resized(size):
            yield canny(frame) if self.wants_edges else frame


def canny(frame: np.ndarray) -> np.ndarray:
    """The edges of a frame (H, W, 3) uint8: white on black, of the same shape."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.cvtColor(cv2.Canny(grey, CANNY_LOW, CANNY_HIGH), cv2.COLOR_GRAY2RGB)


def check_controls(controls: Control | Sequence[Control] | None) -> tuple[Control, ...]:
    """Those that `fast_sample` was given, as a tuple. Raises: ValueError for anything else."""
    given = () if controls is None else (controls,) if isinstance(controls, Control) else controls
    if not isinstance(given, list | tuple) or not all(isinstance(control, Control) for control in given):
        raise ValueError(f"controls: expected a Control or a list of them, got {controls!r}")
    return tuple(given)


def controls_of(networks: Sequence[str], maps: Sequence[str], scales: Sequence[float]) -> list[Control]:
    """Controls from lists as a command line gives them: maps and scales one for each network, or none for the defaults.

    Raises: ValueError for lists of different lengths.
    """
    for name, given in (("maps", maps), ("scale", scales)):
        if given and len(given) != len(networks):
            raise ValueError(
                f"--control-{name}: expected one for each of {len(networks)} --control, got {len(given)}"
            )
    maps, scales = maps or [CANNY] * len(networks), scales or [1.0] * len(networks)
    return [Control(*given) for given in zip(networks, maps, scales, strict=True)]
