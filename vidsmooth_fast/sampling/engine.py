"""The loop: predict the windows of a segment, then merge, guide, smooth and step its frames in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.sampling.latents import Store, send
from vidsmooth_fast.sampling.noise import frame_noise
from vidsmooth_fast.sampling.schedule import Schedule
from vidsmooth_fast.sampling.smoothing import NoiseConstraint
from vidsmooth_fast.sampling.windowed import Piece, WindowedPredictor


@dataclass
class State:
    """Where a run stands: latents after `done` steps, and the last clean estimate where the sampler has history.

    latents, history: (1, C, F, H, W) float32, on the host.
    """

    latents: Tensor
    history: Tensor | None = None
    done: int = 0


@dataclass(frozen=True)
class Guidance:
    """Weights of the guidance branches; they sum to 1. (1 - s, s) is classifier-free guidance of scale s.

    interval: (first, last) fraction of the steps in which it acts; in the others the last branch, the prompt's, is
        computed alone (Kynkaanniemi et al., arXiv 2404.07724, who give the interval in noise levels).
    """

    weights: tuple[float, ...]
    interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of_scale(cls, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Guidance:
        return cls((1.0,)) if scale == 1 else cls((1 - scale, scale), interval)

    def acts(self, index: int, steps: int) -> bool:
        """Whether the middle of step `index` lies in the interval."""
        return len(self.weights) == 1 or self.interval[0] <= (index + 0.5) / steps <= self.interval[1]


def denoise(
    predict: WindowedPredictor,
    state: State,
    schedule: Schedule,
    *,
    guidance: Guidance,
    smooth: NoiseConstraint | None = None,
    source: Tensor | None = None,
    seed: int = 0,
    after_step: Callable[[State], None] = lambda state: None,
) -> Tensor:
    """Run the remaining steps of `schedule` and return the clean latents (1, C, F, H, W), float32, on the host.

    Each step goes through the video segment by segment, reads the latents of the step before and writes new ones: the
    device holds one segment, and the result does not depend on where the video is cut.

    predict: maps latents and a timestep to the predictions of every window and branch.
    state: where to start; `state.done` steps are taken as finished.
    smooth: noise constraint between frames; `source`, the clean source latents, is its reference where it wants one.
    seed: of the noise added by stochastic samplers, drawn per frame and step.
    after_step: called with the state after each finished step.

    Overflow is handled as in `run_steps`.
    """

    store = Store(state.latents.shape, predict.denoiser.device)

    def step(state: State, predict: WindowedPredictor) -> tuple[State, Tensor]:
        now = schedule.steps[state.done]
        c_over_lambda, strength = (0.0, 0.0) if smooth is None else smooth.coefficients(state.done, schedule)
        follows = smooth is not None and smooth.needs_source and strength != 0
        keeps_clean = schedule.needs_history or schedule.clip
        result = State(store.empty(), store.empty() if schedule.needs_history else None, state.done + 1)
        acts = guidance.acts(state.done, len(schedule.steps))
        predict, weights = predict.guided(acts), guidance.weights if acts else (1.0,)
        finite = []
        for piece in predict(state.latents, now.timestep, state.done):
            latents, clean = ops.denoise_step(
                piece.predictions,
                piece.x,
                piece.segment.starts,
                predict.weights,
                branch_weights=weights,
                a=now.a,
                b=now.b,
                c=now.c,
                history=piece.read(state.history) if now.c else None,
                to_eps=now.to_eps,
                to_clean=now.to_clean if keeps_clean else None,
                c_over_lambda=c_over_lambda,
                strength=strength,
                reference=piece.read(source) * smooth.reference_scale(now) if follows else None,
                noise=_step_noise(seed, state.done, piece) if now.noise_scale else None,
                noise_scale=now.noise_scale,
                loop=piece.segment.closed,
            )
            if schedule.clip:
                latents, clean = now.clipped(latents, clean, schedule.clip)
            piece.write(latents, result.latents)
            if result.history is not None:
                piece.write(clean, result.history)
            finite.append(piece.complete(latents).isfinite().all())
        return result, torch.stack(finite).all()

    return run_steps(predict, step, state, len(schedule.steps), after_step).latents


def _step_noise(seed: int, step: int, piece: Piece) -> Tensor:
    """The noise that a stochastic sampler adds to the frames that a segment steps, and zeros beside them."""
    noise = torch.zeros(piece.x.shape)
    segment, video = piece.segment, piece.frames
    numbers = [frame % video for frame in range(segment.first, segment.last)]
    shape = (noise.shape[1], *noise.shape[3:])
    piece.complete(noise).copy_(frame_noise(seed, "step", numbers, step, shape))
    return send(noise, piece.x.device)


def run_steps(
    predict: WindowedPredictor,
    step: Callable[[State, WindowedPredictor], tuple[State, Tensor]],
    state: State,
    total: int,
    after_step: Callable[[State], None],
) -> State:
    """Take steps until `total` are done, and every step that is not finite once more in float32.

    step: returns the next state, and a flag, on the device, whether it is finite.
    A GPU's flag is read one step later, when the next step has been launched, so that the device never waits for the
    host; by then the state has arrived on the host. `after_step` sees checked states only.
    Raises FloatingPointError when float32 does not help.
    """
    in_float32: WindowedPredictor | None = None
    before, unread = None, None
    while unread is not None or state.done < total:
        ahead = None
        if state.done < total and (unread is None or unread.on_device):
            ahead = step(state, predict)
        if unread is not None:
            if not unread.read():
                in_float32 = in_float32 or predict.in_float32()
                (state, finite), ahead = step(before, in_float32), None
                if not _FiniteFlag(finite).read():
                    raise FloatingPointError(
                        f"the network's prediction is not finite at step {state.done}, in float32 too"
                    )
            before, unread = None, None
            after_step(state)
        if ahead is not None:
            before, (state, finite) = state, ahead
            unread = _FiniteFlag(finite)
    return state


class _FiniteFlag:
    """A flag, copied to the host without waiting for the device."""

    def __init__(self, flag: Tensor):
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
