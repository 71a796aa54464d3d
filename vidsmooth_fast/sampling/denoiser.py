"""What the sampling loop knows of a network, and VideoUNet seen that way."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor

from vidsmooth_fast.models.bundle_model import BundleModel
from vidsmooth_fast.models.controlnet import Residuals
from vidsmooth_fast.models.latent_model import LatentModel
from vidsmooth_fast.models.unet import AttentionWindows, DeepFeatures, TextKV, VideoUNet
from vidsmooth_fast.sampling.cuda_graphs import GraphedNetwork
from vidsmooth_fast.sampling.graph_denoiser import GraphDenoiser


class Denoiser(Protocol):
    """A network that predicts noise, velocity or the clean latents of a window of frames."""

    dtype: torch.dtype
    device: torch.device

    def prepare_text(self, text: Tensor) -> Any:
        """Everything that depends on the prompts alone. text (R, L, D); the result has R rows and `select(rows)`."""

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: Any,
        controls: Residuals | None = None,
        frame_offsets: Tensor | None = None,
        branches: int = 1,
    ) -> Tensor:
        """latents (N, C, K, H, W), text of N·G rows -> predictions (N·G, C, K, H, W).

        branches: G, predictions of each window that differ in their text alone; G is faster than N.
        controls: a ControlNet's residuals for these windows and branches, or None. frame_offsets: (N,) int64 on the
        host, the video's frame at which each window starts; for networks that know the position.
        """

    def in_float32(self) -> Denoiser:
        """The same network in single precision: the refuge when half precision overflows."""


class UNetDenoiser:
    """VideoUNet as a denoiser. Text keys and values are projected once per prompt, time embeddings once per step.

    `predict` takes one argument more, `deep`: features of an earlier step that take the place of the deep blocks.

    windows: for `merge="attention"`, the windows inside temporal attention over all frames.
    """

    def __init__(self, unet: VideoUNet, windows: AttentionWindows | None = None):
        self.unet = unet
        self.windows = windows
        parameter = next(unet.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self._time = (None, None)
        self._network = unet
        if unet.cuda_graphs and self.device.type == "cuda":
            self._network = GraphedNetwork(unet)

    def prepare_text(self, text: Tensor) -> TextKV:
        return self.unet.project_text(text.to(self.device, self.dtype))

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: TextKV,
        controls: Residuals | None = None,
        frame_offsets: Tensor | None = None,
        branches: int = 1,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        if self._time[0] != timestep:
            self._time = (timestep, self.unet.embed_time(timestep))
        given = {"windows": self.windows, "branches": branches, "deep": deep}
        if controls is not None:  # not through CUDA graphs, which know nothing of residuals
            given |= {"down_residuals": controls.down, "mid_residual": controls.middle}
            return self.unet(latents.to(self.dtype), self._time[1], text, **given)
        return self._network(latents.to(self.dtype), self._time[1], text, **given)

    def in_float32(self) -> UNetDenoiser:
        unet = copy.deepcopy(self.unet).float()
        unet.cuda_graphs = False  # a step now and then is not worth recording
        return UNetDenoiser(unet, self.windows)


def denoiser_of(model: LatentModel, windows: AttentionWindows | None = None) -> Denoiser:
    """The denoising network of a model. windows: those inside temporal attention, for `merge="attention"`."""
    return GraphDenoiser(model) if isinstance(model, BundleModel) else UNetDenoiser(model.unet, windows)
