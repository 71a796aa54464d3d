from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from vidsmooth_fast import ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {  # shape (B·F, C, H, W), groups, frames
    "one value a group": ((1, 3, 1, 1), 3, 1),
    "ten channels a group": ((2, 40, 5, 7), 4, 1),
    "over all frames": ((6, 24, 3, 5), 8, 3),
    "one group": ((2, 20, 9, 4), 1, 2),
    "every channel alone": ((4, 6, 8, 8), 6, 2),
    "many rows": ((4, 16, 33, 31), 2, 4),
    "wide": ((2, 320, 4, 4), 32, 1),
    "uneven": ((2, 75, 6, 5), 5, 2),
}


def by_hand(x, weight, bias, groups, frames, eps=1e-5, silu=True):
    """The equation, with one video's group as one row."""
    images, channels, height, width = x.shape
    rows = x.unflatten(0, (-1, frames)).transpose(1, 2).reshape(images // frames, groups, -1)
    rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, correction=0, keepdim=True) + eps).sqrt()
    y = rows.view(images // frames, channels, frames, height, width).transpose(1, 2).flatten(0, 1)
    y = y * weight.to(x.dtype)[:, None, None] + bias.to(x.dtype)[:, None, None]
    return y * y.sigmoid() if silu else y


def eager(x, weight, bias, groups, frames, eps=1e-5, silu=True):
    """What a user of PyTorch writes."""
    video = x.unflatten(0, (-1, frames)).transpose(1, 2)
    y = F.group_norm(video, groups, weight.to(x.dtype), bias.to(x.dtype), eps).transpose(1, 2).flatten(0, 1)
    return F.silu(y) if silu else y


def inputs(shape, dtype=torch.float32, offset=0.0):
    torch.manual_seed(0)
    x = (torch.randn(shape) + offset).to(dtype, memory_format=torch.channels_last)
    return x, torch.randn(shape[1]) + 1, torch.randn(shape[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in SHAPES if case != "one value a group"])
def test_against_the_equation(each_backend, poisoned, within_rule, case, dtype):
    shape, groups, frames = SHAPES[case]
    x, weight, bias = inputs(shape, dtype)
    for silu in (True, False):
        settings = {"groups": groups, "frames": frames, "eps": 1e-6 if silu else 1e-5, "silu": silu}
        got = ops.group_norm_silu(x, weight, bias, **settings)
        exact = by_hand(x.double(), weight.double(), bias.double(), **settings)
        assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
        within_rule(got, eager(x, weight, bias, **settings), exact)


def test_one_value_a_group_is_the_bias(each_backend):
    shape, groups, frames = SHAPES["one value a group"]
    x, weight, bias = inputs(shape)
    got = ops.group_norm_silu(x, weight, bias, groups=groups, frames=frames, silu=False)
    torch.testing.assert_close(got[0, :, 0, 0], bias, rtol=0, atol=1e-3)  # 1/√eps times a rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_any_dtype(each_backend, within_rule, dtype):
    x, weight, bias = inputs((2, 24, 5, 5), dtype)
    for other in (*DTYPES, torch.float64):
        w, b = weight.to(other), bias.to(other)
        exact = by_hand(x.double(), w.double(), b.double(), 3, 2)
        within_rule(ops.group_norm_silu(x, w, b, groups=3, frames=2), eager(x, w, b, 3, 2), exact)


def test_weights_that_lie_apart(each_backend):
    x, weight, bias = inputs((2, 8, 3, 3))
    apart, repeated = torch.stack([weight, bias], 1), torch.tensor([0.5]).expand(8)

    def run(weight, bias):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        out = ops.group_norm_silu(*leaves, groups=4, frames=2)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    for w, b in ((apart[:, 0], apart[:, 1]), (apart[:, 0], repeated)):
        for got, expected in zip(run(w, b), run(w.contiguous(), b.contiguous()), strict=True):
            torch.testing.assert_close(got, expected)


def test_a_mean_far_from_zero_costs_no_precision(each_backend, within_rule):
    x, weight, bias = inputs((4, 16, 9, 9), offset=300.0)
    exact = by_hand(x.double(), weight.double(), bias.double(), 4, 2)
    within_rule(ops.group_norm_silu(x, weight, bias, groups=4, frames=2), eager(x, weight, bias, 4, 2), exact)


@pytest.mark.parametrize(
    "move",
    [
        lambda t: t.contiguous(),
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: F.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    ],
    ids=["NCHW", "CNHW", "a crop"],
)
def test_other_layouts_run_on_the_reference(move):
    x, weight, bias = inputs((4, 24, 5, 6))
    expected = ops.group_norm_silu(x, weight, bias, groups=4, frames=2)
    got = ops.group_norm_silu(move(x), weight, bias, groups=4, frames=2)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("frames", [1, 2])
def test_gradients(frames, silu):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def run(x, weight, bias):
        return ops.group_norm_silu(x, weight, bias, groups=3, frames=frames, silu=silu)

    assert torch.autograd.gradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["ten channels a group", "over all frames", "many rows", "uneven"])
def test_gradients_in_every_dtype(each_backend, within_rule, case, dtype):
    shape, groups, frames = SHAPES[case]
    tensors = inputs(shape, dtype)
    for silu in (True, False):
        settings = {"groups": groups, "frames": frames, "silu": silu}
        grad = torch.randn(shape).to(dtype)

        def gradients(function, *tensors, settings=settings):
            leaves = [t.clone().requires_grad_() for t in tensors[:3]]
            return torch.autograd.grad(function(*leaves, **settings), leaves, tensors[3])

        exact = gradients(by_hand, *(t.double() for t in (*tensors, grad)))
        by_torch = gradients(eager, *tensors, grad)
        for got, plain, wide in zip(
            gradients(ops.group_norm_silu, *tensors, grad), by_torch, exact, strict=True
        ):
            within_rule(got, plain, wide)


def test_gradients_shared_by_threads(within_rule):
    tensors = inputs((6, 24, 40, 40))  # 230,400 elements: work for several threads
    grad = torch.randn(6, 24, 40, 40)
    before = torch.get_num_threads()

    def gradients(function, *tensors):
        leaves = [t.clone().requires_grad_() for t in tensors[:3]]
        return torch.autograd.grad(function(*leaves, groups=8, frames=3), leaves, tensors[3])

    exact = gradients(by_hand, *(t.double() for t in (*tensors, grad)))
    plain = gradients(eager, *tensors, grad)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for got, theirs, wide in zip(
                gradients(ops.group_norm_silu, *tensors, grad), plain, exact, strict=True
            ):
                within_rule(got, theirs, wide)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    x, weight, bias = (t.requires_grad_() for t in inputs((4, 6, 2, 3), dtype))
    op = torch.ops.vidsmooth.group_norm_silu.default
    opcheck(op, (x, weight, bias), {"groups": 2})
    opcheck(op, (x, weight, bias), {"groups": 3, "frames": 2, "eps": 1e-6, "silu": False})


def test_opcheck_of_the_backward():
    x, weight, bias = inputs((4, 6, 2, 3))
    settings = {"groups": 2, "frames": 2, "eps": 1e-5, "silu": True}
    opcheck(
        torch.ops.vidsmooth.group_norm_silu_backward.default, (torch.ones_like(x), x, weight, bias), settings
    )


def test_compiles_in_one_graph():
    leaves = [t.requires_grad_() for t in inputs((4, 6, 2, 3))]

    def run(x, weight, bias):
        return ops.group_norm_silu(x, weight, bias, groups=2, frames=2) + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), run(*leaves))
    for got, expected in zip(
        torch.autograd.grad(compiled(*leaves).sum(), leaves),
        torch.autograd.grad(run(*leaves).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


X, W = torch.zeros(4, 6, 2, 3), torch.ones(6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"^x: expected a non-empty tensor of shape \(B\*F, C, H, W\), got \(6, 2, 3\)$"),
        ({"x": X[:0]}, r"^x: expected a non-empty tensor"),
        ({"x": X.int()}, r"^x: expected a floating-point tensor, got torch.int32$"),
        (
            {"weight": W[:5]},
            r"^weight: expected a floating-point tensor of shape \(6,\), got torch.float32 of \(5,\)$",
        ),
        ({"weight": None}, r"^weight: expected a floating-point tensor of shape \(6,\), got NoneType$"),
        (
            {"bias": W.int()},
            r"^bias: expected a floating-point tensor of shape \(6,\), got torch.int32 of \(6,\)$",
        ),
        ({"bias": W.to("meta")}, r"^bias: expected the device of x, cpu, got meta$"),
        ({"groups": 4}, r"^groups: expected a positive divisor of the 6 channels of x, got 4$"),
        ({"groups": 0}, r"^groups: expected a positive divisor of the 6 channels of x, got 0$"),
        ({"frames": 3}, r"^frames: expected a positive divisor of the 4 images of x, got 3$"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": X, "weight": W, "bias": W, "groups": 2, "frames": 2, **change}
    with pytest.raises(ValueError, match=message) as error:
        ops.group_norm_silu(**arguments)
    assert "\n" not in str(error.value)
