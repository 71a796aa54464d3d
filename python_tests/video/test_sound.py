"""Sound is kept when the saved video lasts as long as the part it came from, and stays in step."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from vidsmooth_fast.video import Video, VideoWriter


def heard(path, rate=48000):
    """(samples,) float of the left channel from the first frame of the video on."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
        sound = np.zeros(10 * rate, np.float32)
        end = 0
        for frame in container.decode(audio=0):
            start = round(float(frame.pts * frame.time_base) * rate)
            for part in resampler.resample(frame):
                block = part.to_ndarray()[0][max(0, -start) :]
                start = max(0, start)
                sound[start : start + len(block)] = block
                start += len(block)
                end = max(end, start)
        return sound[:end]


def level(sound, begin, end, rate=48000):
    """Root mean square between two times in seconds; the tone has 0.35."""
    return float(np.sqrt(np.mean(sound[round(begin * rate) : round(end * rate)] ** 2)))


@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
@pytest.mark.parametrize("origin", ["in.mp4", "in.mkv"])
def test_whole_sound_is_kept_and_starts_where_it_did(make_clip, tmp_path, name, origin):
    """The tone begins half a second into the clip and stops before it ends."""
    video = Video.open(make_clip(origin, 48, rate=24, sound=1.0, sound_from=0.5))
    path = video.save(tmp_path / name)
    sound = heard(path)
    assert abs(len(sound) / 48000 - 2) < 0.06
    assert level(sound, 0.0, 0.45) < 0.01 and level(sound, 0.56, 1.44) == pytest.approx(0.35, abs=0.04)
    assert level(sound, 1.58, 1.98) < 0.01
    back = Video.open(path)
    assert (len(back), back.fps) == (48, 24) and back.audio is not None


def test_part_of_a_clip_takes_its_part_of_the_sound(make_clip, tmp_path):
    source = make_clip("in.mp4", 96, rate=24, sound=1.0, sound_from=2.0)
    path = Video.open(source, start=36, frames=18, stride=2).save(tmp_path / "out.mp4")  # 1.5 s to 3 s
    sound = heard(path)
    assert abs(len(sound) / 48000 - 1.5) < 0.06
    assert level(sound, 0.0, 0.45) < 0.01 and level(sound, 0.56, 1.45) == pytest.approx(0.35, abs=0.04)
    whole = Video.open(source)
    assert whole[36:72].audio.start - whole.audio.start == Fraction(3, 2)
    assert whole[36:72].audio.duration == Fraction(3, 2)


def test_new_frames_with_the_sound_of_a_source(make_clip, tmp_path):
    source = Video.open(make_clip("in.mp4", 24, rate=24, sound=1.0))
    frame = np.full((32, 32, 3), 99, np.uint8)
    for audio in (source, source.audio, source.path, str(source.path)):
        with VideoWriter(tmp_path / "out.mp4", 12, (32, 32), audio_from=audio) as writer:
            for _ in range(12):
                writer.write(frame)
        assert level(heard(tmp_path / "out.mp4"), 0.1, 0.9) > 0.3
    with pytest.raises(ValueError, match="audio must be a Video, a Sound or a path, got int"):
        Video.from_frames([frame], fps=12, audio=5)


@pytest.mark.parametrize("trouble", ["gone", "unknown"])
def test_sound_that_cannot_be_read_costs_the_sound_alone(make_clip, tmp_path, trouble):
    """The pictures may have taken hours."""
    path = make_clip("in.mp4", 24, rate=24, sound=1.0)
    writer = VideoWriter(tmp_path / "out.mp4", 24, (32, 32), audio_from=path)
    for _ in range(24):
        writer.write(np.full((32, 32, 3), 99, np.uint8))
    if trouble == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"mp4a", b"zzzz").replace(b"esds", b"zzzz"))
    with pytest.warns(UserWarning, match="the sound of in.mp4 is left out of out.mp4: "):
        writer.close()
    assert len(Video.open(tmp_path / "out.mp4")) == 24


def test_half_a_frame_is_the_limit(make_clip, tmp_path):
    source = Video.open(make_clip("in.mp4", 24, rate=24, sound=1.0))
    frame = np.full((32, 32, 3), 99, np.uint8)
    for count, kept in ((24, True), (23, False), (25, False)):
        made = Video.from_frames([frame] * count, fps=24, audio=source)
        if kept:
            made.save(tmp_path / f"{count}.mp4")
        else:
            with pytest.warns(UserWarning, match="sound of in.mp4 is left out .* lasts 1.00 s, the video"):
                made.save(tmp_path / f"{count}.mp4")
        assert (heard(tmp_path / f"{count}.mp4") is not None) == kept


@pytest.mark.parametrize("layout, channels", [("mono", 1), ("5.1", 2)])
def test_channels(tmp_path, make_clip, layout, channels):
    """Mono stays mono; more than two channels are mixed down without clipping."""
    with av.open(str(tmp_path / "in.mkv"), "w") as out:
        video = out.add_stream("libx264", rate=24)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=22050, layout=layout)
        for _ in range(12):
            image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), format="rgb24")
            out.mux(video.encode(image))
        out.mux(video.encode(None))
        count = audio.codec_context.layout.nb_channels
        tone = (30000 * np.sin(np.arange(11025) / 10)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(tone, count)[None], format="s16", layout=layout)
        frame.sample_rate, frame.pts = 22050, 0
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    for name in ("out.mp4", "out.webm"):
        path = Video.open(tmp_path / "in.mkv").save(tmp_path / name)
        with av.open(str(path)) as container:
            assert container.streams.audio[0].codec_context.layout.nb_channels == channels
        sound = heard(path)
        assert np.abs(sound).max() < 1.1 and level(sound, 0.1, 0.4) > 0.4


def test_formats_without_sound_say_nothing(make_clip, tmp_path, recwarn):
    source = Video.open(make_clip("in.mp4", 6, rate=24, sound=0.25))
    for name in ("a.gif", "a.webp", "frames"):
        source.save(tmp_path / name)
    assert not [w for w in recwarn if w.category is UserWarning]


def test_real_clip_with_sound(clip_path, tmp_path):
    """A part of a clip keeps its sound in step: the loudness over time is the same to a hundredth of a second."""
    source = clip_path("rabbit-watermelon")
    path = Video.open(source, start=30, frames=60, size=(32, 32)).save(tmp_path / "out.mp4")
    before, after = heard(source)[48000 : 3 * 48000], heard(path)
    assert abs(len(after) - len(before)) < 2400
    length = min(len(before), len(after)) // 480 * 480
    loud = [np.abs(s[:length]).reshape(-1, 480).mean(1) for s in (before, after)]
    likeness = {lag: np.corrcoef(loud[0][8:-8], np.roll(loud[1], lag)[8:-8])[0, 1] for lag in range(-8, 9)}
    assert abs(max(likeness, key=likeness.get)) <= 1 and max(likeness.values()) > 0.95
    assert len(Video.open(path)) == 60 and Video.open(path).fps == 30
