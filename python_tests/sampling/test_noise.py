"""Noise: the same numbers for the same (seed, purpose, frame, step), whatever else changes."""

from __future__ import annotations

import pytest
import torch

from vidsmooth_fast.sampling.noise import (
    INITS,
    frame_noise,
    freenoise_permutations,
    freenoise_sources,
    gaussian,
    initial_noise,
)

SHAPE = (4, 8, 8)


def test_numbers_are_a_function_of_their_four_keys():
    keys = [
        (s, p, f, t)
        for s in (0, 1, -3, 2**70)
        for p in ("init", "step")
        for f in (0, 1, 255)
        for t in (0, 1, 49)
    ]
    draws = [gaussian(*key, SHAPE) for key in keys]
    for key, draw in zip(keys, draws, strict=True):
        assert draw.shape == SHAPE and draw.dtype == torch.float32
        assert torch.equal(draw, gaussian(*key, SHAPE))
    flat = torch.stack([draw.flatten() for draw in draws])
    correlation = torch.corrcoef(flat) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.35  # 256 numbers each: no two alike


def test_numbers_stay_what_they_were():
    """A video sampled today can be sampled again: these are part of the interface."""
    expected = torch.tensor([1.2579101, -0.7758955, -1.1606859])
    assert torch.allclose(gaussian(0, "init", 0, 0, (3,)), expected, atol=1e-5)


def test_numbers_are_normal():
    draw = gaussian(7, "init", 3, 2, (200_000,)).double()
    assert abs(draw.mean()) < 0.01 and abs(draw.std() - 1) < 0.01
    assert abs((draw**4).mean() - 3) < 0.1


@pytest.mark.parametrize("kind", INITS)
def test_longer_videos_begin_alike(kind):
    whole = initial_noise(kind, seed=5, frames=61, shape=SHAPE, window=16, stride=6)
    assert whole.shape == (1, 4, 61, 8, 8) and whole.is_contiguous()
    for frames in (1, 7, 16, 17, 40):
        part = initial_noise(kind, seed=5, frames=frames, shape=SHAPE, window=16, stride=6)
        assert torch.equal(part, whole[:, :, :frames])


def test_independent_and_shared_do_not_depend_on_the_window():
    for kind in ("independent", "shared"):
        a = initial_noise(kind, seed=5, frames=20, shape=SHAPE, window=16, stride=8)
        assert torch.equal(a, initial_noise(kind, seed=5, frames=20, shape=SHAPE, window=4, stride=1))
    shared = initial_noise("shared", seed=5, frames=20, shape=SHAPE)
    assert torch.equal(shared, shared[:, :, :1].expand_as(shared))


def test_frame_noise_takes_frame_numbers():
    whole = frame_noise(3, "step", 10, 4, SHAPE)
    assert torch.equal(frame_noise(3, "step", [7, 2], 4, SHAPE), whole[:, :, [7, 2]])
    shared = frame_noise(3, "step", 10, 4, SHAPE, shared=True)
    assert torch.equal(shared, whole[:, :, :1].expand_as(shared))


@pytest.mark.parametrize("window, stride", [(16, 8), (16, 16), (8, 3), (5, 1)])
def test_freenoise_repeats_a_window_in_shuffled_blocks(window, stride):
    frames = 6 * window + 1
    permutations = freenoise_permutations(11, frames, window, stride)
    sources = freenoise_sources(frames, window, stride, permutations)
    assert len(sources) == frames and sources[:window] == list(range(window))
    for begin in range(window, frames - stride + 1, stride):
        block, origin = sources[begin : begin + stride], sources[begin - window : begin - window + stride]
        assert sorted(block) == sorted(origin)
    if window % stride == 0:  # every window that starts at a block holds every base noise once
        for begin in range(0, frames - window + 1, stride):
            assert sorted(sources[begin : begin + window]) == list(range(window))
    assert len({tuple(p) for p in freenoise_permutations(11, 400, 16, 16)}) > 10


def test_freenoise_arranges_as_published(golden):
    arrays, parameters = golden("freenoise")
    permutations = arrays["latents.shuffle_context.permutations"].long().tolist()
    length, stride = parameters["context_length"], parameters["context_stride"]
    sources = freenoise_sources(18, length, stride, permutations)
    assert sources == arrays["latents.shuffle_context.source_frame"].long().tolist()
    arranged = arrays["latents.base"][:, :, sources]
    assert torch.equal(arranged, arrays["latents.shuffle_context.output"])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: initial_noise("pink", seed=0, frames=4, shape=SHAPE), "init must be one of"),
        (lambda: initial_noise("shared", seed=0, frames=0, shape=SHAPE), "frames must be at least 1"),
        (
            lambda: initial_noise("freenoise", seed=0, frames=4, shape=SHAPE, window=4, stride=5),
            "stride must be",
        ),
        (lambda: gaussian(0, "init", -1, 0, SHAPE), "frame must be"),
        (lambda: gaussian(0, "init", 0, -1, SHAPE), "step must be"),
    ],
)
def test_bad_arguments_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
