"""Writing: every format comes back as it went in, and nothing incomplete ever carries the final name."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from python_tests.video.clips import number_of, picture
from vidsmooth_fast.video import Video, VideoWriter, check_output

FORMATS = ["a.mp4", "a.webm", "a.gif", "a.webp", "frames"]
NOTE = {"prompt": "a <red> & blue 車", "steps": 20, "weights": [0.5, None], "nested": {"a": True}}


def clip(count=12, size=(48, 64), fps=20, **kwargs):
    return Video.from_frames([picture(n, *size) for n in range(count)], fps=fps, **kwargs)


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(tmp_path, name):
    made = clip()
    target = made.save(tmp_path / "new" / "place" / name, metadata=NOTE)
    assert target == tmp_path / "new" / "place" / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = Video.open(target)
        frames = list(back)
    assert (len(back), back.fps, back.size) == (12, 20, (48, 64))
    assert back.metadata == NOTE
    assert [number_of(f, 12) for f in frames] == list(range(12))
    error = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(made, frames, strict=True)])
    assert error < {"frames": 0.001}.get(name, 5)
    assert sorted(p.name for p in target.parent.iterdir()) == [name], "a temporary file was left"


def test_mp4_is_what_players_expect(tmp_path):
    path = clip().save(tmp_path / "a.mp4")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index belongs in front"
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert tuple(map(int, tags)) == (1, 1, 1, 1)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 29.97, 12.5, 8, 60, Fraction(24, 7)])
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "frames"])
def test_rate_is_kept(tmp_path, fps, name):
    path = clip(8, fps=fps).save(tmp_path / name)
    wanted = Fraction(30000, 1001) if fps == 29.97 else Fraction(fps)
    assert abs(Video.open(path).fps / wanted - 1) < (1e-3 if name == "a.webm" else 1e-9)


def test_odd_sizes(tmp_path):
    made = clip(3, (47, 63))
    with pytest.warns(UserWarning, match="H.264 needs an even .* written as 64x48") as caught:
        made.save(tmp_path / "a.mp4")
    assert len(caught) == 1
    back = Video.open(tmp_path / "a.mp4")
    assert back.size == (48, 64)
    assert np.abs(back[1][-1].astype(int) - back[1][-2]).mean() < 4  # the edge is repeated
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in FORMATS[1:]:
            assert Video.open(made.save(tmp_path / name)).size == (47, 63)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (16, 2), (3, 50)])
@pytest.mark.parametrize("name", FORMATS)
def test_tiny_sizes_work(tmp_path, size, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Video.from_frames([np.full((*size, 3), grey, np.uint8) for grey in (200, 90)], fps=5)
        frames = list(Video.open(made.save(tmp_path / name)))
    assert len(frames) == 2 and abs(int(frames[1][0, 0, 0]) - 90) < 12


@pytest.mark.parametrize("name", FORMATS)
def test_one_frame(tmp_path, name):
    path = clip(1).save(tmp_path / name)
    assert len(Video.open(path)) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
def test_a_video_does_not_replace_what_it_is_read_from(tmp_path, name):
    path = clip(6).save(tmp_path / name)
    for part in (Video.open(path), Video.open(path)[:3].resized((24, 32))):
        with pytest.raises(ValueError, match="this video itself, which would be lost|is not empty"):
            part.save(path)
    assert len(Video.open(path)) == 6


def test_webp_merges_equal_pictures_and_keeps_the_duration(tmp_path):
    frames = [picture(n // 3) for n in range(12)]
    back = Video.open(Video.from_frames(frames, fps=24).save(tmp_path / "a.webp"))
    assert back.duration == Fraction(1, 2) and [number_of(f, 4) for f in back] == [0, 1, 2, 3]


@pytest.mark.parametrize("frames", [1, 4])
def test_webp_of_one_picture_keeps_its_settings(tmp_path, frames):
    """libwebp writes one frame, and equal ones, as a still picture, whose file has no place for settings at first."""
    video = Video.from_frames([picture(2)] * frames, fps=8, metadata={"seed": 3})
    back = Video.open(video.save(tmp_path / "a.webp"))
    assert back.metadata == {"seed": 3} and [number_of(f, 4) for f in back] == [2]


def test_gif_palette_is_shared_and_good(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frames = [
        np.stack(np.broadcast_arrays(ramp[None], ramp[:48, None], np.uint8(8 * n)), -1) for n in range(6)
    ]
    path = Video.from_frames(frames, fps=10).save(tmp_path / "a.gif")
    error = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, Video.open(path), strict=True)]
    assert max(error) < 12
    still = Video.from_frames([frames[3]] * 5, fps=10).save(tmp_path / "b.gif")
    pictures = list(Video.open(still))
    assert all(np.array_equal(pictures[0], p) for p in pictures), "dither must not crawl over a still picture"
    with Image.open(path) as image:
        assert image.info["loop"] == 0


def test_fast_gif_is_thinned_rather_than_slowed(tmp_path):
    path = clip(60, fps=120).save(tmp_path / "a.gif")
    with Image.open(path) as image:
        stays = []
        for n in range(image.n_frames):
            image.seek(n)
            stays.append(image.info["duration"])
    assert min(stays) >= 20 and abs(sum(stays) - 500) <= 30


def test_writer_in_a_thread_and_by_hand(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", 24, (48, 64))

    def work():
        for n in range(10):
            writer.write(picture(n))
        writer.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    writer.close()
    writer.discard()  # no effect once closed
    assert len(Video.open(tmp_path / "a.mp4")) == 10
    with pytest.raises(ValueError, match="is closed"):
        writer.write(picture(1))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writing_leaves_nothing(tmp_path, name, error):
    kept = tmp_path / "kept"
    kept.mkdir()
    if name != "frames":
        (kept / name).write_bytes(b"older result")
    with pytest.raises(error), VideoWriter(kept / name, 24, (48, 64)) as writer:
        for n in range(3):
            writer.write(picture(n))
        raise error
    assert [p.name for p in kept.iterdir()] == ([] if name == "frames" else [name])
    if name != "frames":
        assert (kept / name).read_bytes() == b"older result"


def test_ctrl_c_for_real(tmp_path):
    code = f"""
        import time
        import numpy as np
        from vidsmooth_fast.video import VideoWriter
        with VideoWriter({str(tmp_path / "a.mp4")!r}, 24, (64, 64)) as writer:
            for n in range(150):
                writer.write(np.zeros((64, 64, 3), np.uint8))
            print("started", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    try:
        assert process.stdout.readline() == "started\n"
        assert [p.suffix for p in tmp_path.iterdir()] == [".mp4"] and not (tmp_path / "a.mp4").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_no_frame_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match="no frame was written"), VideoWriter(tmp_path / name, 24, (48, 64)):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webm", "a.webp", "frames"])
def test_full_disk(tmp_path, name):
    """A limit on the size of files stands for a full disk: the system refuses the bytes in the same place."""
    code = f"""
        import resource, signal
        import numpy as np
        from vidsmooth_fast.video import Video
        frames = np.random.default_rng(0).integers(0, 255, (6, 256, 256, 3), dtype=np.uint8)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            Video.from_frames(frames, fps=24).save({str(tmp_path / name)!r})
        except OSError as error:
            print(type(error).__name__, error)
        else:
            print("no error")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path.cwd(),
    )
    assert f"cannot write {tmp_path / name}" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing may be left"


def test_no_space_left_is_reported_with_the_name(tmp_path, monkeypatch):
    def full(path, image):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vidsmooth_fast._video_encode.write_picture", full)
    with pytest.raises(OSError, match=r"cannot write .*frames: No space left on device") as caught:
        clip().save(tmp_path / "frames")
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_check_output(tmp_path, monkeypatch):
    assert check_output(tmp_path / "x" / ".." / "a.mp4") == tmp_path / "a.mp4"
    assert check_output(str(tmp_path / "deep" / "er" / "frames") + "/") == tmp_path / "deep" / "er" / "frames"
    assert check_output(tmp_path / "A.MP4").name == "A.MP4"
    assert not list(tmp_path.iterdir()), "checking must not make anything"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_output("~/a.webm") == tmp_path / "a.webm"

    with pytest.raises(
        ValueError, match=r"unknown video suffix '.mpg' .*known: .mp4, .webm, .gif, .webp, or a folder"
    ):
        check_output(tmp_path / "a.mpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file of that name exists"):
        check_output(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write to"):
        check_output(tmp_path / "file" / "a.mp4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "1.png").write_text("")
    with pytest.raises(ValueError, match="output folder .*full is not empty"):
        check_output(tmp_path / "full")
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(ValueError, match="a folder of that name exists"):
        check_output(tmp_path / "b.mp4")
    with pytest.raises(ValueError, match="must be a string or a path"):
        check_output(3)


def test_unwritable_place(tmp_path, monkeypatch):
    if os.path.isdir("/proc/self"):
        with pytest.raises(OSError, match="cannot write to /proc/self/a.mp4"):
            check_output("/proc/self/a.mp4")
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError, match="cannot write to"):
            check_output(tmp_path / "a.mp4")


def test_empty_existing_folder_is_filled(tmp_path):
    (tmp_path / "v1.5").mkdir()
    clip(2).save(tmp_path / "v1.5")
    assert sorted(p.name for p in (tmp_path / "v1.5").iterdir()) == ["000000.png", "000001.png", "video.json"]


@pytest.mark.parametrize(
    "frames, message",
    [
        ([], "at least one frame, got none"),
        (3, "iterable of arrays, got int"),
        ([np.zeros((4, 4, 3), np.float32)], r"must be a uint8 array .* got float32 \(4, 4, 3\)"),
        (
            [np.zeros((4, 4), np.uint8)],
            r"must be a uint8 array of shape \(height, width, 3\), got uint8 \(4, 4\)",
        ),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], r"must have shape \(4, 4, 3\), got"),
        (np.zeros((2, 0, 4, 3), np.uint8), "at least 1, got"),
    ],
)
def test_bad_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        Video.from_frames(frames, fps=24)


@pytest.mark.parametrize("name", ["a:b.mp4", "50%d [1].gif", "x" * 245 + ".webp", "車?*.webm", "-i.mp4"])
def test_unusual_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (Path(name), tmp_path / name):
        assert len(Video.open(clip(2).save(place))) == 2
        with pytest.raises(RuntimeError), VideoWriter(place, 24, (48, 64)) as writer:
            writer.write(picture(0))
            raise RuntimeError
        assert [p.name for p in tmp_path.iterdir()] == [name]


def test_bad_writer_arguments(tmp_path):
    for given, message in (
        ({"fps": 0}, "fps must be a positive number of frames per second, got 0"),
        ({"fps": float("nan")}, "fps must be"),
        ({"fps": "fast"}, "fps must be"),
        ({"size": (4,)}, r"size must be \(height, width\)"),
        ({"metadata": [1]}, "metadata must be a dict, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoWriter(tmp_path / "a.mp4", **{"fps": 24, "size": (4, 4), **given})
    with (
        pytest.raises(ValueError, match=r"shape \(4, 4, 3\), got \(6, 4, 3\)"),
        VideoWriter(tmp_path / "a.mp4", 24, (4, 4)) as writer,
    ):
        writer.write(np.zeros((6, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_generators_are_kept_and_arrays_are_not_copied():
    made = Video.from_frames((picture(n) for n in range(5)), fps=24)
    assert len(made) == 5 and len(list(made)) == len(list(made)) == 5
    held = np.stack([picture(n) for n in range(3)])
    assert np.shares_memory(Video.from_frames(held, fps=24)[1], held)
