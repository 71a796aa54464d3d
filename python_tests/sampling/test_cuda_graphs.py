"""Recorded calls of the network, with a stand-in for the recorder: what a GPU would replay, a CPU computes again.

Recorded and replayed on a GPU: python_tests/device.
"""

from __future__ import annotations

import pytest
import torch

from python_tests.tiny import tiny_model, tiny_unet_config
from vidsmooth_fast.models import AttentionWindows, VideoUNet
from vidsmooth_fast.models.unet import DeepFeatures
from vidsmooth_fast.sampling.cuda_graphs import LIMIT, GraphedNetwork


class Recorder:
    """Keeps to what CUDA graphs do: a replay reads and writes the addresses of the recording, and nothing else."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, run):
        outputs = run()
        self.recorded += 1

        def replay():
            self.replayed += 1
            for output, now in zip(outputs, run(), strict=True):
                output.copy_(now)

        for output in outputs:
            output.fill_(torch.nan)  # recording computes nothing
        return replay, outputs


@pytest.fixture(scope="module")
def unet() -> VideoUNet:
    torch.manual_seed(0)
    return VideoUNet.from_config(tiny_unet_config()).eval()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def inputs(unet, seed, videos=2, branches=2):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(videos, 4, 3, 8, 8, generator=g)
    text = unet.project_text(torch.randn(videos * branches, 7, 16, generator=g))
    return x, unet.embed_time(10.0 * seed), text


@torch.inference_mode()
def test_replays_give_what_calls_give(unet, recorder):
    network = GraphedNetwork(unet, recorder)
    text = inputs(unet, 0)[2]
    for seed in range(5):
        x, time, other = inputs(unet, seed)
        for words in (text, other, text):
            expected = unet(x, time, words, branches=2)
            torch.testing.assert_close(network(x, time, words, branches=2), expected, rtol=0, atol=1e-5)
    assert (recorder.recorded, recorder.replayed) == (1, 14)


@torch.inference_mode()
def test_a_result_outlives_the_next_replay(unet, recorder):
    network = GraphedNetwork(unet, recorder)
    for _ in range(2):
        network(*inputs(unet, 1), branches=2)
    first = network(*inputs(unet, 2), branches=2)
    kept = first.clone()
    network(*inputs(unet, 3), branches=2)
    assert torch.equal(first, kept)


@torch.inference_mode()
def test_shapes_windows_and_branches_have_graphs_of_their_own(unet, recorder):
    network = GraphedNetwork(unet, recorder)
    inside = AttentionWindows((0, 1), torch.ones(2))
    for seed in range(3):
        for videos, branches, windows in ((2, 2, None), (1, 2, None), (2, 1, None), (2, 2, inside)):
            x, time, text = inputs(unet, seed, videos, branches)
            expected = unet(x, time, text, branches=branches, windows=windows)
            actual = network(x, time, text, branches=branches, windows=windows)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (recorder.recorded, recorder.replayed) == (4, 8)


@torch.inference_mode()
def test_deep_features_go_in_and_out(unet, recorder):
    network = GraphedNetwork(unet, recorder)
    for period in range(4):
        ours, plain = DeepFeatures(2), DeepFeatures(2)
        for step in range(3):
            x, time, text = inputs(unet, 3 * period + step)
            expected = unet(x, time, text, branches=2, deep=plain)
            actual = network(x, time, text, branches=2, deep=ours)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(ours.value, plain.value, rtol=0, atol=1e-5)
    assert recorder.recorded == 2


@torch.inference_mode()
def test_beyond_the_limit_calls_run_as_usual(unet, recorder):
    network = GraphedNetwork(unet, recorder)
    for _ in range(3):
        for videos in range(1, LIMIT + 3):
            x, time, text = inputs(unet, videos, videos, 1)
            torch.testing.assert_close(network(x, time, text), unet(x, time, text), rtol=0, atol=1e-5)
    assert recorder.recorded == LIMIT


def test_they_need_cuda():
    with pytest.raises(ValueError, match="cuda_graphs: expected a model on a CUDA device, got one on cpu"):
        tiny_model().compile(blocks=False, cuda_graphs=True)
