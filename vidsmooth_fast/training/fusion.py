"""Average fusion: one background for all frames, each frame's own foreground, inside the reverse process.

Source: [000] §3.2, eqs. 10-12. Its literal form averages n noisy backgrounds, whose independent noises leave a standard
deviation of 1/√n (0.45 for n = 5) where the schedule needs 1, and darkens pixels that are hidden in some of them. The
corrected form, ours, averages what the frames say the *clean* background is, over those frames in which a pixel is
background, and adds each frame's own noise again.
"""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("corrected", "paper")


def average_fusion(
    frames: Tensor,
    fg_mask: Tensor,
    bg_mask: Tensor,
    n: int = 5,
    w_bg: float | None = None,
    w_fg: float | None = None,
    generator: torch.Generator | None = None,
    *,
    clean: Tensor | None = None,
    level: tuple[float, float] = (1.0, 0.0),
    mode: str = "corrected",
) -> Tensor:
    """r'_k of [000] eq. 11, for every frame: a shared average of backgrounds plus the frame's own foreground.

    paper: r'_k = w₁/n Σᵢ m_bg,i r_i + w₂ m_fg r_k over n frames i drawn for each k.
    corrected: w₁ m_bg α b̄ + w₂ m_fg α x̂₀ + σ ε, where b̄ is the mean of the clean x̂₀ of n drawn frames, at every pixel
    over those in which it is background (all frames, where it is in none of the drawn ones; the frame's own x̂₀, where
    it is foreground in all), and ε = (r_k − α x̂₀)/σ is the frame's own noise.

    frames: pictures or noisy latents r at step k, (1, C, F, h, w). fg_mask, bg_mask: 0 … 1, (1, 1, F, h, w).
    n: frames drawn for each average; all of them where there are fewer. generator: of the draws.
    w_bg, w_fg: w₁ and w₂; None: fitted (see `fit_weights`).
    clean: x̂₀, what the network says the clean latents are, as frames; None: the frames themselves (no noise).
    level: (α, σ) of the frames: frames = α clean + σ noise. mode: "corrected" or "paper".

    Returns the fused frames, (1, C, F, h, w).

    Raises: ValueError naming a bad argument, among them masks that are all foreground or all background.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected {' or '.join(MODES)}, got {mode!r}")
    if frames.dim() != 5 or frames.shape[0] != 1:
        raise ValueError(f"frames: expected shape (1, C, F, h, w), got {tuple(frames.shape)}")
    wanted = (1, 1, *frames.shape[2:])
    for name, mask in (("fg_mask", fg_mask), ("bg_mask", bg_mask)):
        if tuple(mask.shape) != wanted:
            raise ValueError(f"{name}: expected shape {wanted}, got {tuple(mask.shape)}")
        if not bool(mask.any()):
            other = "foreground" if name == "bg_mask" else "background"
            raise ValueError(f"{name}: is empty, everything is {other}: there is nothing to fuse")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n: expected a whole number of at least 1, got {n!r}")
    clean = frames if clean is None else clean
    alpha, sigma = level
    noise = torch.zeros_like(frames) if sigma == 0 else (frames - alpha * clean) / sigma
    drawn = _draw(frames.shape[2], n, generator)
    fg, bg = fg_mask.to(frames), bg_mask.to(frames)
    if mode == "paper":
        background = (bg * frames)[:, :, drawn].mean(dim=3)
        foreground, rest = fg * frames, torch.zeros_like(frames)
    else:
        background = bg * alpha * _visible_mean(clean, bg, drawn)
        foreground, rest = fg * alpha * clean, sigma * noise
    if w_bg is None or w_fg is None:
        fitted = fit_weights(background, foreground, frames if mode == "paper" else alpha * clean)
        w_bg = fitted[0] if w_bg is None else w_bg
        w_fg = fitted[1] if w_fg is None else w_fg
    return w_bg * background + w_fg * foreground + rest


def _draw(frames: int, n: int, generator: torch.Generator | None) -> Tensor:
    """For every frame, min(n, F) different frames: (F, n) int64."""
    order = torch.rand(frames, frames, generator=generator).argsort(dim=1)
    return order[:, : min(n, frames)]


def _visible_mean(clean: Tensor, bg: Tensor, drawn: Tensor) -> Tensor:
    """Mean of the drawn frames' values, weighted by how much of each is background: (1, C, F, h, w)."""
    weights = bg[:, :, drawn]  # (1, 1, F, n, h, w)
    seen = weights.sum(dim=3)
    some = (clean[:, :, drawn] * weights).sum(dim=3) / seen.clamp(min=1e-6)
    everywhere = bg.sum(dim=2, keepdim=True)
    every = (clean * bg).sum(dim=2, keepdim=True) / everywhere.clamp(min=1e-6)
    return torch.where(seen > 1e-3, some, torch.where(everywhere > 1e-3, every, clean))


def fit_weights(background: Tensor, foreground: Tensor, target: Tensor) -> tuple[float, float]:
    """w₁, w₂ that make w₁ background + w₂ foreground nearest to the unmasked frames, by least squares.

    [000] calls them learnable and names no objective; this one asks the fusion to reconstruct the frames it fuses.
    """
    columns = torch.stack([background.flatten(), foreground.flatten()], dim=1).double()
    gram, right = columns.T @ columns, columns.T @ target.flatten().double()
    w = torch.linalg.lstsq(gram, right[:, None]).solution.flatten()
    return float(w[0]), float(w[1])
