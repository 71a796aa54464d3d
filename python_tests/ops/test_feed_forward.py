from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch

SHAPES = {  # shape of x, hidden numbers, outputs
    "one token": ((1, 16), 16, 16),
    "fewer than a tile": ((5, 48), 192, 48),
    "uneven": ((2, 51, 32), 80, 48),
    "several panels": ((3, 100, 144), 208, 144),
    "many rows": ((2, 7, 101, 16), 64, 16),
    "wide": ((1, 7, 640), 2560, 640),
}


def kernels(dtype) -> list[str]:
    module = _dispatch.extension()
    isas = module.isas() if module else []
    if dtype == torch.bfloat16:
        isas = [isa for isa in isas if isa == "avx512_bf16"]
    return ["torch", *(isas if dtype != torch.float16 else [])]


CASES = [(dtype, kernel) for dtype in _dispatch.DTYPE_CODES for kernel in kernels(dtype)]


@pytest.fixture
def on():
    """`on(kernel)`: from here on plain PyTorch, or the C++ kernel of that instruction set."""
    module = _dispatch.extension()
    with contextlib.ExitStack() as stack:

        def choose(kernel: str) -> None:
            stack.enter_context(ops.backend("torch" if kernel == "torch" else "cpu"))
            if kernel != "torch":
                stack.callback(module.set_isa, module.isa())
                module.set_isa(kernel)

        yield choose


def inputs(shape, hidden, out, dtype=torch.float32):
    torch.manual_seed(0)
    columns = shape[-1]
    x = torch.randn(shape)
    w_in, w_out = torch.randn(2 * hidden, columns) / columns**0.5, torch.randn(out, hidden) / hidden**0.5
    return [t.to(dtype) for t in (x, w_in, torch.randn(2 * hidden), w_out, torch.randn(out))]


def plain(x, weight_in, bias_in, weight_out, bias_out):
    hidden, gate = F.linear(x, weight_in, bias_in).chunk(2, dim=-1)
    return F.linear(hidden * F.gelu(gate), weight_out, bias_out)


@pytest.mark.parametrize(("dtype", "kernel"), CASES, ids=str)
@pytest.mark.parametrize("case", SHAPES)
def test_against_the_equation(on, poisoned, within_rule, case, dtype, kernel):
    on(kernel)
    given = inputs(*SHAPES[case], dtype)
    without = [t if i % 2 or i == 0 else None for i, t in enumerate(given)]
    for arguments in (given, without):
        got = ops.feed_forward(*arguments)
        exact = plain(*(None if t is None else t.double() for t in arguments))
        assert got.dtype == dtype and got.is_contiguous()
        within_rule(got, plain(*arguments), exact)


@pytest.mark.parametrize("kernel", kernels(torch.float32))
def test_the_gate_everywhere(on, kernel):
    """h = 1, so that the hidden numbers are gelu(g), and the identity after it."""
    on(kernel)
    g = torch.cat(
        [torch.linspace(-12, 12, 4801), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 80.0, -80.0, 1e30, -1e30])]
    )
    x = F.pad(g[:, None], (0, 15))
    weight_in = torch.zeros(32, 16)
    weight_in[16, 0] = 1
    bias_in = torch.cat([torch.ones(16), torch.zeros(16)])
    got = ops.feed_forward(x, weight_in, bias_in, torch.eye(16), None)[:, 0]
    exact = F.gelu(g.double())
    error = (got - exact).abs()
    assert (error <= 2e-7 * g.abs()).all() and error[g < -5].max() <= 2e-6

    nowhere = ops.feed_forward(torch.full((1, 16), torch.nan), weight_in, bias_in, torch.eye(16), None)
    assert nowhere.isnan().any()


@pytest.mark.parametrize("kernel", kernels(torch.float32)[1:])
def test_rows_do_not_depend_on_their_company(on, kernel):
    on(kernel)
    x, *weights = inputs((103, 48), 192, 48)
    together = ops.feed_forward(x, *weights)
    assert torch.equal(together, torch.cat([ops.feed_forward(row, *weights) for row in x.split(5)]))
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert torch.equal(together, ops.feed_forward(x, *weights))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kernel", kernels(torch.float32))
def test_layouts_and_dtypes_of_weights(on, kernel):
    on(kernel)
    x, *weights = inputs((6, 9, 32), 64, 32)
    expected = ops.feed_forward(x, *weights)
    for other in (x.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([x, x], 2)[..., 32:]):
        torch.testing.assert_close(ops.feed_forward(other, *weights), expected)
    torch.testing.assert_close(ops.feed_forward(x, *(w.double() for w in weights)), expected)
    turned = [w.mT.contiguous().mT if w.dim() == 2 else w for w in weights]
    torch.testing.assert_close(ops.feed_forward(x, *turned), expected)


@pytest.mark.parametrize("kernel", kernels(torch.float32)[1:])
def test_other_default_dtypes(on, kernel):
    on(kernel)
    x, w_in, _, w_out, _ = inputs((7, 32), 64, 32)
    expected = ops.feed_forward(x, w_in, None, w_out, None)
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(ops.feed_forward(x, w_in, None, w_out, None), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("needed", [range(5), [0], [1, 4], [2, 3]], ids=str)
def test_gradients(needed):
    given = inputs((2, 9, 32), 64, 48)
    given = [t.double().detach().requires_grad_(i in needed) for i, t in enumerate(given)]
    single = [t.detach().float().requires_grad_(i in needed) for i, t in enumerate(given)]
    grad = torch.randn(2, 9, 48)
    ops.feed_forward(*single).backward(grad)
    plain(*given).backward(grad.double())
    for ours, right in zip(single, given, strict=True):
        assert (ours.grad is None) == (right.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad.double(), right.grad, rtol=1e-5, atol=1e-5)


def test_second_derivatives():
    found = []
    for function in (ops.feed_forward, plain):
        given = [t.requires_grad_() for t in inputs((3, 16), 16, 16)]
        (to_x,) = torch.autograd.grad(function(*given).square().sum(), given[0], create_graph=True)
        found.append(torch.autograd.grad(to_x.square().sum(), given[1:4]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes_that_run_on_pytorch(on, dtype):
    """fp16 always, bf16 where there are no instructions for it."""
    given = inputs((5, 32), 64, 32, dtype)
    expected = ops.feed_forward(*given, backend="torch")
    if _dispatch.extension():
        on("base")
        with pytest.raises(ValueError, match=f"got {dtype}"):
            ops.feed_forward(*given)
    assert torch.equal(ops.feed_forward(*given, backend="cpu,torch"), expected)


def test_other_columns_run_on_pytorch():
    given = inputs((5, 20), 64, 32)
    torch.testing.assert_close(ops.feed_forward(*given), plain(*given))
    if _dispatch.extension():
        with pytest.raises(ValueError, match=r"multiples of 16 columns, got \(20, 32, 64\)"):
            ops.feed_forward(*given, backend="cpu")


def test_registration():
    given = inputs((2, 5, 16), 32, 16)
    for arguments in (given, [*given[:2], None, given[3], None], [t.requires_grad_() for t in given]):
        opcheck(torch.ops.vidsmooth.feed_forward.default, tuple(arguments))


def test_compiles_in_one_graph():
    given = inputs((2, 5, 16), 32, 16)
    compiled = torch.compile(ops.feed_forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), ops.feed_forward(*given))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(16)}, "x: expected a non-empty tensor of shape"),
        ({"x": torch.zeros(0, 16)}, "x: expected a non-empty tensor"),
        ({"x": torch.zeros(2, 16, dtype=torch.int64)}, "x: expected a floating-point tensor"),
        ({"weight_in": torch.zeros(64, 8)}, r"weight_in: expected shape \(O, 16\), got \(64, 8\)"),
        ({"weight_in": torch.zeros(32, 16)}, "weight_in: expected 64 rows, two for each column of weight_out, got 32"),
        ({"weight_out": torch.zeros(16)}, "weight_out: expected a non-empty tensor"),
        ({"bias_in": torch.zeros(3)}, r"bias_in: expected shape \(64,\), got \(3,\)"),
        ({"bias_out": torch.zeros(16, dtype=torch.int32)}, "bias_out: expected a floating-point tensor"),
        ({"weight_out": torch.zeros(16, 32, device="meta")}, "weight_out: expected the device of x"),
    ],
)  # fmt: skip
def test_bad_input(change, message):
    given = {
        "x": torch.zeros(2, 16),
        "weight_in": torch.zeros(64, 16),
        "bias_in": None,
        "weight_out": torch.zeros(16, 32),
        "bias_out": None,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        ops.feed_forward(**given)
