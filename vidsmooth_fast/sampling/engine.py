"""The loop: predict every window, then merge, guide, smooth and step the whole video in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.sampling.noise import frame_noise
from vidsmooth_fast.sampling.schedule import Schedule
from vidsmooth_fast.sampling.smoothing import NoiseConstraint
from vidsmooth_fast.sampling.windowed import WindowedPredictor


@dataclass
class State:
    """Where a run stands: latents after `done` steps, and the last clean estimate where the sampler has history.

    latents, history: (1, C, F, H, W) float32.
    """

    latents: Tensor
    history: Tensor | None = None
    done: int = 0


@dataclass(frozen=True)
class Guidance:
    """Weights of the guidance branches; they sum to 1. (1 - s, s) is classifier-free guidance of scale s."""

    weights: tuple[float, ...]

    @classmethod
    def of_scale(cls, scale: float) -> Guidance:
        return cls((1.0,)) if scale == 1 else cls((1 - scale, scale))


def denoise(
    predict: WindowedPredictor,
    state: State,
    schedule: Schedule,
    *,
    guidance: Guidance,
    smooth: NoiseConstraint | None = None,
    source: Tensor | None = None,
    loop: bool = False,
    seed: int = 0,
    after_step: Callable[[State], None] = lambda state: None,
) -> Tensor:
    """Run the remaining steps of `schedule` and return the clean latents (1, C, F, H, W), float32.

    predict: maps latents and a timestep to the predictions of every window and branch.
    state: where to start; `state.done` steps are taken as finished.
    smooth: noise constraint between frames; `source`, the clean source latents, is its reference where it wants one.
    seed: of the noise added by stochastic samplers, drawn per frame and step.
    after_step: called with the state after each finished step.

    Overflow is handled as in `run_steps`.
    """

    def step(state: State, predict: WindowedPredictor) -> State:
        now = schedule.steps[state.done]
        x = state.latents
        c_over_lambda, strength, reference, noise = 0.0, 0.0, None, None
        if smooth is not None:
            c_over_lambda, strength = smooth.coefficients(state.done, schedule)
            if smooth.needs_source and strength:
                reference = source * smooth.reference_scale(now)
        if now.noise_scale:
            noise = frame_noise(seed, "step", x.shape[2], state.done, (x.shape[1], *x.shape[3:])).to(x.device)
        keeps_clean = schedule.needs_history or schedule.clip
        latents, clean = ops.denoise_step(
            predict(x, now.timestep),
            x,
            predict.windows.starts,
            predict.weights,
            branch_weights=guidance.weights,
            a=now.a,
            b=now.b,
            c=now.c,
            history=state.history,
            to_eps=now.to_eps,
            to_clean=now.to_clean if keeps_clean else None,
            c_over_lambda=c_over_lambda,
            strength=strength,
            reference=reference,
            noise=noise,
            noise_scale=now.noise_scale,
            loop=loop,
        )
        if schedule.clip:
            latents, clean = now.clipped(latents, clean, schedule.clip)
        return State(latents, clean if schedule.needs_history else None, state.done + 1)

    return run_steps(predict, step, state, len(schedule.steps), after_step).latents


def run_steps(
    predict: WindowedPredictor,
    step: Callable[[State, WindowedPredictor], State],
    state: State,
    total: int,
    after_step: Callable[[State], None],
) -> State:
    """Take steps until `total` are done, and every step that is not finite once more in float32.

    Whether a result is finite is read one step later on a GPU, when the next step has been launched, so that the
    device never waits for the host. `after_step` sees checked states only.
    Raises FloatingPointError when float32 does not help.
    """
    in_float32: WindowedPredictor | None = None
    before, unread = state, None
    while unread is not None or state.done < total:
        ahead = None
        if state.done < total and (unread is None or unread.on_device):
            ahead = step(state, predict)
        if unread is not None:
            if not unread.read():
                in_float32 = in_float32 or predict.in_float32()
                state, ahead = step(before, in_float32), None
                if not _FiniteFlag(state.latents).read():
                    raise FloatingPointError(
                        f"the network's prediction is not finite at step {state.done}, in float32 too"
                    )
            after_step(state)
            unread = None
        if ahead is not None:
            before, state, unread = state, ahead, _FiniteFlag(ahead.latents)
    return state


class _FiniteFlag:
    """Whether a tensor is finite, copied to the host without waiting for the device."""

    def __init__(self, x: Tensor):
        flag = x.isfinite().all()
        self.on_device = flag.is_cuda
        if self.on_device:
            self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._flag = flag

    def read(self) -> bool:
        if self.on_device:
            self._event.synchronize()
        return bool(self._flag)
