"""Panels and sheets: sizes, captions, and frames where they belong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from python_tests.video.clips import picture
from vidsmooth_fast.video import Video
from vidsmooth_fast.video_panels import contact_sheet, evenly_spaced, side_by_side, write_picture


def test_panels_are_streamed_enlarged_and_captioned():
    endless = (picture(n, 128, 128) for n in itertools.count())
    frames = side_by_side([endless, [picture(9, 128, 128)] * 3], ["source", "edited"])
    first = next(frames)
    height, width = first.shape[:2]
    assert height % 2 == width % 2 == 0 and height > 384 and width > 2 * 384
    assert first.dtype == np.uint8
    caption = first[: height - 392]
    assert caption.max() > 180 and (caption > 150).mean() < 0.1  # letters on a dark bar
    left, right = first[-384:-8, 8:392], first[-384:-8, 400:784]
    assert np.abs(left.astype(int) - right).mean() > 3
    assert len(list(frames)) == 2


def test_the_same_picture_keeps_its_place_and_other_sizes_are_cropped():
    a, b = np.full((20, 20, 3), 50, np.uint8), np.full((30, 90, 3), 200, np.uint8)
    (frame,) = side_by_side([[a], [b]], ["", ""], size=(40, 40))
    inner = frame[-8 - 40 : -8]
    assert (inner[:, 8:48] == 50).all() and (inner[:, 56:96] == 200).all()


def test_long_captions_are_cut_not_overflowing():
    a = np.full((64, 64, 3), 18, np.uint8)
    (frame,) = side_by_side([[a]], ["a very long caption " * 30], size=(64, 64))
    assert frame[:, :8].max() == frame[:, -8:].max() == 18


def test_contact_sheet():
    frames = [np.full((100, 50, 3), 40 * n, np.uint8) for n in range(5)]
    sheet = contact_sheet(iter(frames), columns=3, size=(20, 10))
    assert sheet.shape == (2 * 28 + 8, 3 * 18 + 8, 3)
    assert (sheet[8:28, 44:54] == 80).all() and (sheet[36:56, 26:36] == 160).all()
    assert contact_sheet(frames, columns=9, labels=["one"]).shape[1] == 5 * (200 + 8) + 8
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet([], columns=2)
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        contact_sheet(frames, columns=0)


def test_faults_come_before_the_first_frame():
    with pytest.raises(ValueError, match="labels must name each of the 1 videos"):
        side_by_side([[picture(0)]], [])


def test_evenly_spaced():
    assert evenly_spaced(256, 4) == [0, 85, 170, 255]
    assert evenly_spaced(3, 8) == [0, 1, 2] and evenly_spaced(9, 1) == [0]


def test_pictures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_picture(tmp_path / "a.png", picture(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(Video.open(tmp_path / "a.png")[0], picture(3))
    with pytest.raises(ValueError, match="is not a kind of picture"):
        write_picture(tmp_path / "a.txt", picture(3))

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_picture(tmp_path / "b.png", picture(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
