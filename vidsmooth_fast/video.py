"""Reading, holding and writing video: `Video`, `VideoWriter`, `check_output` and `check_spared`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from vidsmooth_fast._video_images import FolderFrames, WebPFrames
from vidsmooth_fast._video_read import ContainerFrames, fit
from vidsmooth_fast._video_sound import Sound
from vidsmooth_fast._video_timeline import as_rate
from vidsmooth_fast._video_write import (
    VideoWriter,
    check_frame,
    check_output,
    check_size,
    check_spared,
    sound_of,
)

__all__ = ["Sound", "Video", "VideoWriter", "check_output", "check_spared"]

NEAR = 48
"""Frames that `video[i]` decodes forward from the last one asked for rather than seeking anew."""


class Video:
    """A run of frames with a rate, perhaps a sound, and settings; made by `open` or `from_frames`.

    Iterating yields (H, W, 3) uint8 arrays, decoded as they are asked for, as often as wanted; `len` is
    exact; `video[i]` is one frame and `video[a:b:c]` a lazy part of the video. A `Video` is for one thread
    at a time.

    fps: frames per second, Fraction. size: (height, width), pixels. duration: seconds, Fraction.
    audio: `Sound` of this part, or None. metadata: dict. latents: (1, C, F, h, w) tensor of the sampler that
    made it, or None. timing: seconds that the sampler took, and those that it had promised after one step, or
    None. path: where it was read from, or None.
    """

    def __init__(self, source, frames: range, sizes: tuple = (), *, audio=None, fps=None):
        self._source, self._frames, self._sizes, self._audio = source, frames, sizes, audio
        self._rate = source.fps if fps is None else fps
        self._ahead: tuple[int, Iterator[np.ndarray]] | None = None
        self.metadata: dict = dict(source.metadata)
        self.latents = None
        self.timing: dict | None = None
        self.path: Path | None = source.path

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        start: int = 0,
        frames: int | None = None,
        stride: int = 1,
        size: tuple[int, int] | None = None,
        fps: float | Fraction | None = None,
    ) -> Video:
        """Open a video file (mp4, mov, mkv, webm, avi, gif, webp, ...) or a folder of pictures.

        Frames come at a constant rate, upright (rotation notes and pixel shape are applied), as 8-bit RGB.
        A file of variable rate is read at 1 / (median interval): long pictures repeat, the duration stays
        right. A damaged or cut-off file gives the frames that decode and a warning that says how many.
        Pictures of a folder come in natural order (2 before 10), at 25 per second unless its video.json or
        `fps` says else.

        start: first frame, counted at the file's own rate, from 0.
        frames: how many to take after `stride`; None for all.
        stride: take every stride-th frame; fps is divided by it, so that motion keeps its speed.
        size: (height, width): scale each frame, keeping its shape, until it covers this size, then cut the
            centre out: no bars, no distortion; what sticks out on the longer side is lost.
        fps: play the same frames at this rate instead (the sound then no longer matches and is dropped).

        Raises: FileNotFoundError; ValueError in one line that names the path for what is not a video, has no
        video stream, has no frame that decodes, or has too few frames for start and frames.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(
                f"video: expected a path, got {type(path).__name__}; Video.from_frames takes frames in memory"
            )
        path = Path(os.path.expanduser(os.fspath(path)))
        size = None if size is None else check_size(size)
        start, stride = _whole(start, "start", 0), _whole(stride, "stride", 1)
        frames = None if frames is None else _whole(frames, "frames", 1)
        if path.is_dir():
            source = FolderFrames(path)
            if size is None:
                source.check_sizes()
        elif path.suffix.lower() == ".webp" and path.is_file():
            source = WebPFrames(path)
        else:
            source = ContainerFrames(path)
        whole = range(source.count)
        if start >= len(whole):
            raise ValueError(f"start must be below the {len(whole)} frames of {path}, got {start}")
        chosen = whole[start::stride]
        if frames is not None:
            if frames > len(chosen):
                raise ValueError(
                    f"frames must be at most {len(chosen)} for {path} from start {start} "
                    f"with stride {stride}, got {frames}"
                )
            chosen = chosen[:frames]
        rate = None if fps is None else as_rate(fps)
        video = cls(source, chosen, () if size is None else (size,), fps=rate)
        if source.has_sound and rate is None:
            begin = source.first_time + start / source.fps
            video._audio = Sound(path, begin, len(chosen) * stride / source.fps)
        return video

    @classmethod
    def from_frames(cls, frames: Iterable[np.ndarray], *, fps, audio=None, metadata=None) -> Video:
        """A video from arrays: a sequence (kept, not copied), or any iterable (read once, kept in memory as
        uint8).

        frames: (H, W, 3) uint8 each, all of one size, at least one. fps: int, float or Fraction.
        audio: a `Video`, `Sound` or path whose sound goes with it. metadata: dict.

        Raises: ValueError naming what is wrong.
        """
        if not (hasattr(frames, "__len__") and hasattr(frames, "__getitem__")):
            try:
                frames = list(frames)
            except TypeError:
                raise ValueError(
                    f"frames must be an iterable of arrays, got {type(frames).__name__}"
                ) from None
        source = _Arrays(frames, as_rate(fps), metadata)
        return cls(source, range(len(frames)), audio=sound_of(audio))

    @property
    def fps(self) -> Fraction:
        return self._rate / self._frames.step

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self._sizes[-1] if self._sizes else self._source.size)

    @property
    def duration(self) -> Fraction:
        return len(self) / self.fps

    @property
    def audio(self) -> Sound | None:
        return self._audio

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._read(self._frames)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._part(index)
        number = index.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(f"frame {number} of a video of {len(self)} frames")
        number %= len(self)
        at, ahead = self._ahead or (0, None)
        if ahead is None or not at <= number < at + NEAR:
            at, ahead = number, self._read(self._frames[number:])
        while at <= number:
            frame = next(ahead)
            at += 1
        self._ahead = (at, ahead)
        return frame

    def resized(self, size: tuple[int, int]) -> Video:
        """The same video at (height, width): each frame, as it is now, scaled to cover it, then its centre cut out."""
        return self._with(self._frames, (*self._sizes, check_size(size)), self._audio)

    def save(self, path: str | os.PathLike, *, metadata: Mapping | None = None) -> Path:
        """Write the video; the format follows the suffix (see `VideoWriter`). Returns the path.

        metadata: dict to keep in the file, instead of this video's own.

        Raises: ValueError, OSError, one line each; nothing is left under the final name then. The file that this video
        is read from is refused.
        """
        check_spared(check_output(path), self.path, "this video")
        metadata = self.metadata if metadata is None else metadata
        with VideoWriter(path, self.fps, self.size, audio_from=self._audio, metadata=metadata) as writer:
            for frame in self:
                writer.write(frame)
        return writer.path

    def __repr__(self) -> str:
        height, width = self.size
        where = f" of {self.path}" if self.path else ""
        return f"<Video{where}: {len(self)} frames, {width}x{height}, {float(self.fps):g} fps>"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_ahead": None}

    def _read(self, frames: range) -> Iterator[np.ndarray]:
        for frame in self._source.read(frames):
            for size in self._sizes:
                frame = fit(frame, size)
            yield frame

    def _part(self, index: slice) -> Video:
        if (index.step or 1) < 1:
            raise ValueError(f"a part of a video must go forward: step at least 1, got {index.step}")
        frames = self._frames[index]
        if not frames:
            raise ValueError(f"the part {index.start}:{index.stop} of a video of {len(self)} frames is empty")
        audio = self._audio
        if audio is not None:
            start = audio.start + (frames.start - self._frames.start) / self._rate
            audio = Sound(audio.path, start, len(frames) * frames.step / self._rate)
        return self._with(frames, self._sizes, audio)

    def _with(self, frames: range, sizes: tuple, audio) -> Video:
        video = Video(self._source, frames, sizes, audio=audio, fps=self._rate)
        video.metadata = dict(self.metadata)
        return video


class _Arrays:
    """Frames held as arrays by the caller."""

    path = None

    def __init__(self, frames, fps: Fraction, metadata: Mapping | None):
        if len(frames) == 0:
            raise ValueError("frames must hold at least one frame, got none")
        check_frame(frames[0], None)
        self.frames, self.fps, self.metadata = frames, fps, dict(metadata or {})
        self.size = frames[0].shape[:2]
        for frame in frames if isinstance(frames, (list, tuple)) else ():
            check_frame(frame, self.size)

    def read(self, numbers) -> Iterator[np.ndarray]:
        for number in numbers:
            frame = self.frames[number]
            check_frame(frame, self.size)
            yield frame


def _whole(value, name: str, least: int) -> int:
    try:
        number = value.__index__()
    except AttributeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number
