"""Smoothing over time: what `smooth=` and `blend=` say, and the numbers they become at each step.

`NoiseConstraint` pulls the predictions of neighbouring frames together while sampling ([003] eq. 5);
`InversionBlend` does so while inverting a clip ([004], training-free method). The operators are
`ops.noise_constraint` and `ops.inversion_blend`; docs/smoothing.md shows which setting smooths when.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vidsmooth_fast.sampling.schedule import Schedule
from vidsmooth_fast.sampling.solvers import Step

TARGETS = ("clean", "source", "published", "simple")
BLEND_NOISES = ("implied", "shared", "independent")
BLEND_PLACES = ("step", "end")

LAMBDA_1 = 1000.0  # [003], implementation details

# The noise predicted at a step that starts with less signal than this says nothing about the picture;
# constraining it ("published", "simple") would multiply into the picture by 1/alpha.
_LEAST_ALPHA = 1e-3


def _check_fraction(name: str, value: float, high: float = 1.0) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise ValueError(f"{name} must be a number from 0 to {high:g}, got {value!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class NoiseConstraint:
    """Pull the predictions of neighbouring frames together at every step of sampling.

    strength: lambda_3 of [003] eq. 5, from 0 (nothing) to 0.5. Once applied, what it acts on keeps
        1 - strength (2 - 2 cos w) of its part at temporal frequency w: 0.25 removes the fastest flicker.
    target: what is made smooth over time.
        "clean": the predicted clean latents (stable for every initial noise);
        "source": their difference to the source's latents, so that its motion stays;
        "published": the noise prediction, with the paper's C/lambda_1;
        "simple": the noise prediction, with C = 0. The last two need one initial noise for all frames.
    steps: (first, last) fraction of the steps in which it acts; (0.0, 1.0) is all of them.
    Raises ValueError for values outside these.
    """

    strength: float = 0.25
    target: str = "clean"
    steps: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check_fraction("NoiseConstraint strength", self.strength, 0.5)
        _check_choice("NoiseConstraint target", self.target, TARGETS)
        if not isinstance(self.steps, (tuple, list)) or len(self.steps) != 2:
            raise ValueError(f"NoiseConstraint steps must be two fractions (first, last), got {self.steps!r}")
        for value in self.steps:
            _check_fraction("NoiseConstraint steps", value)
        if self.steps[0] > self.steps[1]:
            raise ValueError(f"NoiseConstraint steps must not end before they begin, got {self.steps!r}")
        object.__setattr__(self, "steps", (float(self.steps[0]), float(self.steps[1])))

    @property
    def needs_source(self) -> bool:
        """True when the operator's reference comes from a source clip (`reference_scale`)."""
        return self.target == "source"

    @property
    def wants_shared_noise(self) -> bool:
        """True for the targets that amplify flicker unless all frames start from the same noise."""
        return self.target in ("published", "simple")

    def coefficients(self, index: int, schedule: Schedule) -> tuple[float, float]:
        """(c_over_lambda, strength) for `noise_constraint` at step `index`; strength 0 where it does not act.

        The prediction is in the step's own form (`Step.form`). In noise form the operator computes
        e_n - s (De_n - c Dx_n + Dr_n), Dy_n = 2 y_n - y_(n-1) - y_(n+1), with
            clean, source: c = 1/sigma, so that x0_n becomes x0_n - s (Dx0_n - Dsource_n)
                           (r is `reference_scale` times the source's clean latents, 0 for "clean");
            published:     c = C / (lambda_1 g), g = sqrt(alpha^2 + sigma^2), which is 1 in variance-preserving
                           coordinates and carries the constant over to those of flow matching;
            simple:        c = 0.
        For a prediction y = p x + q e the same thing is done by c -> p + q c and r -> q r.
        It acts at the steps whose middle, (index + 1/2) / steps, lies in `self.steps`.
        """
        step = schedule.steps[index]
        alpha, sigma = step.alpha, step.sigma
        acts = self.steps[0] <= (index + 0.5) / len(schedule.steps) <= self.steps[1]
        if not acts or (self.wants_shared_noise and alpha < _LEAST_ALPHA):
            return 0.0, 0.0
        if not self.wants_shared_noise:
            return (0.0 if step.form == "sample" else 1 / sigma), self.strength
        c = 0.0
        if self.target == "published":
            c = published_constant(schedule, step.timestep) / LAMBDA_1 / math.hypot(alpha, sigma)
        return ((1 - sigma * c) / alpha if step.form == "sample" else c), self.strength

    def reference_scale(self, step: Step) -> float:
        """The operator's reference r is this times the source's clean latents; 0 unless target is "source"."""
        if not self.needs_source:
            return 0.0
        return -1.0 if step.form == "sample" else step.alpha / step.sigma


def published_constant(schedule: Schedule, timestep: float) -> float:
    """C of [003] eq. 2 on the training grid: 1 / (sigma' - (alpha'/alpha) sigma), ' the timestep before.

    It is 1/b of the step between the two, negative; -352 at t = 500 of Stable Diffusion. Before timestep 0
    comes the picture itself, alpha' = 1 (the published program wraps around to the last timestep there).
    """
    first = 1 if schedule.alphas_cumprod is None else 0  # flow matching trains on sigma = 1/T ... 1
    at = max(first, min(round(timestep), schedule.num_train_timesteps - 1 + first))
    (alpha, sigma), (alpha_before, sigma_before) = (schedule.training_level(t) for t in (at, at - 1))
    return step_constant(alpha, sigma, alpha_before, sigma_before)


def step_constant(alpha, sigma, alpha_before, sigma_before):
    """C of [003] eq. 2 from the levels of a timestep and of the one before it: floats or tensors."""
    return alpha / (alpha * sigma_before - alpha_before * sigma)


@dataclass(frozen=True)
class InversionBlend:
    """Blend each frame's inverted noise with what its neighbours imply, while inverting a clip.

    weight: 0 (nothing) ... 1 (only the neighbours)
    noise: the random noise e in e_n - e_m = inverted_n - inverted_m.
        "implied": (x - alpha x0) / sigma of the latent at hand: predicted clean frames differ as the
            source's do;
        "shared": the same in all frames, so that it cancels: plain averaging of neighbours;
        "independent": drawn for every frame; adds variance 1.5 weight^2.
    at: "step" blends every step's prediction before the latent is advanced, "end" the final inverted noise
    forward, backward: shares of the frame before and the frame after; 1 in sum keeps the level of the noise
    Raises ValueError for values outside these.
    """

    weight: float
    noise: str = "implied"
    at: str = "step"
    forward: float = 0.5
    backward: float = 0.5

    def __post_init__(self) -> None:
        for name in ("weight", "forward", "backward"):
            _check_fraction(f"InversionBlend {name}", getattr(self, name))
        if self.forward + self.backward == 0:
            raise ValueError("InversionBlend forward and backward must not both be 0")
        _check_choice("InversionBlend noise", self.noise, BLEND_NOISES)
        _check_choice("InversionBlend at", self.at, BLEND_PLACES)
