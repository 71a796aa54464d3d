from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from vidsmooth_fast import ops
from vidsmooth_fast.ops.inversion_blend import reference as plain

SETTINGS = {"weight": 0.4, "forward": 0.7, "backward": 0.2}


def by_hand(inverted, noise, weight, forward, backward, loop=False):
    """The equation, frame by frame."""
    frames = inverted.shape[2]
    if frames == 1:
        return inverted.clone()
    out = torch.empty_like(inverted)
    for n in range(frames):
        neighbours = {n - 1: forward, n + 1: backward}
        if loop:
            terms = [((n - 1) % frames, forward), ((n + 1) % frames, backward)]
        else:
            terms = [(m, share) for m, share in neighbours.items() if 0 <= m < frames]
            if len(terms) == 1:
                terms = [(terms[0][0], forward + backward)]
        implied = sum(share * (inverted[:, :, m] + noise[:, :, n] - noise[:, :, m]) for m, share in terms)
        out[:, :, n] = (1 - weight) * inverted[:, :, n] + weight * implied
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 3, 7), (1, 1, 1, 2, 2), (1, 2, 2, 4, 5), (1, 2, 3, 65, 67)], ids=str
)
@pytest.mark.parametrize("loop", [False, True])
def test_against_the_equation(each_backend, poisoned, within_rule, shape, dtype, loop):
    torch.manual_seed(0)
    inverted, noise = (torch.randn(shape).to(dtype) for _ in range(2))
    got = ops.inversion_blend(inverted, noise, **SETTINGS, loop=loop)
    eager = plain(inverted, noise, **SETTINGS, loop=loop)
    exact = by_hand(inverted.double(), noise.double(), **SETTINGS, loop=loop)
    assert got.dtype == dtype
    within_rule(got, eager, exact)


def test_noise_that_relates_the_frames_exactly_changes_nothing(each_backend):
    noise = torch.randn(1, 2, 7, 4, 4)
    inverted = noise + torch.randn(1, 2, 1, 4, 4)  # differences over frames are the noise's
    torch.testing.assert_close(ops.inversion_blend(inverted, noise, weight=0.8), inverted)


def test_layouts(each_backend, layout):
    torch.manual_seed(0)
    inverted, noise = (torch.randn(2, 4, 6, 5, 9) for _ in range(2))
    expected = ops.inversion_blend(inverted, noise, **SETTINGS)
    torch.testing.assert_close(ops.inversion_blend(inverted, layout(noise), **SETTINGS), expected)
    moved = ops.inversion_blend(layout(inverted), layout(noise), **SETTINGS)
    torch.testing.assert_close(moved, expected)
    assert moved.is_contiguous()


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
@pytest.mark.parametrize("loop", [False, True])
def test_gradients(frames, loop):
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, frames, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda v, e: ops.inversion_blend(v, e, **SETTINGS, loop=loop), inputs)


def test_opcheck():
    inverted, noise = (torch.randn(1, 2, 4, 3, 5, requires_grad=True) for _ in range(2))
    opcheck(torch.ops.vidsmooth.inversion_blend.default, (inverted, noise), {"weight": 0.3, "loop": True})
    single = (inverted[:, :, :1].detach().bfloat16(), noise[:, :, :1].detach().bfloat16())
    opcheck(torch.ops.vidsmooth.inversion_blend.default, single, {"weight": 0.3})


def test_compiles_in_one_graph():
    inverted, noise = torch.randn(1, 2, 4, 3, 5), torch.randn(1, 2, 4, 3, 5)

    def run(v, e):
        return ops.inversion_blend(v, e, weight=0.3) + 1

    assert torch.equal(
        torch.compile(run, fullgraph=True, backend="aot_eager")(inverted, noise), run(inverted, noise)
    )


@pytest.mark.parametrize(
    ("inverted", "noise", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), r"^inverted: expected .*\(B, C, F, H, W\), got \(2, 3\)$"),
        (torch.zeros(1, 0, 1, 1, 1), torch.zeros(1, 0, 1, 1, 1), r"^inverted: expected a non-empty"),
        (torch.zeros(1, 1, 3, 2, 2), torch.zeros(1, 1, 1, 2, 2), r"^noise: expected the shape of inverted"),
        (
            torch.zeros(1, 1, 1, 2, 2),
            torch.zeros(1, 1, 1, 2, 2).half(),
            r"^noise: expected the dtype of inverted",
        ),
    ],
)
def test_bad_input(inverted, noise, message):
    with pytest.raises(ValueError, match=message):
        ops.inversion_blend(inverted, noise, weight=0.5)
