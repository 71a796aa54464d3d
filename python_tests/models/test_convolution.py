"""The network's 3x3 convolutions: by the operator where it pays, the same numbers to rounding."""

import pytest
import torch
import torch.nn.functional as F

from python_tests.tiny import tiny_unet_config
from vidsmooth_fast import ops
from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.models.blocks import ResnetBlock, Upsample
from vidsmooth_fast.models.convolution import convolution
from vidsmooth_fast.ops import _dispatch

extension = _dispatch.extension()
pytestmark = pytest.mark.skipif(
    extension is None or extension.isas() == ["base"], reason="no C++ kernel that is faster than PyTorch"
)


@pytest.fixture
def calls(calls_of):
    return calls_of("convolution")


def inputs(channels=32, out=48, height=8, width=8, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(2, channels, height, width).to(dtype, memory_format=torch.channels_last)
    return x, torch.randn(out, channels, 3, 3, dtype=dtype), torch.randn(out, dtype=dtype)


def plain(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("grad", [False, True])
def test_the_operator_where_it_pays(calls, grad):
    given = inputs()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(convolution(*given), plain(*given), rtol=1e-4, atol=1e-4)
    assert calls == [(2, 32, 8, 8)]


def test_many_channels_pay_for_small_maps(calls):
    given = inputs(channels=1024, out=16, height=2, width=2)
    torch.testing.assert_close(convolution(*given), plain(*given), rtol=1e-4, atol=1e-3)
    assert calls == [(2, 1024, 2, 2)]


@pytest.mark.parametrize(
    "given",
    [
        {"channels": 20},
        {"out": 4},
        {"height": 5, "width": 5},  # tiles mostly of zeros
        {"dtype": torch.float64},
        {
            "channels": 320,
            "height": 4,
            "width": 4,
            "dtype": torch.bfloat16,
        },  # weights would take most of the time
    ],
    ids=["channels in", "channels out", "small maps", "float64", "bfloat16"],
)
def test_pytorch_where_it_does_not(calls, monkeypatch, given):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    given = inputs(**given)
    assert torch.equal(convolution(*given), plain(*given)) and not calls


def test_bfloat16_without_matrix_units(calls, monkeypatch):
    given = inputs(dtype=torch.bfloat16)
    for units in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda units=units: units)
        convolution(*given)
    assert len(calls) == 1


def test_gradients_that_would_not_pay(calls, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    x, weight, bias = inputs(channels=128, out=320, height=4, width=4, dtype=torch.bfloat16)
    convolution(x, weight, bias)
    assert len(calls) == 1
    convolution(x.requires_grad_(), weight, bias)
    assert len(calls) == 1


def test_requests_and_processors_without_the_kernel(calls):
    given = inputs()
    with ops.backend("torch"):
        assert torch.equal(convolution(*given), plain(*given))
    before = extension.isa()
    extension.set_isa("base")
    try:
        assert torch.equal(convolution(*given), plain(*given))
    finally:
        extension.set_isa(before)
    assert not calls
    with ops.backend("cpu"):
        convolution(*given)
    assert len(calls) == 1


@pytest.mark.parametrize("timesteps", [10, torch.tensor([10, 20])], ids=["one timestep", "several"])
def test_every_resnet_and_enlargement_goes_this_way(calls, timesteps):
    unet = VideoUNet.from_config(tiny_unet_config(block_out_channels=[16, 32])).eval()
    resnets = [m for m in unet.modules() if isinstance(m, ResnetBlock)]
    upsamplers = [m for m in unet.modules() if isinstance(m, Upsample)]
    with torch.inference_mode():
        unet(torch.randn(2, 4, 3, 16, 16), timesteps, torch.randn(2, 7, 16))
    assert resnets and upsamplers and len(calls) == 2 * len(resnets) + len(upsamplers)


def test_pytorch_in_graphs_and_under_autocast(calls):
    given = inputs()
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile(convolution, fullgraph=True, backend=keep)(*given)
    assert [n.target for n in graphs[0].graph.nodes if n.op == "call_function"] == [torch.conv2d]
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(*given).dtype == torch.bfloat16
    assert not calls
