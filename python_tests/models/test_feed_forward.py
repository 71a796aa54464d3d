"""The feed-forward of the network: by the operator where it pays, the same numbers to rounding."""

import pytest
import torch

from python_tests.tiny import tiny_unet_config
from vidsmooth_fast import ops
from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.models.feed_forward import FeedForward
from vidsmooth_fast.ops import _dispatch

extension = _dispatch.extension()
pytestmark = pytest.mark.skipif(
    extension is None or extension.isas() == ["base"], reason="no C++ kernel that is faster than PyTorch"
)


@pytest.fixture
def calls(calls_of):
    return calls_of("feed_forward")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return FeedForward(32).requires_grad_(False)


def plain(layer, x):
    return layer.net[2](layer.net[0](x))


def test_the_operator_where_it_pays(calls, layer):
    x = torch.randn(3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(layer, x))
    assert calls == [(3, 64, 32)]


@pytest.mark.parametrize(
    ("tokens", "dim", "dtype"),
    [(16, 32, torch.float32), (64, 20, torch.float32), (64, 32, torch.float64), (64, 32, torch.float16)],
    ids=["few tokens", "columns", "float64", "float16"],
)
def test_pytorch_where_it_does_not(calls, tokens, dim, dtype):
    layer, x = FeedForward(dim).to(dtype), torch.randn(2, tokens, dim, dtype=dtype)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(layer, x))
    assert not calls


def test_pieces_do_not_change_the_result(calls, layer, monkeypatch):
    x = torch.randn(2, 33, 32)
    monkeypatch.setattr(FeedForward, "CHUNK", 7)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(layer, x))
    assert not calls


def test_bfloat16_by_instructions_alone(calls, layer, monkeypatch):
    layer, x, before = layer.to(torch.bfloat16), torch.randn(2, 64, 32, dtype=torch.bfloat16), extension.isa()
    counts = []
    with torch.inference_mode():
        for isa, units in (("avx2", False), (before, False), (before, True)):
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda units=units: units)
            extension.set_isa(isa)
            try:
                layer(x)
            finally:
                extension.set_isa(before)
            counts.append(len(calls))
    once = int(before == "avx512_bf16")
    assert counts == [0, once, once]


def test_requests_gradients_and_processors_without_the_kernel(calls, layer):
    x, before = torch.randn(2, 64, 32), extension.isa()
    layer(x.clone().requires_grad_())
    with torch.inference_mode():
        with ops.backend("torch"):
            layer(x)
        extension.set_isa("base")
        try:
            layer(x)
        finally:
            extension.set_isa(before)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        assert not calls
        with ops.backend("cpu"):
            layer(x)
    assert len(calls) == 1


def test_every_transformer_block_goes_this_way(calls):
    unet = VideoUNet.from_config(tiny_unet_config(block_out_channels=[16, 32])).eval()
    with torch.inference_mode():
        unet(torch.randn(2, 4, 3, 16, 16), 10, torch.randn(2, 7, 16))
    layers = [m for m in unet.modules() if isinstance(m, FeedForward)]
    assert layers and len(calls) == len(layers)


def test_pytorch_in_graphs(calls, layer):
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        torch.compile(layer, fullgraph=True, backend=keep)(torch.randn(2, 64, 32))
    names = {str(n.target) for n in graphs[0].graph.nodes if n.op == "call_function"}
    assert not calls and not any("vidsmooth" in name for name in names)
