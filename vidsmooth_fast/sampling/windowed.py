"""One prediction of a whole long video: its windows and guidance branches, batched through a denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

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

    A window's branches go together where they can, so that the network may share what does not depend on the text.

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
        self.weights = windows.weights.to(denoiser.device)
        self._text, rows = self._encode()
        self._calls = self._plan_calls(rows)
        self._chosen_text: tuple[tuple[int, ...], Any] = ((), None)
        self._prediction: Tensor | None = None

    def _encode(self) -> tuple[Any, Tensor]:
        """Text projected once for all branches, and the rows of it that each (branch, window) uses: (G, N, 1 or F)."""
        plan = self.windows
        positions = centre_frames(plan.starts, plan.length, plan.frames)
        if self.per_frame_text:
            positions = range(plan.frames)
        rows, index, first = [], [], 0
        for track in self.tracks:
            distinct, where = track.at(positions)
            rows.append(distinct)
            index.append(where + first)
            first += len(distinct)
        shape = (len(self.tracks), len(plan.starts), -1)
        return self.denoiser.prepare_text(torch.cat(rows)), torch.stack(index).view(shape)

    def _plan_calls(self, rows: Tensor) -> list[_Call]:
        """Every network call of a prediction: some windows, all of their branches or one."""
        plan, total, device = self.windows, len(self.tracks), self.denoiser.device
        frames = window_indices(plan.starts, plan.length, plan.frames)
        starts = torch.tensor(plan.starts)
        together = total if self.max_batch >= total else 1
        calls = []
        for window in torch.arange(len(plan.starts)).split(self.max_batch // together):
            for first in range(0, total, together):
                branches = slice(first, first + together)
                calls.append(
                    _Call(
                        window.to(device),
                        branches,
                        frames[window].to(device),
                        starts[window].to(device),
                        tuple(rows[branches, window].transpose(0, 1).flatten().tolist()),
                    )
                )
        return calls

    def _text_of(self, rows: tuple[int, ...]) -> Any:
        """The text of one call; with one prompt it is the same for every full call of every step."""
        if self._chosen_text[0] != rows:
            chosen = self._text.select(torch.tensor(rows, device=self.denoiser.device))
            self._chosen_text = (rows, chosen)
        return self._chosen_text[1]

    def __call__(self, x: Tensor, timestep: float) -> Tensor:
        """x (1, C, F, H, W) -> predictions (G, 1, N, C, K, H, W) in the network's dtype.

        The result is one buffer, overwritten by the next call. Raises MemoryError when the device runs out.
        """
        if self._prediction is None:
            counts = len(self.tracks), 1, len(self.windows.starts)
            shape = (*counts, x.shape[1], self.windows.length, *x.shape[-2:])
            self._prediction = torch.empty(shape, dtype=self.denoiser.dtype, device=x.device)
        latents = x[0].to(self.denoiser.dtype)
        for call in self._calls:
            batch = latents[:, call.frames].transpose(0, 1)
            with out_of_memory_in_words(f"max_batch={max(1, len(call.window) // 2)}"):
                text, branches = self._text_of(call.text_rows), call.branches.stop - call.branches.start
                predicted = self.denoiser.predict(
                    batch, timestep, text, frame_offsets=call.starts, branches=branches
                )
            parted = predicted.unflatten(0, (-1, branches)).transpose(0, 1)
            self._prediction[call.branches, 0][:, call.window] = parted
        return self._prediction

    def in_float32(self) -> WindowedPredictor:
        """The same in single precision, with half as much in one call because everything is twice the size."""
        return WindowedPredictor(
            self.denoiser.in_float32(),
            self.windows,
            self.tracks,
            max_batch=max(1, self.max_batch // 2),
            per_frame_text=self.per_frame_text,
        )


class _Call(NamedTuple):
    """One network call: which windows (n,) and branches, the windows' frames (n, K), first frames (n,), text rows."""

    window: Tensor
    branches: slice
    frames: Tensor
    starts: Tensor
    text_rows: tuple[int, ...]


@contextmanager
def out_of_memory_in_words(advice: str) -> Iterator[None]:
    """An allocator's failure as a MemoryError of one line that says what to try."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise MemoryError(
            f"the device ran out of memory; try {advice}, or a smaller height and width"
        ) from None
