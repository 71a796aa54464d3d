"""How long networks take, side by side: a call, a step, a whole video."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from vidsmooth_fast.models.latent_model import LatentModel
from vidsmooth_fast.models.loading import load
from vidsmooth_fast.sampling.denoiser import denoiser_of
from vidsmooth_fast.sampling.fast_sample import fast_sample
from vidsmooth_fast.sampling.noise import initial_noise
from vidsmooth_fast.sampling.options import Options

TIMESTEP = 500.0
"""Of the timed calls; what a network computes takes as long at any other."""


@dataclass(frozen=True)
class Timing:
    """What one model takes, in seconds.

    name: as it was asked for. format: "torch", or a bundle's. dtype, device: of the network.
    load: reading it. first: its first network call, with whatever is opened, compiled or captured for it.
    call: the median of later calls, each of one window with its guidance branches. step: the median of a sampling
    step. video: all of `fast_sample` from prompt to frames.
    """

    name: str
    format: str
    dtype: str
    device: str
    load: float
    first: float
    call: float
    step: float
    video: float


def bench(
    models: Sequence[str | os.PathLike | LatentModel],
    *,
    prompt: str = "",
    frames: int = 64,
    steps: int = 10,
    window: int = 16,
    stride: int = 8,
    guidance: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    rounds: int = 5,
    say: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Time models beside each other, exported bundles among them.

    Calls are timed in `rounds` that call each model once, so that a machine whose speed drifts is fair to all; then
    each model samples the same video once. All are in memory at the same time.

    models: what `load` takes, or loaded models (whose loading takes no time, and which stay where they are).
    height, width: in pixels; the first model's own size by default. say: told, in a line, what comes next.
    The other arguments are those of `fast_sample`.

    Returns one Timing per model, in order. Raises: ValueError, before anything is timed, for a model that cannot be
    loaded or a number out of range; and what `fast_sample` raises.
    """
    for name, value, least in (("rounds", rounds, 1), ("steps", steps, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected a whole number from {least}, got {value!r}")
    if not models:
        raise ValueError("models: expected at least one, got none")
    settings = {"steps": steps, "window": window, "stride": stride, "guidance": guidance, "seed": seed}
    options = Options(frames, **settings)
    loaded, loading = [], []
    for model in models:
        say(f"loading {_name(model)}")
        began, ready = time.perf_counter(), isinstance(model, LatentModel)
        loaded.append(model if ready else load(model, device=device, dtype=dtype))
        loading.append(0.0 if ready else time.perf_counter() - began)
    own = loaded[0].default_size
    size = {"height": own[0] if height is None else height, "width": own[1] if width is None else width}
    for model in loaded:
        replace(options, **size).for_model(model, has_source=False, has_latents=False)

    length = min(window, frames)
    say(f"calling networks on {length} frames, {rounds} rounds")
    with torch.inference_mode():
        calls = [_call(model, prompt, length, size, 1 if guidance == 1 else 2) for model in loaded]
        first = [_seconds(model, call) for model, call in zip(loaded, calls, strict=True)]
        taken: list[list[float]] = [[] for _ in loaded]
        for _ in range(rounds):
            for times, model, call in zip(taken, loaded, calls, strict=True):
                times.append(_seconds(model, call))

    timings = []
    for i, (model, asked) in enumerate(zip(loaded, models, strict=True)):
        say(f"sampling {frames} frames in {steps} steps with {_name(asked)}")
        ends: list[float] = []
        began = time.perf_counter()
        fast_sample(
            model,
            prompt,
            frames,
            progress=False,
            callback=lambda *_, ends=ends: ends.append(time.perf_counter()),
            **settings,
            **size,
        )
        video = time.perf_counter() - began
        timings.append(
            Timing(
                name=_name(asked),
                format=_format(model),
                dtype=str(model.dtype).removeprefix("torch."),
                device=str(model.device),
                load=loading[i],
                first=first[i],
                call=median(taken[i]),
                step=median(after - before for before, after in zip(ends, ends[1:], strict=False)),
                video=video,
            )
        )
    return timings


def table(timings: Iterable[Timing]) -> str:
    """Timings as lines for people: seconds, and how many times as fast as the first a video is."""
    timings = list(timings)
    rows = [("model", "format", "dtype", "load s", "first call s", "call s", "step s", "video s", "speed")]
    for t in timings:
        numbers = [f"{value:.3g}" for value in (t.load, t.first, t.call, t.step, t.video)]
        numbers.append(f"{timings[0].video / t.video:.2f}")
        rows.append((t.name, t.format, f"{t.dtype} {t.device}", *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < 3 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _name(model: str | os.PathLike | LatentModel) -> str:
    return model.name if isinstance(model, LatentModel) else os.fspath(model)


def _format(model: LatentModel) -> str:
    bundle = getattr(model, "bundle", None)
    return "torch" if bundle is None else bundle.format


def _call(model: LatentModel, prompt: str, length: int, size: dict[str, int], branches: int) -> Callable:
    """A network call on one window and its guidance branches, ready to be made."""
    denoiser, down = denoiser_of(model), model.downsampling
    text = denoiser.prepare_text(model.encode_text(["", prompt][-branches:]))
    shape = (model.latent_channels, size["height"] // down, size["width"] // down)
    latents = initial_noise("independent", seed=0, frames=length, shape=shape, window=length, stride=length)
    latents = latents.to(denoiser.device, denoiser.dtype)
    return lambda: denoiser.predict(latents, TIMESTEP, text, branches=branches)


def _seconds(model: LatentModel, call: Callable) -> float:
    """Of one call, until its result is there."""
    began = time.perf_counter()
    call()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - began
