"""The four modules in order, on a tiny model: every stage is kept and can be opened."""

import json

import numpy as np
import pytest

from python_tests.tiny import tiny_model
from python_tests.training.clips import sliding
from vidsmooth_fast.training import consistency as module
from vidsmooth_fast.training.consistency import STAGES, consistency
from vidsmooth_fast.video import Video

QUICK = dict(
    steps=8, step=2, tuning_steps=2, sampling_steps=2, window=4, stride=2, guidance=2.0, progress=False
)


@pytest.fixture
def found(monkeypatch):
    """Masks of random pictures mean nothing: a square is the foreground."""

    def square(frames, **_):
        masks = np.zeros((len(list(frames)), 16, 16), bool)
        masks[:, 4:12, 4:12] = True
        return masks

    monkeypatch.setattr(module, "foreground_masks", square)


@pytest.mark.parametrize("mode", ["corrected", "paper"])
def test_every_stage_is_kept(tmp_path, found, mode):
    video = consistency(tiny_model(), sliding(5), "a red car", tmp_path / "out", mode=mode, **QUICK)
    assert len(video) == 5
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*STAGES, "consistency.json", "3-tuned.run"}
    for name in STAGES:
        if name.endswith(".mp4"):
            assert len(Video.open(tmp_path / "out" / name)) == 5
    said = json.loads((tmp_path / "out" / "3-tuned" / "tuning.json").read_text())
    assert said["settings"]["loss"] == {"plain": 1.0, "foreground": 1.0, "background": 0.5}
    assert json.loads((tmp_path / "out" / "consistency.json").read_text())["mode"] == mode


def test_bad_input(tmp_path):
    (tmp_path / "file").write_text("x")
    for change, message in (
        ({"prompt": ""}, "prompt: expected"),
        ({"step": 6}, "step: expected 1 to 5, one of the 6 reverse steps"),
        ({"mode": "exact"}, "mode: expected"),
        ({"n": 0}, "n: expected a whole number of at least 1, got 0"),
        ({"tuning_steps": 0}, "tuning_steps: expected a whole number of at least 1, got 0"),
        ({"lr": -1.0}, "lr: expected a number above 0"),
        ({"sampling_steps": 0}, "steps: expected"),
        ({"frames": 1}, "video: expected at least 2 frames"),
        ({"sam": tmp_path / "sam_vit_b.pth"}, "checkpoint: expected Segment Anything's weights"),
        ({"output": tmp_path / "file"}, "output: expected a folder"),
    ):
        arguments = {"prompt": "a red car", "output": tmp_path / "out", **QUICK, **change}
        prompt, output = arguments.pop("prompt"), arguments.pop("output")
        with pytest.raises(ValueError, match=message) as caught:
            consistency(tiny_model(), sliding(5), prompt, output, **arguments)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_clip_is_not_overwritten(tmp_path):
    clip = sliding(4).save(tmp_path / STAGES[0])
    before = clip.read_bytes()
    with pytest.raises(ValueError, match="output: .* is the source itself"):
        consistency(tiny_model(), clip, "a red car", tmp_path, **QUICK)
    assert clip.read_bytes() == before and list(tmp_path.iterdir()) == [clip]


def test_a_folder_holds_one_run(tmp_path, found, monkeypatch):
    """Another run's tuning would be refused after the first two stages: it is refused before them."""
    clip, out = sliding(4), tmp_path / "out"
    consistency(tiny_model(), clip, "a red car", out, **QUICK)
    made = (out / "4-consistent.mp4").read_bytes()
    for change in ({"prompt": "a blue car"}, {"video": sliding(4, seed=1)}, {"lr": 1e-3}):
        arguments = {"video": clip, "prompt": "a red car", **QUICK, **change}
        with monkeypatch.context() as patch:
            patch.setattr(module._Reverse, "run", None)
            with pytest.raises(ValueError, match="holds a run of another clip, model or settings"):
                consistency(tiny_model(), arguments.pop("video"), output=out, **arguments)
    consistency(tiny_model(), clip, "a red car", out, **QUICK)
    assert (out / "4-consistent.mp4").read_bytes() == made
