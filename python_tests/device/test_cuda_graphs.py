"""Recorded calls of the network, replayed on a GPU; skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from python_tests.tiny import tiny_unet_config
from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.models.unet import DeepFeatures
from vidsmooth_fast.sampling.cuda_graphs import GraphedNetwork

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")


@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_replays_give_what_calls_give(compiled):
    torch.manual_seed(0)
    unet = VideoUNet.from_config(tiny_unet_config()).eval().cuda().bfloat16()
    if compiled:
        unet.compile_blocks()
    network = GraphedNetwork(unet)
    ours, plain = DeepFeatures(2), DeepFeatures(2)
    for step in range(8):
        if step % 3 == 0:
            ours, plain = DeepFeatures(2), DeepFeatures(2)
        x = torch.randn(2, 4, 4, 8, 8, device="cuda")
        time, text = unet.embed_time(10.0 * step), unet.project_text(torch.randn(4, 7, 16, device="cuda"))
        for kept in (None, ours):
            other = plain if kept is ours else None
            expected = unet(x, time, text, branches=2, deep=other)
            actual = network(x, time, text, branches=2, deep=kept)
            torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)
    assert len(network._recorded) == 3, "without deep features, with them filled, with them used"
