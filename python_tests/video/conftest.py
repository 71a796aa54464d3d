"""Tiny clips made by PyAV, each awkward in one way."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from python_tests.video.clips import picture


@pytest.fixture
def make_clip(tmp_path):
    """`make_clip(name, frames, ...)` -> path of a clip of `picture`s.

    times: tick of each frame (default 0, 1, 2 ...) in units of `tick` seconds (default 1 / rate).
    sound: seconds of a 440 Hz tone that starts at `sound_from` seconds.
    """

    def make(
        name="clip.mp4", frames=12, *, size=(48, 64), rate=24, codec="libx264", pixels="yuv420p", times=None,
        tick=None, sound=0.0, sound_from=0.0, options=None, container=None, matrix=1, images=None, aspect=None,
    ):  # fmt: skip
        path = tmp_path / name
        with av.open(str(path), "w", options=container or {}) as out:
            stream = out.add_stream(codec, rate=Fraction(rate), options=options or {})
            stream.height, stream.width = size
            stream.pix_fmt = pixels
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            base = stream.codec_context.time_base = tick or 1 / Fraction(rate)
            if pixels.startswith("yuv"):
                stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1
            if sound:
                audio = out.add_stream("aac" if name.endswith(("mp4", "mov")) else "libopus", rate=48000)
                audio.layout = "stereo"
            for number in range(frames):
                image = images[number] if images is not None else picture(number, *size)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                space = (
                    {"dst_colorspace": {1: "ITU709", 6: "ITU601"}[matrix]} if pixels.startswith("yuv") else {}
                )
                frame = frame.reformat(format=pixels, **space)
                frame.pts, frame.time_base = (times[number] if times else number), base
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
            if sound:
                t = np.arange(round(48000 * sound)) / 48000
                tone = np.repeat(0.5 * np.sin(2 * np.pi * 440 * t)[None], 2, axis=0).astype(np.float32)
                for at in range(0, tone.shape[1], 960):
                    block = np.ascontiguousarray(tone[:, at : at + 960])
                    frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                    frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
                    frame.pts = at + round(48000 * sound_from)
                    out.mux(audio.encode(frame))
                out.mux(audio.encode(None))
        return path

    return make
