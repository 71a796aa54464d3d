"""The network of an exported bundle as a denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsmooth_fast.models.bundle_model import BundleModel
from vidsmooth_fast.models.controlnet import Residuals


@dataclass(frozen=True)
class Embeddings:
    """Text as the graph takes it, (rows, L, D)."""

    rows: Tensor

    def select(self, rows: Tensor) -> Embeddings:
        return Embeddings(self.rows.index_select(0, rows))


class GraphDenoiser:
    """A bundle's network. Guidance branches enter as videos of their own, each sequence with its text once.

    A graph has one precision: where half precision overflows, there is no other to turn to.
    """

    def __init__(self, model: BundleModel):
        self.model = model
        self.dtype, self.device = model.dtype, model.device

    def prepare_text(self, text: Tensor) -> Embeddings:
        return Embeddings(text.to(self.device, self.dtype))

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: Embeddings,
        controls: Residuals | None = None,
        frame_offsets: Tensor | None = None,
        branches: int = 1,
    ) -> Tensor:
        sample = latents.to(self.dtype).repeat_interleave(branches, 0)
        inputs = {
            "sample": sample,
            "timestep": torch.full((len(sample),), timestep, dtype=torch.float32, device=self.device),
            "encoder_hidden_states": text.rows.expand(len(sample), -1, -1),
        }
        return self.model.network(**inputs, **self._residuals(sample, controls))

    def _residuals(self, sample: Tensor, controls: Residuals | None) -> dict[str, Tensor]:
        """The inputs of a network that was exported with controls: those given, or zeros."""
        ports = {
            name: port for name, port in self.model.bundle.graphs["unet"].inputs.items() if "residual" in name
        }
        if controls is not None:
            return dict(zip(ports, (*controls.down, controls.middle), strict=True))
        videos, _, frames, height, width = sample.shape
        sizes = {"videos": videos, "frames": frames, "height": height, "width": width}
        return {name: sample.new_zeros(port.size(sizes)) for name, port in ports.items()}

    def in_float32(self) -> GraphDenoiser:
        """Itself where it computes in float32. Raises: FloatingPointError for other bundles."""
        self.model.in_float32("the prediction")
        return self
