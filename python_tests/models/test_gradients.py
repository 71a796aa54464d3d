"""Gradients through VideoUNet: the same with recomputation, and none is lost."""

import pytest
import torch
import torch.nn.functional as F

from python_tests.tiny import tiny_unet_config
from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.models.blocks import FeedForward, Upsample


def gradients(unet, names, *, recompute):
    unet.gradient_checkpointing = recompute
    parameters = dict(unet.named_parameters())
    unet.requires_grad_(False)
    for name in names:
        parameters[name].requires_grad_(True)
        parameters[name].grad = None
    g = torch.Generator().manual_seed(3)
    sample, text = torch.randn(1, 4, 5, 8, 8, generator=g), torch.randn(1, 7, 16, generator=g)
    unet(sample, torch.tensor([500]), text).square().mean().backward()
    return {name: parameters[name].grad for name in names}


@pytest.mark.parametrize("which", ["attention", "all"])
def test_recomputation_keeps_every_gradient(which):
    """The reentrant kind, in the published program, loses those of every down-block attention."""
    torch.manual_seed(0)
    unet = VideoUNet.from_config(tiny_unet_config())
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out" in name:  # zero at first, which would stop the gradient of to_q, to_k, to_v
            torch.nn.init.normal_(parameter, std=0.1)
    published = ("attn1.to_q", "attn2.to_q", "attn_temp")
    names = [n for n, _ in unet.named_parameters() if which == "all" or any(p in n for p in published)]
    plain, again = (gradients(unet, names, recompute=recompute) for recompute in (False, True))
    for name in names:
        assert plain[name] is not None and again[name] is not None, name
        torch.testing.assert_close(again[name], plain[name], rtol=0, atol=0)
        # the time projection of an all-positive batch may have zero rows, a whole zero tensor means a lost gradient
        assert float(again[name].abs().max()) > 0, name


def test_recomputation_keeps_less():
    unet = VideoUNet.from_config(tiny_unet_config())
    kept = {}
    for unet.gradient_checkpointing in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, s=sizes: (s.append(x.nbytes), x)[1], lambda x: x
        ):
            unet(torch.randn(1, 4, 5, 8, 8), 500, torch.randn(1, 7, 16))
        kept[unet.gradient_checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 4


@pytest.mark.parametrize("size", [(8, 6), (7, 5)], ids=["doubled", "not quite"])
def test_enlargement(size):
    """To any size, as PyTorch does it: the same values and gradients."""
    torch.manual_seed(0)
    upsample = Upsample(6).double()
    x = torch.randn(4, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = upsample.conv.weight, upsample.conv.bias
    expected = F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, bias, padding=1)
    actual = upsample(x, size)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, (x, weight, bias), grad) for y in (actual, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("chunk", [4, 7, 100])
def test_through_a_frozen_feed_forward(chunk, monkeypatch):
    """That of trained weights, which PyTorch differentiates itself, and of finite differences."""
    monkeypatch.setattr(FeedForward, "CHUNK", chunk)
    torch.manual_seed(0)
    layer = FeedForward(6).double()
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    expected = layer(x)
    grad = torch.randn(3, 6, 7, dtype=torch.float64).mT
    (to_x,) = torch.autograd.grad(expected, x, grad)
    layer.requires_grad_(False)
    actual = layer(x)
    assert "FrozenFeedForward" in type(actual.grad_fn.next_functions[0][0]).__name__
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, x, grad)[0], to_x)
    assert torch.autograd.gradcheck(layer, x)


def test_autocast_of_frozen_layers():
    """Mixed precision leaves the layers' own gradients alone: weights are fp32 there, and products bf16."""
    torch.manual_seed(0)
    layer = FeedForward(32)
    x = torch.randn(2, 8, 32, requires_grad=True)
    gradients = []
    for trained in (True, False):
        layer.requires_grad_(trained)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        gradients.append(torch.autograd.grad(out.float().square().sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
