from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from vidsmooth_fast import ops
from vidsmooth_fast.ops._windows import check_weights
from vidsmooth_fast.ops.window_merge import reference as plain

STARTS = {  # frames, window length, starts
    "one window": (5, 5, [0]),
    "half overlap": (10, 4, [0, 2, 4, 6]),
    "uneven tail": (11, 4, [0, 2, 4, 6, 7]),
    "around the end": (8, 4, [0, 2, 4, 6]),
    "dense": (17, 9, list(range(9))),  # up to nine windows on a frame: more than one pass
    "every frame twice in one window": (3, 6, [1]),
    "before the beginning": (6, 4, [-2, 1]),
}
WEIGHTS = {
    "(K,)": lambda c, k, h, w: torch.arange(1.0, k + 1),
    "(K, 1, 1)": lambda c, k, h, w: torch.rand(k, 1, 1) + 0.1,
    "(C, 1, 1, 1)": lambda c, k, h, w: torch.rand(c, 1, 1, 1) + 0.1,
    "(C, K, H, W)": lambda c, k, h, w: torch.rand(c, k, h, w) + 0.1,
    "(H, W)": lambda c, k, h, w: torch.rand(h, w) + 0.1,
    "strided": lambda c, k, h, w: (torch.rand(w, h, k, c) + 0.1).permute(3, 2, 1, 0),
    "(K, H, 1)": lambda c, k, h, w: torch.rand(k, h, 1) + 0.1,
}


def by_hand(windows, starts, weights, frames):
    """Σ ω v / Σ ω, frame by frame."""
    batch, _, channels, length, height, width = windows.shape
    weights = weights.to(windows.dtype)
    weights = (weights[:, None, None] if weights.dim() == 1 else weights).expand(
        channels, length, height, width
    )
    out = torch.empty(batch, channels, frames, height, width, dtype=windows.dtype)
    for f in range(frames):
        over, under = 0, 0
        for i, start in enumerate(starts):
            for k in range(length):
                if (start + k) % frames == f:
                    over = over + weights[:, k] * windows[:, i, :, k]
                    under = under + weights[:, k]
        out[:, :, f] = over / under
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", STARTS)
@pytest.mark.parametrize("kind", ["(K,)", "(C, K, H, W)"])
def test_against_the_equation(each_backend, poisoned, within_rule, case, kind, dtype):
    torch.manual_seed(0)
    frames, length, starts = STARTS[case]
    windows = torch.randn(2, len(starts), 3, length, 5, 7).to(dtype)
    weights = WEIGHTS[kind](3, length, 5, 7)
    got = ops.window_merge(windows, starts, weights, frames=frames)
    eager = plain(windows, check_weights(weights, windows), starts, frames=frames)
    assert got.dtype == dtype
    within_rule(got, eager, by_hand(windows.double(), starts, weights, frames))


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("pixels", [(5, 7), (1, 1), (1, 6), (6, 1), (65, 67)], ids=str)
def test_every_shape_of_weights(each_backend, poisoned, within_rule, kind, pixels):
    torch.manual_seed(0)
    frames, length, starts = STARTS["uneven tail"]
    windows = torch.randn(1, len(starts), 2, length, *pixels)
    weights = WEIGHTS[kind](2, length, *pixels)
    eager = plain(windows, check_weights(weights, windows), starts, frames=frames)
    exact = by_hand(windows.double(), starts, weights, frames)
    within_rule(ops.window_merge(windows, starts, weights, frames=frames), eager, exact)


def test_layouts(each_backend, layout):
    torch.manual_seed(0)
    frames, length, starts = STARTS["half overlap"]
    windows = torch.randn(2, len(starts), 4, length, 5, 9)
    weights = torch.rand(length) + 0.1
    moved = layout(windows.flatten(0, 1)).unflatten(0, (2, len(starts)))
    got = ops.window_merge(moved, torch.tensor(starts), weights, frames=frames)
    torch.testing.assert_close(got, ops.window_merge(windows, starts, weights, frames=frames))
    assert got.is_contiguous()


def test_cut_from_one_video_they_give_it_back(each_backend):
    video = torch.randn(1, 2, 10, 6, 6)
    starts, weights = [0, 3, 6, 8], torch.tensor([1.0, 2.0, 2.0, 1.0])
    windows = torch.stack([video[:, :, [(s + k) % 10 for k in range(4)]] for s in starts], 1)
    torch.testing.assert_close(ops.window_merge(windows, starts, weights, frames=10), video)


@pytest.mark.parametrize("kind", ["(K,)", "(C, K, H, W)"])
def test_gradients(kind):
    frames, length, starts = STARTS["around the end"]
    windows = torch.randn(1, len(starts), 2, length, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = WEIGHTS[kind](2, length, 2, 3).double()
    assert torch.autograd.gradcheck(lambda v: ops.window_merge(v, starts, weights, frames=frames), [windows])


def test_opcheck():
    windows = torch.randn(1, 3, 2, 4, 2, 3, requires_grad=True)
    weights = check_weights(torch.rand(4), windows)
    opcheck(torch.ops.vidsmooth.window_merge.default, (windows, weights, [0, 2, 4]), {"frames": 8})


def test_compiles_in_one_graph():
    windows, weights = torch.randn(1, 3, 2, 4, 2, 3), torch.rand(4)

    def run(v, w):
        return ops.window_merge(v, [0, 2, 4], w, frames=8) + 1

    assert torch.equal(
        torch.compile(run, fullgraph=True, backend="aot_eager")(windows, weights), run(windows, weights)
    )


WINDOWS = torch.zeros(1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("windows", "starts", "weights", "frames", "message"),
    [
        (WINDOWS[0], [0, 4], torch.ones(4), 8, r"^windows: expected .*\(B, N, C, K, H, W\)"),
        (WINDOWS[:, :0], [], torch.ones(4), 8, r"^windows: expected a non-empty"),
        (WINDOWS, [0, 5], torch.ones(4), 9, r"^starts: .* frame 4 and 0 others are in none$"),
        (WINDOWS, [0], torch.ones(4), 4, r"^starts: expected 2 ints, one per window, got \[0\]$"),
        (WINDOWS, [0.0, 4.0], torch.ones(4), 8, r"^starts: expected 2 ints"),
        (WINDOWS, torch.zeros(2), torch.ones(4), 8, r"^starts: expected int64"),
        (WINDOWS, [0, 4], torch.ones(5), 8, r"^weights: expected 4, one per frame of a window, got \(5,\)$"),
        (
            WINDOWS,
            [0, 4],
            torch.ones(5, 1, 1),
            8,
            r"^weights: .* broadcasts to \(3, 4, 5, 6\), got \(5, 1, 1\)$",
        ),
        (WINDOWS, [0, 4], torch.ones(1, 1, 4, 1, 1), 8, r"^weights: "),
        (WINDOWS, [0, 4], [1.0] * 4, 8, r"^weights: expected a floating-point tensor, got list$"),
        (WINDOWS, [0, 4], torch.ones(4, requires_grad=True), 8, r"^weights: expected no requires_grad"),
        (WINDOWS, [0, 4], torch.ones(4), 0, r"^frames: expected at least 1, got 0$"),
    ],
)
def test_bad_input(each_backend, windows, starts, weights, frames, message):
    with pytest.raises(ValueError, match=message) as error:
        ops.window_merge(windows, starts, weights, frames=frames)
    assert "\n" not in str(error.value)
