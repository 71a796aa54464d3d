"""Every exact saving can be left out, which changes the time and not the video, and comes back afterwards."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from python_tests.tiny import tiny_model
from vidsmooth_fast import fast_sample

_FILE = Path(__file__).parents[2] / "benchmarks" / "_switches.py"
_spec = importlib.util.spec_from_file_location("_switches", _FILE)
switches = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(switches)


def sample(model):
    options = dict(steps=2, window=4, stride=2, guidance=2.0, progress=False)
    return fast_sample(model, ["a red car", "a blue boat"], 6, **options).latents


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def expected(model):
    return sample(model)


@pytest.mark.parametrize("name", [name for name in switches.SWITCHES if "compile" not in name])
def test_the_video_stays(model, expected, name, monkeypatch):
    shapes, forward = [], type(model.unet).forward

    def seen(self, x, time, text, **keywords):
        shapes.append((x.shape[0], type(time), type(text), keywords["branches"]))
        return forward(self, x, time, text, **keywords)

    monkeypatch.setattr(type(model.unet), "forward", seen)
    with switches.SWITCHES[name](model.unet):
        torch.testing.assert_close(sample(model), expected, rtol=1e-3, atol=1e-3)
        left_out = set(shapes)
    shapes.clear()
    assert torch.equal(sample(model), expected), "switched on again"
    if name in (
        "text projected in every call",
        "time embedded in every call",
        "one window and branch in a call",
    ):
        assert left_out.isdisjoint(shapes)
