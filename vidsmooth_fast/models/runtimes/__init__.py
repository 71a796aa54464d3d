"""What runs the graphs of an exported bundle: one module per format, imported when a bundle of it is opened.

A module provides

- `choose_device(bundle, device) -> torch.device`: where to run, of what was asked for ("auto" or a device). Raises
  ValueError, one line, when the format's library is missing or this machine cannot run the bundle.
- `open_graph(bundle, name, device) -> Graph`: one of `bundle.GRAPHS`, ready to be called.
- `available() -> str`: on what this installation runs its bundles, and what was never tried on hardware; or what is
  missing. For `vidsmooth-fast info`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Protocol

from torch import Tensor

FORMATS = ("onnx", "aoti", "tensorrt")


class Graph(Protocol):
    """A compiled network with named inputs and one output."""

    def __call__(self, **inputs: Tensor) -> Tensor:
        """The graph's output, on the device of the inputs; it is the caller's to keep."""


def runtime(format: str) -> ModuleType:
    """The module that runs bundles of a format. Raises: ValueError for one that this version does not know."""
    if format not in FORMATS:
        raise ValueError(f"bundle: expected a format of {', '.join(FORMATS)}, got {format!r}")
    return importlib.import_module(f"{__name__}.{format}")
