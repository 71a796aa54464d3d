"""Samplers as affine steps.

Every sampler here is affine in the current latent and the prediction,

    x_next = a x + b y + c history + noise_scale z,

with numbers that are known before sampling begins. DDIM, DDPM, Euler and DPM-Solver++(2M) run in
variance-preserving coordinates, x = alpha x0 + sigma e with alpha^2 + sigma^2 = 1, whatever coordinates their
authors use; flow matching runs in its own, alpha = 1 - sigma. The prediction is brought to one form before
anything else is done with it, so that networks that predict e, v, x0 or the flow give the same video:

    y = to_eps[0] x + to_eps[1] (output of the network, merged over windows and guidance branches)

y is the noise e, except at steps that start with almost no signal (alpha < 0.05: zero terminal SNR, the first
step of flow matching), where e does not determine the picture and y is the clean estimate x0; `Step.form`
says which.

Coefficients follow diffusers' schedulers and are tested against them step by step.
Sources: DDIM arXiv 2010.02502 eq. 12; DDPM arXiv 2006.11239 eq. 7; Euler arXiv 2206.00364; DPM-Solver++ arXiv
2211.01095 algorithm 2; flow matching arXiv 2403.03206; multistep consistency arXiv 2310.04378 algorithm 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vidsmooth_fast.sampling import noise_levels as levels
from vidsmooth_fast.sampling.noise_levels import option

Config = Mapping[str, Any]
Level = tuple[float, float]  # (alpha, sigma)

# Below this alpha a step carries x0 instead of e: 6e-8 / 0.05 keeps the rounding of fp32 latents near 1e-6.
_SAMPLE_FORM_BELOW = 0.05


@dataclass(frozen=True)
class Step:
    """One affine step, in plain floats computed in float64; `ops.denoise_step` takes it."""

    index: int  # position in the schedule
    timestep: float  # what the network is given
    alpha: float  # level of the latent that is read: x = alpha x0 + sigma e
    sigma: float
    to_alpha: float  # level of the latent that is written
    to_sigma: float
    form: str  # what y is: "epsilon" (e) or "sample" (x0)
    to_eps: tuple[float, float]  # y = to_eps[0] x + to_eps[1] prediction
    a: float  # x_next = a x + b y + c history + noise_scale z
    b: float
    c: float
    noise_scale: float
    to_clean: tuple[float, float]  # x0 = to_clean[0] x + to_clean[1] y
    network_to_eps: tuple[float, float]  # e = [0] x + [1] prediction, in either form
    # d x_next / d x0 with e held: clipping the clean estimate adds clip_gain * (clipped - clean)
    clip_gain: float

    @property
    def needs_history(self) -> bool:
        """True when c multiplies the previous step's clean estimate (DPM-Solver++(2M))."""
        return self.c != 0.0

    def clipped(self, x_next: Tensor, clean: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        """(x_next, clean) of this step with its clean estimate clamped to +-limit (diffusers' clip_sample).

        Not affine, so it acts on the merged, guided, constrained prediction; the noise estimate stays.
        """
        kept = clean.clamp(-limit, limit)
        return x_next + self.clip_gain * (kept - clean), kept


def _network_to(form: str, prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q): e or x0 = p x + q prediction, for a network evaluated at the level (alpha, sigma)."""
    if form == "epsilon":
        return {
            "epsilon": (0.0, 1.0),
            "v_prediction": (sigma, alpha),
            "sample": (1 / sigma, -alpha / sigma),
            "flow": (1.0, alpha),  # e = x + (1 - sigma) v, v = e - x0
        }[prediction]
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    return {"v_prediction": (alpha, -sigma), "sample": (0.0, 1.0), "flow": (1.0, -sigma)}[prediction]


def _make_step(
    timestep: float,
    level: Level,
    target: Level,
    prediction: str,
    *,
    x: float,
    x0: float,
    clip_gain: float,
    c: float = 0.0,
    noise_scale: float = 0.0,
    eps_form: tuple[float, float] | None = None,
) -> Step:
    """The step x_next = x * latent + x0 * clean + c * history + noise, in the form that suits its level.

    eps_form: (a, b) of the noise form, where they can be written without the cancellation in x + x0 / alpha
    """
    alpha, sigma = level
    if alpha < _SAMPLE_FORM_BELOW:
        form, a, b, to_clean = "sample", x, x0, (0.0, 1.0)
    else:
        form, to_clean = "epsilon", (1 / alpha, -sigma / alpha)
        a, b = eps_form or (x + x0 / alpha, -x0 * sigma / alpha)
    if alpha == 0 and prediction == "epsilon":
        raise ValueError(
            f"a network that predicts epsilon cannot start from timestep {timestep:g}, which has no signal "
            "(rescale_betas_zero_snr): use a v_prediction or sample network, or another timestep_spacing"
        )
    return Step(
        index=0,
        timestep=float(timestep),
        alpha=alpha,
        sigma=sigma,
        to_alpha=target[0],
        to_sigma=target[1],
        form=form,
        to_eps=_network_to(form, prediction, alpha, sigma),
        a=a,
        b=b,
        c=c,
        noise_scale=noise_scale,
        to_clean=to_clean,
        network_to_eps=_network_to("epsilon", prediction, alpha, sigma),
        clip_gain=clip_gain,
    )


def _first_order(timestep: float, level: Level, target: Level, prediction: str) -> Step:
    """The deterministic step between two levels: DDIM, Euler, flow matching, first-order DPM-Solver++."""
    (alpha, sigma), (to_alpha, to_sigma) = level, target
    x = to_sigma / sigma
    a = to_alpha / alpha if alpha > 0 else 0.0
    noise_form = (a, to_sigma - a * sigma)
    x0 = to_alpha - alpha * x
    return _make_step(
        timestep, level, target, prediction, x=x, x0=x0, clip_gain=to_alpha, eps_form=noise_form
    )


def _vp(abar: float) -> Level:
    return math.sqrt(abar), math.sqrt(1 - abar)


def ddim(config: Config, steps: int, abar: np.ndarray, prediction: str, eta: float) -> list[Step]:
    """DDIM. A step goes to the level of timestep - T//steps, as in diffusers, whatever the spacing."""
    final = 1.0 if option(config, "set_alpha_to_one", True) else float(abar[0])
    result = []
    for timestep in levels.spaced_timesteps(config, steps, default="leading"):
        previous = int(timestep) - len(abar) // steps
        now, then = float(abar[int(timestep)]), float(abar[previous]) if previous >= 0 else final
        (alpha, sigma), (to_alpha, _) = level, target = _vp(now), _vp(then)
        if eta == 0:
            result.append(_first_order(timestep, level, target, prediction))
            continue
        std = eta * math.sqrt((1 - then) / (1 - now) * max(0.0, 1 - now / then))
        direction = math.sqrt(max(0.0, 1 - then - std**2))
        a = to_alpha / alpha if alpha > 0 else 0.0
        step = _make_step(
            timestep,
            level,
            target,
            prediction,
            x=direction / sigma,
            x0=to_alpha - alpha * direction / sigma,
            clip_gain=to_alpha,
            noise_scale=std,
            eps_form=(a, direction - a * sigma),
        )
        result.append(step)
    return result


def ddpm(config: Config, steps: int, abar: np.ndarray, prediction: str) -> list[Step]:
    """DDPM: the posterior mean, and noise of its standard deviation except at timestep 0."""
    kind = option(config, "variance_type", "fixed_small")
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise ValueError(f"variance_type must be fixed_small, fixed_small_log or fixed_large, got {kind!r}")
    times = levels.spaced_timesteps(config, steps, default="leading")
    result = []
    for index, timestep in enumerate(times):
        now = float(abar[int(timestep)])
        then = float(abar[int(times[index + 1])]) if index + 1 < steps else 1.0
        beta = 1 - now / then
        variance = beta if kind == "fixed_large" else max((1 - then) / (1 - now) * beta, 1e-20)
        x, x0 = math.sqrt(now / then) * (1 - then) / (1 - now), math.sqrt(then) * beta / (1 - now)
        std = math.sqrt(variance) if timestep > 0 else 0.0
        level, target = _vp(now), _vp(then)
        result.append(
            _make_step(timestep, level, target, prediction, x=x, x0=x0, clip_gain=x0, noise_scale=std)
        )
    return result


def _ratio_grid(config: Config, steps: int, abar: np.ndarray, sampler: str) -> tuple[np.ndarray, list[Level]]:
    """Timesteps, and one more level than timesteps, of the samplers defined on noise-to-signal ratios."""
    for name in ("use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"):
        if option(config, name, False):
            raise ValueError(
                f"{name} is not supported with scheduler {sampler!r}: set it to false in its config"
            )
    if sampler == "euler":
        for name, only in (("interpolation_type", "linear"), ("timestep_type", "discrete")):
            if option(config, name, only) != only:
                raise ValueError(f"{name} must be {only!r} with scheduler 'euler', got {config[name]!r}")
    last = option(config, "final_sigmas_type", "zero")
    if last not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type must be zero or sigma_min, got {last!r}")
    if option(config, "rescale_betas_zero_snr", False):
        abar = np.append(abar[:-1], levels.SMALLEST_ABAR)
    grid = np.sqrt((1 - abar) / abar)
    if sampler == "euler":
        times = levels.spaced_timesteps(config, steps, default="linspace", rounded=False)
    else:
        times = levels.dpm_timesteps(config, steps, abar)
    ratios = np.interp(times, np.arange(len(grid)), grid)
    spreads = {"use_karras_sigmas": levels.karras_sigmas, "use_exponential_sigmas": levels.exponential_sigmas}
    for name, spread in spreads.items():
        if option(config, name, False):
            # Euler spreads between the ends of its timesteps, DPM-Solver++ between the training grid's.
            single = levels.single_precision_ratios(abar)
            ends = ratios if sampler == "euler" else single[::-1]
            low = option(config, "sigma_min", None) or ends[-1]
            high = option(config, "sigma_max", None) or ends[0]
            ratios = spread(float(low), float(high), steps)
            times = levels.sigma_to_timestep(ratios, single)
            if sampler == "dpmpp_2m":  # diffusers keeps whole timesteps here
                cosine = option(config, "beta_schedule", "linear") == "squaredcos_cap_v2"
                times = np.round(times) if name == "use_karras_sigmas" and not cosine else np.floor(times)
    ratios = np.append(ratios, 0.0 if last == "zero" else grid[0])
    return times, [(1 / math.sqrt(1 + r * r), r / math.sqrt(1 + r * r)) for r in ratios.tolist()]


def euler(config: Config, steps: int, abar: np.ndarray, prediction: str) -> list[Step]:
    """Euler's method on dx/dr = e, r = sigma/alpha; in variance-preserving coordinates, DDIM's step."""
    times, at = _ratio_grid(config, steps, abar, "euler")
    return [_first_order(time, at[i], at[i + 1], prediction) for i, time in enumerate(times)]


def dpmpp_2m(config: Config, steps: int, abar: np.ndarray, prediction: str, first: int) -> list[Step]:
    """DPM-Solver++(2M), midpoint or heun. Step `first`, the first that is taken, has no history."""
    kind = option(config, "solver_type", "midpoint")
    times, at = _ratio_grid(config, steps, abar, "dpmpp_2m")
    final_first_order = (
        at[-1][1] == 0
        or option(config, "euler_at_final", False)
        or (option(config, "lower_order_final", True) and steps < 15)
    )
    result = []
    for i, time in enumerate(times):
        rounded_to_one = at[i] in (at[i - 1], at[i + 1])  # timesteps so close that history has no slope
        if i <= first or rounded_to_one or (i == steps - 1 and final_first_order):
            result.append(_first_order(time, at[i], at[i + 1], prediction))
            continue
        # h: advance in lambda = log(alpha/sigma). x_next = x + base clean + slope (clean - history)
        before, now, then = (math.log(alpha / sigma) for alpha, sigma in at[i - 1 : i + 2])
        h, to_alpha = then - now, at[i + 1][0]
        base = -to_alpha * math.expm1(-h)
        slope = to_alpha * (math.expm1(-h) / h + 1) if kind == "heun" else base / 2
        slope *= h / (now - before)
        x, x0 = at[i + 1][1] / at[i][1], base + slope
        result.append(_make_step(time, at[i], at[i + 1], prediction, x=x, x0=x0, clip_gain=x0, c=-slope))
    return result


def lcm(config: Config, steps: int, abar: np.ndarray, prediction: str) -> list[Step]:
    """Multistep consistency sampling: f(x_t) = c_skip x_t + c_out x0, noised again to the next level, 1 to 8 steps.

    For networks distilled to it (latent consistency models, LCM-LoRA); any other gives blurred pictures. Timesteps
    are spread over the `original_inference_steps` of the distillation.
    """
    original = int(option(config, "original_inference_steps", 50))
    if steps > original:
        raise ValueError(
            f"steps: scheduler 'lcm' takes at most original_inference_steps ({original}), got {steps}"
        )
    scaling = float(option(config, "timestep_scaling", 10.0))
    grid = (np.arange(1, original + 1) * (len(abar) // original) - 1)[::-1]
    times = grid[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)].tolist()
    at = [_vp(float(abar[time])) for time in times] + [(1.0, 0.0)]
    result = []
    for i, time in enumerate(times):
        c_skip = 0.25 / ((time * scaling) ** 2 + 0.25)  # sigma_data = 0.5
        c_out = time * scaling / math.sqrt((time * scaling) ** 2 + 0.25)
        to_alpha, to_sigma = at[i + 1]
        x, x0 = to_alpha * c_skip, to_alpha * c_out
        result.append(
            _make_step(time, at[i], at[i + 1], prediction, x=x, x0=x0, clip_gain=x0, noise_scale=to_sigma)
        )
    return result


def flow(config: Config, steps: int) -> list[Step]:
    """Flow matching, Euler's method on dx/dsigma = v for latents (1 - sigma) x0 + sigma e."""
    for name in ("use_dynamic_shifting", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"):
        if option(config, name, False):
            raise ValueError(f"{name} is not supported with scheduler 'flow': set it to false in its config")
    count, shift = int(option(config, "num_train_timesteps", 1000)), float(option(config, "shift", 1.0))

    def shifted(sigma):
        return shift * sigma / (1 + (shift - 1) * sigma)

    # diffusers shifts the ends of the range when it is built and everything again when the steps are chosen.
    sigmas = shifted(np.linspace(1.0, shifted(1.0 / count), steps))
    terminal = option(config, "shift_terminal", None)
    if terminal:
        if steps == 1:
            raise ValueError("steps must be at least 2 for a config with shift_terminal, got 1")
        sigmas = 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])
    if option(config, "use_karras_sigmas", False):
        sigmas = levels.karras_sigmas(float(sigmas[-1]), float(sigmas[0]), steps)
    elif option(config, "use_exponential_sigmas", False):
        sigmas = levels.exponential_sigmas(float(sigmas[-1]), float(sigmas[0]), steps)
    at = [(1 - sigma, sigma) for sigma in np.append(sigmas, 0.0).tolist()]
    return [_first_order(at[i][1] * count, at[i], at[i + 1], "flow") for i in range(steps)]
