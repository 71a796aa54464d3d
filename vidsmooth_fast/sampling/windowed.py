"""One prediction of a whole long video: its windows and guidance branches, batched through a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsmooth_fast.conditioning.prompts import PromptTrack
from vidsmooth_fast.sampling.denoiser import Denoiser
from vidsmooth_fast.sampling.windows import centre_frames, window_indices


@dataclass(frozen=True)
class Windows:
    """Which frames go through the network together, and how much each counts where windows overlap.

    starts: first frame of each window. weights: (K,) float32, omega of [000] eq. 19. frames: length of the video.
    Indices are taken modulo `frames`, so that windows may close a loop.
    """

    starts: tuple[int, ...]
    weights: Tensor
    frames: int

    @property
    def length(self) -> int:
        return len(self.weights)


class WindowedPredictor:
    """Calls the denoiser on every (window, branch) pair, as many at a time as `max_batch` allows.

    denoiser: the network. windows: the plan; a single window of all frames for `merge="attention"`.
    tracks: one PromptTrack per guidance branch. max_batch: (window, branch) pairs in one call.
    per_frame_text: every frame is given the embedding of its own position instead of its window's centre.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        windows: Windows,
        tracks: Sequence[PromptTrack],
        *,
        max_batch: int,
        per_frame_text: bool = False,
    ):
        self.denoiser = denoiser
        self.windows = windows
        self.tracks = tuple(tracks)
        self.max_batch = max_batch
        self.per_frame_text = per_frame_text
        self._frames = window_indices(windows.starts, windows.length, windows.frames).to(denoiser.device)
        self._offsets = torch.tensor(windows.starts, device=denoiser.device)
        self._text, self._rows = self._encode(self.tracks)
        self._prediction: Tensor | None = None

    def _encode(self, tracks: tuple[PromptTrack, ...]):
        """Text projected once for all branches, and the rows of it that each (branch, window) uses."""
        plan = self.windows
        everywhere = range(plan.frames)
        positions = (
            everywhere if self.per_frame_text else centre_frames(plan.starts, plan.length, plan.frames)
        )
        rows, index, first = [], [], 0
        for track in tracks:
            distinct, where = track.at(positions)
            rows.append(distinct)
            index.append(where + first)
            first += len(distinct)
        per_item = torch.stack(index)[..., None] if not self.per_frame_text else torch.stack(index)[:, None]
        return self.denoiser.prepare_text(torch.cat(rows)), per_item.to(
            self.denoiser.device
        )  # (G, N, 1 or F)

    @property
    def calls(self) -> int:
        """Network calls of one prediction."""
        return -(-len(self.tracks) * len(self.windows.starts) // self.max_batch)

    def __call__(self, x: Tensor, timestep: float) -> Tensor:
        """x (1, C, F, H, W) -> predictions (G, 1, N, C, K, H, W) in the network's dtype.

        The result is one buffer, overwritten by the next call.
        """
        branches, count = len(self.tracks), len(self.windows.starts)
        if self._prediction is None:
            shape = (branches, 1, count, x.shape[1], self.windows.length, *x.shape[-2:])
            self._prediction = torch.empty(shape, dtype=self.denoiser.dtype, device=x.device)
        latents = x[0].to(self.denoiser.dtype)
        for first in range(0, branches * count, self.max_batch):
            item = torch.arange(first, min(first + self.max_batch, branches * count), device=x.device)
            window, branch = item // branches, item % branches  # a guidance pair is never far apart
            batch = latents[:, self._frames[window]].transpose(0, 1)
            text = self._text.select(self._rows[branch, window].flatten())
            self._prediction[branch, 0, window] = self.denoiser.predict(
                batch, timestep, text, frame_offsets=self._offsets[window]
            )
        return self._prediction

    def in_float32(self) -> WindowedPredictor:
        """The same in single precision."""
        return WindowedPredictor(
            self.denoiser.in_float32(),
            self.windows,
            self.tracks,
            max_batch=self.max_batch,
            per_frame_text=self.per_frame_text,
        )
