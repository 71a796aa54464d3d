from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from vidsmooth_fast import ops
from vidsmooth_fast.ops._windows import check_weights
from vidsmooth_fast.ops.denoise_step import reference as plain

STARTS, LENGTH, FRAMES = [0, 2, 4, 6, 7], 4, 11
DEFAULTS = {
    "c": 0.0,
    "to_eps": (0.0, 1.0),
    "to_clean": None,
    "c_over_lambda": 0.0,
    "strength": 0.0,
    "noise_scale": 0.0,
    "loop": False,
}
VIDEOS = ("history", "reference", "noise")
CASES = {
    "one branch": {"branch_weights": [1.0]},
    "guidance": {"branch_weights": [-6.5, 7.5]},
    "three branches, clean": {"branch_weights": [-6.5, 6.0, 1.5], "to_clean": (1.3, -0.8)},
    "constrained": {
        "branch_weights": [-1.0, 2.0],
        "strength": 0.25,
        "c_over_lambda": 1.2,
        "to_clean": (1.3, -0.8),
    },
    "constrained loop": {"branch_weights": [1.0], "strength": 0.25, "c_over_lambda": 1.2, "loop": True},
    "velocity": {"branch_weights": [-1.0, 2.0], "to_eps": (0.6, 0.8)},
    "everything": {
        "branch_weights": [-2.0, 3.0],
        "to_eps": (0.6, 0.8),
        "to_clean": (1.3, -0.8),
        "c": 0.3,
        "strength": 0.2,
        "c_over_lambda": 1.2,
        "noise_scale": 0.1,
    },
}


def inputs(
    case, dtype=torch.float32, pixels=(5, 7), frames=FRAMES, starts=STARTS, length=LENGTH, channels=3, batch=2
):
    torch.manual_seed(0)
    settings = {**DEFAULTS, **CASES[case]}
    branches = len(settings["branch_weights"])
    pred = torch.randn(branches, batch, len(starts), channels, length, *pixels).to(dtype)
    x, history, reference, noise = (torch.randn(batch, channels, frames, *pixels) for _ in range(4))
    videos = {
        "history": history if settings["c"] else None,
        "reference": reference if settings["strength"] and case == "everything" else None,
        "noise": noise if settings["noise_scale"] else None,
    }
    return pred, x, torch.rand(length) + 0.1, {"a": 0.9, "b": -0.4, **settings}, videos


def check(within_rule, pred, x, starts, weights, settings, videos):
    got, clean = ops.denoise_step(pred, x, starts, weights, **settings, **videos)
    args = [check_weights(weights, pred), *(videos[name] for name in VIDEOS), starts]
    eager = plain(pred, x, *args, **settings)
    wide = [None if t is None else t.double() for t in args[:-1]]
    exact = plain(pred.double(), x.double(), *wide, starts, **settings)
    assert got.dtype == torch.float32
    within_rule(got, eager[0], exact[0])
    if settings["to_clean"] is None:
        assert clean is None
    else:
        assert clean.dtype == torch.float32
        within_rule(clean, eager[1], exact[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_the_equations(each_backend, poisoned, within_rule, case, dtype):
    pred, x, weights, settings, videos = inputs(case, dtype)
    check(within_rule, pred, x, STARTS, weights, settings, videos)


@pytest.mark.parametrize("case", ["constrained", "constrained loop", "everything"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames(each_backend, poisoned, within_rule, case, frames):
    pred, x, weights, settings, videos = inputs(case, frames=frames, starts=[0], length=frames)
    check(within_rule, pred, x, [0], weights, settings, videos)


def test_the_default_dtype_changes_nothing(each_backend):
    pred, x, weights, settings, videos = inputs("everything")
    expected = ops.denoise_step(pred, x, STARTS, weights, **settings, **videos)
    torch.set_default_dtype(torch.float16)  # half the bytes of what the kernels write
    try:
        got = ops.denoise_step(pred, x, STARTS, weights, **settings, **videos)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, wanted in zip(got, expected, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, wanted)


@pytest.mark.parametrize("pixels", [(1, 1), (65, 67)], ids=str)
def test_tiles(each_backend, poisoned, within_rule, pixels):
    pred, x, weights, settings, videos = inputs("everything", pixels=pixels, batch=1)
    check(within_rule, pred, x, STARTS, weights, settings, videos)


def test_pixel_weights_around_a_loop(each_backend, poisoned, within_rule):
    starts, frames = [0, 2, 4, 6], 8
    pred, x, _, settings, videos = inputs("constrained loop", frames=frames, starts=starts)
    weights = torch.rand(3, LENGTH, 5, 7) + 0.1
    check(within_rule, pred, x, starts, weights, settings, videos)


def test_the_result_is_that_of_the_separate_operators(each_backend):
    """Frame ranges are shared out among threads: a long video, in one piece and in parts, with a circle."""
    starts, frames = list(range(0, 48, 2)), 48
    pred, x, weights, settings, _ = inputs(
        "constrained loop", frames=frames, starts=starts, pixels=(32, 32), batch=1
    )
    got, _ = ops.denoise_step(pred, x, starts, weights, **settings)
    merged = ops.window_merge(pred[0], starts, weights, frames=frames)
    eps = ops.noise_constraint(merged, x, c_over_lambda=1.2, strength=0.25, loop=True)
    torch.testing.assert_close(got, settings["a"] * x + settings["b"] * eps)


def test_layouts(each_backend, layout):
    pred, x, weights, settings, videos = inputs("everything", channels=4)
    expected = ops.denoise_step(pred, x, STARTS, weights, **settings, **videos)
    moved = layout(pred.flatten(0, 2)).unflatten(0, pred.shape[:3])
    videos = {name: None if video is None else layout(video) for name, video in videos.items()}
    got = ops.denoise_step(moved, layout(x), STARTS, weights, **settings, **videos)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.is_contiguous()


def test_factors_of_zero_leave_a_tensor_unread(each_backend):
    pred, x, weights, settings, _ = inputs("guidance")
    nan = torch.full_like(x, float("nan"))
    got, _ = ops.denoise_step(pred, x, STARTS, weights, **settings, history=nan, noise=nan)
    assert got.isfinite().all()


def test_opcheck():
    pred, x, weights, settings, videos = inputs("everything", pixels=(2, 3), batch=1)
    args = (pred, x, check_weights(weights, pred), *(videos[name] for name in VIDEOS), STARTS)
    op = torch.ops.vidsmooth.denoise_step.default
    opcheck(op, args, settings)
    opcheck(op, args, {**settings, "to_clean": None})


def test_compiles_in_one_graph():
    pred, x, weights, settings, _ = inputs("guidance", torch.bfloat16)

    def run(pred, x):
        return ops.denoise_step(pred, x, STARTS, weights, **settings)[0] + 1

    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(pred, x), run(pred, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": torch.zeros(2, 3)}, r"^pred: expected .*\(G, B, N, C, K, H, W\), got \(2, 3\)$"),
        ({"x": torch.zeros(2, 3, FRAMES, 5, 7).half()}, r"^x: expected torch.float32, got torch.float16$"),
        (
            {"x": torch.zeros(2, 3, FRAMES, 5, 8)},
            r"^x: expected shape \(2, 3, 'F', 5, 7\) to go with pred, got",
        ),
        ({"x": torch.zeros(2, 3, FRAMES + 1, 5, 7)}, r"^starts: .* frame 11 and 0 others are in none$"),
        ({"history": torch.zeros(1)}, r"^history: expected the shape of x"),
        ({"noise": torch.zeros(2, 3, FRAMES, 5, 7).double()}, r"^noise: expected the dtype of x"),
        ({"c": 0.5}, r"^history: expected a tensor like x because its factor is 0.5, got None$"),
        ({"noise_scale": 0.5}, r"^noise: expected a tensor like x because its factor is 0.5, got None$"),
        ({"branch_weights": [1.0]}, r"^branch_weights: expected 2, one per branch of pred, got 1$"),
        ({"to_eps": (1.0,)}, r"^to_eps: expected two factors"),
        ({"to_clean": (1.0,)}, r"^to_clean: expected two factors"),
        ({"starts": [0]}, r"^starts: expected 5 ints"),
        ({"weights": torch.ones(3)}, r"^weights: expected 4, one per frame of a window, got \(3,\)$"),
        ({"x": torch.zeros(2, 3, FRAMES, 5, 7, requires_grad=True)}, r"^pred, x: expected no gradients"),
    ],
)
def test_bad_input(change, message):
    pred, x, weights, settings, _ = inputs("guidance")
    call = {"pred": pred, "x": x, "starts": STARTS, "weights": weights, **settings, **change}
    with pytest.raises(ValueError, match=message) as error:
        ops.denoise_step(**call)
    assert "\n" not in str(error.value)
