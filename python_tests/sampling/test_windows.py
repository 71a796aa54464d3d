"""Windows: every frame covered, the merge of any plan and weighting an average, bad arguments one line."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsmooth_fast import ops
from vidsmooth_fast.sampling.windows import (
    WEIGHTS,
    centre_frames,
    coverage,
    plan,
    ramp_weights,
    super_windows,
    window_indices,
    window_length,
    window_weights,
)

PLANS = [
    (16, 8),
    (16, 4),
    (16, 16),
    (16, 12),
    (16, 5),
    (16, 1),
    (24, 8),
    (8, 4),
    (8, 3),
    (5, 3),
    (3, 1),
    (2, 1),
    (2, 2),
]


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("window, stride", PLANS)
def test_every_frame_is_covered(window, stride, loop):
    for frames in range(1, 301):
        starts = plan(frames, window, stride, loop)
        length = window_length(frames, window)
        assert list(starts) == sorted(set(starts)) and starts[0] == 0 and starts[-1] < frames
        indices = window_indices(starts, length, frames)
        assert set(indices.flatten().tolist()) == set(range(frames))
        assert all(len(set(row)) == length for row in indices.tolist())  # no window sees a frame twice
        if frames <= window:
            assert starts == (0,)
        elif loop:
            assert starts == tuple(range(0, frames, stride))
        else:
            assert starts[-1] + window == frames  # the last window ends at the last frame
            assert all(0 < b - a <= stride for a, b in zip(starts, starts[1:], strict=False))


def gains(frames, window, stride, weighting, loop):
    """Merge, with the engine's operator, of windows that return their input: what each frame is multiplied by."""
    starts, length = plan(frames, window, stride, loop), window_length(frames, window)
    weights = window_weights(weighting, length)
    video = 1.0 + torch.arange(frames, dtype=torch.float32).remainder(7)
    windows = video[window_indices(starts, length, frames)][None, :, None, :, None, None]
    merged = ops.window_merge(windows, starts, weights, frames=frames)
    assert coverage(starts, weights, frames).min() > 0
    return merged.flatten() / video


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("window, stride", [(16, 8), (16, 5)])
def test_identity_gain_is_one_at_every_length(window, stride, weighting, loop):
    for frames in range(1, 301):
        gain = gains(frames, window, stride, weighting, loop)
        assert (gain - 1).abs().max() < 1e-6, frames


@pytest.mark.slow
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("window, stride", PLANS)
def test_identity_gain_is_one_for_every_plan(window, stride, weighting, loop):
    for frames in range(1, 301):
        assert (gains(frames, window, stride, weighting, loop) - 1).abs().max() < 1e-6, frames


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_identity_gain_is_one_for_any_plan(data):
    window = data.draw(st.integers(2, 64), "window")
    stride = data.draw(st.integers(1, window), "stride")
    frames = data.draw(st.integers(1, 300), "frames")
    weighting, loop = data.draw(st.sampled_from(WEIGHTS)), data.draw(st.booleans())
    assert (gains(frames, window, stride, weighting, loop) - 1).abs().max() < 1e-6


def test_weights():
    assert window_weights("flat", 4).tolist() == [1, 1, 1, 1]
    assert window_weights("pyramid", 6).tolist() == [1, 2, 3, 3, 2, 1]
    assert window_weights("pyramid", 5).tolist() == [1, 2, 3, 2, 1]
    hann = window_weights("hann", 4)
    assert torch.allclose(hann, torch.tensor([0.146447, 0.853553, 0.853553, 0.146447]))
    assert torch.allclose(hann[:2] + hann[2:], torch.ones(2))  # at stride = window / 2 the weights sum to 1
    for kind in WEIGHTS:
        for length in range(1, 70):
            weights = window_weights(kind, length)
            assert weights.shape == (length,) and weights.dtype == torch.float32
            assert weights.min() > 0 and torch.allclose(weights, weights.flip(0))


def test_weights_are_freenoises_where_its_sums_agree(golden):
    arrays, parameters = golden("freenoise")
    for case in parameters["cases"]:
        if case["scheme"] not in WEIGHTS:
            continue
        frames = case["f"]
        starts = plan(frames, parameters["context_length"], parameters["context_stride"])
        assert [[s, s + 8] for s in starts] == case["windows"]
        weights = window_weights(case["scheme"], 8)
        assert torch.equal(weights, arrays[f"f{frames}.{case['scheme']}.frame_weights"])
        ours, theirs = coverage(starts, weights, frames), torch.tensor(case["weight_sum"])
        agree = (
            frames if frames % 4 == 0 else 10
        )  # theirs divides by the wrong weight where the last window overlaps
        assert torch.equal(ours[:agree], theirs[:agree])


def test_centre_frames():
    assert centre_frames((0, 8, 16), 16, 32) == (8, 16, 24)
    assert centre_frames((24,), 16, 32) == (0,)  # over the end of a loop
    assert centre_frames((0,), 1, 1) == (0,)


@pytest.mark.parametrize(
    "frames, window, stride, message",
    [
        (0, 16, 8, "frames must be at least 1"),
        (10, 1, 1, "window must be at least 2"),
        (10, 0, 1, "window must be at least 2"),
        (10, 16, 0, "stride must be between"),
        (10, 16, 17, "stride must be between"),
        (10.0, 16, 8, "frames must be a whole number"),
        (10, True, 8, "window must be a whole number"),
    ],
)
def test_bad_plans_are_one_line(frames, window, stride, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan(frames, window, stride)
    assert "\n" not in str(caught.value)


def test_bad_weights_are_one_line():
    with pytest.raises(ValueError, match="flat, pyramid, hann"):
        window_weights("gauss", 4)
    with pytest.raises(ValueError, match="at least 1"):
        window_weights("flat", 0)


@pytest.mark.parametrize("window, stride", PLANS)
def test_super_windows_overlap_by_a_window(window, stride):
    for frames in (2, 5, 17, 64, 300):
        lengths = super_windows(frames, window, stride)
        assert all(window < length < frames and (length - window) % stride == 0 for length in lengths)
        assert lengths == sorted(lengths, reverse=True)
        for length in lengths:
            weights = ramp_weights(length, window)
            assert len(weights) == length and weights.min() > 0 and weights.max() <= 1
            assert torch.equal(weights, weights.flip(0))
            for loop in (False, True):
                starts = plan(frames, length, length - window, loop=loop)
                assert coverage(starts, weights, frames).min() > 0
                inside = plan(length, window, stride)
                assert {start % stride for start in inside} == {0}
                if loop or starts[-1] % stride == 0:
                    assert {start % stride for start in starts} == {0}, (
                        "the windows of one are those of the next"
                    )
