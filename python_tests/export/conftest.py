"""Bundles that several tests read; exporting takes longer than everything done with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vidsmooth_fast as vsf
from python_tests.tiny import tiny_model

ONE_TRANSFORMER = {"down_block_types": ["DownBlock3D"] * 2, "up_block_types": ["UpBlock3D"] * 2}
"""Two levels, and attention in the middle alone: every kind of layer, in a quarter of the time."""


@pytest.fixture(scope="session")
def tiny():
    """A model with every kind of layer, all of them active."""
    model = tiny_model(temporal_conv=True, prediction_type="v_prediction", **ONE_TRANSFORMER)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.unet.named_parameters():
        if ".conv_temp." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


@pytest.fixture(scope="session")
def onnx_bundle(tiny, tmp_path_factory) -> Path:
    """Of the tiny model, float32, opset 23."""
    return vsf.export(tiny, tmp_path_factory.mktemp("onnx") / "tiny", format="onnx")
