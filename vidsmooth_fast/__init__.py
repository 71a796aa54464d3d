"""Long, smooth videos from image diffusion models.

Importing this package needs only torch and numpy; everything below is found when it is first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_WHERE = {
    "load": "models.loading",
    "VideoModel": "models.video_model",
    "fast_sample": "sampling.fast_sample",
    "invert": "sampling.inversion",
    "NoiseConstraint": "sampling.smoothing",
    "InversionBlend": "sampling.smoothing",
    "Control": "conditioning.controls",
    "DeepReuse": "sampling.reuse",
    "evaluate": "metrics.evaluate",
    "Report": "metrics.report",
    "tune": "training.tuner",
    "Video": "video",
}
_MODULES = ("ops", "models", "export")
__all__ = [*_WHERE, *_MODULES, "__version__"]


def __getattr__(name: str):
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
