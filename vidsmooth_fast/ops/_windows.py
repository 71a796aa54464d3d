"""Which window covers which frame: shared by the operators that merge windows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Coverage(NamedTuple):
    """Frame f is frame position[i] of window window[i] for each i in [first[f], first[f + 1]); int64 tensors."""

    first: Tensor  # (F + 1,)
    window: Tensor  # (N·K,)
    position: Tensor  # (N·K,)


@functools.lru_cache(maxsize=64)
def coverage(starts: tuple[int, ...], length: int, frames: int) -> Coverage:
    """Invert windows of `length` frames that begin at `starts`, taken modulo `frames`.

    Raises ValueError when a frame is in no window.
    """
    covering: list[list[tuple[int, int]]] = [[] for _ in range(frames)]
    for window, start in enumerate(starts):
        for position in range(length):
            covering[(start + position) % frames].append((window, position))
    missing = [frame for frame, entries in enumerate(covering) if not entries]
    if missing:
        raise ValueError(
            f"starts: expected windows of {length} that cover all {frames} frames, "
            f"frame {missing[0]} and {len(missing) - 1} others are in none"
        )
    first = torch.tensor([0] + [len(entries) for entries in covering]).cumsum(0)
    window, position = torch.tensor([entry for entries in covering for entry in entries]).unbind(1)
    return Coverage(first, window.contiguous(), position.contiguous())


@functools.cache  # a few kB each, kept for good: captured graphs go on reading them
def coverage_on(
    device: torch.device, starts: tuple[int, ...], length: int, frames: int
) -> tuple[Coverage, int]:
    """:func:`coverage` in int32 on a device, copied there once, and the most windows that any frame is in."""
    table = coverage(starts, length, frames)
    most = int(table.first.diff().max())
    return Coverage(*(t.to(device=device, dtype=torch.int32) for t in table)), most


@functools.cache
def _kept(device: torch.device, starts: tuple[int, ...], length: int, frames: int) -> Coverage:
    return Coverage(*(t.to(device) for t in coverage(starts, length, frames)))


def compiled_coverage(device: torch.device, starts: tuple[int, ...], length: int, frames: int) -> Coverage:
    """:func:`coverage` as the compiled kernels read it on this device.

    A GPU's copy is made at the first call and kept for good: captured graphs go on reading it.
    """
    if device.type == "cpu":
        return coverage(starts, length, frames)
    return _kept(device, starts, length, frames)


def check(starts: Sequence[int] | Tensor, count: int) -> list[int]:
    """The starts as a list of `count` ints. Raises ValueError for anything else."""
    if isinstance(starts, Tensor):
        if starts.dtype != torch.int64 or starts.dim() != 1:
            raise ValueError(
                f"starts: expected int64 of shape (N,), got {starts.dtype} of {tuple(starts.shape)}"
            )
        starts = starts.tolist()
    starts = list(starts)
    if len(starts) != count or not all(isinstance(start, int) for start in starts):
        raise ValueError(f"starts: expected {count} ints, one per window, got {starts}")
    return starts


def check_weights(weights: Tensor, windows: Tensor) -> Tensor:
    """ω as a view of shape (C, K, H, W), fp32 unless the windows (..., C, K, H, W) are fp64."""
    channels, length, height, width = windows.shape[-4:]
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weights: expected a floating-point tensor, got {got}")
    if weights.device != windows.device:
        raise ValueError(
            f"weights: expected the device of the windows, {windows.device}, got {weights.device}"
        )
    shape = tuple(weights.shape)
    if weights.dim() == 1 and shape != (length,):
        raise ValueError(f"weights: expected {length}, one per frame of a window, got {shape}")
    if weights.dim() == 1:
        weights = weights[:, None, None]
    full = (channels, length, height, width)
    if weights.dim() > 4 or any(
        n not in (1, m) for n, m in zip(weights.shape[::-1], full[::-1], strict=False)
    ):
        raise ValueError(f"weights: expected ({length},) or a shape that broadcasts to {full}, got {shape}")
    return weights.to(torch.promote_types(torch.float32, windows.dtype)).expand(full)


def merge(windows: Tensor, starts: Sequence[int], weights: Tensor, frames: int) -> Tensor:
    """Σ_i ω_i v_i / Σ_i ω_i: windows (B, N, C, K, H, W), weights (C, K, H, W) -> (B, C, frames, H, W).

    Sums in the dtype of the weights and returns it.
    """
    length = windows.shape[3]
    if not torch.compiler.is_compiling():  # a check, not worth tracing
        coverage(tuple(starts), length, frames)
    total = weights.new_zeros(windows.shape[0], windows.shape[2], frames, *windows.shape[4:])
    mass = weights.new_zeros(weights.shape[0], frames, *weights.shape[2:])
    for i, start in enumerate(starts):
        index = torch.arange(start, start + length, device=windows.device) % frames
        total.index_add_(2, index, weights * windows[:, i])
        mass.index_add_(1, index, weights)
    return total / mass
