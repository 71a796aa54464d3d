"""A bundle as a model: the same text, latents and pictures as VideoModel, computed by exported graphs."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .bundle import read_bundle
from .config import read_config
from .latent_model import LatentModel
from .runtimes import Graph, runtime


class BundleModel(LatentModel):
    """What `load` returns for an exported bundle; graphs are opened at their first use.

    bundle: its description. A bundle computes in one dtype, the one it was exported in; merge="attention" is not in
    its graphs.
    Raises: ValueError, one line, when the bundle is damaged, cannot be run here, or is asked for another dtype.
    """

    def __init__(
        self, path: str | os.PathLike, device: str | torch.device = "auto", dtype: torch.dtype | str = "auto"
    ) -> None:
        self.bundle = bundle = read_bundle(Path(path))
        asked = str(dtype).removeprefix("torch.")
        if asked not in ("auto", bundle.dtype):
            raise ValueError(
                f"dtype: this bundle computes in {bundle.dtype}, got {asked}; export the model again for that"
            )
        self._runtime = runtime(bundle.format)
        self.device = self._runtime.choose_device(bundle, device)
        self.dtype = getattr(torch, bundle.dtype)
        self.name, self.path, self.tuning = bundle.name, bundle.path, bundle.tuning
        self.scheduler_config = bundle.scheduler
        self.network_config, self.autoencoder_config = bundle.network, bundle.autoencoder
        self.text_length, self.uses_attention_mask = bundle.text["length"], bundle.text["mask"]
        self.max_pairs = bundle.ranges["videos"][1]
        self.prediction_type  # noqa: B018 - an unknown type is an error when the model is made, not mid-video

    @functools.cached_property
    def tokenizer(self):
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.bundle.path / "tokenizer", local_files_only=True)

    def _open(self, name: str) -> Graph:
        return self._runtime.open_graph(self.bundle, name, self.device)

    @functools.cached_property
    def network(self) -> Graph:
        """The denoising network: sample (videos, C, frames, h, w), timestep (videos,), encoder_hidden_states."""
        return self._open("unet")

    @functools.cached_property
    def _encoder(self) -> Graph:
        return self._open("vae_encoder")

    @functools.cached_property
    def _decoder(self) -> Graph:
        return self._open("vae_decoder")

    @functools.cached_property
    def _text(self) -> Graph:
        return self._open("text_encoder")

    def placed(self, device: torch.device, dtype: torch.dtype) -> BundleModel:
        return BundleModel(self.bundle.path, device, dtype)

    def check_run(self, frames: int, height: int, width: int, merge: str) -> None:
        if merge == "attention":
            raise ValueError(
                "merge: 'attention' overlaps windows inside the network, which an exported graph does not; "
                "expected 'latent'"
            )
        for name, value, per, unit in (
            ("frames", frames, 1, "frames in a window"),
            ("height", height, self.downsampling, "pixels"),
            ("width", width, self.downsampling, "pixels"),
        ):
            low, high = (size * per for size in self.bundle.ranges[name])
            if not low <= value <= high:
                argument = "window" if name == "frames" else name
                raise ValueError(f"{argument}: this bundle takes {low} to {high} {unit}, got {value}")

    @property
    def takes_residuals(self) -> bool:
        return any("residual" in name for name in self.bundle.graphs["unet"].inputs)

    def score_bytes(self, frames: int, height: int, width: int) -> int:
        """ONNX Runtime's CPU provider keeps the scores of a whole self-attention, in float32."""
        if self.bundle.format != "onnx" or self.device.type != "cpu":
            return 0
        config = read_config(dict(self.network_config))
        # How many frames each frame reads.
        read = {"first": 1, "self": 1, "all": frames}.get(config.attn1_frames, 2)
        largest, attends = 0, [*config.down_attention[:-1], True]  # the middle of the network always does
        for level, heads in enumerate(config.heads):
            tokens = -(-height // 2**level) * -(-width // 2**level)
            largest = max(largest, attends[level] * heads * tokens**2)
        return 4 * frames * read * largest

    def identity(self) -> tuple[dict, Iterable[Tensor]]:
        bundle = self.bundle
        return {"source": bundle.source, "format": bundle.format, "scheduler": bundle.scheduler}, ()

    def _embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        masked = {} if mask is None else {"attention_mask": mask}
        return self._text(input_ids=ids, **masked)

    def _to_latents(self, pixels: Tensor) -> Tensor:
        return self._encoder(sample=pixels)

    def _to_pixels(self, latents: Tensor) -> Tensor:
        return self._decoder(latent_sample=latents)

    def _with_autoencoder_in_float32(self) -> BundleModel:
        return self.in_float32("what the autoencoder computes")

    def in_float32(self, what: str) -> BundleModel:
        """Itself where it computes in float32. Raises: FloatingPointError elsewhere, where `what` overflowed."""
        if self.dtype == torch.float32:
            return self
        name = str(self.dtype).removeprefix("torch.")
        raise FloatingPointError(
            f"{what} is not finite, and {self.path} computes in {name}; export the model with dtype='float32'"
        )
