"""The settings of a tuning run, checked before any work starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real

import torch

from vidsmooth_fast.models.video_model import VideoModel

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LR_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


@dataclass(frozen=True)
class Settings:
    """What the tuned weights depend on, beside model, clip, mask and pairs. The fields are those of `tune`.

    pairs: how many. None for size and "auto" for precision are filled in by `for_model`.
    Raises ValueError naming the field, what was expected and what came.
    """

    prompt: str
    loss: dict[str, float]
    steps: int
    lr: float
    frames: int
    size: tuple[int, int] | None
    timesteps: tuple[int, int]
    trainable: str | int | list[str]
    pictures: bool
    batch_size: int
    lr_schedule: str
    warmup: int
    weight_decay: float
    clip_norm: float
    precision: str
    seed: int
    pairs: int

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not (self.prompt.strip() or self.pairs):
            raise ValueError(f"prompt: expected what the clip shows, in words, got {self.prompt!r}")
        for name, least in (("steps", 1), ("frames", 1), ("batch_size", 1), ("warmup", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        for name, zero in (("lr", False), ("weight_decay", True), ("clip_norm", False)):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and not zero):
                raise ValueError(
                    f"{name}: expected a number {'of at least' if zero else 'above'} 0, got {value!r}"
                )
        for name, choices in (("precision", PRECISIONS), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed: expected an integer, got {self.seed!r}")
        whole = (
            isinstance(self.timesteps, (tuple, list))
            and len(self.timesteps) == 2
            and all(isinstance(t, Integral) for t in self.timesteps)
        )
        if not whole or not 0 <= self.timesteps[0] < self.timesteps[1]:
            raise ValueError(
                f"timesteps: expected (first, last + 1) with 0 <= first < last + 1, got {self.timesteps!r}"
            )
        object.__setattr__(self, "timesteps", tuple(int(t) for t in self.timesteps))
        if isinstance(self.trainable, bool) or not isinstance(self.trainable, (str, int, tuple, list, set)):
            raise ValueError(f"trainable: expected a set's name, patterns or a rank, got {self.trainable!r}")
        if isinstance(self.trainable, (tuple, set)):
            object.__setattr__(self, "trainable", list(self.trainable))

    def for_model(self, model: VideoModel) -> Settings:
        """Defaults filled in, and what needs the model checked."""
        count = int(model.scheduler_config.get("num_train_timesteps", 1000))
        if self.timesteps[1] > count:
            raise ValueError(
                f"timesteps: expected at most {count}, what the model was trained on, got {self.timesteps}"
            )
        given = model.default_size if self.size is None else self.size
        size = tuple(given) if isinstance(given, (tuple, list)) else ()
        if len(size) != 2 or any(
            not isinstance(s, Integral) or s < 1 or s % model.downsampling for s in size
        ):
            raise ValueError(
                f"size: expected (height, width) in multiples of {model.downsampling} for this model, got {self.size!r}"
            )
        precision, device = self.precision, model.device
        if precision == "auto" and device.type == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        elif precision == "auto":
            precision = "fp32"
        if precision == "fp16" and device.type == "cpu":
            raise ValueError(
                "precision: fp16 needs a GPU, whose gradients are scaled; use bf16 or fp32 on a CPU"
            )
        return replace(self, size=size, precision=precision)

    def as_dict(self) -> dict:
        """In the form that is written beside the result."""
        return asdict(self)
