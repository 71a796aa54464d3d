"""Predictions for a long video: its windows and guidance branches, batched through a denoiser, segment by segment."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidsmooth_fast.conditioning.prompts import PromptTrack
from vidsmooth_fast.sampling.denoiser import Denoiser
from vidsmooth_fast.sampling.latents import read_frames, write_frames
from vidsmooth_fast.sampling.reuse import DeepMemory
from vidsmooth_fast.sampling.segments import Segment, plan_segments
from vidsmooth_fast.sampling.windows import centre_frames, window_indices

_log = logging.getLogger("vidsmooth_fast")

SEGMENT_FRAMES = 512
"""Frames that the windows of one segment have together: what the margins of a segment cost is lost among them."""

TEXT_ROWS = 128
"""Rows of projected text that are kept; of prompts over time, more than these are projected anew in every step."""


@dataclass(frozen=True)
class Windows:
    """Which frames go through the network together, and how much each counts where windows overlap.

    starts: first frame of each window, ascending. weights: (K,) float32, omega of [000] eq. 19. frames: length of the
    video. loop: its last frame is followed by its first; indices are then taken modulo `frames`.
    """

    starts: tuple[int, ...]
    weights: Tensor
    frames: int
    loop: bool = False

    @property
    def length(self) -> int:
        return len(self.weights)


def windows_in_segment(
    length: int, branches: int, max_batch: int, segment_frames: int = SEGMENT_FRAMES
) -> int:
    """How many windows of `length` frames one segment takes: as many as fit, in whole network calls."""
    together = max(1, max_batch // branches)
    return -(-max(1, segment_frames // length) // together) * together


@dataclass(frozen=True)
class Piece:
    """What the device holds of one segment.

    x: its frames, (1, C, n, H, W) float32. frames: length of the video. predictions: of every branch and window that
    it merges, (G, 1, N, C, K, H, W), overwritten by those of the next piece; or None.
    """

    segment: Segment
    x: Tensor
    frames: int
    predictions: Tensor | None = None

    def read(self, video: Tensor) -> Tensor:
        """The segment's frames of another video of the run, on the device."""
        return read_frames(video, self.segment.begin, self.segment.end, self.x.device)

    def complete(self, part: Tensor) -> Tensor:
        """Of frames like x, those that the segment steps."""
        return part[:, :, self.segment.first - self.segment.begin : self.segment.last - self.segment.begin]

    def write(self, part: Tensor, video: Tensor) -> None:
        """Put the stepped frames of `part`, frames like x, where they belong in `video`."""
        write_frames(video, self.segment.first, self.complete(part))


class WindowedPredictor:
    """Calls the denoiser on every (window, branch) pair, as many at a time as `max_batch` allows.

    A window's branches go together where they can, so that the network may share what does not depend on the text.

    denoiser: the network. windows: the plan; a single window of all frames for `merge="attention"`.
    tracks: one PromptTrack per guidance branch. max_batch: (window, branch) pairs in one call.
    shrinks: where the device runs out of memory, go on with half as many pairs instead of failing.
    per_frame_text: every frame is given the embedding of its own position instead of its window's centre.
    segment_frames: frames that the windows of one segment have together.
    deep: deep features kept across steps, for a denoiser whose `predict` takes them; None computes all of the network
        at every step.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        windows: Windows,
        tracks: Sequence[PromptTrack],
        *,
        max_batch: int,
        shrinks: bool = False,
        per_frame_text: bool = False,
        segment_frames: int = SEGMENT_FRAMES,
        deep: DeepMemory | None = None,
    ):
        self.denoiser = denoiser
        self.windows = windows
        self.tracks = tuple(tracks)
        self.max_batch = max_batch
        self.shrinks = shrinks
        self.per_frame_text = per_frame_text
        self.segment_frames = segment_frames
        self.deep = deep
        self.weights = windows.weights.to(denoiser.device)
        count = windows_in_segment(windows.length, len(tracks), max_batch, segment_frames)
        self.segments = plan_segments(
            windows.starts, windows.length, windows.frames, count, loop=windows.loop
        )
        self._head = self.segments[-1].head
        self._still = all(len(track.keys) == 1 for track in self.tracks)
        self._texts: dict[int, tuple[int, Any]] = {}
        self._calls = [self._plan_calls(segment) for segment in self.segments]
        self._chosen_text: tuple[tuple[int, tuple[int, ...]] | None, Any] = (None, None)
        self._buffer: Tensor | None = None
        self._unguided: WindowedPredictor | None = None

    def _rows(self, segment: Segment) -> tuple[Tensor, Tensor]:
        """Embeddings of all branches for a segment's windows (R, L, D), and which row each (branch, window) uses:
        (G, n, 1 or K)."""
        plan, numbers = self.windows, segment.predicted
        starts = plan.starts[numbers.start : numbers.stop]
        positions = centre_frames(starts, plan.length, plan.frames)
        if self.per_frame_text:
            positions = window_indices(starts, plan.length, plan.frames).flatten().tolist()
        rows, index, first = [], [], 0
        for track in self.tracks:
            distinct, where = track.at(positions)
            rows.append(distinct)
            index.append(where + first)
            first += len(distinct)
        return torch.cat(rows), torch.stack(index).view(len(self.tracks), len(numbers), -1)

    def _body(self, segment: Segment) -> int:
        """The slot of the buffer from which a segment's windows lie, those for the end of a loop apart."""
        return self._head if segment.predicted.start else 0

    def _plan_calls(self, segment: Segment) -> list[_Call]:
        """Every network call of a segment: some windows, all of their branches or one."""
        plan, total, device = self.windows, len(self.tracks), self.denoiser.device
        rows = self._rows(segment)[1]
        numbers = segment.predicted
        starts = torch.tensor(plan.starts[numbers.start : numbers.stop])
        frames = starts[:, None] - segment.begin + torch.arange(plan.length)
        if segment.closed:
            frames %= plan.frames
        slot = self._body(segment) + segment.carried
        together = total if self.max_batch >= total else 1
        calls = []
        for window in torch.arange(len(numbers)).split(self.max_batch // together):
            where = slice(slot + int(window[0]), slot + int(window[-1]) + 1)
            for first in range(0, total, together):
                branches = slice(first, first + together)
                chosen = rows[branches, window].transpose(0, 1).flatten()
                calls.append(
                    _Call(
                        where,
                        branches,
                        frames[window].to(device),
                        starts[window],
                        tuple(chosen.tolist()),
                        chosen.to(device),
                    )
                )
        return calls

    def pieces(self, x: Tensor) -> Iterator[Piece]:
        """x (1, C, F, H, W) -> the segments of the video in turn, without predictions."""
        for segment in self.segments:
            part = read_frames(x, segment.begin, segment.end, self.denoiser.device)
            yield Piece(segment, part, self.windows.frames)

    def __call__(self, x: Tensor, timestep: float, step: int = 0) -> Iterator[Piece]:
        """x (1, C, F, H, W) -> the segments of the video in turn, with their predictions in the network's dtype.

        step: number of the sampling step, by which deep features are kept.

        Raises MemoryError when the device runs out.
        """
        if self._buffer is None:
            slots = max(self._body(s) + s.carried + len(s.predicted) for s in self.segments)
            shape = (len(self.tracks), 1, slots, x.shape[1], self.windows.length, *x.shape[-2:])
            self._buffer = torch.empty(shape, dtype=self.denoiser.dtype, device=self.denoiser.device)
        end = 0
        for number, piece in enumerate(self.pieces(x)):
            segment, body = piece.segment, self._body(piece.segment)
            if segment.carried:
                kept = self._buffer[:, :, end - segment.carried : end].clone()  # the two places may overlap
                self._buffer[:, :, body : body + segment.carried] = kept
            while not self._predict(number, piece.x, timestep, step):
                self._shrink()
            end = body + segment.carried + len(segment.predicted)
            yield replace(piece, predictions=self._buffer[:, :, body - segment.head : end])

    def _predict(self, number: int, x: Tensor, timestep: float, step: int) -> bool:
        """Fill the buffer with the predictions of a segment; False where memory does not suffice but may for less."""
        latents = x[0].to(self.denoiser.dtype)
        for call in self._calls[number]:
            branches = call.branches.stop - call.branches.start
            batch = latents[:, call.frames].transpose(0, 1)
            try:
                text = self._text_of(number, call)
                kept = {} if self.deep is None else {"deep": self.deep.of((number, call.place), step)}
                predicted = self.denoiser.predict(
                    batch, timestep, text, frame_offsets=call.starts, branches=branches, **kept
                )
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if self.shrinks and self.max_batch > 1:
                    return False  # not retried here: the error holds on to what the network had allocated
                raise MemoryError(
                    f"the device ran out of memory; try max_batch={max(1, self.max_batch // 2)}, "
                    "or a smaller height and width"
                ) from None
            parted = predicted.unflatten(0, (-1, branches)).transpose(0, 1)
            self._buffer[call.branches, 0, call.slots] = parted
        return True

    def _shrink(self) -> None:
        """From here on, half as many pairs in one call."""
        if self.denoiser.device.type == "cuda":
            torch.cuda.empty_cache()
        largest = max(
            (call.slots.stop - call.slots.start) * (call.branches.stop - call.branches.start)
            for calls in self._calls
            for call in calls
        )
        self.max_batch = max(1, min(self.max_batch, largest) // 2)
        self._calls = [self._plan_calls(segment) for segment in self.segments]
        self.deep = self.deep and self.deep.empty()  # what it holds belongs to the former calls
        _log.warning("out of memory: %d windows x branches in one network call from here on", self.max_batch)

    def _text_of(self, number: int, call: _Call) -> Any:
        """The text of one call; with one prompt it is the same for every full call of every step."""
        number = 0 if self._still else number
        if self._chosen_text[0] != (number, call.text_rows):
            if number not in self._texts:
                rows, _ = self._rows(self.segments[number])
                if sum(count for count, _ in self._texts.values()) + len(rows) > TEXT_ROWS:
                    self._texts.clear()
                self._texts[number] = len(rows), self.denoiser.prepare_text(rows)
            self._chosen_text = (number, call.text_rows), self._texts[number][1].select(call.text_index)
        return self._chosen_text[1]

    def guided(self, acts: bool) -> WindowedPredictor:
        """Itself, or the same without guidance: the last track, the prompt's, alone. The other one lets go of what it
        holds."""
        if not acts and self._unguided is None:
            self._unguided = self._with(self.denoiser, self.tracks[-1:], self.max_batch)
        chosen, other = (self, self._unguided) if acts else (self._unguided, self)
        if other is not None:
            other._buffer, other.deep = None, other.deep and other.deep.empty()
        return chosen

    def in_float32(self) -> WindowedPredictor:
        """The same in single precision, with half as much in one call because everything is twice the size."""
        return self._with(self.denoiser.in_float32(), self.tracks, max(1, self.max_batch // 2))

    def _with(self, denoiser: Denoiser, tracks: Sequence[PromptTrack], max_batch: int) -> WindowedPredictor:
        return WindowedPredictor(
            denoiser,
            self.windows,
            tracks,
            max_batch=max_batch,
            shrinks=self.shrinks,
            per_frame_text=self.per_frame_text,
            segment_frames=self.segment_frames,
            deep=self.deep and self.deep.empty(),
        )


class _Call(NamedTuple):
    """One network call: where its n windows lie in the buffer, its branches, the windows' frames (n, K) in the
    segment, their first frames in the video (n,) on the host, the rows of the segment's text, on the host and on the
    device."""

    slots: slice
    branches: slice
    frames: Tensor
    starts: Tensor
    text_rows: tuple[int, ...]
    text_index: Tensor

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Its slots and branches: what tells the calls of a segment apart."""
        return self.slots.start, self.slots.stop, self.branches.start, self.branches.stop


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocator failed: a GPU's, the CPU's, or that of a library of NVIDIA's."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "ALLOC_FAILED" in text
    )
