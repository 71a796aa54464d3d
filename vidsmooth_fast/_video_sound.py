"""Carrying the sound of a part of one file into another file that has only pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {"mp4": (("aac",), "192k"), "webm": (("libopus", "libvorbis"), "128k")}
RATES = {"aac": {8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000}, "libvorbis": {44100, 48000}}


@dataclass(frozen=True)
class Sound:
    """The sound of `path` from container time `start` for `duration`, both in seconds."""

    path: Path
    start: Fraction
    duration: Fraction

    def matches(self, frames: int, fps: Fraction) -> bool:
        """Does a video of `frames` at `fps` last as long as this sound, to within half a frame?"""
        return abs(frames / fps - self.duration) <= Fraction(1, 2) / fps


def add_sound(pictures: Path, sound: Sound, target: Path, form: str, options: dict[str, str]) -> None:
    """Copy the video packets of `pictures` into `target` and encode `sound` beside them (AAC in mp4, Opus in
    webm; at most two channels). Missing stretches become silence; it starts with the first frame."""
    names, bit_rate = CODECS[form]
    codec = next(name for name in names if name in av.codec.codecs_available)
    with (
        av.open(f"file:{pictures}") as shown,
        av.open(f"file:{target}", "w", format=form, options=options) as out,
    ):
        out.metadata.update({k: v for k, v in shown.metadata.items() if k.lower() == "comment"})
        source = shown.streams.video[0]
        video = out.add_stream_from_template(source)
        video.time_base = source.time_base
        rate, layout = _shape(sound.path, codec)
        audio = out.add_stream(codec, rate=rate, layout=layout)
        audio.bit_rate = int(bit_rate[:-1]) * 1000
        blocks = _packets(audio, sound, rate, layout)
        block = next(blocks, None)
        for packet in shown.demux(source):
            if packet.size == 0:
                continue
            now = (packet.dts if packet.dts is not None else packet.pts) * packet.time_base
            while block is not None and block.dts * block.time_base <= now:
                out.mux(block)
                block = next(blocks, None)
            packet.stream = video
            out.mux(packet)
        while block is not None:
            out.mux(block)
            block = next(blocks, None)


def _shape(path: Path, codec: str) -> tuple[int, str]:
    with av.open(f"file:{path}") as container:
        context = container.streams.audio[0].codec_context
        if context is None:
            raise ValueError("no decoder here knows its codec")
        rate = context.sample_rate
        layout = "mono" if context.layout.nb_channels == 1 else "stereo"
    return (rate if rate in RATES.get(codec, ()) else 48000), layout


def _packets(audio, sound: Sound, rate: int, layout: str) -> Iterator[av.Packet]:
    at = 0
    for samples in _samples(sound, rate, layout):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        at += samples.shape[1]
        yield from audio.encode(frame)
    yield from audio.encode(None)


def _samples(sound: Sound, rate: int, layout: str) -> Iterator[np.ndarray]:
    """(channels, n) float32 blocks that together last exactly as long as the sound."""
    channels = 1 if layout == "mono" else 2
    total, written, at = round(sound.duration * rate), 0, None
    with av.open(f"file:{sound.path}") as container:
        stream = container.streams.audio[0]
        # Mixing many channels down to two in floating point clips; in whole numbers FFmpeg lowers the level.
        sample = "s16p" if stream.codec_context.layout.nb_channels > 2 else "fltp"
        resampler = av.AudioResampler(format=sample, layout=layout, rate=rate)
        if sound.start > 2:
            try:
                container.seek(int((sound.start - 1) * av.time_base), backward=True)
            except av.FFmpegError:
                container.seek(0)
        for frame in _heard(container, stream):
            expected = at
            if frame.pts is not None:
                expected = round((frame.pts * frame.time_base - sound.start) * rate)
            if at is None or abs(expected - at) > rate // 20:
                at = expected or 0
            for part in resampler.resample(frame):
                block = part.to_ndarray()
                if sample == "s16p":
                    block = (block / 32768).astype(np.float32)
                length = block.shape[1]
                if at > written:
                    gap = min(at, total) - written
                    yield from _silence(channels, gap)
                    written += gap
                block = block[:, max(0, written - at) : max(0, total - at)]
                at += length
                if block.shape[1]:
                    yield block
                    written += block.shape[1]
            if written >= total:
                return
    yield from _silence(channels, total - written)


def _silence(channels: int, length: int) -> Iterator[np.ndarray]:
    for start in range(0, length, 4096):
        yield np.zeros((channels, min(4096, length - start)), np.float32)


def _heard(container, stream) -> Iterator[av.AudioFrame]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except av.FFmpegError:
            continue
        yield from frames
