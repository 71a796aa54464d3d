"""The fast VL score is the paper's equation written as a loop, for every size, and finds the shift."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsmooth_fast.metrics.vl_score import TOGETHER, shifts, vl_scores


def by_loop(before, after, k):
    """[003] eq. 6 for one pair, times 100, in float64."""
    before, after = before.double(), after.double()
    h, w = before.shape[1] - k, before.shape[2] - k
    centre = after[:, k // 2 : k // 2 + h, k // 2 : k // 2 + w].flatten()
    crops = [before[:, i : i + h, j : j + w].flatten() for i in range(k + 1) for j in range(k + 1)]
    return 100 * max(F.cosine_similarity(centre, crop, dim=0, eps=1e-30).item() for crop in crops)


def random_latents(n, c, h, w, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, h, w, generator=generator) + mean


@given(
    c=st.integers(1, 5), h=st.integers(5, 20), w=st.integers(5, 20), k=st.sampled_from([2, 4]),
    mean=st.sampled_from([0.0, 3.0, -50.0]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(c, h, w, k, mean, seed):
    z = random_latents(3, c, h, w, seed, mean)
    found = vl_scores(z[:-1], z[1:], k)
    assert found.tolist() == pytest.approx(
        [by_loop(a, b, k) for a, b in zip(z[:-1], z[1:], strict=True)], abs=1e-5
    )


def test_equals_the_loop_at_the_papers_size():
    z = random_latents(3, 4, 64, 64, mean=1.0)
    assert shifts(64, 64) == 8
    found = vl_scores(z[:-1], z[1:])
    assert found.tolist() == pytest.approx(
        [by_loop(a, b, 8) for a, b in zip(z[:-1], z[1:], strict=True)], abs=1e-5
    )


@pytest.mark.parametrize(
    "size, k", [((64, 64), 8), ((32, 48), 4), ((128, 72), 10), ((8, 8), 2), ((16, 90), 2)]
)
def test_k_follows_the_size(size, k):
    assert shifts(*size) == k


@pytest.mark.parametrize("dy, dx", [(0, 0), (4, -4), (-3, 2)])
def test_finds_the_shift(dy, dx):
    z = random_latents(1, 4, 64, 64)
    moved = torch.roll(z, (dy, dx), (2, 3))
    assert vl_scores(z, moved).item() == pytest.approx(100, abs=1e-4)


def test_a_shift_beyond_reach_is_not_found():
    z = random_latents(1, 4, 64, 64)
    assert vl_scores(z, torch.roll(z, 6, 2)).item() < 20


def test_half_precision_strides_and_emptiness():
    z = random_latents(3, 4, 16, 16).half()
    expected = vl_scores(z[:-1].float(), z[1:].float())
    assert torch.allclose(vl_scores(z[:-1], z[1:]), expected)
    other = z.float().to(memory_format=torch.channels_last)
    assert torch.allclose(vl_scores(other[:-1], other[1:]), expected)
    zero = torch.zeros(1, 4, 16, 16)
    assert vl_scores(zero, zero).item() == 0 and not math.isnan(vl_scores(zero, z[:1].float()).item())


def test_bad_input():
    z = random_latents(2, 4, 16, 16)
    with pytest.raises(ValueError, match="equal shapes"):
        vl_scores(z, z[:, :, :8])
    with pytest.raises(ValueError, match="k = 3"):
        vl_scores(z, z, 3)
    with pytest.raises(ValueError, match="h, w > k"):
        vl_scores(z[..., :2, :2], z[..., :2, :2])


@pytest.mark.slow
def test_twenty_times_as_fast_as_the_loop():
    z = random_latents(24, 4, 64, 64)
    pairs = list(zip(z[:-1].split(TOGETHER), z[1:].split(TOGETHER), strict=True))

    def loop():
        for a, b in zip(z[:-1], z[1:], strict=True):
            by_loop(a, b, 8)

    def seconds(run, times):
        run()
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
        return min(taken)

    assert seconds(loop, 3) > 20 * seconds(lambda: [vl_scores(a, b) for a, b in pairs], 20)


def test_the_benchmark_compares_with_the_same_equation(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import vl_score

    z = random_latents(3, 4, 16, 16)
    expected = sum(by_loop(a, b, 2) for a, b in zip(z[:-1], z[1:], strict=True)) / 2
    assert vl_score.by_loop(z, 2) == pytest.approx(expected, abs=1e-4)
