"""What sampling asks of a model, whatever computes it: text, pictures and latents in, numbers out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PREDICTIONS = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
    "flow_prediction": "flow",
}


class LatentModel(ABC):
    """A latent diffusion model of videos: text to embeddings, frames to latents and back, and a noise schedule.

    The networks behind it are a subclass's business: `VideoModel` holds PyTorch modules, `BundleModel` the graphs of an
    exported bundle. The denoising network is reached through `sampling.denoiser.denoiser_of`.

    tokenizer: transformers CLIPTokenizer. scheduler_config: dict, a diffusers scheduler's configuration. name: what was
    loaded, for messages. path: where from, or None. tuning: of a tuned model, its prompt, clip and settings
    (`tuning.json` of a saved one), else None.
    """

    tokenizer: Any
    scheduler_config: dict
    name: str
    path: Any
    tuning: dict | None

    # What a subclass provides.

    device: torch.device
    dtype: torch.dtype
    network_config: Mapping  # VideoUNet's
    autoencoder_config: Mapping  # AutoencoderKL's
    text_length: int  # tokens that the text encoder reads, start and end included
    uses_attention_mask: bool
    max_pairs: int | None = None  # (window, branch) pairs in one network call; None: no limit

    @abstractmethod
    def placed(self, device: torch.device, dtype: torch.dtype) -> LatentModel:
        """The same model on a device and in a dtype; this one stays as it is. Raises: ValueError where it cannot."""

    @abstractmethod
    def check_run(self, frames: int, height: int, width: int, merge: str) -> None:
        """Raises: ValueError when the network cannot see windows of these frames and pixels, or merge in this way."""

    @property
    def takes_residuals(self) -> bool:
        """Whether the denoising network has inputs for a ControlNet's residuals."""
        return True

    def score_bytes(self, frames: int, height: int, width: int) -> int:
        """Bytes of attention scores that one window holds at once, latents of height x width; 0 where none are kept."""
        return 0

    @abstractmethod
    def identity(self) -> tuple[dict, Iterable[Tensor]]:
        """What tells this model from others: a description that JSON can hold, and tensors."""

    @abstractmethod
    def _embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Token ids (n, L) to embeddings (n, L, D)."""

    @abstractmethod
    def _to_latents(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in -1..1 to the posterior mean (N, C, h, w)."""

    @abstractmethod
    def _to_pixels(self, latents: Tensor) -> Tensor:
        """The autoencoder's own latents (N, C, h, w) to pixels (N, 3, H, W)."""

    @abstractmethod
    def _with_autoencoder_in_float32(self) -> LatentModel:
        """For what overflows in half precision. Raises: FloatingPointError where there is no such thing."""

    # What follows from it.

    @property
    def prediction_type(self) -> str:
        """What the network predicts: "epsilon", "v_prediction", "sample" (x0) or "flow"."""
        if "FlowMatch" in self.scheduler_config.get("_class_name", ""):
            return "flow"
        kind = self.scheduler_config.get("prediction_type", "epsilon")
        if kind not in _PREDICTIONS:
            raise ValueError(
                f"scheduler config prediction_type: expected one of {sorted(_PREDICTIONS)}, got {kind!r}"
            )
        return _PREDICTIONS[kind]

    @property
    def latent_channels(self) -> int:
        return self.autoencoder_config["latent_channels"]

    @property
    def downsampling(self) -> int:
        """Pixels per latent element along each side."""
        return 2 ** (len(self.autoencoder_config["block_out_channels"]) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the network was trained at."""
        size = self.network_config["sample_size"] or 64
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.downsampling, width * self.downsampling

    @property
    def _shift(self) -> float:
        return self.autoencoder_config.get("shift_factor") or 0.0

    @property
    def _scaling(self) -> float:
        return self.autoencoder_config["scaling_factor"]

    @torch.inference_mode()
    def encode_video(self, frames: Iterable[np.ndarray], *, chunk: int = 8) -> Tensor:
        """Latents of a clip: (posterior mean - shift) * scaling.

        frames: (H, W, 3) uint8 arrays of one size. chunk: frames encoded at a time.
        Returns (1, C, F, H/d, W/d), fp32, on the model's device.
        Raises: ValueError when there are no frames, or a frame's size or type does not fit; FloatingPointError when
        the result is not finite, in float32 too.
        """
        frames, d, size, parts = iter(frames), self.downsampling, None, []
        while batch := [np.asarray(f) for f in islice(frames, chunk)]:
            for frame in batch:
                if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
                    raise ValueError(
                        f"frames: expected (H, W, 3) uint8 arrays, got {frame.shape} of {frame.dtype}"
                    )
                size = size or frame.shape[:2]
                if frame.shape[:2] != size:
                    raise ValueError(f"frames: expected every frame {size}, got {frame.shape[:2]}")
            if size[0] % d or size[1] % d:
                raise ValueError(
                    f"frames: expected height and width divisible by {d}, got {size[0]}x{size[1]}"
                )
            x = torch.from_numpy(np.stack(batch)).to(self.device).permute(0, 3, 1, 2)
            mean = self._finite(lambda model, x: model._to_latents(x), x.float() / 127.5 - 1)
            parts.append((mean - self._shift) * self._scaling)
        if not parts:
            raise ValueError("frames: expected at least one frame, got none")
        return torch.cat(parts).transpose(0, 1)[None].contiguous()

    def decode_latents(self, latents: Tensor, *, chunk: int = 8) -> Iterator[np.ndarray]:
        """Frames of latents (1, C, F, h, w), any float dtype, one (H, W, 3) uint8 array at a time.

        chunk: frames decoded at a time; only these exist as floats. Raises: ValueError for another shape,
        FloatingPointError when the result is not finite, in float32 too.
        """
        if latents.dim() != 5 or latents.shape[0] != 1 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents: expected shape (1, {self.latent_channels}, F, h, w), got {tuple(latents.shape)}"
            )
        return self._decode(latents, chunk)

    def _decode(self, latents: Tensor, chunk: int) -> Iterator[np.ndarray]:
        for part in latents[0].transpose(0, 1).split(chunk):
            with torch.inference_mode():
                z = part.to(self.device, torch.float32) / self._scaling + self._shift
                x = self._finite(lambda model, z: model._to_pixels(z), z)
                pixels = ((x + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
                batch = pixels.permute(0, 2, 3, 1).cpu().numpy()
            yield from batch

    def _finite(self, apply: Callable[[LatentModel, Tensor], Tensor], x: Tensor) -> Tensor:
        """What the autoencoder makes of x, both float32; in single precision where half precision overflows."""
        out = apply(self, x.to(self.dtype)).float()
        if not out.isfinite().all():
            out = apply(self._with_autoencoder_in_float32(), x).float()
            if not out.isfinite().all():
                raise FloatingPointError("what the autoencoder computes is not finite, in float32 too")
        return out

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Text embeddings (n, L, D), fp32, L the encoder's full length.

        Warns, naming the words that were cut, when a prompt is longer than the encoder takes.
        """
        if isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"prompts: expected a list of strings, got {prompts!r}")
        length = self.text_length
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(list(prompts), **options)
        for prompt in prompts:
            ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) > length - 2:  # start and end tokens
                cut = self.tokenizer.decode(ids[length - 2 :])
                warnings.warn(
                    f"the text encoder reads {length - 2} tokens; this part was cut: {cut!r}", stacklevel=2
                )
        mask = tokens.attention_mask.to(self.device) if self.uses_attention_mask else None
        with torch.inference_mode():
            return self._embed(tokens.input_ids.to(self.device), mask).float()
