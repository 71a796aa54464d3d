"""Average fusion: eq. 11 to the letter, and the corrected form's noise and hidden pixels."""

import pytest
import torch

from vidsmooth_fast.training.fusion import average_fusion, fit_weights


def scene(frames=8, size=24, seed=0):
    """A steady background with a square that moves over it: clean (1, 4, F, s, s), fg mask, the background alone."""
    g = torch.Generator().manual_seed(seed)
    background = torch.randn(1, 4, 1, size, size, generator=g).expand(-1, -1, frames, -1, -1)
    fg = torch.zeros(1, 1, frames, size, size)
    for f in range(frames):
        fg[..., f, 8:14, 2 * f : 2 * f + 6] = 1
    return torch.where(fg.bool(), torch.full_like(background, 3.0), background), fg, background


def test_the_paper_to_the_letter():
    clean, fg, _ = scene(frames=3)
    fused = average_fusion(clean, fg, 1 - fg, n=3, w_bg=0.7, w_fg=1.3, mode="paper")
    for k in range(3):
        average = sum((1 - fg)[:, :, i] * clean[:, :, i] for i in range(3)) / 3
        torch.testing.assert_close(fused[:, :, k], 0.7 * average + 1.3 * fg[:, :, k] * clean[:, :, k])


def test_noise_keeps_its_level_only_when_corrected():
    clean, fg, _ = scene(frames=10, size=40)
    g = torch.Generator().manual_seed(1)
    alpha, sigma = 0.2, 0.98
    noisy = alpha * clean + sigma * torch.randn(clean.shape, generator=g)
    rest = (fg.sum(2, keepdim=True) == 0).expand(-1, 4, 10, -1, -1)  # background in every frame
    options = dict(n=5, w_bg=1.0, w_fg=1.0, clean=clean, level=(alpha, sigma))
    literal = average_fusion(noisy, fg, 1 - fg, mode="paper", generator=g, **options)
    ours = average_fusion(noisy, fg, 1 - fg, generator=g, **options)
    assert float((literal - alpha * clean)[rest].std()) == pytest.approx(sigma / 5**0.5, rel=0.03)
    assert float((ours - alpha * clean)[rest].std()) == pytest.approx(sigma, rel=0.03)
    assert torch.allclose(ours[rest], noisy[rest], atol=1e-4)  # the frame's own noise, not another


def test_hidden_pixels_do_not_darken():
    """Behind the object, the corrected average shows the background that other frames see."""
    clean, fg, background = scene()
    everywhere = 1 - fg
    g = torch.Generator().manual_seed(2)
    ours = average_fusion(clean, fg, everywhere, n=8, w_bg=1.0, w_fg=1.0, generator=g)
    torch.testing.assert_close(ours, clean)  # the same clip again: its background is steady already
    moved = fg.roll(6, dims=-1) * everywhere  # background now, foreground in other frames
    literal = average_fusion(clean, fg, everywhere, n=8, w_bg=1.0, w_fg=1.0, generator=g, mode="paper")
    at = moved.bool().expand_as(clean) & (fg.sum(2, keepdim=True) > 0).expand_as(clean)
    assert float((literal - background)[at].abs().mean()) > 0.1
    assert float((ours - background)[at].abs().mean()) < 1e-5


def test_a_flickering_background_becomes_steady():
    clean, fg, background = scene()
    g = torch.Generator().manual_seed(3)
    flicker = clean + (1 - fg) * 0.3 * torch.randn(1, 1, 8, 1, 1, generator=g)
    fused = average_fusion(flicker, fg, 1 - fg, n=5, w_bg=1.0, w_fg=1.0, generator=g)
    rest = (fg.sum(2, keepdim=True) == 0).expand_as(clean)

    def wobble(x):
        return float((x - x.mean(2, keepdim=True))[rest].std())

    assert wobble(fused) < 0.6 * wobble(flicker)
    torch.testing.assert_close(fused * fg, flicker * fg)  # the foreground stays


def test_weights_are_fitted_to_the_frames():
    clean, fg, _ = scene()
    background, foreground = 0.5 * (1 - fg) * clean, 2.0 * fg * clean
    assert fit_weights(background, foreground, clean) == pytest.approx((2.0, 0.5), rel=1e-6)
    fused = average_fusion(clean, fg, 1 - fg, n=4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused, clean, rtol=1e-4, atol=1e-4)


def test_draws_follow_the_generator():
    clean, fg, _ = scene()
    noisy = clean + torch.randn(clean.shape)
    draws = [
        average_fusion(noisy, fg, 1 - fg, n=2, mode="paper", generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_bad_input():
    clean, fg, _ = scene()
    for call, message in (
        (
            lambda: average_fusion(clean, torch.ones_like(fg), torch.zeros_like(fg)),
            "everything is foreground",
        ),
        (
            lambda: average_fusion(clean, torch.zeros_like(fg), torch.ones_like(fg)),
            "everything is background",
        ),
        (lambda: average_fusion(clean[0], fg, 1 - fg), "frames: expected shape"),
        (lambda: average_fusion(clean, fg[:, :, :2], 1 - fg), "fg_mask: expected shape"),
        (lambda: average_fusion(clean, fg, 1 - fg, n=0), "n: expected a whole number"),
        (lambda: average_fusion(clean, fg, 1 - fg, mode="exact"), "mode: expected corrected or paper"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
