"""Overlapping windows over the frames of a long video: where they start and how they are weighted.

A network that has seen 16 frames at a time samples 256 by looking at overlapping windows of 16. This module
only plans; merging the windows' predictions is `vidsmooth_fast.ops.window_merge`.

Source: Gen-L-Video ([000] eqs. 18-19) and FreeNoise, with full coverage: no frame is ever left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

WEIGHTS = ("flat", "pyramid", "hann")


def plan(frames: int, window: int, stride: int, loop: bool = False) -> tuple[int, ...]:
    """First frames of the windows that cover frames 0 ... frames-1.

    Starts are 0, stride, 2*stride, ...; the last window is moved back so that it ends at the last frame.
    With `frames <= window` there is one window, [0, frames), of length `frames`.
    With `loop` the frames form a circle: windows start at 0, stride, ... < frames and run over the end into
    frame 0 (take indices modulo `frames`). A loop of `frames <= window` is still the one window [0, frames):
    it already sees every frame, and a window longer than the circle would count some frames twice.

    frames: number of frames, >= 1
    window: frames per window, >= 2; the length in use is `window_length(frames, window)`
    stride: frames from one window to the next, 1 ... window
    Returns the starts, ascending, all distinct.
    Raises ValueError for values outside these ranges.
    """
    for name, value in (("frames", frames), ("window", window), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if window < 2:
        raise ValueError(f"window must be at least 2 frames, got {window}")
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be between 1 and the window ({window} frames), got {stride}")
    if frames <= window:
        return (0,)
    if loop:
        return tuple(range(0, frames, stride))
    starts = list(range(0, frames - window + 1, stride))
    if starts[-1] + window < frames:
        starts.append(frames - window)
    return tuple(starts)


def window_length(frames: int, window: int) -> int:
    """Length in frames of every window of `plan(frames, window, ...)`."""
    return min(window, frames)


def window_weights(kind: str, window: int) -> torch.Tensor:
    """Weight omega_i of frame i of a window in the average over overlapping windows.

    flat: 1;  pyramid: 1, 2, 3, ... 3, 2, 1;  hann: sin^2(pi (i + 1/2) / window), never zero.

    kind: one of WEIGHTS
    window: length in frames, >= 1
    Returns (window,) fp32 on the CPU.
    Raises ValueError for another kind or length.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 frame, got {window}")
    if kind == "flat":
        values = [1.0] * window
    elif kind == "pyramid":
        values = [float(min(i + 1, window - i)) for i in range(window)]
    elif kind == "hann":
        values = [math.sin(math.pi * (i + 0.5) / window) ** 2 for i in range(window)]
    else:
        raise ValueError(f"window_weights must be one of {', '.join(WEIGHTS)}, got {kind!r}")
    return torch.tensor(values, dtype=torch.float32)


def super_windows(frames: int, window: int, stride: int) -> list[int]:
    """Lengths, longest first, of super-windows: pieces of a video that hold windows of their own.

    They are window + stride * 2^k frames, shorter than the video, and overlap by `window`: so the windows of one are
    those of the next, and a little more or less free memory does not change the length.
    """
    lengths, step = [], stride
    while window + step < frames:
        lengths.append(window + step)
        step *= 2
    return lengths[::-1]


def ramp_weights(length: int, overlap: int) -> torch.Tensor:
    """Weights of a super-window's frames: 1, falling linearly over the `overlap` frames at both ends, never zero.

    Frames near an end have seen less of what is beyond it; there the neighbour counts more. (length,) fp32.
    """
    position = torch.arange(length)
    inside = torch.minimum(position, length - 1 - position) + 1
    return inside.clamp(max=overlap + 1) / (overlap + 1)


def window_indices(starts: Sequence[int], length: int, frames: int) -> torch.Tensor:
    """Frame numbers seen by each window: (len(starts), length) int64, taken modulo `frames`."""
    return (torch.tensor(starts, dtype=torch.int64)[:, None] + torch.arange(length)) % frames


def coverage(starts: Sequence[int], weights: torch.Tensor, frames: int) -> torch.Tensor:
    """Sum of the weights over every frame, (frames,) fp32: the divisor of the merge."""
    indices = window_indices(starts, len(weights), frames)
    total = torch.zeros(frames, dtype=torch.float32)
    return total.index_add_(0, indices.flatten(), weights.to(total).repeat(len(starts)))


def centre_frames(starts: Sequence[int], length: int, frames: int) -> tuple[int, ...]:
    """The middle frame of each window, start + length // 2 modulo `frames`, whose prompt the window uses."""
    return tuple((start + length // 2) % frames for start in starts)
