"""The trained parts as one model directory: diffusers' component layout, fp16 safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..models.video_model import VideoModel, quiet_transformers
from .autoencoder import load_vae
from .diffusion import SCHEDULER, trained

LIMIT = 16_000_000  # bytes of all weights, so that the wheel stays small


def weight_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors"))


def package(out: Path, target: Path, *, tiny: bool = False) -> str:
    """Write the newest checkpoint of every stage in `out` to `target`. Returns one line that says what was written.

    Raises ValueError where a stage is missing or the weights exceed LIMIT.
    """
    model = trained(out, tiny=tiny)
    whole = VideoModel(
        model.unet.half(),
        load_vae(out).half(),
        model.text_encoder,
        model.tokenizer,
        SCHEDULER,
        name="sprite-world",
    )
    whole.save(target)
    shutil.rmtree(target / "unet_2d")  # the same weights by a hard link, which a wheel would turn into a copy
    with quiet_transformers():
        model.text_encoder.half().save_pretrained(target / "text_encoder")
    # transformers 4 reads these two files instead of tokenizer.json
    model.tokenizer.backend_tokenizer.model.save(str(target / "tokenizer"))
    size = weight_bytes(target)
    if size > LIMIT:
        raise ValueError(f"model: expected at most {LIMIT} bytes of weights, got {size}")
    return f"{target}: {size / 1e6:.2f} MB of weights"
