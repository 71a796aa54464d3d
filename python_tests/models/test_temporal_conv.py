"""The convolution over frames: the equation, loops, a start that changes nothing, and the plain baseline."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from python_tests.tiny import tiny_unet_config
from vidsmooth_fast.models import AttentionWindows, VideoUNet
from vidsmooth_fast.models.blocks import Pass, TemporalConv


def random_(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if "conv_temp" in name or "attn_temp.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.2)


def layer(channels: int) -> TemporalConv:
    torch.manual_seed(0)
    made = TemporalConv(channels).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def video(b: int, f: int, c: int, h: int, w: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(b * f, c, h, w, generator=g, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_equals_a_convolution_of_three_taps():
    conv, x = layer(6), video(2, 5, 6, 3, 2)
    kernel = torch.stack([conv.previous.weight, torch.eye(6, dtype=x.dtype), conv.next.weight], dim=-1)
    rows = x.view(2, 5, 6, 3, 2).permute(0, 3, 4, 2, 1).reshape(-1, 6, 5)
    for loop in (False, True):
        padded = F.pad(rows, (1, 1), mode="circular") if loop else F.pad(rows, (1, 1))
        expected = F.conv1d(padded, kernel).view(2, 3, 2, 6, 5).permute(0, 4, 3, 1, 2).reshape(x.shape)
        windows = AttentionWindows((0,), torch.ones(5), loop)
        actual = conv(x, Pass(5, windows=windows))
        torch.testing.assert_close(actual, expected)
        assert actual.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_starts_as_nothing_and_is_left_out_with_the_temporal_layers():
    torch.manual_seed(0)
    with_conv = VideoUNet.from_config(tiny_unet_config(temporal_conv=True)).eval()
    without = VideoUNet.from_config(tiny_unet_config()).eval()
    without.load_state_dict({k: v for k, v in with_conv.state_dict().items() if "conv_temp" not in k})
    x, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 16)
    torch.testing.assert_close(with_conv(x, 9, text), without(x, 9, text), rtol=0, atol=1e-6)
    random_(with_conv)
    assert (with_conv(x, 9, text) - without(x, 9, text)).abs().max() > 1e-3
    torch.testing.assert_close(
        with_conv(x, 9, text, skip_temporal=True), without(x, 9, text, skip_temporal=True), rtol=0, atol=1e-6
    )
    assert VideoUNet.from_config(with_conv.config).config["temporal_conv"] is True


@torch.inference_mode()
def test_tells_before_from_after():
    torch.manual_seed(0)
    unet = VideoUNet.from_config(tiny_unet_config(temporal_conv=True, attn1_frames="self")).eval()
    random_(unet)
    x, text = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 5, 16)
    backwards = unet(x.flip(2), 9, text).flip(2)
    assert (backwards - unet(x, 9, text)).abs().max() > 1e-3


@torch.inference_mode()
def test_the_plain_baseline_computes_the_same():
    source = Path(__file__).parents[2] / "benchmarks" / "baselines.py"
    spec = importlib.util.spec_from_file_location("baselines", source)
    baselines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(baselines)
    torch.manual_seed(0)
    unet = VideoUNet.from_config(tiny_unet_config(temporal_conv=True)).eval()
    random_(unet)
    published = baselines.PublishedUNet(unet.state_dict(), unet.config)
    x, text = torch.randn(2, 4, 5, 8, 8), torch.randn(2, 5, 16)
    torch.testing.assert_close(unet(x, 9, text), published(x, 9, text), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("frames", [2, 5])
def test_gradient_through_frozen_taps(frames, loop):
    """That of trained taps, which PyTorch differentiates itself, and of finite differences."""
    conv, x = layer(6), video(2, frames, 6, 3, 2).requires_grad_()
    windows = AttentionWindows((0,), torch.ones(frames), loop)

    def through(x):
        return conv(x, Pass(frames, windows=windows))

    expected = through(x)
    grad = torch.randn_like(expected)
    (to_x,) = torch.autograd.grad(expected, x, grad)
    conv.requires_grad_(False)
    actual = through(x)
    torch.testing.assert_close(actual, expected)
    for g in (grad, grad.contiguous()):  # channels_last, and not
        torch.testing.assert_close(torch.autograd.grad(actual, x, g, retain_graph=True)[0], to_x)
    assert torch.autograd.gradcheck(through, x)
