"""One contender of aoti.py in a process of its own, as a user's program would begin: CONTENDER FOLDER.

Prints, as JSON, the clock when its first prediction was there, and the seconds of a first call with other frames.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.models.bundle_model import BundleModel

CONTENDERS = ("eager", "torch.compile", "aoti")


def prepare(contender: str, folder: Path) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """The network of FOLDER, as a function of its named inputs."""
    if contender == "aoti":
        network = BundleModel(folder / "bundle").network
        return lambda inputs: network(**inputs)
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.device("meta"):
        unet = VideoUNet.from_config(config)
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    unet.load_state_dict(weights, assign=True)
    unet.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    run = torch.compile(unet) if contender == "torch.compile" else unet

    def call(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return run(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])

    return call


if __name__ == "__main__":
    contender, folder = sys.argv[1], Path(sys.argv[2])
    call = prepare(contender, folder)
    call(load_file(folder / "inputs.safetensors"))
    first = time.time()
    call(load_file(folder / "others.safetensors"))
    print(json.dumps({"first": first, "other": time.time() - first}))
