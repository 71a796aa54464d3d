"""Where the latents of a whole video live: on the host, however long it is; frames go to the device and back.

A step reads one buffer and writes another, so that every frame sees the same x_t. With a GPU the buffers are pinned:
copies are queued with the computation and nobody waits for them. On the computation's own stream, because a window
of frames is some microseconds of copying and tens of milliseconds of network.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from vidsmooth_fast.sampling import budget

BUFFERS = 8
"""Videos of latents that a run may hold: before, now, next, two histories, the source, the noise, the result."""


class Store:
    """Makes host buffers for the latents of one video, or for as many pictures.

    shape: (1, C, F, h, w). device: of the network; with a GPU, buffers are pinned.
    Where `buffers` of them would take more than a share (`budget.SHARE`) of the free memory, they are memory-mapped
    temporary files instead, in the folder of `tempfile` (TMPDIR), which the system writes out as it needs memory;
    copies between those and a GPU are waited for.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        buffers: int = BUFFERS,
    ):
        self.shape, self.dtype = tuple(shape), dtype
        self.bytes = dtype.itemsize * prod(shape)
        self.mapped = buffers * self.bytes > budget.free_bytes(torch.device("cpu")) * budget.SHARE
        self.device = device
        self.pinned = device.type == "cuda" and not self.mapped

    def empty(self) -> Tensor:
        """A new buffer, uninitialised. Raises OSError where the temporary file finds no room."""
        if not self.mapped:
            return torch.empty(self.shape, dtype=self.dtype, pin_memory=self.pinned)
        with tempfile.TemporaryFile(prefix="vidsmooth_fast-") as file:
            # Where it can be reserved, a full disk is found here, not when pages are written.
            reserve = getattr(os, "posix_fallocate", None)
            reserve(file.fileno(), 0, self.bytes) if reserve else file.truncate(self.bytes)
            mapped = mmap.mmap(file.fileno(), self.bytes)
            return torch.frombuffer(mapped, dtype=self.dtype).view(self.shape)

    def wait(self) -> None:
        """Until everything that was written has arrived."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def read_frames(video: Tensor, begin: int, end: int, device: torch.device) -> Tensor:
    """Frames begin ... end-1 of (1, C, F, h, w), taken modulo F, on `device`; a view of it where that is possible."""
    frames = video.shape[2]
    if video.device == device and 0 <= begin and end <= frames:
        return video[:, :, begin:end]
    part = torch.empty((*video.shape[:2], end - begin, *video.shape[3:]), dtype=video.dtype, device=device)
    for here, there in _runs(begin, end, frames):
        # Contiguous pieces: others would be gathered before they are copied.
        for channel in range(video.shape[1]):
            part[0, channel, here].copy_(video[0, channel, there], non_blocking=True)
    return part


def write_frames(video: Tensor, begin: int, part: Tensor) -> None:
    """Put `part` (1, C, n, h, w) at frames begin, begin+1, ... of `video`, taken modulo its length.

    From a GPU to pinned memory the copy is queued: it has arrived after `Store.wait`.
    """
    for here, there in _runs(begin, begin + part.shape[2], video.shape[2]):
        for channel in range(video.shape[1]):
            video[0, channel, there].copy_(part[0, channel, here], non_blocking=True)


def send(part: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`, without waiting."""
    return (part.pin_memory() if device.type == "cuda" else part).to(device, non_blocking=True)


def back_and_forth(length: int, frames: int) -> Tensor:
    """Indices (frames,) that run 0..length-1 and back without repeating the ends; int64."""
    period = max(2 * (length - 1), 1)
    position = torch.arange(frames) % period
    return torch.where(position < length, position, period - position)


def _runs(begin: int, end: int, frames: int) -> Iterator[tuple[slice, slice]]:
    """Cut begin ... end-1 where it passes a multiple of `frames`: (positions from `begin`, frames of the video)."""
    at = begin
    while at < end:
        stop = min(end, (at // frames + 1) * frames)
        yield slice(at - begin, stop - begin), slice(at % frames, at % frames + stop - at)
        at = stop
