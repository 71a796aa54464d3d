"""Random numbers that depend on nothing but (seed, purpose, frame, step).

Each frame's noise comes from its own stretch of a counter-based generator (Philox-4x64: the key is a hash of
seed and purpose, the counter holds frame and step), so that a frame's numbers do not change with the length
of the video, the order or batching of windows, the device, or the steps that were run before an interruption.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch

INITS = ("freenoise", "independent", "shared")

_WORD = 2**64


def _generator(seed: int, purpose: str, frame: int, step: int) -> np.random.Generator:
    for name, value in (("frame", frame), ("step", step)):
        if not 0 <= value < _WORD:
            raise ValueError(f"{name} must be between 0 and 2**64 - 1, got {value}")
    digest = hashlib.blake2b(f"{int(seed)}/{purpose}".encode(), digest_size=16).digest()
    counter = np.array([0, 0, frame, step], dtype=np.uint64)  # the low words count draws within one frame
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"), counter=counter))


def gaussian(seed: int, purpose: str, frame: int, step: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers, a function of (seed, purpose, frame, step, shape) alone.

    seed: any integer
    purpose: what the numbers are for ("init", "step", "blend", ...); different purposes are independent
    frame: frame number in the video, >= 0
    step: sampling step, >= 0 (0 where there is none)
    shape: of the result
    Returns fp32 on the CPU.
    """
    return torch.from_numpy(
        _generator(seed, purpose, frame, step).standard_normal(tuple(shape), dtype=np.float32)
    )


def frame_noise(
    seed: int,
    purpose: str,
    frames: int | Sequence[int],
    step: int,
    shape: Sequence[int],
    *,
    shared: bool = False,
) -> torch.Tensor:
    """`gaussian` for several frames, stacked: (1, C, F, H, W) fp32.

    frames: how many (0 ... frames-1), or the frame numbers themselves
    shape: (C, H, W) of one frame
    shared: every frame gets frame 0's numbers
    """
    numbers = range(frames) if isinstance(frames, int) else frames
    if shared:
        one = gaussian(seed, purpose, 0, step, shape)
        return one[None, :, None].expand(1, shape[0], len(numbers), *shape[1:]).clone()
    return torch.stack([gaussian(seed, purpose, frame, step, shape) for frame in numbers], dim=1)[None]


def freenoise_permutations(seed: int, frames: int, window: int, stride: int) -> list[list[int]]:
    """The shuffles of FreeNoise: for block j of `stride` frames after the first window, a permutation of 0
    ... stride-1.

    Block j's permutation is a function of (seed, j), so that a longer video begins as a shorter one.
    """
    blocks = max(0, math.ceil((frames - window) / stride))
    return [_generator(seed, "freenoise", block, 0).permutation(stride).tolist() for block in range(blocks)]


def freenoise_sources(
    frames: int, window: int, stride: int, permutations: Sequence[Sequence[int]]
) -> list[int]:
    """Which of the `window` base noises each frame uses.

    The first window is 0 ... window-1. Each later block of `stride` frames repeats, shuffled, the block that starts one
    window before it: frame window + j*stride + i uses what frame j*stride + permutations[j][i] uses. A last block that
    is cut short uses the beginning of its permutation.
    Source: FreeNoise's noise rescheduling; diffusers' `_prepare_latents_free_noise` ("shuffle_context").
    """
    sources = list(range(min(window, frames)))
    for block, permutation in enumerate(permutations):
        begin = block * stride
        sources += [sources[begin + offset] for offset in permutation[: frames - window - begin]]
    return sources


def initial_noise(
    kind: str, *, seed: int, frames: int, shape: Sequence[int], window: int = 16, stride: int = 8
) -> torch.Tensor:
    """The noise a video starts from, each number N(0, 1).

    independent: every frame its own;  shared: one noise for all frames;
    freenoise: a window of noises, repeated and shuffled in blocks of `stride` frames.
    In all three a frame's noise does not depend on `frames`: a longer video starts from the same beginning.

    kind: one of INITS
    frames: >= 1;  shape: (C, H, W);  window, stride: in frames, as in `windows.plan` (freenoise only)
    Returns (1, C, frames, H, W) fp32 on the CPU.
    Raises ValueError for another kind or length.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if kind == "independent":
        return frame_noise(seed, "init", frames, 0, shape)
    if kind == "shared":
        return frame_noise(seed, "init", frames, 0, shape, shared=True)
    if kind != "freenoise":
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {kind!r}")
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be between 1 and the window ({window} frames), got {stride}")
    base = frame_noise(seed, "init", min(window, frames), 0, shape)
    permutations = freenoise_permutations(seed, frames, window, stride)
    return base[:, :, freenoise_sources(frames, window, stride, permutations)]
