"""Compiled blocks: the same numbers, no compilation for another batch or prompt, and code that outlives the process."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters

from python_tests.tiny import tiny_unet_config
from vidsmooth_fast.models import AttentionWindows, VideoUNet


@pytest.fixture
def unet() -> VideoUNet:
    torch.manual_seed(0)
    unet = VideoUNet.from_config(
        tiny_unet_config(
            layers_per_block=2,
            down_block_types=["CrossAttnDownBlock3D"] * 2,
            up_block_types=["CrossAttnUpBlock3D"] * 2,
        )
    )
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    torch._dynamo.reset()
    counters.clear()
    return unet.eval()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def compiled(unet: VideoUNet) -> VideoUNet:
    """By the backend "eager": what is traced, and how often, is the same as for any other."""
    return copy.deepcopy(unet).compile_blocks("eager")


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def call(unet: VideoUNet, videos: int = 2, frames: int = 5, branches: int = 2, seed: int = 1, **options):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(videos, 4, frames, 8, 8, generator=g)
    text = torch.randn(videos * branches, 7, 16, generator=g)
    with torch.inference_mode():
        return unet(x, 10 * seed, text, branches=branches, **options)


def test_the_numbers_are_the_same_and_nothing_is_compiled_twice(unet):
    fast = compiled(unet)
    torch.testing.assert_close(call(fast), call(unet), rtol=0, atol=1e-5)
    made = graphs()
    blocks = sum(1 for m in unet.modules() if type(m).__name__ in ("ResnetBlock", "TransformerBlock"))
    assert 0 < made < 0.6 * blocks, "equal blocks share their code"
    for videos in (3, 7):
        call(fast, videos=videos, seed=videos)
    assert graphs() == made, "another number of windows, another text, another timestep"
    assert not counters["recompile_limit"], "the limit of recompilations was not met"


@pytest.mark.slow
@pytest.mark.parametrize("attn1_frames", ["first-previous", "first", "self", "all", "neighbours"])
def test_every_variant(unet, attn1_frames):
    unet.attn1_frames = attn1_frames
    torch.testing.assert_close(call(compiled(unet)), call(unet), rtol=0, atol=1e-5)
    windows = AttentionWindows((0, 2), torch.ones(3))
    expected = call(unet, windows=windows)
    torch.testing.assert_close(call(compiled(unet), windows=windows), expected, rtol=0, atol=1e-5)


def test_another_video_through_the_sampling_loop(unet):
    from python_tests.tiny import tiny_model
    from vidsmooth_fast import fast_sample

    model = tiny_model()
    model.compile().unet.compile_blocks("eager")
    options = dict(steps=2, window=4, stride=2, guidance=2.0, max_batch=4, progress=False)
    first = fast_sample(model, "a red car", 8, **options).latents
    made = graphs()
    assert made > 0
    fast_sample(model, ["a red car", "a blue boat", "a man"], 14, **options)
    assert graphs() == made
    model.unet.compiled = ""
    torch.testing.assert_close(
        fast_sample(model, "a red car", 8, **options).latents, first, rtol=0, atol=1e-4
    )


def test_gradients_go_the_usual_way(unet):
    fast = compiled(unet)
    x, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 7, 16)
    fast(x, 10, text).square().mean().backward()
    assert graphs() == 0 and fast.conv_in.weight.grad is not None


TWICE = """
import torch
from python_tests.tiny import tiny_unet_config
from torch._dynamo.utils import counters
from vidsmooth_fast.models import VideoUNet
torch.manual_seed(0)
few = {"block_out_channels": [16], "down_block_types": ["DownBlock3D"], "up_block_types": ["UpBlock3D"]}
unet = VideoUNet.from_config(tiny_unet_config(**few))
unet.eval().compile_blocks()
with torch.inference_mode():
    unet(torch.randn(2, 4, 3, 8, 8), 10, torch.randn(2, 7, 16))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
def test_what_is_compiled_is_kept_for_the_next_process(tmp_path):
    def run() -> tuple[int, int]:
        environment = {
            k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"
        }  # `cache` has set it
        done = subprocess.run(
            [sys.executable, "-c", TWICE],
            env={**environment, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        hits, misses = map(int, done.stdout.split()[-2:])
        return hits, misses

    assert run()[1] > 0
    assert any((tmp_path / "vidsmooth-fast" / "inductor").iterdir())
    hits, misses = run()
    assert hits > 0 and misses == 0
