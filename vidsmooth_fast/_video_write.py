"""Writing a video frame by frame, under a temporary name until it is complete."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np

from vidsmooth_fast._video_encode import GifFile, Mp4File, PngFolder, WebMFile, WebPFile
from vidsmooth_fast._video_metadata import as_comment
from vidsmooth_fast._video_sound import CODECS, Sound, add_sound
from vidsmooth_fast._video_timeline import as_rate

FILES = {".mp4": Mp4File, ".webm": WebMFile, ".gif": GifFile, ".webp": WebPFile}


def check_output(path: str | os.PathLike) -> Path:
    """Find out, before long work, whether a video can be written to `path`; returns it normalised.

    A path without suffix, or that is a folder already, means a folder of PNGs. Missing parent folders are no
    obstacle: `VideoWriter` makes them. Nothing is left behind.

    Raises: ValueError for a suffix that is not .mp4, .webm, .gif or .webp, and for a folder that is not
    empty; OSError (PermissionError, NotADirectoryError, ...) when the place cannot be written to. Each in
    one line.
    """
    try:
        path = Path(os.path.normpath(os.path.expanduser(os.fspath(path))))
    except TypeError:
        raise ValueError(f"the output path must be a string or a path, got {type(path).__name__}") from None
    known = f"{', '.join(FILES)}, or a folder name without a suffix for PNGs"
    if path.is_dir():
        if path.suffix.lower() in FILES:
            raise ValueError(f"cannot write the video {path}: a folder of that name exists")
        if any(path.iterdir()):
            raise ValueError(f"the output folder {path} is not empty; name a new one")
    elif path.suffix and path.suffix.lower() not in FILES:
        raise ValueError(f"unknown video suffix {path.suffix!r} in {path}; known: {known}")
    elif path.exists() and not path.suffix:
        raise ValueError(f"cannot make the output folder {path}: a file of that name exists")
    elif path.exists() and not path.is_file():
        raise ValueError(f"cannot write a video to {path}: it is not an ordinary file")
    place = path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write to {path}: {error.strerror}") from None
    return path


def check_spared(path: Path, source: Path | None, what: str = "the source") -> None:
    """Raises: ValueError where writing to `path` would replace a clip of the run (the same file, links followed)."""
    if source is not None and path.exists() and source.exists() and os.path.samefile(path, source):
        raise ValueError(f"output: {path} is {what} itself, which would be lost; name another file")


class VideoWriter:
    """Writes frames to `path` as they come; the file appears under its name only when it is complete.

        with VideoWriter("out.mp4", 24, (256, 256)) as writer:
            writer.write(frame)                       # (256, 256, 3) uint8

    Leaving the block normally encodes the rest, adds the sound, syncs to disk and renames; leaving it by any
    exception, Ctrl-C included, removes what was written. `close()` and `discard()` do the same by hand.
    Encoding releases the interpreter lock; use one writer from one thread at a time.

    path: .mp4 (H.264, CRF 18, BT.709; an odd edge is repeated once because H.264 needs even sizes), .webm (VP9),
        .gif (one palette), .webp, or a folder name for 000000.png ...
    fps: frames per second, int, float or Fraction.
    size: (height, width) of every frame, pixels.
    audio_from: a `Video`, a `Sound` or the path of a file whose sound to keep. It is written to mp4 and webm
        when the finished video lasts as long as the source part, to within half a frame; else a warning says
        that it was left out. Other formats have no sound.
    metadata: dict kept in the file as JSON; `Video.open(path).metadata` gives it back.

    Raises: ValueError for bad arguments and frames; OSError when the place cannot be written or is full.
    """

    def __init__(self, path, fps, size: tuple[int, int], *, audio_from=None, metadata: Mapping | None = None):
        self.path = check_output(path)
        self.fps = as_rate(fps)
        self.size = check_size(size)
        self.sound = sound_of(audio_from)
        self.frames = 0
        comment = as_comment(metadata)
        kind = FILES.get(self.path.suffix.lower(), PngFolder) if not self.path.is_dir() else PngFolder
        suffix = "" if kind is PngFolder else self.path.suffix.lower()
        self._form = getattr(kind, "form", None)
        self._temporary = self.path.with_name(f".{self.path.stem[:60]}.{uuid.uuid4().hex[:8]}.part{suffix}")
        self._file = None
        with self._reported():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = kind(self._temporary, self.size, self.fps, comment)
            except BaseException:
                self._remove()
                raise
        if any(getattr(self._file, "padding", ())):
            bottom, right = self._file.padding
            warnings.warn(
                f"H.264 needs an even width and height: {self.path.name} is written as "
                f"{self.size[1] + right}x{self.size[0] + bottom} with the last row or column repeated",
                stacklevel=2,
            )

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, (H, W, 3) uint8."""
        if self._file is None:
            raise ValueError(f"the writer of {self.path} is closed")
        check_frame(frame, self.size)
        with self._reported():
            self._file.write(frame)
        self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name. Does nothing when already closed or discarded."""
        if self._file is None:
            return
        try:
            if self.frames == 0:
                raise ValueError(f"no frame was written to {self.path}")
            with self._reported():
                self._file.finish()
                self._file = None
                self._add_sound()
                self._check_whole()
                for written in [*self._temporary.glob("*"), self._temporary]:
                    _sync(written)
                if self.path.is_dir():
                    self.path.rmdir()
                os.replace(self._temporary, self.path)
                _sync(self.path.parent)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Give up: remove what was written so far. Does nothing after `close`."""
        file, self._file = self._file, None
        if file is not None:
            file.abort()
        self._remove()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _add_sound(self) -> None:
        if self.sound is None or self._form not in CODECS:
            return
        if not self.sound.matches(self.frames, self.fps):
            warnings.warn(
                f"the sound of {self.sound.path.name} is left out of {self.path.name}: it lasts "
                f"{float(self.sound.duration):.2f} s, the video {float(self.frames / self.fps):.2f} s",
                stacklevel=4,
            )
            return
        mixed = self._temporary.with_name(self._temporary.name + ".sound")
        try:
            add_sound(self._temporary, self.sound, mixed, self._form, FILES[self.path.suffix.lower()].options)
            os.replace(mixed, self._temporary)
        except Exception as error:  # the pictures took the time
            why = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(
                f"the sound of {self.sound.path.name} is left out of {self.path.name}: {why}", stacklevel=4
            )
        finally:
            mixed.unlink(missing_ok=True)

    def _check_whole(self) -> None:
        """A full disk is not always reported by the muxer: count what can be read back."""
        if self._form is None:
            return
        with av.open(f"file:{self._temporary}") as container:
            found = sum(packet.size > 0 for packet in container.demux(video=0))
        if found < self.frames:
            raise OSError(errno.ENOSPC, f"only {found} of {self.frames} frames reached the disk")

    def _remove(self) -> None:
        for left in self._temporary.parent.glob(f"{glob.escape(self._temporary.name)}*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reported(self):
        """Errors of FFmpeg and the system as one line that names the final path."""
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            number = getattr(error, "errno", None) or 0
            reason = getattr(error, "strerror", None) or str(error)
            if not 0 < number < 4096:
                number = errno.EIO
            raise OSError(number, f"cannot write {self.path}: {reason}") from None


def check_frame(frame, size: tuple[int, int] | None) -> None:
    """Raises: ValueError unless `frame` is a (H, W, 3) uint8 array of `size` (height, width)."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"a frame must be a uint8 array of shape (height, width, 3), got {got}")
    if 0 in frame.shape or (size is not None and frame.shape[:2] != tuple(size)):
        wanted = "a height and width of at least 1" if size is None else f"shape {(*size, 3)}"
        raise ValueError(f"a frame must have {wanted}, got {frame.shape}")


def check_size(size) -> tuple[int, int]:
    """Raises: ValueError unless `size` is a pair of positive whole numbers (height, width)."""
    try:
        height, width = size
        good = int(height) == height > 0 and int(width) == width > 0
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"size must be (height, width) in whole pixels, at least 1 each, got {size!r}")
    return int(height), int(width)


def sound_of(source) -> Sound | None:
    """The sound of a `Video`, a `Sound` as it is, the whole sound of the video file at a path, or None."""
    if source is None or isinstance(source, Sound):
        return source
    if hasattr(source, "audio"):
        return source.audio
    if isinstance(source, (str, os.PathLike)):
        from vidsmooth_fast.video import Video

        return Video.open(source).audio
    raise ValueError(f"audio must be a Video, a Sound or a path, got {type(source).__name__}")


def _sync(path: Path) -> None:
    """Ask the system to put a file, or a folder's own entries, on disk."""
    if path.is_dir() and os.name == "nt":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # not every file system can
            raise
    finally:
        os.close(number)
