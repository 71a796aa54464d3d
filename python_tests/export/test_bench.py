"""`vidsmooth-fast bench`: every model timed alike, as numbers and as a table."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from python_tests.tiny import tiny_model
from vidsmooth_fast import cli
from vidsmooth_fast.models.unet import VideoUNet
from vidsmooth_fast.sampling.bench import Timing, bench, table

QUICK = dict(frames=6, steps=2, window=4, stride=2, rounds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(path)
    return path


def test_models_are_timed_in_rounds_and_then_sample(folder, monkeypatch):
    slow = tiny_model()
    calls = []
    forward = VideoUNet.forward

    def counted(self, sample, *args, **keywords):
        calls.append((self is slow.unet, tuple(sample.shape), keywords["branches"]))
        if self is slow.unet:
            time.sleep(0.05)
        return forward(self, sample, *args, **keywords)

    monkeypatch.setattr(VideoUNet, "forward", counted)
    said = []
    fast, slower = bench([folder, slow], dtype="float32", say=said.append, **QUICK)
    assert [slowed for slowed, *_ in calls[:6]] == [False, True] * 3  # one first call and two rounds
    assert {rest for _, *rest in map(tuple, calls[:6]) for rest in [tuple(rest)]} == {((1, 4, 4, 8, 8), 2)}
    assert (fast.name, fast.format, fast.dtype, fast.device) == (str(folder), "torch", "float32", "cpu")
    assert fast.load > 0 and (slower.name, slower.load) == ("tiny", 0)
    assert slower.call >= 0.05 and slower.step >= 0.05 and slower.video > slower.step
    assert fast.video > fast.step > 0 and fast.first > 0 < fast.call
    assert len(said) == 5


def test_a_bundle_beside_its_model(onnx_bundle, tiny):
    bundle, model = bench([onnx_bundle, tiny], **QUICK)
    assert (bundle.format, model.format) == ("onnx", "torch")
    assert (bundle.dtype, bundle.device) == (model.dtype, model.device) == ("float32", "cpu")
    assert bundle.video > bundle.step > 0 and bundle.load > 0


def test_table():
    first = Timing("a", "torch", "float32", "cpu", 0.5, 0.1, 0.123456, 1.0, 20.0)
    second = Timing("longer name", "aoti", "float32", "cpu", 0.25, 0.1, 0.05, 123.4, 10.0)
    header, one, two = table([first, second]).splitlines()
    assert header.split("  ")[0] == "model" and len(header) == len(one) == len(two)
    assert one.split() == ["a", "torch", "float32", "cpu", "0.5", "0.1", "0.123", "1", "20", "1.00"]
    assert two.split()[-5:] == ["0.1", "0.05", "123", "10", "2.00"]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"rounds": 0}, "^rounds: expected a whole number from 1, got 0"),
        ({"steps": 1}, "^steps: expected a whole number from 2, got 1"),
        ({"stride": 9}, "^stride: expected at most the window"),
        ({"height": 15}, "^height: "),
        ({"models": []}, "^models: expected at least one"),
        ({"models": ["no-such-model"]}, "^model: 'no-such-model' is not a directory"),
    ],
)
def test_refused_before_anything_is_timed(folder, monkeypatch, changes, expected):
    monkeypatch.setattr(VideoUNet, "forward", None)
    with pytest.raises(ValueError, match=expected):
        bench(**{"models": [folder], **QUICK, **changes})


def test_guidance_of_one_is_one_branch(folder, monkeypatch):
    seen = set()
    forward = VideoUNet.forward

    def counted(self, *args, **keywords):
        seen.add(keywords["branches"])
        return forward(self, *args, **keywords)

    monkeypatch.setattr(VideoUNet, "forward", counted)
    bench([folder], guidance=1, **QUICK)
    assert seen == {1}


def test_on_the_command_line(folder, monkeypatch, capsys):
    options = [f"--{name}={value}" for name, value in QUICK.items()]
    monkeypatch.setattr(sys, "argv", ["vidsmooth-fast", "bench", str(folder), str(folder), *options])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert not stopped.value.code and "sampling 6 frames in 2 steps" in err
    header, *rows = out.strip().splitlines()
    assert header.startswith("model") and [row.split()[0] for row in rows] == [str(folder)] * 2
    assert torch.get_default_dtype() == torch.float32
