"""One encoder per kind of file: frames go in one by one, a finished file comes out at the path given."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from vidsmooth_fast._video_images import FOLDER_NOTE
from vidsmooth_fast._video_metadata import add_gif_comment, add_webp_comment, parse_comment

H264 = (
    ("libx264", {"crf": "18", "preset": "medium"}),
    ("libopenh264", {"b": "8M"}),
    ("h264_videotoolbox", {"q": "65"}),
)
VP9 = (
    ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}),
    ("libvpx", {"crf": "8", "b": "8M", "deadline": "good", "cpu-used": "4"}),
)
WEBP = (("libwebp_anim", {"quality": "88", "compression_level": "3"}),)
GIF = (("gif", {}),)
LOSSLESS = (("ffv1", {}),)
GIF_TICKS = 100
"""GIF counts hundredths of a second, and viewers slow anything shown for fewer than two of them."""


def find_encoder(candidates: tuple, purpose: str) -> tuple[str, dict[str, str]]:
    """The first of (codec, options) that this build of FFmpeg can write.

    Raises: ValueError naming the codecs tried.
    """
    for name, options in candidates:
        try:
            av.codec.Codec(name, "w")
        except (av.FFmpegError, ValueError):
            continue
        return name, options
    names = ", ".join(name for name, _ in candidates)
    raise ValueError(f"this PyAV cannot write {purpose}: it has none of {names}")


class _LibavFile:
    """One video stream in one container."""

    def __init__(
        self,
        path: Path,
        size,
        rate: Fraction,
        *,
        form,
        encoder,
        pixels,
        tags=None,
        options=None,
        time_base=None,
    ):
        name, settings = find_encoder(encoder, path.suffix or form)
        self._container = av.open(f"file:{path}", "w", format=form, options=options or {})
        self._container.metadata.update(tags or {})
        self._stream = stream = self._container.add_stream(name, rate=rate, options=dict(settings))
        stream.height, stream.width = size
        stream.pix_fmt = self._pixels = pixels
        self._time_base = stream.codec_context.time_base = time_base or 1 / rate
        self._yuv = pixels.startswith("yuv")
        if self._yuv:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1  # 16-235

    def write(self, image: np.ndarray, tick: int) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if self._yuv:
            frame = frame.reformat(format=self._pixels, dst_colorspace="ITU709", interpolation="BICUBIC")
        else:
            frame = frame.reformat(format=self._pixels)
        self.write_frame(frame, tick)

    def write_frame(self, frame: av.VideoFrame, tick: int) -> None:
        frame.pts, frame.time_base = tick, self._time_base
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):  # the file is about to be removed
            self._container.close()


class Mp4File:
    """H.264 in MP4: yuv420p, BT.709, index in front. H.264 needs even sizes: an odd edge is repeated once."""

    form = "mp4"
    options = {"movflags": "+faststart"}
    encoder, multiple = H264, 2

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, comment: str):
        self.padding = tuple(-n % self.multiple for n in size)
        size = tuple(n + pad for n, pad in zip(size, self.padding, strict=True))
        self._file = _LibavFile(
            path,
            size,
            rate,
            form=self.form,
            encoder=self.encoder,
            pixels="yuv420p",
            tags={"comment": comment} if comment else None,
            options=self.options,
        )
        self._next = 0

    def write(self, image: np.ndarray) -> None:
        if any(self.padding):
            bottom, right = self.padding
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        self._file.write(image, self._next)
        self._next += 1

    def finish(self) -> None:
        self._file.finish()

    def abort(self) -> None:
        self._file.abort()


class WebMFile(Mp4File):
    """VP9 in WebM: yuv420p, BT.709, any size."""

    form = "webm"
    options: dict[str, str] = {}
    encoder, multiple = VP9, 1


class WebPFile:
    """Animated WebP, endless. Times are whole milliseconds; libwebp shows a picture longer instead of storing an
    equal one again."""

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, comment: str):
        self._path, self._size, self._rate, self._comment = path, size, rate, comment
        self._next = 0
        self._file = _LibavFile(
            path,
            size,
            rate,
            form="webp",
            encoder=WEBP,
            pixels="bgra",
            options={"loop": "0"},
            time_base=Fraction(1, 1000),
        )

    def write(self, image: np.ndarray) -> None:
        self._file.write(image, round(1000 * self._next / self._rate))
        self._next += 1

    def finish(self) -> None:
        self._file.finish()
        if self._comment:
            add_webp_comment(self._path, self._comment, self._size)

    def abort(self) -> None:
        self._file.abort()


class GifFile:
    """Endless GIF with one palette for the whole video, so that colours do not flicker from frame to frame,
    and ordered dither, which unlike error diffusion stays where it is. The palette is known only at the
    end: frames wait in a lossless file beside the target. Above 50 frames per second frames are left out,
    because viewers slow such files down."""

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, comment: str):
        self._path, self._size, self._rate, self._comment = path, size, rate, comment
        self._waiting = path.with_name(path.name + ".mkv")
        self._store = _LibavFile(self._waiting, size, rate, form="matroska", encoder=LOSSLESS, pixels="bgr0")
        self._next, self._ticks = 0, []

    def write(self, image: np.ndarray) -> None:
        tick = round(GIF_TICKS * self._next / self._rate)
        self._next += 1
        if not self._ticks or tick - self._ticks[-1] >= 2:
            self._store.write(image, len(self._ticks))
            self._ticks.append(tick)

    def finish(self) -> None:
        try:
            self._store.finish()
            palette = self._palette()
            output = _LibavFile(
                self._path,
                self._size,
                self._rate,
                form="gif",
                encoder=GIF,
                pixels="pal8",
                options={"loop": "0", "final_delay": str(max(2, round(GIF_TICKS / self._rate)))},
                time_base=Fraction(1, GIF_TICKS),
            )
            try:
                for frame, tick in zip(self._paletted(palette), self._ticks, strict=True):
                    output.write_frame(frame, tick)
                output.finish()
            except BaseException:
                output.abort()
                raise
            if self._comment:
                add_gif_comment(self._path, self._comment)
        finally:
            self._waiting.unlink(missing_ok=True)

    def abort(self) -> None:
        self._store.abort()
        self._waiting.unlink(missing_ok=True)

    def _stored(self) -> Iterator[av.VideoFrame]:
        with av.open(f"file:{self._waiting}") as container:
            for order, frame in enumerate(container.decode(video=0)):
                frame = frame.reformat(format="bgra")
                frame.pts, frame.time_base = order, Fraction(1, 100)
                yield frame

    def _palette(self) -> av.VideoFrame:
        graph, source = self._graph()
        made, sink = graph.add("palettegen", "stats_mode=full"), graph.add("buffersink")
        source.link_to(made)
        made.link_to(sink)
        graph.configure()
        for frame in self._stored():
            source.push(frame)
        source.push(None)
        return sink.pull()

    def _paletted(self, palette: av.VideoFrame) -> Iterator[av.VideoFrame]:
        graph, source = self._graph()
        colours = graph.add_buffer(
            width=palette.width, height=palette.height, format=palette.format, time_base=Fraction(1, 100)
        )
        use = graph.add("paletteuse", "dither=bayer:bayer_scale=4:diff_mode=rectangle")
        sink = graph.add("buffersink")
        source.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        palette.pts, palette.time_base = 0, Fraction(1, 100)
        colours.push(palette)
        colours.push(None)
        for frame in self._stored():
            source.push(frame)
            yield from _pull(sink)
        source.push(None)
        yield from _pull(sink)

    def _graph(self):
        graph = av.filter.Graph()
        height, width = self._size
        source = graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("bgra"), time_base=Fraction(1, 100)
        )
        return graph, source


class PngFolder:
    """000000.png, 000001.png, ... and video.json with what pictures cannot keep."""

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, comment: str):
        self._path, self._rate, self._comment, self._next = path, rate, comment, 0
        path.mkdir()

    def write(self, image: np.ndarray) -> None:
        write_picture(self._path / f"{self._next:06d}.png", image)
        self._next += 1

    def finish(self) -> None:
        note = {"fps": str(self._rate), "metadata": parse_comment(self._comment)}
        (self._path / FOLDER_NOTE).write_text(json.dumps(note, indent=1) + "\n")

    def abort(self) -> None:
        pass


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as a picture, the format by suffix; complete or not at all.

    Raises: ValueError for a suffix that is no picture's; OSError when the place cannot be written to.
    """
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise ValueError(
            f"cannot write the picture {path}: {path.suffix or 'no suffix'} is not a kind of picture"
        )
    temporary = path.with_name(f".{path.name[:60]}.part")
    try:
        temporary.write_bytes(data.tobytes())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _pull(sink) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
