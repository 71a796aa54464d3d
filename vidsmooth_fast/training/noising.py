"""The forward process on the training grid, and what an ε- or v-prediction network is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vidsmooth_fast.sampling.noise_levels import alphas_cumprod
from vidsmooth_fast.sampling.smoothing import step_constant

PREDICTIONS = ("epsilon", "v_prediction")


class Noising:
    """x_t = α x₀ + σ ε with α = √ᾱ_t, σ = √(1 − ᾱ_t), and conversions between ε and v = α ε − σ x₀.

    scheduler_config: any diffusers scheduler's. prediction_type: what the network predicts, one of PREDICTIONS.
    Latents are (B, C, F, H, W); timesteps t are (B,) int64, one per clip; all on `device`.
    Raises ValueError for another prediction type or schedule.
    """

    def __init__(
        self, scheduler_config: Mapping[str, Any], prediction_type: str, device: torch.device | str = "cpu"
    ) -> None:
        if prediction_type not in PREDICTIONS:
            raise ValueError(
                f"model: tuning needs a network that predicts {' or '.join(PREDICTIONS)}, got {prediction_type!r}"
            )
        self.prediction_type = prediction_type
        abar = torch.from_numpy(alphas_cumprod(scheduler_config))
        before = torch.cat([abar.new_ones(1), abar[:-1]])  # ᾱ before step 0 is 1: the picture itself
        self.count = len(abar)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        c = step_constant(alpha, sigma, before.sqrt(), (1 - before).sqrt())
        self._alpha, self._sigma, self._c = (table.to(device, torch.float32) for table in (alpha, sigma, c))

    @staticmethod
    def _at(table: Tensor, t: Tensor) -> Tensor:
        return table[t][:, None, None, None, None]

    def alpha(self, t: Tensor) -> Tensor:
        """(B, 1, 1, 1, 1), fp32."""
        return self._at(self._alpha, t)

    def sigma(self, t: Tensor) -> Tensor:
        """(B, 1, 1, 1, 1), fp32."""
        return self._at(self._sigma, t)

    def constant(self, t: Tensor) -> Tensor:
        """C of [003] eq. 2, √ᾱ_t / (√ᾱ_t √(1−ᾱ_{t−1}) − √ᾱ_{t−1} √(1−ᾱ_t)): (B,) fp32, negative at every t.

        t = 0 comes from the picture (ᾱ = 1). The published program reads the table's last entry there.
        """
        return self._c[t]

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.alpha(t) * clean + self.sigma(t) * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should say about x_t: ε, or v = α ε − σ x₀."""
        if self.prediction_type == "epsilon":
            return noise
        return self.alpha(t) * noise - self.sigma(t) * clean

    def implied_noise(self, noisy: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """ε* = (x_t − α x₀) / σ: the noise that makes this x_t of this x₀."""
        return (noisy - self.alpha(t) * clean) / self.sigma(t)

    def epsilon(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction stands for: itself, or σ x_t + α v."""
        if self.prediction_type == "epsilon":
            return prediction
        return self.sigma(t) * noisy + self.alpha(t) * prediction

    def clean(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction stands for: (x_t − σ ε) / α, or α x_t − σ v."""
        if self.prediction_type == "epsilon":
            return (noisy - self.sigma(t) * prediction) / self.alpha(t)
        return self.alpha(t) * noisy - self.sigma(t) * prediction
