"""What `speed=` stands for. benchmarks/speed.py measures every preset; docs/results.md has the curve."""

from __future__ import annotations

from dataclasses import dataclass

from vidsmooth_fast.sampling.reuse import DeepReuse


@dataclass(frozen=True)
class Preset:
    """Values of the options that trade quality for time; an option that is given beats them.

    scheduler, steps, guidance_interval, reuse: as in `fast_sample`. A flow-matching model keeps its own scheduler.
    """

    scheduler: str
    steps: int
    guidance_interval: tuple[float, float]
    reuse: DeepReuse


PRESETS = {
    "exact": Preset("ddim", 50, (0.0, 1.0), DeepReuse(1)),
    "balanced": Preset("dpmpp_2m", 20, (0.0, 0.8), DeepReuse(1)),
    "fast": Preset("dpmpp_2m", 20, (0.0, 0.6), DeepReuse(3)),
}
