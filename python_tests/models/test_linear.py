"""Linear layers through oneDNN: the same numbers as F.linear, only where they are wanted."""

import pytest
import torch
import torch.nn.functional as F

from python_tests.tiny import tiny_model
from vidsmooth_fast.models import linear as module
from vidsmooth_fast.models.linear import linear

pytestmark = pytest.mark.skipif(not module.AVAILABLE, reason="this PyTorch has no oneDNN linear layer")


@pytest.fixture
def calls(monkeypatch):
    """Inputs of oneDNN's layer, which takes any size."""
    seen, op = [], torch.ops.mkldnn._linear_pointwise

    def counted(x, *rest):
        seen.append(x)
        return op(x, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    monkeypatch.setattr(module, "WORTH", 0)
    return seen


def dtypes():
    supported = module.AVAILABLE and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return [torch.float32] + [torch.bfloat16] * supported


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5, 13), (2, 3, 4, 33), (513, 48), (0, 6), (9,)])
def test_as_exact_as_pytorch(calls, dtype, gelu, shape):
    """The largest error is at most twice that of F.linear in the same dtype, and one rounding."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(11, shape[-1]), torch.randn(11)
    x, weight, bias = (t.to(dtype) for t in (x, weight, bias))
    for b in (bias, None):
        with torch.inference_mode():
            got = linear(x, weight, b, gelu=gelu)
        plain = linear(x, weight, b, gelu=gelu)  # where gradients might be wanted
        exact = linear(x.double(), weight.double(), None if b is None else b.double(), gelu=gelu)
        assert got.dtype == dtype and got.shape == exact.shape and got.is_contiguous()
        if exact.numel():
            bound = 2 * (plain - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
            assert (got - exact).abs().max() <= bound
    assert len(calls) == 2


def test_inputs_and_weights_with_gaps(calls):
    x, weight = torch.randn(4, 6, 5, 16), torch.randn(9, 32)
    for view in (x[:, 1:], x[:, :-1], x[:, 0], x.transpose(1, 2)):
        for w in (weight[:, :16], weight[2:5, 16:], weight[:, ::2]):
            with torch.no_grad():
                torch.testing.assert_close(linear(view, w), F.linear(view, w), rtol=1e-5, atol=1e-5)
    assert len(calls) == 12


def test_what_is_not_a_number_stays(calls):
    weight = torch.eye(4)
    with torch.no_grad():
        got = linear(torch.tensor([[float("nan"), 1.0, 2.0, 3.0], [3e38, -1.0, 0.0, 1.0]]), 2 * weight)
    assert got[0].isnan().all() and got[1, 0] == float("inf")


@pytest.mark.parametrize("wanted", ["gradients", "half", "autocast", "a graph", "small"])
def test_elsewhere_it_is_pytorch(calls, wanted, monkeypatch):
    x, weight = torch.randn(6, 16), torch.randn(8, 16, requires_grad=True)
    if wanted == "gradients":
        linear(x, weight).sum().backward()
        assert weight.grad is not None
    if wanted == "half":
        with torch.no_grad():
            torch.testing.assert_close(linear(x.half(), weight.half()), F.linear(x.half(), weight.half()))
    if wanted == "autocast":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
    if wanted == "a graph":
        graphs = []
        compiled = torch.compile(
            linear, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward
        )
        with torch.no_grad():
            compiled(x, weight.detach())
        assert [n.target for n in graphs[0].graph.nodes if n.op == "call_function"] == [torch._C._nn.linear]
    if wanted == "small":
        monkeypatch.setattr(module, "WORTH", 6 * 16 * 8 + 1)
        with torch.no_grad():
            linear(x, weight)
    assert not calls


def test_a_network_uses_it_and_gives_the_same(calls, monkeypatch):
    unet = tiny_model().unet
    x, text = torch.randn(1, unet.in_channels, 3, 5, 7), torch.randn(1, 4, unet.config["cross_attention_dim"])
    with torch.inference_mode():
        got = unet(x, 10, text)
        used = len(calls)
        monkeypatch.setattr(module, "AVAILABLE", False)
        torch.testing.assert_close(got, unet(x, 10, text), rtol=1e-4, atol=1e-5)
    assert 0 < used == len(calls)
