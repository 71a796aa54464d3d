"""Reading frames out of a video container with PyAV: what is in it, then the pictures asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.stream import Disposition

from vidsmooth_fast._video_metadata import parse_metadata
from vidsmooth_fast._video_timeline import Timeline, make_timeline

SEEKABLE = {"mov", "matroska"}
"""Demuxers (mp4 and mov, mkv and webm) whose times are exact after a seek; MPEG program streams are a frame off."""
REORDERING = 8
"""Frames before the wanted one at which seeking aims, because seeking goes by decoding order."""

_MATRICES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: 9, 10: 9}


class ContainerFrames:
    """The frames of a video file at a constant rate, upright, with square pixels, decoded when asked for.

    size: (height, width) as displayed, pixels. timeline: see `Timeline`. has_sound, first_time (seconds,
    container time of frame 0), metadata: dict.

    Raises: FileNotFoundError, IsADirectoryError or ValueError, one line that names the file.
    """

    def __init__(self, path: Path):
        self.path = path
        with _open(path) as container:
            stream = _video_stream(container, path)
            self.metadata = parse_metadata(container.metadata)
            self.has_sound = bool(container.streams.audio)
            first = next((frame for _, frame in _pictures(container, stream)), None)
            if first is None:
                raise ValueError(f"no frame of {path} can be decoded (empty or truncated file)")
            self._matrix = _display_matrix(first)
            self._aspect = Fraction(
                stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
            )
            form = container.format.name.split(",")[0]
            self._may_seek = form in SEEKABLE
            # AVI keeps no display times: with pictures out of order the demuxer's are guesses.
            self._timeless = form == "avi" and bool(stream.codec_context.has_b_frames)
            self.size = self._upright(first).shape[:2]
        self.timeline, self._by_time = self._scan()
        self._warned = False

    @property
    def count(self) -> int:
        return self.timeline.count

    @property
    def fps(self) -> Fraction:
        return self.timeline.fps

    @property
    def first_time(self) -> Fraction:
        return self.timeline.seconds(int(self.timeline.times[0]))

    def read(self, frames: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 for each frame number in `frames` (never decreasing). A picture that does not
        decode is replaced by the one before it, with one warning, so that the count stays as promised."""
        if not frames:
            return
        pictures = self._from(self.timeline.picture(frames[0]))
        at, picture, following = -1, None, None
        for frame in frames:
            wanted = self.timeline.picture(frame)
            while at < wanted:
                following = following or next(pictures, None)
                if following is None or (picture is not None and following[0] > wanted):
                    break
                (at, picture), following = following, None
            if picture is None:
                raise ValueError(f"frame {frame} of {self.path} can no longer be decoded")
            if at != wanted and not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.path}: frame {frame} does not decode; its neighbour is shown", stacklevel=3
                )
            yield self._upright(picture, self.size)

    def _scan(self) -> tuple[Timeline, bool]:
        """Times of all decodable pictures: from the packets when they can be believed, else by decoding."""
        with _open(self.path) as container:
            stream = _video_stream(container, self.path)
            declared = stream.frames
            time_base = stream.time_base
            hints = (stream.average_rate, stream.guessed_rate, stream.base_rate)
            packets, total, first_is_key, damaged = [], 0, None, False
            end = Fraction(0)
            try:
                for packet in container.demux():
                    if packet.size == 0:
                        continue
                    if packet.pts is not None and packet.time_base:
                        end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                    if packet.stream.index != stream.index:
                        continue
                    total += 1
                    first_is_key = packet.is_keyframe if first_is_key is None else first_is_key
                    damaged |= packet.is_corrupt
                    if not packet.is_discard:
                        packets.append((packet.pts, packet.duration or 0))
            except av.FFmpegError:
                damaged = True
            if declared:
                damaged |= declared > total
            elif container.duration:
                damaged |= end < Fraction(container.duration, av.time_base) - Fraction(1, 4)

        stays = max((p for p in packets if p[0] is not None), default=(0, 0))[1]
        times = {pts for pts, _ in packets}
        if (
            first_is_key
            and not damaged
            and not self._timeless
            and None not in times
            and len(times) == len(packets)
        ):
            return make_timeline(sorted(times), time_base, last_duration=stays, hints=hints), True

        times, broken = self._decode_times()
        if damaged or broken:
            expected = f" of {declared}" if declared > len(times) else ""
            warnings.warn(
                f"{self.path} is truncated or damaged: using the {len(times)}{expected} frames that decode",
                stacklevel=5,
            )
        by_time = (
            not self._timeless
            and None not in times
            and all(b > a for a, b in zip(times, times[1:], strict=False))
        )
        if not by_time:
            rate = next((Fraction(h) for h in hints if h), Fraction(25))
            return make_timeline(range(len(times)), 1 / rate, last_duration=1, hints=(rate,)), False
        return make_timeline(times, time_base, last_duration=stays, hints=hints), True

    def _decode_times(self) -> tuple[list[int | None], int]:
        with _open(self.path) as container:
            stream = _video_stream(container, self.path)
            bad: list[int] = []
            seen = [(frame.pts, frame.is_corrupt) for _, frame in _pictures(container, stream, bad)]
        while len(seen) > 1 and seen[-1][1]:
            seen.pop()
            bad.append(1)
        return [pts for pts, _ in seen], len(bad)

    def _from(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """(number, picture) from at most `first` onwards, seeking when that is safe."""
        if self._by_time and self._may_seek and first > REORDERING:
            pictures = self._sought(int(self.timeline.times[first - REORDERING]))
            head = next(pictures, None)
            if head is not None and head[0] <= first:
                yield head
                yield from pictures
                return
            pictures.close()
        with _open(self.path) as container:
            for order, frame in _pictures(container, _video_stream(container, self.path)):
                number = self._number(frame.pts) if self._by_time else order
                if number is not None and number < len(self.timeline.times):
                    yield number, frame

    def _sought(self, tick: int) -> Iterator[tuple[int, av.VideoFrame]]:
        with _open(self.path) as container:
            stream = _video_stream(container, self.path)
            try:
                container.seek(tick, stream=stream, backward=True)
            except av.FFmpegError:
                return
            for _, frame in _pictures(container, stream):
                number = self._number(frame.pts)
                if number is not None:
                    yield number, frame

    def _number(self, pts: int | None) -> int | None:
        if pts is None:
            return None
        number = int(np.searchsorted(self.timeline.times, pts))
        return number if number < len(self.timeline.times) and self.timeline.times[number] == pts else None

    def _upright(self, frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
        image = to_rgb(frame)
        if self._aspect != 1:
            width = max(1, round(image.shape[1] * self._aspect))
            image = cv2.resize(image, (width, image.shape[0]), interpolation=cv2.INTER_CUBIC)
        image = _turn(image, self._matrix)
        return image if size is None else fit(image, size)


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale `image` (H, W, 3) uint8, keeping its shape, until it covers `size` (height, width), then cut the
    centre out. Area averaging when it shrinks, cubic when it grows."""
    height, width = size
    have_h, have_w = image.shape[:2]
    if (have_h, have_w) == (height, width):
        return image
    scale = max(height / have_h, width / have_w)
    new_h, new_w = max(height, round(have_h * scale)), max(width, round(have_w * scale))
    if (new_h, new_w) != (have_h, have_w):
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, (new_w, new_h), interpolation=way)
    top, left = (new_h - height) // 2, (new_w - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 from any pixel format, 10-bit and RGB included. Untagged YUV is read as BT.709 from 720
    lines (or 1280 columns) up and as BT.601 below, as players do; transparency lies on white; high dynamic
    range is not tone-mapped."""
    form = frame.format
    if form.has_palette or any(component.is_alpha for component in form.components):
        return on_white(frame.reformat(format="rgba").to_ndarray())
    if form.is_rgb or len(form.components) < 3:
        return frame.reformat(format="rgb24").to_ndarray()
    guess = "ITU709" if frame.height >= 720 or frame.width >= 1280 else "ITU601"
    matrix = _MATRICES.get(int(frame.colorspace), guess)
    # PyAV before 17 passes over the source's matrix when the target's is the same or not given.
    return frame.reformat(format="rgb24", src_colorspace=matrix, dst_colorspace="DEFAULT").to_ndarray()


def on_white(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from (H, W, 4): `alpha * colour + (1 - alpha) * 255`, rounded."""
    alpha = image[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(image[..., :3])
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _turn(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Apply the quarter turns and mirrorings of a display matrix: x' = a x + c y, y' = b x + d y."""
    if matrix is None or np.array_equal(matrix, np.eye(2)):
        return image
    (a, b), (c, d) = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return np.sign(np.round(np.frombuffer(bytes(data), np.int32)[:5][[0, 1, 3, 4]] / 65536)).reshape(
                2, 2
            )
    return None


def _open(path: Path) -> av.container.InputContainer:
    try:
        container = av.open(f"file:{path}")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such video file: {path}") from None
    except PermissionError:
        raise PermissionError(f"no permission to read {path}") from None
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(
            f"{path} is not a video that can be read ({getattr(error, 'strerror', error)})"
        ) from None
    if container.format.name == "tty":
        container.close()
        raise ValueError(f"{path} is not a video: it holds text")
    return container


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song
            if stream.codec_context is None:
                raise ValueError(f"{path} is not a video that can be read (no decoder here knows its codec)")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = 4
            return stream
    kinds = ", ".join(sorted({s.type for s in container.streams} - {"video"})) or "nothing to play"
    raise ValueError(f"{path} has no video stream (it holds {kinds})")


def _pictures(container, stream, bad: list[int] | None = None) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode past damage: (order, frame) of whatever decodes; the number of each bad packet goes to `bad`."""
    bad = [] if bad is None else bad
    packets = container.demux(stream)
    order, number, ended = 0, 0, False
    while not ended:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            bad.append(number)
            packet = None
        ended = packet is None
        try:
            frames = stream.codec_context.decode(packet) if not ended or bad else []
        except (av.FFmpegError, EOFError):
            bad.append(number)
            frames = []
        for frame in frames:
            yield order, frame
            order += 1
        number += 1
