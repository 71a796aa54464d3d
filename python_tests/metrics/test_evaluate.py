"""`evaluate`: what it runs, what it leaves out and says so, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import vidsmooth_fast as vsf
from vidsmooth_fast.metrics.autoencoder import Autoencoder
from vidsmooth_fast.metrics.base import Moment
from vidsmooth_fast.metrics.clip_model import Clip
from vidsmooth_fast.metrics.flow import RaftFlow, raft_missing
from vidsmooth_fast.metrics.registry import METRICS, WEIGHT_FREE
from vidsmooth_fast.metrics.report import bootstrap_interval
from vidsmooth_fast.models.loading import EMBEDDED

from .clips import pan, video


def test_public_names():
    assert vsf.evaluate.__name__ == "evaluate" and vsf.Report.__name__ == "Report"


def test_what_is_missing_is_said(networks):
    report = vsf.evaluate(video(pan(6)), **networks)
    assert set(report) | set(report.skipped) == set(METRICS)
    assert report.skipped == {
        "clip_t": "needs a prompt",
        "seam_score": "needs the window and stride of sampling, and more frames than a window",
        "psnr": "needs a source",
        "ssim": "needs a source",
    }
    with pytest.raises(ValueError, match="clip_t: needs a prompt"):
        vsf.evaluate(video(pan(6)), metrics=["clip_t"], **networks)


def test_the_report_names_the_models(networks):
    report = vsf.evaluate(video(pan(4)), prompt="a car", **networks)
    assert report.settings["clip"] == str(networks["clip"])
    assert report.settings["autoencoder"] == str(networks["autoencoder"])
    assert report.settings["flow"].startswith("DIS")
    text = str(report)
    assert all(name in text for name in METRICS) and str(networks["clip"]) in text
    data = json.loads(report.to_json())
    assert data["values"]["flicker"] == report["flicker"]
    assert data["series"]["flicker"][0] is None and len(data["series"]["flicker"]) == 4


def test_models_that_nothing_needs_are_not_loaded():
    report = vsf.evaluate(video(pan(4)), metrics=["flicker_raw"], clip="nowhere", autoencoder="nowhere")
    assert list(report) == ["flicker_raw"] and "clip" not in report.settings


def test_what_the_file_says_of_its_sampling_is_used(networks, tmp_path):
    path = video(pan(12), prompt="a car", window=4, stride=2, loop=True).save(tmp_path / "clip.mp4")
    report = vsf.evaluate(path, **networks)
    assert {k: report.settings[k] for k in ("prompt", "window", "stride", "loop")} == {
        "prompt": "a car",
        "window": 4,
        "stride": 2,
        "loop": True,
    }
    assert "seam_score" in report and "clip_t" in report
    said = vsf.evaluate(path, prompt="a boat", loop=False, metrics=["flicker_raw"]).settings
    assert said["prompt"] == "a boat" and said["loop"] is False


def test_one_frame(networks):
    report = vsf.evaluate(video(pan(1)), prompt="a car", source=video(pan(1)), **networks)
    assert set(report) == {"clip_t", "psnr", "ssim"}
    assert report.skipped["flicker"] == "needs at least 2 frames, got 1"
    assert report.skipped["jitter"] == "needs at least 3 frames, got 1"
    with pytest.raises(ValueError, match="vl_score: needs at least 2 frames, got 1"):
        vsf.evaluate(video(pan(1)), metrics=["vl_score"], **networks)


def test_small_frames(networks):
    report = vsf.evaluate(video(pan(4, 1, 6)), source=video(pan(4, 1, 6)), **networks)
    assert report.skipped["motion"] == "optical flow needs frames of at least 16x16, got 6x6"
    assert report.skipped["vl_score"] == "needs latents of at least 4x4, got 3x3"
    assert report.skipped["ssim"] == "needs frames of at least 7x7, got 6x6"
    assert report["psnr"] == 100


def test_another_size_and_length_of_the_source():
    frames = pan(8, 2, 64)
    large = [np.repeat(np.repeat(f, 2, 0), 2, 1) for f in frames[:5]]
    report = vsf.evaluate(video(frames), source=video(large), metrics=["psnr", "ssim", "jitter"])
    assert report.notes == [
        "the source, 128x128, was scaled to cover 64x64 and cut to its centre",
        "the source has 5 frames and the video 8: the first 5 were compared",
    ]
    assert report["psnr"] > 40 and report["ssim"] > 0.99
    assert [math.isnan(v) for v in report.series["psnr"]] == [False] * 5 + [True] * 3


def test_odd_sizes(networks):
    frames = [f[:61, :47] for f in pan(5)]
    report = vsf.evaluate(video(frames), prompt="a car", source=video(frames), **networks)
    assert all(math.isfinite(value) for value in report.values())


def test_a_prompt_too_long_is_noted(networks):
    report = vsf.evaluate(
        video(pan(2)), prompt="a red car is driving on the snow " * 9, metrics="clip_t", **networks
    )
    assert "could not read the end of the prompt" in report.notes[0]


def test_bad_input(networks, tmp_path):
    clip = video(pan(4))
    for arguments, message in (
        ({"metrics": ["flicer"]}, "metrics: expected some of clip_t, .* got 'flicer'"),
        ({"metrics": []}, "metrics: expected some of .* got none"),
        ({"prompt": ""}, "prompt: expected a text, got ''"),
        ({"prompt": ["a", "b"]}, "prompt: expected a text"),
        ({"window": 1, "stride": 1}, "window must be at least 2"),
        ({"window": 4, "stride": 9}, "stride must be between 1 and the window"),
        ({"flow": "lucas"}, "flow: expected one of auto, dis, raft, got 'lucas'"),
        ({"window": 0}, "window: expected a whole number of at least 1, got 0"),
        ({"device": "cuda:77"}, "device: expected"),
        ({"clip": "nowhere"}, "clip: 'nowhere' is neither an embedded model"),
        ({"clip": tmp_path}, "clip: expected config.json in"),
        ({"autoencoder": "nowhere"}, "autoencoder: 'nowhere' is neither"),
    ):
        with pytest.raises(ValueError, match=message):
            vsf.evaluate(clip, **{**networks, **arguments})
    with pytest.raises(
        ValueError, match="video: expected a Video or a path, got list; see Video.from_frames"
    ):
        vsf.evaluate(pan(4))
    with pytest.raises(ValueError, match="source: expected a Video or a path, got int"):
        vsf.evaluate(clip, source=3)
    with pytest.raises(FileNotFoundError, match="no such video"):
        vsf.evaluate(tmp_path / "none.mp4")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="clip: cannot read"):
        vsf.evaluate(clip, **{**networks, "clip": tmp_path})


@pytest.mark.parametrize("part", ["clip", "autoencoder"])
def test_networks_that_are_not_whole_are_refused(tmp_path, part):
    """transformers and diffusers would fill in random weights, and the numbers would mean nothing."""
    name = {"clip": "sprite-world-clip", "autoencoder": "sprite-world/vae"}[part]
    folder = shutil.copytree(EMBEDDED / name, tmp_path / part)
    path = next(folder.glob("*.safetensors"))
    kept = {
        name: t
        for name, t in load_file(path).items()
        if "layers.0.mlp" not in name and "mid_block" not in name
    }
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{part}: cannot read .* missing weights .* more") as caught:
        {"clip": Clip, "autoencoder": Autoencoder}[part](folder)
    assert "\n" not in str(caught.value)


def test_weight_free_metrics_need_no_model():
    report = vsf.evaluate(
        video(pan(12)), source=video(pan(12)), metrics=WEIGHT_FREE, window=4, stride=2, flow="dis"
    )
    assert set(report) == set(WEIGHT_FREE) and not {"clip", "autoencoder"} & set(report.settings)


def test_raft_says_what_it_lacks():
    if raft_missing() is None:
        pytest.skip("torchvision and its RAFT weights are at hand here")
    with pytest.raises(ValueError, match="flow: 'raft' needs .*torchvision.*use 'dis'"):
        vsf.evaluate(video(pan(4)), metrics=["motion"], flow="raft")
    assert vsf.evaluate(video(pan(4)), metrics=["motion"]).settings["flow"].startswith("DIS")


STAND_IN = """
import torch
class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(2))
    def forward(self, before, after):
        assert before.shape == after.shape and before.dim() == 4 and before.dtype == torch.float32
        assert before.shape[2] % 8 == 0 and before.shape[3] % 8 == 0 and before.abs().max() <= 1
        same = before[..., :8, :8].sub(after[..., :8, :8]).abs().max() == 0
        flow = self.shift * (0 if same else 1)
        return [torch.zeros(1, 2, 1, 1), flow.view(1, 2, 1, 1).expand(-1, -1, *before.shape[2:])]
def raft_large(weights):
    assert weights is None
    return Network()
"""


def test_raft_is_used_where_it_is_at_hand(tmp_path, monkeypatch):
    """With a stand-in for torchvision's network: padding to eights, cropping back, weights from the hub's folder."""
    import importlib
    import sys

    import torch

    from vidsmooth_fast.metrics.flow import DisFlow, make_flow

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    models = tmp_path / "torchvision" / "models"
    models.mkdir(parents=True)
    for folder in (models, models.parent):
        (folder / "__init__.py").write_text("")
    (models / "optical_flow.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert isinstance(make_flow("auto"), DisFlow) and "weights" in raft_missing()
    path = tmp_path / "hub" / "checkpoints" / "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
    path.parent.mkdir(parents=True)
    torch.save({"shift": torch.tensor([3.0, -1.0])}, path)
    page = models / "optical_flow.py"
    page.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    assert isinstance(make_flow("auto"), DisFlow) and "loads beside this torch" in raft_missing()
    page.write_text(STAND_IN)
    importlib.invalidate_caches()
    flow = make_flow("auto")
    assert isinstance(flow, RaftFlow) and isinstance(make_flow("dis"), DisFlow)
    before, after = (Moment(n, frame) for n, frame in enumerate(pan(2, 4, 130)))
    found = flow(before, after)
    assert found.shape == (130, 130, 2) and found.dtype == np.float32
    assert (found[..., 0] == 3).all() and (found[..., 1] == -1).all()
    report = vsf.evaluate(video(pan(3, 4, 64)), metrics=["jitter"], flow="auto")
    assert report.settings["flow"] is None
    small = vsf.evaluate(video(pan(3, 4, 64)), flow="auto", clip=FakeClip(), autoencoder=FakeAutoencoder())
    assert small.skipped["motion"] == "optical flow needs frames of at least 128x128, got 64x64"
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


class FakeClip:
    name = "none"

    def images(self, frames):
        return np.ones((len(frames), 1))


class FakeAutoencoder:
    name, downsampling = "none", 2

    def latents(self, frames):
        return np.ones((len(frames), 1, 32, 32), np.float32)


@pytest.mark.parametrize("groups", [3, 4, 8])
def test_intervals_of_few_clips_hold_the_truth_as_often_as_they_say(groups):
    rng = np.random.default_rng(0)
    drawn = (bootstrap_interval(rng.normal(5, 2, groups).tolist(), seed=i) for i in range(400))
    assert 0.92 < np.mean([low <= 5 <= high for _, low, high in drawn]) < 0.98


def test_a_part_of_a_sampled_video_has_other_joins():
    whole = vsf.Video.from_frames([np.full((16, 16, 3), 9 * i, np.uint8) for i in range(12)], fps=8)
    whole.metadata = {"vidsmooth_fast": {"frames": 12, "window": 4, "stride": 4, "prompt": "a car"}}
    assert "seam_score" in vsf.evaluate(whole, metrics=["flicker_raw", "seam_score"])
    assert "seam_score" not in vsf.evaluate(whole[3:], metrics=None, flow="dis")


def test_bootstrap_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 100).tolist()
    mean, low, high = bootstrap_interval(values)
    assert mean == pytest.approx(np.mean(values)) and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 10, rel=0.25)
    assert bootstrap_interval(values) == (mean, low, high)
    grouped = bootstrap_interval(
        [v for v in values[:10] for _ in range(10)], [g for g in range(10) for _ in range(10)]
    )
    plain = bootstrap_interval([v for v in values[:10] for _ in range(10)])
    assert grouped[2] - grouped[1] > 2 * (plain[2] - plain[1])
    assert bootstrap_interval([1.0, math.nan])[0] == 1 and math.isnan(bootstrap_interval([1.0])[1])
    assert math.isnan(bootstrap_interval([])[0])
