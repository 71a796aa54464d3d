"""A whole trajectory of affine steps, from the scheduler configuration that comes with a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vidsmooth_fast.sampling import noise_levels, solvers
from vidsmooth_fast.sampling.noise_levels import option
from vidsmooth_fast.sampling.solvers import Step

SCHEDULERS = ("ddim", "dpmpp_2m", "euler", "ddpm", "lcm", "flow")
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True)
class Schedule:
    """`steps` from noise to picture, and what other parts need to know about the noise levels."""

    scheduler: str
    prediction_type: str
    steps: tuple[Step, ...]
    num_train_timesteps: int
    alphas_cumprod: np.ndarray | None  # (num_train_timesteps,) float64; None for flow matching
    clip: float | None  # clamp the clean estimate to +-clip after merging (`Step.clipped`); None: do not

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the network is given at each step."""
        return tuple(step.timestep for step in self.steps)

    @property
    def needs_history(self) -> bool:
        """Whether some step uses the clean estimate of the step before."""
        return any(step.needs_history for step in self.steps)

    @property
    def start_alpha(self) -> float:
        """With strength < 1 the first latent is start_alpha * source + start_sigma * noise."""
        return self.steps[0].alpha

    @property
    def start_sigma(self) -> float:
        return self.steps[0].sigma

    def training_level(self, timestep: int) -> tuple[float, float]:
        """(alpha, sigma) in variance-preserving coordinates on the training grid; (1, 0) before timestep 0.

        A flow-matching level is rescaled to alpha^2 + sigma^2 = 1, which keeps its signal-to-noise ratio.
        """
        if self.alphas_cumprod is None:
            sigma = max(timestep, 0) / self.num_train_timesteps
            length = math.hypot(1 - sigma, sigma)
            return (1 - sigma) / length, sigma / length
        abar = float(self.alphas_cumprod[timestep]) if timestep >= 0 else 1.0
        return math.sqrt(abar), math.sqrt(1 - abar)

    def inversion_steps(self) -> tuple[Step, ...]:
        """DDIM inversion along this schedule: ascending steps from the picture to noise.

        Step i undoes step -1-i of the schedule, evaluating the network at the timestep of its *target* on the
        latent it starts from, as Tune-A-Video's program does (`ddim_loop`, `next_step`). y is always the noise;
        alpha and sigma are the level of the latent it starts from. A v- or x0-prediction becomes noise by the level
        of the timestep that the network was given, so that one network wrapped as e, v or x0 inverts alike; a flow
        becomes noise by the level of the latent, which makes the step x + (to_sigma - sigma) v.
        """
        steps = []
        for index, step in enumerate(reversed(self.steps)):
            alpha, sigma = step.to_alpha, step.to_sigma
            a = step.alpha / alpha
            network_to_eps = step.network_to_eps if self.alphas_cumprod is not None else (1.0, alpha)
            steps.append(
                replace(
                    step,
                    index=index,
                    alpha=alpha,
                    sigma=sigma,
                    to_alpha=step.alpha,
                    to_sigma=step.sigma,
                    form="epsilon",
                    to_eps=network_to_eps,
                    network_to_eps=network_to_eps,
                    a=a,
                    b=step.sigma - a * sigma,
                    c=0.0,
                    noise_scale=0.0,
                    to_clean=(1 / alpha, -sigma / alpha),
                    clip_gain=step.alpha,
                )
            )
        return tuple(steps)


def make_schedule(
    scheduler_config: Mapping[str, Any],
    *,
    scheduler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    prediction_type: str | None = None,
    strength: float = 1.0,
) -> Schedule:
    """The affine steps of a sampler, from the configuration of any diffusers scheduler.

    Keys that the sampler does not use are ignored and absent keys take the defaults of diffusers' class of
    that sampler, as its `from_config` does. The first latent has standard deviation 1 for every sampler
    (diffusers' Euler with linspace or trailing spacing multiplies it by `start_sigma`, 0.2% less).

    scheduler: one of SCHEDULERS
    steps: how many, over the whole range of noise
    eta: noise of DDIM, 0 (none) ... 1 (as much as DDPM)
    prediction_type: one of PREDICTIONS; None: as the configuration says
    strength: in (0, 1]; the last int(steps * strength) steps are taken, from the noised source
    Raises ValueError for values outside these, and for options that are not affine or not implemented.
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {scheduler!r}")
    said = option(scheduler_config, "prediction_type", "epsilon")
    prediction = prediction_type or ("flow" if scheduler == "flow" else said)
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    if (scheduler == "flow") != (prediction == "flow"):
        raise ValueError(f"scheduler {scheduler!r} cannot sample a network that predicts {prediction!r}")
    count = int(option(scheduler_config, "num_train_timesteps", 1000))
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= count:
        raise ValueError(f"steps must be a whole number from 1 to {count}, got {steps!r}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta!r}")
    if eta and scheduler != "ddim":
        raise ValueError(
            f"eta is an option of scheduler 'ddim' and must be 0 with {scheduler!r}, got {eta!r}"
        )
    if scheduler != "flow" and option(scheduler_config, "thresholding", False):
        raise ValueError("thresholding is not supported: set it to false in the scheduler's config")
    taken = min(int(steps * strength), steps)
    if taken < 1:
        raise ValueError(
            f"strength {strength} of {steps} steps leaves none to take: at least {1 / steps:g} does"
        )

    abar, clip, first = None, None, steps - taken
    if scheduler == "flow":
        full = solvers.flow(scheduler_config, steps)
    else:
        abar = noise_levels.alphas_cumprod(scheduler_config)
        common = (scheduler_config, steps, abar, prediction)
        if scheduler == "ddim":
            full = solvers.ddim(*common, eta)
        elif scheduler == "ddpm":
            full = solvers.ddpm(*common)
        elif scheduler == "euler":
            full = solvers.euler(*common)
        elif scheduler == "lcm":
            full = solvers.lcm(*common)
        else:
            full = solvers.dpmpp_2m(*common, first)
        # Unless the configuration says; the others never do.
        clips = {"ddim": True, "ddpm": True, "lcm": False}
        if scheduler in clips and option(scheduler_config, "clip_sample", clips[scheduler]):
            clip = float(option(scheduler_config, "clip_sample_range", 1.0))
    return Schedule(
        scheduler=scheduler,
        prediction_type=prediction,
        steps=tuple(replace(step, index=index) for index, step in enumerate(full[first:])),
        num_train_timesteps=count,
        alphas_cumprod=abar,
        clip=clip,
    )
