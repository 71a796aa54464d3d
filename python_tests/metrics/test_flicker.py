"""Flicker is 0 where nothing changes, does not count certain motion, and grows with what is added."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vidsmooth_fast.metrics.flicker import compensated_flicker, temporal_flicker
from vidsmooth_fast.metrics.jitter import jitter

ALL = (temporal_flicker, jitter, compensated_flicker)


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def pan(frames=6, step=2, size=64):
    wide = texture(size, size + step * frames)
    return [np.ascontiguousarray(wide[:, n * step : n * step + size]) for n in range(frames)]


@pytest.mark.parametrize("measure", ALL)
def test_still_video_is_zero(measure):
    frames = [texture(40, 48)] * 4
    assert measure(frames) == 0 and measure(frames, loop=True) == 0


videos = npst.arrays(np.uint8, st.tuples(st.integers(3, 6), st.integers(1, 5), st.integers(1, 5), st.just(3)))


@given(videos, st.booleans())
@settings(max_examples=60, deadline=None)
def test_equal_to_the_formula(video, loop):
    y = video.astype(float)
    if loop:
        first, second = y - np.roll(y, 1, 0), 2 * y - np.roll(y, 1, 0) - np.roll(y, -1, 0)
    else:
        first, second = np.diff(y, axis=0), np.diff(y, 2, axis=0)
    assert temporal_flicker(iter(video), loop=loop) == pytest.approx(np.abs(first).mean(), abs=1e-9)
    assert jitter(iter(video), loop=loop) == pytest.approx(np.abs(second).mean(), abs=1e-9)
    assert temporal_flicker(video[::-1], loop=loop) == pytest.approx(temporal_flicker(video, loop=loop))


@pytest.mark.parametrize("measure", ALL)
def test_shuffling_makes_it_worse(measure):
    frames = pan(10, 1)
    shuffled = [frames[n] for n in (5, 0, 7, 2, 9, 4, 1, 8, 3, 6)]
    assert measure(shuffled) > measure(frames)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_known_translation_is_not_flicker(step):
    frames = pan(5, step)
    assert compensated_flicker(frames) < 0.25 * temporal_flicker(frames)
    assert compensated_flicker(frames) < 3


@pytest.mark.parametrize("measure", ALL)
def test_added_flicker_counts_monotonically(measure):
    frames = pan(6, 2)
    signs = [1, -1, 1, -1, 1, -1]

    def flickering(amount):
        return [
            np.clip(f.astype(int) + s * amount, 0, 255).astype(np.uint8)
            for f, s in zip(frames, signs, strict=True)
        ]

    values = [measure(flickering(amount)) for amount in (0, 4, 8, 16, 24)]
    assert all(b > a for a, b in zip(values, values[1:], strict=False))
    if measure is compensated_flicker:
        assert values[3] == pytest.approx(32, rel=0.2)  # alternating by 16 differs by 32 from frame to frame


def test_even_fade_has_no_jitter():
    assert jitter([np.full((8, 8, 3), 10 * n, np.uint8) for n in range(6)]) == 0


def test_cuts_and_noise_do_not_divide_by_nothing():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    value = compensated_flicker(noise)
    assert np.isnan(value) or value >= 0


def test_memory_does_not_grow_with_length():
    import tracemalloc

    def frames(count):
        for n in range(count):
            yield np.full((64, 64, 3), n % 200, np.uint8)

    tracemalloc.start()
    peaks = []
    for count in (10, 400):
        tracemalloc.reset_peak()
        jitter(frames(count)), temporal_flicker(frames(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[1] < peaks[0] + 50_000


def test_bad_input():
    one = np.zeros((20, 20, 3), np.uint8)
    for measure in ALL:
        with pytest.raises(ValueError, match="at least [23] frames, got 1"):
            measure([one])
        with pytest.raises(ValueError, match="at least [23] frames, got 0"):
            measure([])
        with pytest.raises(ValueError, match=r"all have shape \(20, 20, 3\), frame 1 has \(10, 20, 3\)"):
            measure([one, one[:10]])
        with pytest.raises(ValueError, match="uint8 arrays of shape .* got float64"):
            measure([one.astype(float)] * 2)
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        jitter([one, one])
    with pytest.raises(ValueError, match="at least 16x16"):
        compensated_flicker([one[:8]] * 2)
