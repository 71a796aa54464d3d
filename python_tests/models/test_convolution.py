"""The network's 3x3 convolutions: by the operator where it pays, the same numbers everywhere."""

import pytest
import torch
import torch.nn.functional as F

from vidsmooth_fast import ops
from vidsmooth_fast.models.convolution import convolution
from vidsmooth_fast.ops import _dispatch

extension = _dispatch.extension()
pytestmark = pytest.mark.skipif(
    extension is None or extension.isas() == ["base"], reason="no C++ kernel that is faster than PyTorch"
)


@pytest.fixture
def calls(monkeypatch):
    """Shapes of what the operator was given."""
    seen, operator = [], ops.convolution

    def counted(x, *rest):
        seen.append(tuple(x.shape))
        return operator(x, *rest)

    monkeypatch.setattr(ops, "convolution", counted)
    return seen


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
        inputs(channels=20),
        inputs(out=4),
        inputs(height=5, width=5),  # tiles mostly of zeros
        inputs(dtype=torch.float64),
        inputs(
            channels=320, height=4, width=4, dtype=torch.bfloat16
        ),  # the weights would take most of the time
    ],
    ids=["channels in", "channels out", "small maps", "float64", "bfloat16"],
)
def test_pytorch_where_it_does_not(calls, given):
    assert torch.equal(convolution(*given), plain(*given)) and not calls


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
