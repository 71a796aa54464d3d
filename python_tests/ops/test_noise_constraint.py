from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from vidsmooth_fast import ops
from vidsmooth_fast.ops.noise_constraint import reference as plain

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# odd sizes; tiles and tails; one and two frames; a row longer than a tile; enough work for two threads
SHAPES = [
    (2, 3, 5, 3, 7),
    (1, 1, 1, 2, 2),
    (1, 2, 2, 4, 5),
    (1, 1, 3, 65, 67),
    (1, 3, 37, 33, 35),
    (2, 4, 3, 1, 1),
]


def by_hand(eps, x, c, strength, r=None, loop=False):
    """The equation, frame by frame."""
    out = eps.clone()
    frames = eps.shape[2]

    def second(y, n):
        return 2 * y[:, :, n] - y[:, :, n - 1] - y[:, :, (n + 1) % frames]

    for n in range(frames) if loop else range(1, frames - 1):
        change = second(eps, n) - c * second(x, n) + (0 if r is None else second(r, n))
        out[:, :, n] = eps[:, :, n] - strength * change
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loop", [False, True])
def test_against_the_equation(each_backend, poisoned, within_rule, shape, dtype, loop):
    torch.manual_seed(0)
    eps, x, r = (torch.randn(shape).to(dtype) for _ in range(3))
    for ref in (None, r):
        got = ops.noise_constraint(eps, x, c_over_lambda=1.7, strength=0.3, reference=ref, loop=loop)
        eager = plain(eps, x, ref, c_over_lambda=1.7, strength=0.3, loop=loop)
        exact = by_hand(eps.double(), x.double(), 1.7, 0.3, None if ref is None else ref.double(), loop)
        assert got.dtype == dtype
        within_rule(got, eager, exact)


def test_the_reference_copies_nothing_to_the_device(monkeypatch):
    video = torch.randn(1, 2, 5, 3, 4)
    monkeypatch.delattr(torch, "tensor")
    assert plain(video, video, c_over_lambda=0.5, strength=0.2).isfinite().all()


def test_layouts(each_backend, layout):
    torch.manual_seed(0)
    eps, x, r = (torch.randn(2, 4, 6, 5, 9) for _ in range(3))
    settings = {"c_over_lambda": 0.7, "strength": 0.2}
    expected = ops.noise_constraint(eps, x, reference=r, **settings)
    torch.testing.assert_close(ops.noise_constraint(layout(eps), x, reference=r, **settings), expected)
    moved = ops.noise_constraint(layout(eps), layout(x), reference=layout(r), **settings)
    torch.testing.assert_close(moved, expected)
    assert moved.is_contiguous()


def test_a_tensor_broadcast_over_frames(each_backend):
    eps, shared = torch.randn(1, 2, 5, 4, 4), torch.randn(1, 2, 1, 4, 4).expand(1, 2, 5, 4, 4)
    got = ops.noise_constraint(eps, shared, c_over_lambda=3.0, strength=0.25)
    torch.testing.assert_close(got, by_hand(eps, torch.zeros_like(eps), 0.0, 0.25))


def test_ends_ignore_what_is_not_finite_inside(each_backend):
    eps = torch.randn(1, 1, 4, 2, 2)
    eps[:, :, 1:3] = float("nan")
    got = ops.noise_constraint(eps, eps, c_over_lambda=1.0, strength=0.25)
    assert torch.equal(got[:, :, [0, 3]], eps[:, :, [0, 3]])


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
@pytest.mark.parametrize("loop", [False, True])
def test_gradients(frames, loop):
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, frames, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def run(eps, x, r):
        return ops.noise_constraint(eps, x, c_over_lambda=1.7, strength=0.3, reference=r, loop=loop)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    eps, x, r = (torch.randn(1, 2, 4, 3, 5).to(dtype).requires_grad_() for _ in range(3))
    op = torch.ops.vidsmooth.noise_constraint.default
    opcheck(op, (eps, x), {"c_over_lambda": 1.0, "strength": 0.25})
    opcheck(op, (eps, x, r), {"c_over_lambda": 1.0, "strength": 0.25, "loop": True})


def test_compiles_in_one_graph():
    eps, x = torch.randn(1, 2, 4, 3, 5), torch.randn(1, 2, 4, 3, 5)

    def run(eps, x):
        return ops.noise_constraint(eps, x, c_over_lambda=1.0, strength=0.25) + 1

    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(eps, x), run(eps, x))


VIDEO = torch.zeros(1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("eps", "x", "reference", "message"),
    [
        (VIDEO[0], VIDEO, None, r"^eps: expected .*\(B, C, F, H, W\), got \(2, 3, 4, 5\)$"),
        (VIDEO[:, :, :0], VIDEO[:, :, :0], None, r"^eps: expected a non-empty .* got \(1, 2, 0, 4, 5\)$"),
        (VIDEO.long(), VIDEO, None, r"^eps: expected a floating-point tensor, got torch.int64$"),
        (VIDEO.tolist(), VIDEO, None, r"^eps: expected a tensor .* got list$"),
        (VIDEO, VIDEO[:, :, 1:], None, r"^x: expected the shape of eps, .* got \(1, 2, 2, 4, 5\)$"),
        (VIDEO, VIDEO.half(), None, r"^x: expected the dtype of eps, torch.float32, got torch.float16$"),
        (VIDEO, VIDEO.to("meta"), None, r"^x: expected the device of eps, cpu, got meta$"),
        (VIDEO, VIDEO, VIDEO.bfloat16(), r"^reference: expected the dtype of eps, .* got torch.bfloat16$"),
    ],
)
def test_bad_input(eps, x, reference, message):
    with pytest.raises(ValueError, match=message) as error:
        ops.noise_constraint(eps, x, c_over_lambda=1.0, strength=0.25, reference=reference)
    assert "\n" not in str(error.value)
