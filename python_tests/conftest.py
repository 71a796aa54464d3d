"""Fixtures shared by the whole suite: reference numbers and real clips that live beside a checkout.

Where there is no GPU, the Triton kernels run on the CPU in Triton's interpreter. That is decided when Triton is first
imported, which many a module does, so the environment variable is set here, before any test is collected.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference numbers and clips: `VIDSMOOTH_SHARED`, or `shared` beside the checkout."""
    root = Path(os.environ.get("VIDSMOOTH_SHARED", Path(__file__).parents[2] / "shared"))
    if not root.is_dir():
        pytest.skip(f"reference data not found: {root} (golden numbers and clips are not part of a clone)")
    return root


@pytest.fixture(scope="session")
def golden(shared_dir):
    """`golden(name)` -> (arrays by name as float32 torch tensors, the JSON's `parameters`)."""
    from safetensors.torch import load_file

    def read(name: str):
        path = shared_dir / "golden" / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"golden file not found: {path.name}")
        parameters = json.loads(path.with_suffix(".json").read_text())["parameters"]
        return load_file(path), parameters

    return read


@pytest.fixture(scope="session")
def clip_path(shared_dir):
    """`clip_path(name)` -> path of a real clip, e.g. `clip_path("hike")`."""

    def find(name: str) -> Path:
        path = shared_dir / "videos" / f"{name}.mp4"
        if not path.is_file():
            pytest.skip(f"clip not found: {path.name}")
        return path

    return find
