"""Reading: what a person may open, and what they are told when it is not a video."""

from __future__ import annotations

import json
import struct
import warnings
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, ImageFile, ImageOps

from python_tests.video.clips import number_of, picture
from vidsmooth_fast.video import Video


def numbers(video, count=40):
    return [number_of(frame, count) for frame in video]


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("rgb.mkv", "ffv1", "bgr0"),
        ("ten.mp4", "libx264", "yuv420p10le"),
        ("full.mp4", "libx264", "yuv444p"),
        ("grey.mkv", "ffv1", "gray"),
    ],
)
def test_common_containers_and_pixel_formats(make_clip, name, codec, pixels):
    path = make_clip(name, 12, codec=codec, pixels=pixels, rate=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        video = Video.open(path)
        assert len(video) == 12 and video.fps == 20 and video.size == (48, 64)
        frames = list(video)
    assert all(f.dtype == np.uint8 and f.shape == (48, 64, 3) and f.flags.c_contiguous for f in frames)
    assert len(list(video)) == 12  # again
    if pixels != "gray":
        assert [number_of(f, 12) for f in frames] == list(range(12))


def test_colours_survive(make_clip):
    """Errors of a matrix or range mixed up are above 10 levels."""
    for name, matrix in (("a.mp4", 1), ("b.mp4", 6)):
        frame = Video.open(make_clip(name, 3, matrix=matrix, options={"crf": "10"}))[0]
        assert np.abs(frame[2:6, 2:6].astype(int) - (200, 60, 40)).max() <= 4


def test_part_stride_and_rate(make_clip):
    path = make_clip(frames=30, rate=24)
    video = Video.open(path, start=3, frames=5, stride=4)
    assert numbers(video) == [3, 7, 11, 15, 19]
    assert video.fps == 6 and video.duration == Fraction(5, 6) and len(video) == 5
    assert Video.open(path, stride=7).fps == Fraction(24, 7)
    assert len(Video.open(path, stride=7)) == 5


def test_random_access_and_slices_agree_with_iteration(make_clip):
    video = Video.open(make_clip(frames=120, options={"g": "24", "bf": "3"}))
    frames = list(video)
    for at in (0, 1, 100, 99, 119, -1, 5, 60, 62, 61, -120):
        np.testing.assert_array_equal(video[at], frames[at])
    for part in (slice(70, 90, 3), slice(None), slice(-5, None), slice(13, 14)):
        np.testing.assert_array_equal(np.stack(list(video[part])), np.stack(frames[part]))
    assert video[10:20:2].fps == video.fps / 2
    assert numbers(video[20:100][10:30:5], 34) == numbers(video[30:50:5], 34)
    with pytest.raises(IndexError, match="frame 120 of a video of 120"):
        video[120]
    with pytest.raises(ValueError, match="forward"):
        video[::-1]


@pytest.mark.parametrize(
    "options", [{"g": "300", "bf": "0"}, {"g": "10", "x264-params": "open-gop=1:bframes=3"}, {"g": "1"}]
)
def test_seeking_lands_on_the_same_picture_whatever_the_key_frames(make_clip, options):
    path = make_clip("a.mkv", 60, options=options)
    frames = list(Video.open(path))
    for start in (9, 31, 50, 59):
        np.testing.assert_array_equal(Video.open(path, start=start)[0], frames[start])


def test_size_covers_then_crops_the_centre():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200  # exactly the centre square
    clip = Video.from_frames([wide] * 2, fps=10)
    for size in ((40, 40), (20, 20), (80, 80)):
        small = clip.resized(size)
        assert small.size == size
        assert small[1].shape == (*size, 3) and small[1][:, 2:-2].min() > 150
    tall = clip.resized((30, 10))[0]
    assert tall.shape == (30, 10, 3) and tall.min() > 190


def test_a_second_size_starts_from_the_first():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200
    square = Video.from_frames([wide], fps=10).resized((40, 40))
    again = square.resized((40, 80))[0]
    assert again.shape == (40, 80, 3) and again.min() == 200, "what was cut off came back"


def test_size_is_read_as_height_width(make_clip):
    video = Video.open(make_clip(size=(48, 64)), size=(20, 30))
    assert video.size == (20, 30) and video[0].shape == (20, 30, 3)


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("a.avi", "libx264", {"bf": "2"}),  # AVI has no display times
        ("a.avi", "mpeg4", {"bf": "2", "b": "4000000"}),
        ("a.mpg", "mpeg1video", {"b": "4000000"}),  # seeking is off by a frame
        ("a.mpg", "mpeg2video", {"bf": "2", "b": "4000000"}),
        ("a.ts", "libx264", {"g": "12"}),
        ("a.flv", "libx264", {}),
        ("a.h264", "libx264", {}),
        ("a.wmv", "wmv2", {"b": "4000000"}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none:open-gop=1:keyint=12"}),
    ],
)
def test_less_common_files_are_in_order_too(make_clip, name, codec, options):
    path = make_clip(name, 34, codec=codec, rate=25, options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        video = Video.open(path)
        frames = list(video)
    assert video.fps == 25 and [number_of(f, 34) for f in frames] == list(range(34))
    for at in (33, 20, 11):
        np.testing.assert_array_equal(Video.open(path, start=at)[0], frames[at])


def test_pictures_cut_off_by_an_edit_list_do_not_count(make_clip):
    """A clip trimmed without new encoding keeps pictures before its start that no player shows."""
    path = make_clip(
        frames=30,
        times=list(range(-7, 23)),
        options={"bf": "0"},
        container={"avoid_negative_ts": "disabled", "movflags": "+faststart"},
    )
    video = Video.open(path)
    assert numbers(video, 34) == list(range(7, 30)) and len(video) == 23
    assert number_of(video[15], 34) == 22


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_note_of_phones_is_applied(make_clip, turn, mirror):
    """The matrix in the track header says how the camera was held; the picture must come out upright."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 250  # top left
    image[:24, 32:] = 120  # top right
    path = make_clip(frames=2, images=[image, image])
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]  # clockwise
    a, b, c, d = cos, sin, -sin, cos
    shown = np.rot90(image, -turn // 90)
    if mirror:  # left and right exchanged after the turn
        a, c = -a, -c
        shown = shown[:, ::-1]
    data = bytearray(path.read_bytes())
    matrix = (
        data.index(b"tkhd") + 4 + 4 + 20 + 16
    )  # version 0: five 32-bit times and ids, 16 bytes of layer, volume
    fixed = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", *fixed)
    path.write_bytes(data)
    video = Video.open(path)
    assert video.size == shown.shape[:2]
    assert np.abs(video[0].astype(int) - shown).mean() < 4


def test_pixels_that_are_not_square_are_made_square(make_clip):
    video = Video.open(make_clip(size=(48, 64), aspect=Fraction(3, 2)))
    assert video.size == (48, 96) and video[0].shape == (48, 96, 3)


def test_variable_rate_keeps_the_duration(make_clip):
    """Pictures at 0, 1, 2, then one that stays 0.48 s: read at the usual rate, the long one repeated."""
    times = [0, 40, 80, 120, 600, 640, 680, 720, 760, 800]
    path = make_clip("vfr.mkv", 10, times=times, tick=Fraction(1, 1000), options={"bf": "0"})
    video = Video.open(path)
    assert video.fps == 25
    assert abs(float(video.duration) - 0.84) < 0.021
    shown = numbers(video)
    assert shown == [0, 1, 2, *[3] * 12, *range(4, 10)]
    np.testing.assert_array_equal(video[10], video[8])
    assert numbers(Video.open(path, start=10, frames=8)) == shown[10:18]


def test_jitter_of_timestamps_is_not_variable_rate(make_clip):
    rng = np.random.default_rng(0)
    times = [33 * n + n // 3 + int(rng.integers(-4, 5)) for n in range(30)]
    times[0] = 0
    video = Video.open(make_clip("phone.mkv", 30, times=times, tick=Fraction(1, 1000), rate=30))
    assert len(video) == 30 and abs(float(video.fps) - 30) < 0.2
    assert numbers(video) == list(range(30))


@pytest.mark.parametrize(
    "rate", [Fraction(24000, 1001), Fraction(30000, 1001), 24, 25, 30, 60, Fraction(25, 2)]
)
def test_rate_is_exact_even_in_milliseconds(make_clip, rate):
    assert Video.open(make_clip("a.mkv", 20, rate=rate)).fps == rate
    assert Video.open(make_clip("a.mp4", 20, rate=rate)).fps == rate


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_truncated_files_give_the_frames_that_decode(make_clip):
    noise = [np.random.default_rng(n).integers(0, 255, (48, 64, 3), dtype=np.uint8) for n in range(40)]
    made = {"images": noise, "options": {"bf": "0"}}
    for path in (
        make_clip("a.mp4", 40, container={"movflags": "faststart"}, **made),
        make_clip("a.mkv", 40, **made),
        make_clip("a.avi", 40, codec="mpeg4", images=noise),
    ):
        whole = list(Video.open(path))
        with pytest.warns(UserWarning, match=rf"{path.name}.*truncated or damaged: using the \d+ .*frames"):
            video = Video.open(cut(path, 0.6))
        assert 8 <= len(video) < 40
        frames = list(video)
        assert len(frames) == len(video)
        np.testing.assert_array_equal(np.stack(frames[:-1]), np.stack(whole[: len(frames) - 1]))


def test_damage_in_the_middle_keeps_the_count(make_clip):
    noise = [np.random.default_rng(n).integers(0, 255, (48, 64, 3), dtype=np.uint8) for n in range(30)]
    path = make_clip("a.mp4", 30, images=noise, codec="mpeg4", options={"g": "5", "b": "2000000"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    data[start + 9000 : start + 14000] = bytes(5000)
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        video = Video.open(path)
        assert len(list(video)) == len(video) > 20


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_pictures_are_turned_upright(tmp_path, suffix):
    stored = Image.new("RGB", (48, 32), (250, 250, 250))
    stored.paste((250, 0, 0), (0, 0, 16, 16))
    for orientation in range(1, 9):
        stored.getexif()[0x0112] = orientation
        upright = np.asarray(ImageOps.exif_transpose(stored))
        folder = tmp_path / str(orientation)
        folder.mkdir()
        stored.save(folder / f"a.{suffix}", exif=stored.getexif())
        for place in (folder, folder / "a.webp") if suffix == "webp" else (folder,):
            video = Video.open(place)
            frame = next(iter(video))
            assert frame.shape == upright.shape and video.size == upright.shape[:2], orientation
            assert np.abs(frame.astype(int) - upright).mean() < 12, orientation


def test_a_folder_is_opened_without_decoding_and_names_a_truncated_picture(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    for name in ("1.png", "2.png"):
        Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", None)
        video = Video.open(tmp_path)
    assert len(video) == 2 and video.size == (32, 32)
    with pytest.raises(ValueError, match="2.png is not a picture that can be read"):
        list(video)


def test_truncated_before_the_first_frame(make_clip):
    for share in (0.02, 0.4):  # without faststart the index is at the end
        path = cut(make_clip("a.mp4", 10), share)
        with pytest.raises(ValueError, match=r"a\.mp4 is not a video that can be read"):
            Video.open(path)


def test_what_is_not_a_video_is_named_in_one_line(tmp_path, make_clip):
    with pytest.raises(FileNotFoundError, match=r"no such video file: .*gone\.mp4"):
        Video.open(tmp_path / "gone.mp4")
    for name, data in (("empty.mp4", b""), ("text.mp4", b"hello\n" * 50), ("notes.txt", b"hello\n" * 50)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} is not a video") as caught:
            Video.open(tmp_path / name)
        assert "\n" not in str(caught.value)

    for name, cover in (("sound.m4a", False), ("song.mp4", True)):
        with av.open(str(tmp_path / name), "w") as out:
            audio = out.add_stream("aac", rate=48000, layout="mono")
            if cover:
                still = out.add_stream("png", rate=1)
                still.width, still.height, still.pix_fmt = 64, 48, "rgb24"
                still.disposition = Disposition.attached_pic.value
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, 0
            out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
            if cover:
                out.mux(still.encode(av.VideoFrame.from_ndarray(picture(0))))
                out.mux(still.encode(None))
        with pytest.raises(ValueError, match=rf"{name} has no video stream \(it holds audio\)"):
            Video.open(tmp_path / name)

    with av.open(str(tmp_path / "none.mkv"), "w") as out:  # a video stream without a picture
        stream = out.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    with pytest.raises(ValueError, match=r"no frame of .*none\.mkv can be decoded|none\.mkv is not a video"):
        Video.open(tmp_path / "none.mkv")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"start": 12}, "start must be below the 12 frames"),
        ({"start": -1}, "start must be a whole number of at least 0, got -1"),
        ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ({"frames": 13}, "frames must be at most 12"),
        ({"frames": 5, "stride": 3}, "frames must be at most 4 .* stride 3, got 5"),
        ({"stride": 0}, "stride must be"),
        ({"stride": 1.5}, "stride must be"),
        ({"size": (0, 4)}, r"size must be \(height, width\)"),
        ({"size": 64}, r"size must be \(height, width\)"),
        ({"fps": 0}, "fps must be a positive number"),
    ],
)
def test_bad_arguments(make_clip, given, message):
    with pytest.raises(ValueError, match=message):
        Video.open(make_clip(), **given)


def test_folder_in_natural_order(tmp_path):
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), picture(number)[..., ::-1])
    (tmp_path / "readme.txt").write_text("not a picture")
    video = Video.open(tmp_path)
    assert len(video) == 12 and video.fps == 25 and video.size == (48, 64)
    np.testing.assert_array_equal(np.stack(list(video)), np.stack([picture(n) for n in range(12)]))
    np.testing.assert_array_equal(video[11], picture(11))
    assert Video.open(tmp_path, fps=12).fps == 12
    (tmp_path / "video.json").write_text(json.dumps({"fps": "30000/1001", "metadata": {"a": 1}}))
    again = Video.open(tmp_path, start=2, stride=2)
    assert (
        again.fps == Fraction(15000, 1001)
        and again.metadata == {"a": 1}
        and numbers(again, 12) == [2, 4, 6, 8, 10]
    )


def test_folder_faults(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        Video.open(tmp_path)
    cv2.imwrite(str(tmp_path / "1.png"), picture(1))
    cv2.imwrite(str(tmp_path / "2.jpg"), picture(2, 20, 30))
    with pytest.raises(
        ValueError, match=r"same size unless size= is given: 1\.png is 64x48, .*2\.jpg is 30x20"
    ):
        Video.open(tmp_path)
    assert [f.shape for f in Video.open(tmp_path, size=(16, 16))] == [(16, 16, 3)] * 2
    (tmp_path / "3.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"3\.png is not a picture"):
        Video.open(tmp_path, size=(16, 16))


def test_pictures_of_other_depths(tmp_path):
    base = picture(3)
    alpha = np.dstack([base[..., ::-1], np.full((48, 64), 255, np.uint8)])
    alpha[:8, :8, 3] = 0
    cv2.imwrite(str(tmp_path / "1.png"), alpha)
    cv2.imwrite(str(tmp_path / "2.png"), base[..., ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "3.png"), base[..., 0])
    see_through, deep, grey = Video.open(tmp_path)
    assert (see_through[:8, :8] == 255).all() and np.array_equal(see_through[8:], base[8:])
    np.testing.assert_array_equal(deep, base)
    np.testing.assert_array_equal(grey, np.repeat(base[..., :1], 3, axis=2))


def test_still_picture_is_a_video_of_one_frame(tmp_path):
    cv2.imwrite(str(tmp_path / "one.png"), picture(1)[..., ::-1])
    video = Video.open(tmp_path / "one.png")
    assert len(video) == 1
    np.testing.assert_array_equal(video[0], picture(1))


def test_opening_reads_lazily(make_clip, monkeypatch):
    """Taking the first frames of a clip must not decode all of it."""
    import vidsmooth_fast._video_read as reading

    path = make_clip(frames=200)
    converted = 0
    to_rgb = reading.to_rgb

    def counted(frame):
        nonlocal converted
        converted += 1
        return to_rgb(frame)

    monkeypatch.setattr(reading, "to_rgb", counted)
    video = Video.open(path)
    assert len(video) == 200
    frames = iter(video)
    next(frames), next(frames)
    assert converted <= 3


@pytest.mark.parametrize("name", ["hike", "man-skiing", "rabbit-watermelon", "car-turn"])
def test_real_clips(clip_path, name):
    counts = {"hike": (240, 30), "man-skiing": (91, Fraction(30000, 1001)), "rabbit-watermelon": (186, 30)}
    count, rate = counts.get(name, (80, 10))
    video = Video.open(clip_path(name), size=(32, 32))
    assert len(video) == count and video.fps == rate
    assert (video.audio is not None) == (name in ("man-skiing", "rabbit-watermelon"))
    assert video[count - 1].std() > 5
