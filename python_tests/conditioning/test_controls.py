"""Controls before any network sees them: the edges of a source, maps of every kind, refusals."""

import numpy as np
import pytest

from vidsmooth_fast import Control, Video
from vidsmooth_fast.conditioning.controls import canny, check_controls, controls_of


def square(left: int, size: int = 32) -> np.ndarray:
    frame = np.full((size, size, 3), 40, np.uint8)
    frame[8:24, left : left + 12] = (220, 60, 60)
    return frame


@pytest.fixture
def clip():
    return Video.from_frames([square(2 * i) for i in range(5)], fps=8)


def test_edges_are_where_the_square_ends():
    edges = canny(square(6))
    assert edges.shape == (32, 32, 3) and edges.dtype == np.uint8 and set(np.unique(edges)) == {0, 255}
    rows, columns = edges[..., 0].nonzero()
    assert (rows.min(), rows.max()) in ((7, 23), (8, 23), (8, 24), (7, 24))
    assert 5 <= columns.min() <= 6 and 17 <= columns.max() <= 18
    assert not edges[11:21, 9:15].any(), "no edge inside"


def test_edges_of_the_source_frame_by_frame(clip):
    control = Control("net")
    maps = list(control.pictures(control.video(clip), 3, (16, 16)))
    assert len(maps) == 3 and maps[0].shape == (16, 16, 3)
    assert all(np.array_equal(a, canny(b)) for a, b in zip(maps, clip.resized((16, 16)), strict=False))
    assert not np.array_equal(maps[0], maps[2])


@pytest.mark.parametrize("kind", ["video", "file", "folder"])
def test_maps_as_they_are_given(clip, tmp_path, kind):
    given = clip
    if kind != "video":
        given = clip.save(tmp_path / ("maps.mp4" if kind == "file" else "maps"))
    control = Control("net", given)
    maps = list(control.pictures(control.video(None), 9, (32, 32)))
    assert len(maps) == 5
    near = 12 if kind == "file" else 0
    assert np.abs(np.stack(maps).astype(int) - np.stack(list(clip))).mean() <= near


def test_refusals(clip, tmp_path):
    with pytest.raises(ValueError, match="maps 'canny' are the edges of a source clip, and there is none"):
        Control("net").video(None)
    with pytest.raises(FileNotFoundError):
        Control("net", tmp_path / "none.mp4").video(None)
    with pytest.raises(ValueError, match="maps as a Video, a path or 'canny', got list"):
        Control("net", [square(0)])
    for scale in (float("nan"), float("-inf"), "1", None, True, 10**400):
        with pytest.raises(ValueError, match="finite number as scale"):
            Control("net", clip, scale)
    for controls in ("net", "", [clip], 3):
        with pytest.raises(ValueError, match="expected a Control or a list of them"):
            check_controls(controls)
    assert Control("net", clip, np.float32(0.5)).scale == 0.5 and repr(Control("net", clip, 1).scale) == "1.0"
    assert check_controls(None) == () and check_controls(Control("net")) == (Control("net"),)


def test_lists_of_a_command_line():
    assert controls_of([], [], []) == []
    assert controls_of(["a", "b"], [], []) == [Control("a"), Control("b")]
    assert controls_of(["a", "b"], ["canny", "m.mp4"], [0.5, 1.0]) == [
        Control("a", "canny", 0.5),
        Control("b", "m.mp4", 1.0),
    ]
    with pytest.raises(ValueError, match="--control-maps: expected one for each of 2 --control, got 1"):
        controls_of(["a", "b"], ["m.mp4"], [])
    with pytest.raises(ValueError, match="--control-scale: expected one for each of 0 --control, got 1"):
        controls_of([], [], [0.5])
