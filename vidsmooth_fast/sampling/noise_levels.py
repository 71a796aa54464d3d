"""Noise levels and timesteps of diffusers' scheduler configurations, in float64.

A variance-preserving schedule is alphas_cumprod (abar) on the training grid: x_t = sqrt(abar_t) x0 + sqrt(1 -
abar_t) e. diffusers builds it in float32; so do we, to land on the same numbers, and go on from there in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

SPACINGS = ("leading", "linspace", "trailing")

# What abar = 0 is raised to where its logarithm is needed, as in diffusers' Euler and DPM-Solver++.
SMALLEST_ABAR = 2.0**-24


def option(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """config[name], or the default where it is absent or was never set (diffusers notes which)."""
    if name in (config.get("_use_default_values") or ()):
        return default
    return config.get(name, default)


def _cosine_betas(count: int, largest: float = 0.999) -> torch.Tensor:
    def abar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - abar((i + 1) / count) / abar(i / count), largest) for i in range(count)])


def _zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(abar) to end at 0 and begin where it did (arXiv 2305.08891, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    abar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def alphas_cumprod(config: Mapping[str, Any]) -> np.ndarray:
    """abar on the training grid, (num_train_timesteps,) float64, from the keys that diffusers' schedulers
    use.

    Raises ValueError for an unknown beta_schedule.
    """
    count = int(option(config, "num_train_timesteps", 1000))
    start, end = float(option(config, "beta_start", 0.0001)), float(option(config, "beta_end", 0.02))
    kind, trained = option(config, "beta_schedule", "linear"), option(config, "trained_betas", None)
    if trained is not None:
        betas = torch.tensor(trained, dtype=torch.float32)
    elif kind == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    elif kind == "squaredcos_cap_v2":
        betas = _cosine_betas(count)
    else:
        raise ValueError(f"beta_schedule must be linear, scaled_linear or squaredcos_cap_v2, got {kind!r}")
    if option(config, "rescale_betas_zero_snr", False):
        betas = _zero_terminal_snr(betas)
    return torch.cumprod(1.0 - betas, dim=0).double().numpy()


def _checked(times: np.ndarray, count: int) -> np.ndarray:
    if times.max() > count - 1:
        raise ValueError(
            f"{len(times)} steps ask for timestep {times.max():g} of a network trained on 0 ... {count - 1} "
            "(steps_offset): use fewer steps, or steps_offset 0"
        )
    return times.astype(np.float64)


def spaced_timesteps(
    config: Mapping[str, Any], steps: int, *, default: str, rounded: bool = True
) -> np.ndarray:
    """Descending timesteps of DDIM, DDPM and Euler: (steps,) float64, whole numbers unless `rounded` is False.

    leading: 0, T//n, 2(T//n), ... plus steps_offset;  linspace: 0 ... T-1;  trailing: T-1, T-1-T/n, ...
    Raises ValueError for another spacing, and where the offset leads beyond the training grid.
    """
    count = int(option(config, "num_train_timesteps", 1000))
    spacing, offset = option(config, "timestep_spacing", default), option(config, "steps_offset", 0)
    if spacing == "linspace":
        times = np.linspace(0, count - 1, steps)[::-1]
        # diffusers' Euler keeps the fraction, in float32
        return _checked(times.round() if rounded else times.astype(np.float32), count)
    if spacing == "leading":
        return _checked((np.arange(steps) * (count // steps))[::-1] + offset, count)
    if spacing == "trailing":
        return _checked(np.round(np.arange(count, 0, -count / steps)[:steps]) - 1, count)
    raise ValueError(f"timestep_spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")


def dpm_timesteps(config: Mapping[str, Any], steps: int, abar: np.ndarray) -> np.ndarray:
    """Descending timesteps of DPM-Solver++, the first `steps` of steps + 1 points: (steps,) float64."""
    count, spacing = len(abar), option(config, "timestep_spacing", "linspace")
    lowest = float(option(config, "lambda_min_clipped", -math.inf))
    half_log_snr = (0.5 * np.log(abar / (1 - abar))).astype(np.float32)
    last = count - int(np.searchsorted(half_log_snr[::-1], np.float32(lowest)))
    if spacing == "linspace":
        return _checked(np.linspace(0, last - 1, steps + 1).round()[:0:-1], count)
    if spacing == "leading":
        times = np.arange(steps + 1) * (last // (steps + 1))
        return _checked(times[:0:-1] + option(config, "steps_offset", 0), count)
    if spacing == "trailing":
        return _checked(np.arange(last, 0, -count / steps).round()[:steps] - 1, count)
    raise ValueError(f"timestep_spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")


def karras_sigmas(lowest: float, highest: float, steps: int) -> np.ndarray:
    """Noise-to-signal ratios spaced evenly in sigma^(1/7), descending (arXiv 2206.00364, eq. 5): (steps,)."""
    ramp = np.linspace(0, 1, steps)
    return (highest ** (1 / 7) + ramp * (lowest ** (1 / 7) - highest ** (1 / 7))) ** 7


def exponential_sigmas(lowest: float, highest: float, steps: int) -> np.ndarray:
    """Noise-to-signal ratios spaced evenly in log sigma, descending: (steps,)."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), steps))


def single_precision_ratios(abar: np.ndarray) -> np.ndarray:
    """sqrt((1 - abar) / abar) as diffusers computes it, float32: where times are truncated, its rounding counts."""
    single = torch.from_numpy(abar).float()
    return (((1 - single) / single) ** 0.5).numpy()


def sigma_to_timestep(sigmas: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The (fractional) training timestep of each noise-to-signal ratio, linear in log sigma.

    sigmas: float64;  grid: ascending ratios of the training timesteps, in the precision that the logs shall have
    """
    at, logs = np.log(np.maximum(sigmas, 1e-10)), np.log(grid)
    low = np.clip(np.searchsorted(logs, at, side="right") - 1, 0, len(grid) - 2)
    weight = np.clip((logs[low] - at) / (logs[low] - logs[low + 1]), 0, 1)
    return (1 - weight) * low + weight * (low + 1)
