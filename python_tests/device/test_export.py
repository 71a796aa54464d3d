"""Bundles that run on a GPU: TensorRT engines, and machine code of AOTInductor; skipped where there is no GPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch

pytest.importorskip("diffusers", reason="the models of these tests come from diffusers")

import vidsmooth_fast as vsf
from python_tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")

RANGES = {"batch": (1, 4), "frames": (2, 16), "height": (16, 32), "width": (16, 32)}
SIZES = [(1, 2, 8, 8), (2, 5, 8, 16), (4, 16, 16, 8), (3, 9, 16, 16), (1, 2, 8, 8)]
"""Videos, frames, height and width of latents; the first again, after the others."""

FORMATS = [
    pytest.param("aoti", {"device": "cuda"}, id="aoti"),
    pytest.param(
        "tensorrt",
        {},
        id="tensorrt",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed (docs/export.md)"
        ),
    ),
]


@pytest.mark.parametrize("format, options", FORMATS)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("float16", 2e-2)])
def test_a_bundle_predicts_and_samples_like_the_model(
    tmp_path, monkeypatch, format, options, dtype, tolerance
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tiny_model().to("cuda", torch.float32)
    bundle = vsf.load(
        vsf.export(model, tmp_path / "tiny.d", format=format, dtype=dtype, **RANGES, **options), device="cuda"
    )
    for videos, frames, height, width in SIZES:
        sample = torch.randn(videos, 4, frames, height, width, device="cuda")
        timestep = torch.linspace(3, 900, videos, device="cuda")
        text = torch.randn(videos, 16, 16, device="cuda")
        with torch.no_grad():
            expected = model.unet(sample, timestep, text)
        actual = bundle.network(sample=sample, timestep=timestep, encoder_hidden_states=text)
        assert (actual.float() - expected).abs().max() <= tolerance * expected.abs().max()
    ours, theirs = (
        vsf.fast_sample(m, "a red car", 11, steps=4, window=4, stride=2, device="cuda", progress=False)
        for m in (bundle, model)
    )
    assert (ours.latents - theirs.latents).abs().max() <= 10 * tolerance * theirs.latents.abs().max()


def test_a_tensorrt_bundle_reads_its_timing_cache(tmp_path):
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("TensorRT is not installed (docs/export.md)")
    cache = tmp_path / "measured" / "timing"
    for name in ("first", "second"):
        vsf.export(tiny_model(), tmp_path / name, format="tensorrt", timing_cache=str(cache), **RANGES)
        assert cache.stat().st_size > 0
