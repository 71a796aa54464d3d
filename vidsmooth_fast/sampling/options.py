"""The options of a run, checked before any work starts."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

from vidsmooth_fast.models.latent_model import LatentModel
from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.sampling.noise import INITS as INITIAL_NOISE
from vidsmooth_fast.sampling.presets import PRESETS
from vidsmooth_fast.sampling.reuse import DeepReuse
from vidsmooth_fast.sampling.schedule import SCHEDULERS
from vidsmooth_fast.sampling.smoothing import InversionBlend, NoiseConstraint
from vidsmooth_fast.sampling.windows import WEIGHTS, window_length

MERGES = ("latent", "attention")
INITS = ("inversion", "latents", *INITIAL_NOISE)


@dataclass(frozen=True)
class Options:
    """The settings of a run, beside model, prompts, source and initial latents.

    The fields are those of `fast_sample`. None for steps, guidance_interval or reuse means what `speed` says; for
    scheduler, init, height or width it means the default, filled in by `for_model`.
    Raises ValueError naming the field, what was expected and what came.
    """

    frames: int
    source_prompt: str = ""
    strength: float = 1.0
    speed: str = "exact"
    steps: int | None = None
    guidance: float = 7.5
    guidance_interval: tuple[float, float] | None = None
    reuse: DeepReuse | None = None
    window: int = 16
    stride: int = 8
    window_weights: str = "hann"
    loop: bool = False
    merge: str = "latent"
    smooth: NoiseConstraint | None = None
    blend: InversionBlend | None = None
    init: str | None = None
    scheduler: str | None = None
    eta: float = 0.0
    height: int | None = None
    width: int | None = None
    seed: int = 0
    decoder: str = "full"
    max_batch: int | str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.speed, str) or self.speed not in PRESETS:
            raise ValueError(f"speed: expected one of {', '.join(PRESETS)}; got {self.speed!r}")
        for name in ("steps", "guidance_interval", "reuse"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(PRESETS[self.speed], name))
        for name, least in (("frames", 1), ("steps", 1), ("window", 2), ("stride", 1)):
            object.__setattr__(self, name, _whole(name, getattr(self, name), least))
        if self.stride > self.window:
            raise ValueError(
                f"stride: expected at most the window ({self.window}), got {self.stride}: frames would be left out"
            )
        for name, choices in (
            ("window_weights", WEIGHTS),
            ("merge", MERGES),
            ("scheduler", (None, *SCHEDULERS)),
            ("init", (None, *INITS)),
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"{name}: expected one of {known}; got {getattr(self, name)!r}")
        for name, lowest, highest in (("strength", 0, 1), ("eta", 0, 1), ("guidance", 0, 1000)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not lowest <= value <= highest:
                raise ValueError(f"{name}: expected a number in {lowest}..{highest}, got {value!r}")
        sampler = self.scheduler or PRESETS[self.speed].scheduler
        if self.eta and sampler != "ddim":
            raise ValueError(f"eta: is DDIM's noise, got {self.eta} with scheduler {sampler!r}")
        object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        if not isinstance(self.reuse, DeepReuse):
            raise ValueError(f"reuse: expected a DeepReuse or None, got {type(self.reuse).__name__}")
        if not isinstance(self.decoder, str | os.PathLike):
            raise ValueError(f"decoder: expected full, linear or a directory, got {self.decoder!r}")
        if not isinstance(self.loop, bool):
            raise ValueError(f"loop: expected True or False, got {self.loop!r}")
        if self.strength == 0:
            raise ValueError("strength: expected more than 0, got 0: nothing would change")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            raise ValueError(f"seed: expected an integer, got {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))
        if self.max_batch != "auto":
            _whole("max_batch", self.max_batch, 1)
        if self.smooth is not None and not isinstance(self.smooth, NoiseConstraint):
            raise ValueError(f"smooth: expected a NoiseConstraint or None, got {type(self.smooth).__name__}")
        if self.blend is not None and not isinstance(self.blend, InversionBlend):
            raise ValueError(f"blend: expected an InversionBlend or None, got {type(self.blend).__name__}")

    def for_model(self, model: LatentModel, *, has_source: bool, has_latents: bool) -> Options:
        """Defaults filled in, and what needs the model or the inputs checked."""
        default = model.default_size
        height = default[0] if self.height is None else self.height
        width = default[1] if self.width is None else self.width
        multiple = model.downsampling
        for name, value in (("height", height), ("width", width)):
            _whole(name, value, multiple)
            if value % multiple:
                low = value - value % multiple
                raise ValueError(
                    f"{name}: expected a multiple of {multiple} for this model, got {value}; "
                    f"try {low} or {low + multiple}"
                )
        model.check_run(window_length(self.frames, self.window), height, width, self.merge)
        if self.strength < 1 and not has_source:
            raise ValueError(
                f"strength: below 1 keeps part of a source clip, and there is none; got {self.strength}"
            )
        usual = "flow" if model.prediction_type == "flow" else PRESETS[self.speed].scheduler
        scheduler = self.scheduler or usual
        if model.prediction_type == "flow" and scheduler != "flow":
            raise ValueError(f"scheduler: this is a flow-matching model, expected 'flow', got {scheduler!r}")
        reuse = self._reuse(model)
        if self.smooth is not None and self.smooth.target == "source" and not has_source:
            raise ValueError("smooth: target 'source' needs a source clip; use target='clean' without one")
        init = self._init(has_source, has_latents)
        if self.blend is not None and init != "inversion":
            raise ValueError(f"blend: acts on the inversion of a source, and this run starts from {init!r}")
        return replace(self, height=height, width=width, init=init, scheduler=scheduler, reuse=reuse)

    def _reuse(self, model: LatentModel) -> DeepReuse:
        """With its layers filled in: those of the outermost level by default."""
        if self.reuse.period == 1:
            return self.reuse
        if not isinstance(model, VideoModel):
            raise ValueError(
                "reuse: needs the network itself, and this is an exported bundle; use DeepReuse(1)"
            )
        per_level = model.network_config["layers_per_block"] + 1
        layers = self.reuse.layers or per_level
        most = per_level * len(model.network_config["block_out_channels"]) - 1
        if layers > most:
            raise ValueError(f"reuse: expected at most {most} layers for this network, got {layers}")
        return replace(self.reuse, layers=layers)

    def _init(self, has_source: bool, has_latents: bool) -> str:
        wants_shared = self.smooth is not None and self.smooth.wants_shared_noise
        if has_latents:
            chosen = "latents"
            if self.init not in (None, "latents"):
                raise ValueError(f"init: got {self.init!r} beside latents; give one of them")
        elif self.init == "latents":
            raise ValueError("init: 'latents' needs initial latents")
        elif self.init == "inversion" and not has_source:
            raise ValueError("init: 'inversion' needs a source clip")
        elif self.init is not None:
            chosen = self.init
        elif has_source and self.strength == 1:
            chosen = "inversion"
        else:
            chosen = "shared" if wants_shared else "freenoise"
        if wants_shared and chosen != "shared":
            warnings.warn(
                f"smooth: target {self.smooth.target!r} amplifies flicker unless all frames share their initial noise, "
                f"and init is {chosen!r}; see docs/smoothing.md",
                stacklevel=4,
            )
        return chosen

    @property
    def needs_source(self) -> bool:
        """Whether the source's latents are kept: to invert, to begin from them noised, or to smooth towards them."""
        return self.init == "inversion" or self.strength < 1 or bool(self.smooth and self.smooth.needs_source)

    def as_dict(self) -> dict[str, Any]:
        """The settings in the form that is written into the output's metadata."""
        settings = asdict(self) | {"decoder": str(self.decoder)}
        del settings["max_batch"]  # the result does not depend on it
        return settings


def _interval(value: Any) -> tuple[float, float]:
    if (
        not isinstance(value, tuple | list)
        or len(value) != 2
        or not all(isinstance(v, int | float) for v in value)
    ):
        raise ValueError(f"guidance_interval: expected two fractions (first, last), got {value!r}")
    if not 0 <= value[0] <= value[1] <= 1:
        raise ValueError(f"guidance_interval: expected 0 <= first <= last <= 1, got {value!r}")
    return float(value[0]), float(value[1])


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value)
