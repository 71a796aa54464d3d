"""The loop: predict every window, then merge, guide, smooth and step the whole video in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.sampling.noise import frame_noise
from vidsmooth_fast.sampling.schedule import Schedule, Step
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

    A step whose result is not finite in half precision is taken again in float32. The check is read after the next
    step was launched, so that the device never waits for the host; `after_step` sees checked states only. Raises
    FloatingPointError when float32 does not help either.
    """
    stepper = _Stepper(predict, schedule, guidance, smooth, source, loop, seed)
    before, finite = state, None
    while state.done < len(schedule.steps):
        after = stepper(state)
        after_finite = _FiniteFlag(after.latents)
        if finite is not None:
            if not finite.read():
                state = stepper.again_in_float32(before)
                after = stepper(state)
                after_finite = _FiniteFlag(after.latents)
            after_step(state)
        before, state, finite = state, after, after_finite
    if finite is not None:
        if not finite.read():
            state = stepper.again_in_float32(before)
        after_step(state)
    return state.latents


class _Stepper:
    """One step of the whole video."""

    def __init__(self, predict, schedule, guidance, smooth, source, loop, seed):
        self.predict = predict
        self.schedule = schedule
        self.guidance = guidance
        self.smooth = smooth
        self.source = source
        self.loop = loop
        self.seed = seed
        self._float32: WindowedPredictor | None = None

    def __call__(self, state: State, predict: WindowedPredictor | None = None) -> State:
        step = self.schedule.steps[state.done]
        pred = (predict or self.predict)(state.latents, step.timestep)
        latents, clean = self._advance(pred, state, step)
        return State(latents, clean if self.schedule.needs_history else None, state.done + 1)

    def again_in_float32(self, state: State) -> State:
        if self._float32 is None:
            self._float32 = self.predict.in_float32()
        after = self(state, self._float32)
        if not bool(after.latents.isfinite().all()):
            raise FloatingPointError(
                f"the network's prediction is not finite at step {state.done + 1}, in float32 too"
            )
        return after

    def _advance(self, pred: Tensor, state: State, step: Step) -> tuple[Tensor, Tensor | None]:
        windows, x = self.predict.windows, state.latents
        c_over_lambda, strength, reference = 0.0, 0.0, None
        if self.smooth is not None:
            c_over_lambda, strength = self.smooth.coefficients(state.done, self.schedule)
            if self.smooth.needs_source and strength:
                reference = self.source * self.smooth.reference_scale(step)
        noise = None
        if step.noise_scale:
            noise = frame_noise(self.seed, "step", windows.frames, state.done, (x.shape[1], *x.shape[3:])).to(
                x.device
            )
        clip = self.schedule.clip
        next_x, clean = ops.denoise_step(
            pred,
            x,
            windows.starts,
            windows.weights.to(x.device),
            branch_weights=self.guidance.weights,
            a=step.a,
            b=step.b,
            c=step.c,
            history=state.history,
            to_eps=step.to_eps,
            to_clean=step.to_clean if self.schedule.needs_history or clip else None,
            c_over_lambda=c_over_lambda,
            strength=strength,
            reference=reference,
            noise=noise,
            noise_scale=step.noise_scale,
            loop=self.loop,
        )
        if clip:
            next_x, clean = step.clipped(next_x, clean, clip)
        return next_x, clean


class _FiniteFlag:
    """Whether a tensor is finite, copied to the host without waiting for the device."""

    def __init__(self, x: Tensor):
        flag = x.isfinite().all()
        self._event = None
        if flag.is_cuda:
            self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._flag = flag

    def read(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._flag)
