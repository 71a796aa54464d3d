"""How much a video flickers: differences between neighbouring frames, raw, after motion, and of second order.

All three read an iterable of (H, W, 3) uint8 frames once, keep a few frames in memory whatever the length,
and answer in 8-bit levels. Lower is smoother; 0 is a still picture (or, for `jitter`, perfectly even
change). None of them knows whether the picture is any good: a grey rectangle scores best. Compare videos of
the same scene, size and frame rate only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

SMALLEST = 16
"""Pixels per side below which optical flow says nothing."""


def temporal_flicker(frames: Iterable[np.ndarray], *, loop: bool = False) -> float:
    """Mean absolute difference between neighbouring frames: `mean |y_n - y_(n-1)|` over pixels, channels
    and n.

    frames: (H, W, 3) uint8 each, at least two. loop: the last frame is also a neighbour of the first.
    Returns levels, 0 to 255, lower is smoother. Counts motion as well as flicker.
    Cost: one pass over memory (about 0.1 ms a frame at 256 x 256).
    Raises: ValueError for fewer than two frames, or frames of different shapes.
    Source: the temporal flickering dimension of VBench (Huang et al. 2024), as a distance instead of a score.
    """
    total, pairs = 0.0, 0
    for before, after in _neighbours(frames, loop):
        total += cv2.norm(before, after, cv2.NORM_L1) / before.size
        pairs += 1
    return total / pairs


def jitter(frames: Iterable[np.ndarray], *, loop: bool = False) -> float:
    """Mean absolute second difference in time: `mean |2 y_n - y_(n-1) - y_(n+1)|` over interior frames.

    Even fades score 0; what alternates from frame to frame scores twice its flicker. It is the difference
    that the noise constraint shrinks ([003] eq. 3), seen in the picture.

    frames: (H, W, 3) uint8 each, at least three. loop: the first and last frames are interior too.
    Returns levels, 0 to 510, lower is smoother. Cost: as `temporal_flicker`, times three.
    Raises: ValueError for fewer than three frames, or frames of different shapes.
    """
    total, count = 0.0, 0
    older: np.ndarray | None = None
    opening: np.ndarray | None = None  # y_1 - y_0
    for before, after in _neighbours(frames, loop):
        change = np.subtract(after, before, dtype=np.int16)
        if older is None:
            opening = change
        else:
            total += cv2.norm(change, older, cv2.NORM_L1) / change.size
            count += 1
        older = change
    if count == 0:
        raise ValueError("jitter needs at least 3 frames, got 2")
    if loop:
        total += cv2.norm(opening, older, cv2.NORM_L1) / older.size
        count += 1
    return total / count


def compensated_flicker(frames: Iterable[np.ndarray], *, loop: bool = False) -> float:
    """Mean absolute difference between neighbouring frames along the motion, where the motion is certain.

    With f the optical flow from frame n-1 to n and b the flow back: `mean |y_n(p + f(p)) - y_(n-1)(p)|`
    over the pixels p whose `|f(p) + b(p + f(p))|^2 < 0.01 (|f(p)|^2 + |b(p + f(p))|^2) + 0.5` and whose p +
    f(p) is in the picture; each pair of frames counts equally. Pairs in which under 1% of the pixels pass
    (cuts) are left out.

    frames: (H, W, 3) uint8 each, at least two, at least 16 x 16. loop: the last frame also precedes the
    first. Returns levels, 0 to 255, lower is smoother; nan when no pair has certain motion. Sampling
    between pixels leaves about a level on moving texture even when nothing flickers.
    Cost: two dense flows a frame (OpenCV DIS, medium; about 10 ms a frame at 256 x 256 on one core).
    Raises: ValueError for fewer than two frames, frames of different shapes, or smaller than 16 x 16.
    Source: Lai et al. 2018 (warping error), with the check of Sundaram et al. 2010 and Kroeger et al.
    2016's flow.
    """
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    total, pairs = 0.0, 0
    for before, after in _neighbours(frames, loop):
        if min(before.shape[:2]) < SMALLEST:
            raise ValueError(f"frames must be at least {SMALLEST}x{SMALLEST} for flow, got {before.shape}")
        warped, certain = _along(flow, before, after)
        if certain.mean() < 0.01:
            continue
        total += float(cv2.absdiff(warped, before)[certain].mean())
        pairs += 1
    return total / pairs if pairs else float("nan")


def _along(flow, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`after` seen from `before`'s pixels, (H, W, 3) uint8, and where that is certain, (H, W) bool."""
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (before, after)]
    forward, backward = flow.calc(grey[0], grey[1], None), flow.calc(grey[1], grey[0], None)
    height, width = grey[0].shape
    x = forward[..., 0] + np.arange(width, dtype=np.float32)
    y = forward[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    back = cv2.remap(backward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    warped = cv2.remap(after, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    miss = ((forward + back) ** 2).sum(-1)
    size = (forward**2).sum(-1) + (back**2).sum(-1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return warped, inside & (miss < 0.01 * size + 0.5)


def _neighbours(frames: Iterable[np.ndarray], loop: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(y_(n-1), y_n) in order, closing the circle at the end when `loop`."""
    first = before = None
    count = 0
    for frame in frames:
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.size):
            got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"frames must be uint8 arrays of shape (height, width, 3), got {got}")
        if before is None:
            first = frame
        elif frame.shape != before.shape:
            raise ValueError(f"frames must all have shape {before.shape}, frame {count} has {frame.shape}")
        else:
            yield before, frame
        before = frame
        count += 1
    if count < 2:
        raise ValueError(f"flicker needs at least 2 frames, got {count}")
    if loop:
        yield before, first
