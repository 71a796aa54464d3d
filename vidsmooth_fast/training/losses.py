"""The published objectives for tuning a network on a clip, and their weighted sums.

e is the error of a prediction: ε_θ − ε, or v_θ − v for a v-prediction network. The frames of a clip share their
timestep, so the two differ by one factor per clip: ε_θ − ε = α (v_θ − v).

All tensors are (B, C, F, H, W); everything is computed in fp32 and every loss is a mean over its elements. A term that
compares neighbouring frames is 0 for a clip that has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsmooth_fast.sampling.smoothing import LAMBDA_1


def plain_loss(error: Tensor) -> Tensor:
    """mean e². error: e, (B, C, F, H, W).

    Source: Tune-A-Video's objective; [000] eq. 6.
    """
    return error.float().square().mean()


def smooth_loss(epsilon: Tensor, noisy: Tensor, constant: Tensor, *, variant: str = "cross") -> Tensor:
    """mean |Δε_θ − (C/λ₁) Δx_t|, which pulls the noise predictions of neighbouring frames together.

    epsilon: ε_θ, the predicted noise, (B, C, F, H, W); of a v-prediction network, σ x_t + α v_θ.
    noisy: x_t, same shape. constant: C of [003] eq. 2 at each clip's timestep, (B,); λ₁ = 1000.
    variant: "cross": Δy_n = 2y_n − y_{n−1} − y_{n+1}, interior frames ([003] eq. 3);
        "naive": Δy_n = y_n − y_{n+1}, one neighbour; "simple": as cross, without the x term.
    Raises ValueError for another variant, or a constant that is not (B,).
    Source: [003] §3.4, eqs. 2 and 3.
    """
    if constant.shape != epsilon.shape[:1]:
        raise ValueError(f"constant: expected shape ({epsilon.shape[0]},), got {tuple(constant.shape)}")
    if variant not in ("cross", "naive", "simple"):
        raise ValueError(f"variant: expected cross, naive or simple, got {variant!r}")
    y = epsilon.float()
    if variant != "simple":  # Δ is linear: Δε − (C/λ₁) Δx = Δ(ε − (C/λ₁) x)
        y = y - (constant.float() / LAMBDA_1)[:, None, None, None, None] * noisy.float()
    if variant == "naive":
        return _mean(y[:, :, :-1] - y[:, :, 1:], torch.abs)
    return _mean(2 * y[:, :, 1:-1] - y[:, :, :-2] - y[:, :, 2:], torch.abs)


def inr_loss(error: Tensor, *, forward: float = 0.5, backward: float = 0.5) -> Tensor:
    """forward · mean (e_n − sg e_{n−1})² + backward · mean (e_n − sg e_{n+1})², sg holding its argument constant.

    Frames at the same step satisfy ε_n − ε_m = ε_θ,n − ε_θ,m when both are denoised to what they were: e_n = e_m. An
    error that is the same in all frames costs nothing here. The two means have equal values; their gradients differ,
    because the neighbour is held constant: with only one of them, errors are pulled along time in one direction.

    error: e, (B, C, F, H, W). forward, backward: weights of the two directions.
    Source: [004], training method. The typeset equations are missing from the published page and its code; this is our
    derivation from its text and algorithm 1.
    """
    e = error.float()
    earlier, later = e[:, :, :-1], e[:, :, 1:]
    total = e.new_zeros(())
    if forward:
        total = total + forward * _mean(later - earlier.detach(), torch.square)
    if backward:
        total = total + backward * _mean(earlier - later.detach(), torch.square)
    return total


def masked_loss(error: Tensor, mask: Tensor) -> Tensor:
    """mean (M ⊗ e)² over all elements, masked or not: L_fg or L_bg.

    error: e, (B, C, F, H, W). mask: M in 0 … 1, anything that broadcasts to it, such as (1, 1, F, H, W).
    Source: [000] eqs. 15 and 16.
    """
    return (mask.to(error.device, torch.float32) * error.float()).square().mean()


def _mean(difference: Tensor, of) -> Tensor:
    """The mean of of(difference); 0 where there is nothing to compare."""
    return of(difference).mean() if difference.numel() else difference.new_zeros(())


@dataclass(frozen=True)
class Predicted:
    """One batch after the network: what the terms of an objective read.

    error: e. epsilon: ε_θ. noisy: x_t; (B, C, F, H, W) each. constant: C, (B,). foreground: mask in 0 … 1, broadcasts
    to e, or None.
    """

    error: Tensor
    epsilon: Tensor
    noisy: Tensor
    constant: Tensor
    foreground: Tensor | None = None


TERMS = {
    "plain": lambda p: plain_loss(p.error),
    "smooth": lambda p: smooth_loss(p.epsilon, p.noisy, p.constant),
    "smooth-naive": lambda p: smooth_loss(p.epsilon, p.noisy, p.constant, variant="naive"),
    "smooth-simple": lambda p: smooth_loss(p.epsilon, p.noisy, p.constant, variant="simple"),
    "inr": lambda p: inr_loss(p.error),
    "inr-forward": lambda p: inr_loss(p.error, forward=1.0, backward=0.0),
    "inr-backward": lambda p: inr_loss(p.error, forward=0.0, backward=1.0),
    "foreground": lambda p: masked_loss(p.error, p.foreground),
    "background": lambda p: masked_loss(p.error, 1 - p.foreground),
}
MASKED = ("foreground", "background")
FRAMES = {
    "smooth": 3, "smooth-simple": 3, "smooth-naive": 2, "inr": 2, "inr-forward": 2, "inr-backward": 2,
}  # fmt: skip
"""Frames below which a term has nothing to compare and is 0."""

OBJECTIVES = {
    "plain": {"plain": 1.0},
    **{name: {"plain": 1.0, name: 0.2} for name in ("smooth", "smooth-naive", "smooth-simple")},
    **{name: {"plain": 1.0, name: 2.0} for name in ("inr", "inr-forward", "inr-backward")},
    # [000] eq. 20 gives no values for λ₁, λ₂, λ₃; with these the foreground weighs 4/3 of the background.
    "foreground": {"plain": 1.0, "foreground": 1.0, "background": 0.5},
}
"""Objectives by name: λ₂ = 0.2 from [003], λ = 2 from [004] for Tune-A-Video (0.2 there for ControlVideo)."""


class Objective:
    """A weighted sum of terms: Σ weight · term.

    loss: a name of OBJECTIVES, or {term: weight} with the terms of TERMS.
    Raises ValueError naming an unknown objective, term or weight.
    """

    def __init__(self, loss: str | Mapping[str, float]) -> None:
        if isinstance(loss, str):
            if loss not in OBJECTIVES:
                raise ValueError(f"loss: expected one of {', '.join(OBJECTIVES)}, got {loss!r}")
            loss = OBJECTIVES[loss]
        if not isinstance(loss, Mapping) or not loss:
            raise ValueError(f"loss: expected a name or {{term: weight}}, got {loss!r}")
        for name, weight in loss.items():
            if name not in TERMS:
                raise ValueError(f"loss: expected terms among {', '.join(TERMS)}, got {name!r}")
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight < 0:
                raise ValueError(f"loss: expected a weight of at least 0 for {name}, got {weight!r}")
        self.weights = {name: float(weight) for name, weight in loss.items() if weight}
        if not self.weights:
            raise ValueError("loss: expected a weight above 0, got none")

    @property
    def needs_mask(self) -> bool:
        return any(name in MASKED for name in self.weights)

    @property
    def least_frames(self) -> int:
        """Frames of a clip below which every term vanishes and nothing would be learned: 1, 2 or 3."""
        return min(FRAMES.get(name, 1) for name in self.weights)

    def __call__(self, predicted: Predicted) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, {term: value before its weight}).

        Raises ValueError when a masked term has no mask.
        """
        if self.needs_mask and predicted.foreground is None:
            raise ValueError("loss: foreground and background need a mask, got none")
        values = {name: TERMS[name](predicted) for name in self.weights}
        total = sum(weight * values[name] for name, weight in self.weights.items())
        return total, {name: value.detach() for name, value in values.items()}
