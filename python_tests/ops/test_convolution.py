from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {  # images, channels in and out, height, width
    "one pixel": (1, 16, 16, 1, 1),
    "one tile": (2, 32, 48, 4, 4),
    "uneven": (3, 48, 80, 9, 7),
    "a row": (2, 16, 64, 1, 21),
    "many tiles": (5, 16, 32, 24, 20),
    "weights in several passes": (1, 1280, 336, 5, 4),
}


def kernels() -> list[str]:
    module = _dispatch.extension()
    return ["torch", *(module.isas() if module else [])]


@pytest.fixture(params=kernels())
def each_kernel(request):
    """On plain PyTorch, and on the C++ kernel of every instruction set there is."""
    with ops.backend("torch" if request.param == "torch" else "cpu"):
        module = _dispatch.extension()
        before = module.isa() if module else ""
        if request.param != "torch":
            module.set_isa(request.param)
        yield request.param
        if module:
            module.set_isa(before)


def inputs(images, channels, out, height, width, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(images, channels, height, width).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(out, channels, 3, 3) / (9 * channels) ** 0.5
    return x, weight.to(dtype), torch.randn(out).to(dtype)


def exactly(x, weight, bias):
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SHAPES)
def test_against_the_equation(each_kernel, poisoned, within_rule, case, dtype):
    x, weight, bias = inputs(*SHAPES[case], dtype)
    for b in (bias, None):
        got, exact = ops.convolution(x, weight, b), exactly(x, weight, b)
        assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
        if (
            dtype == torch.float32
        ):  # 36 products for 16 pixels: at most 3e-5 of their deviation, which is about 1
            assert (got - exact).abs().max() <= 3e-5
        else:
            within_rule(got, F.conv2d(x, weight, b, padding=1), exact)


def test_the_usual_error_is_a_few_times_that_of_a_plain_sum(each_kernel):
    x, weight, bias = inputs(4, 256, 64, 16, 16)
    exact = exactly(x, weight, bias)
    ours, plain = (
        (y - exact).square().mean().sqrt()
        for y in (ops.convolution(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    )
    assert ours <= 8 * plain and ours <= 2e-6


def test_layouts(each_kernel):
    x, weight, bias = inputs(2, 48, 32, 6, 5)
    expected = ops.convolution(x, weight, bias)
    wide = torch.cat([x, x], 1)
    for other in (
        x.contiguous(),
        wide[:, 48:],
        F.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2],
        torch.stack([x, x], 1).flatten(0, 1)[::2],
    ):
        torch.testing.assert_close(ops.convolution(other, weight, bias), expected, rtol=0, atol=1e-5)
    for w in (weight.contiguous(memory_format=torch.channels_last), weight.double()):
        torch.testing.assert_close(ops.convolution(x, w, bias.double()), expected, rtol=0, atol=1e-5)
    alike = x[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(ops.convolution(alike, weight, bias)[1], expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("each_kernel", kernels()[1:], indirect=True)
@pytest.mark.parametrize(
    "shape", [(7, 32, 48, 9, 8), (3, 1280, 336, 5, 4)], ids=["one pass", "several passes"]
)
def test_images_do_not_depend_on_their_company(each_kernel, shape):
    x, weight, bias = inputs(*shape)
    together = ops.convolution(x, weight, bias)
    assert torch.equal(together, torch.cat([ops.convolution(i[None], weight, bias) for i in x]))
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert torch.equal(together, ops.convolution(x, weight, bias))
    finally:
        torch.set_num_threads(threads)


def test_other_images_stay_finite(each_kernel):
    x, weight, bias = inputs(3, 16, 16, 9, 9)
    x[1, 2, 3, 3] = float("inf")
    got = ops.convolution(x, weight, bias)
    assert (
        got[[0, 2]].isfinite().all()
        and got[1, :, 8:].isfinite().all()
        and not got[1, :, 3, 3].isfinite().any()
    )


@pytest.mark.parametrize("frozen", [(), (1, 2), (0,)], ids=["all", "to x", "to the weights"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients(each_kernel, dtype, frozen):
    leaves = inputs(2, 32, 16, 6, 5, dtype)
    leaves = leaves[0], leaves[1].float(), leaves[2].float()  # weights may be wider
    grad = torch.randn(1, 16, 1, 1, dtype=dtype).expand(2, -1, 6, 5)

    def run(function, convert):
        own = [convert(t.detach()).requires_grad_(i not in frozen) for i, t in enumerate(leaves)]
        function(*own).backward(convert(grad))
        return [t.grad for t in own]

    found = run(ops.convolution, lambda t: t)
    exact = run(lambda x, w, b: F.conv2d(x, w, b, padding=1), lambda t: t.double())
    for leaf, ours, right in zip(leaves, found, exact, strict=True):
        assert (ours is None) == (right is None)
        if ours is not None:
            assert ours.dtype == leaf.dtype
            tolerance = 1e-5 if leaf.dtype == torch.float32 else 1e-2
            torch.testing.assert_close(
                ours.double(), right, rtol=tolerance, atol=tolerance * right.abs().max().item()
            )


def test_gradients_without_a_bias(each_kernel):
    x, weight, _ = inputs(1, 16, 32, 5, 4)
    ops.convolution(x.requires_grad_(), weight.requires_grad_()).sum().backward()
    ours = x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    F.conv2d(x, weight, padding=1).sum().backward()
    torch.testing.assert_close(ours, (x.grad, weight.grad), rtol=1e-4, atol=1e-4)


def test_the_gradient_follows_a_request(monkeypatch):
    x, weight, bias = inputs(1, 16, 16, 4, 4)
    with ops.backend("torch"):
        out = ops.convolution(x.requires_grad_(), weight, bias)
    asked = []
    select = _dispatch.select
    monkeypatch.setattr(
        _dispatch, "select", lambda *a, **k: asked.append(k.get("backend")) or select(*a, **k)
    )
    out.sum().backward()
    assert asked == ["torch"]


def test_other_channels_run_on_pytorch():
    x, weight, bias = inputs(1, 20, 12, 5, 5)
    torch.testing.assert_close(ops.convolution(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    if _dispatch.extension():
        with pytest.raises(ValueError, match="multiples of 16 channels, got 20 to 12"):
            ops.convolution(x, weight, bias, backend="cpu")


def test_registration():
    x, weight, bias = inputs(2, 16, 32, 5, 6)
    for b in (bias, None):
        opcheck(torch.ops.vidsmooth.convolution.default, (x, weight, b))
    opcheck(torch.ops.vidsmooth.convolution.default, tuple(t.requires_grad_() for t in (x, weight, bias)))


def test_compiles_in_one_graph():
    x, weight, bias = inputs(2, 16, 32, 5, 6)
    compiled = torch.compile(ops.convolution, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), ops.convolution(x, weight, bias))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(16, 4, 4)}, "x: expected a non-empty tensor of shape"),
        ({"x": torch.zeros(0, 16, 4, 4)}, "x: expected a non-empty tensor"),
        ({"x": torch.zeros(1, 16, 4, 4, dtype=torch.int64)}, "x: expected a floating-point tensor"),
        ({"weight": torch.zeros(16, 16, 5, 5)}, r"weight: expected shape \(O, 16, 3, 3\), got \(16, 16, 5, 5\)"),
        ({"weight": torch.zeros(16, 8, 3, 3)}, r"weight: expected shape \(O, 16, 3, 3\)"),
        ({"bias": torch.zeros(16, dtype=torch.int32)}, "bias: expected a floating-point tensor"),
        ({"bias": torch.zeros(3)}, r"bias: expected shape \(16,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input(change, message):
    given = {"x": torch.zeros(1, 16, 4, 4), "weight": torch.zeros(16, 16, 3, 3), "bias": None, **change}
    with pytest.raises(ValueError, match=message):
        ops.convolution(**given)
