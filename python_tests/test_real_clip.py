"""A real clip through the embedded model, from the command line and from Python."""

import sys

import cv2
import numpy as np
import pytest

from vidsmooth_fast import Video, cli, fast_sample

SETTINGS = dict(steps=8, guidance=2.0)


def layout(frame):
    """A frame's coarse layout: 16 x 16 grey values without mean and contrast."""
    small = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (16, 16), interpolation=cv2.INTER_AREA)
    return (small - small.mean()) / small.std()


def test_hiker_keeps_rate_duration_and_layout(clip_path, tmp_path, monkeypatch):
    clip = clip_path("hike")
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    command = ["sample", "sprite-world", "a man is hiking", "--source", str(clip), "--frames", "24", "-q"]
    monkeypatch.setattr(sys, "argv", ["vidsmooth-fast", *command, *options, "-o", str(tmp_path / "hike.mp4")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    edited, source = Video.open(tmp_path / "hike.mp4"), Video.open(clip, frames=24, size=(128, 128))
    assert len(edited) == 24 and edited.fps == source.fps == 30 and edited.duration == source.duration
    likeness = [(layout(a) * layout(b)).mean() for a, b in zip(edited, source, strict=True)]
    assert np.mean(likeness) > 0.6, (
        f"the picture does not keep the clip's layout: correlation {np.mean(likeness):.2f}"
    )

    again = fast_sample("sprite-world", "a man is hiking", 24, source=clip, progress=False, **SETTINGS)
    again.save(tmp_path / "python.mp4")
    same = [np.array_equal(a, b) for a, b in zip(edited, Video.open(tmp_path / "python.mp4"), strict=True)]
    assert all(same)
