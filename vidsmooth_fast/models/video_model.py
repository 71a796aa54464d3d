"""VideoModel: a VideoUNet with its autoencoder, text encoder, tokenizer and scheduler configuration."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .unet import VideoUNet

_PREDICTIONS = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
    "flow_prediction": "flow",
}

_VIDEO_KEYS = ("norm_over_frames", "attn1_frames", "temporal_conv")  # of the network's configuration


@contextmanager
def quiet_transformers():
    """Without transformers' progress bars over the handful of files of a text encoder; the setting is restored."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class VideoModel:
    """Everything needed to sample and to edit. Made by `load`.

    unet: VideoUNet. vae: diffusers AutoencoderKL. text_encoder, tokenizer: transformers CLIPTextModel and
    CLIPTokenizer. scheduler_config: dict, a diffusers scheduler's configuration. name: what was loaded, for
    messages. path: where from, or None. tuning: of a tuned model, its prompt, clip and settings (`tuning.json` of a
    saved one), else None.

    The autoencoder follows the network's dtype. The text encoder stays fp32: it runs once per prompt, and its
    rounding would reach every frame of every step.
    """

    def __init__(
        self, unet: VideoUNet, vae, text_encoder, tokenizer, scheduler_config: dict, *, name: str, path=None
    ) -> None:
        self.unet = unet
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = dict(scheduler_config)
        self.name = name
        self.path = path
        self.tuning: dict | None = None
        self.prediction_type  # noqa: B018 - an unknown type is an error when the model is made, not mid-video
        for module in (unet, vae, text_encoder):
            module.eval()
        self.to(unet.device, unet.dtype)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

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
        return self.vae.config.latent_channels

    @property
    def downsampling(self) -> int:
        """Pixels per latent element along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the network was trained at."""
        size = self.unet.config["sample_size"] or 64
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.downsampling, width * self.downsampling

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> VideoModel:
        """Move to a device and a floating dtype, in place; returns self. Convolutions are kept channels_last."""
        for module in (self.unet, self.vae):
            # nn.Module's own `to`: diffusers' warns about a list of fp32 modules that is empty here
            torch.nn.Module.to(module, device=device, dtype=dtype, memory_format=torch.channels_last)
        self.text_encoder.to(device=device, dtype=torch.float32)
        return self

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    @torch.inference_mode()
    def encode_video(self, frames: Iterable[np.ndarray], *, chunk: int = 8) -> Tensor:
        """Latents of a clip: (posterior mean - shift) * scaling.

        frames: (H, W, 3) uint8 arrays of one size. chunk: frames encoded at a time.
        Returns (1, C, F, H/d, W/d), fp32, on the model's device.
        Raises: ValueError when there are no frames, or a frame's size or type does not fit.
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
            x = (x.float() / 127.5 - 1).to(self.dtype)
            mean = self.vae.encode(x).latent_dist.mean.float()
            parts.append((mean - self._shift) * self.vae.config.scaling_factor)
        if not parts:
            raise ValueError("frames: expected at least one frame, got none")
        return torch.cat(parts).transpose(0, 1)[None].contiguous()

    def decode_latents(self, latents: Tensor, *, chunk: int = 8) -> Iterator[np.ndarray]:
        """Frames of latents (1, C, F, h, w), any float dtype, one (H, W, 3) uint8 array at a time.

        chunk: frames decoded at a time; only these exist as floats. Raises: ValueError for another shape.
        """
        if latents.dim() != 5 or latents.shape[0] != 1 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents: expected shape (1, {self.latent_channels}, F, h, w), got {tuple(latents.shape)}"
            )
        return self._decode(latents, chunk)

    def _decode(self, latents: Tensor, chunk: int) -> Iterator[np.ndarray]:
        for part in latents[0].transpose(0, 1).split(chunk):
            with torch.inference_mode():
                z = part.to(self.device, torch.float32) / self.vae.config.scaling_factor + self._shift
                x = self.vae.decode(z.to(self.dtype), return_dict=False)[0].float()
                pixels = ((x + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
                batch = pixels.permute(0, 2, 3, 1).cpu().numpy()
            yield from batch

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Text embeddings (n, L, D), fp32, L the encoder's full length.

        Warns, naming the words that were cut, when a prompt is longer than the encoder takes.
        """
        if isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"prompts: expected a list of strings, got {prompts!r}")
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(list(prompts), **options)
        for prompt in prompts:
            ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) > length - 2:  # start and end tokens
                cut = self.tokenizer.decode(ids[length - 2 :])
                warnings.warn(
                    f"the text encoder reads {length - 2} tokens; this part was cut: {cut!r}", stacklevel=2
                )
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        with torch.inference_mode():
            return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0].float()

    def load_lora(self, path: str | os.PathLike, weight: float = 1.0) -> VideoModel:
        """Add a LoRA file's low-rank updates, times `weight`, to the weights in place; returns self.

        The layers a LoRA changes have the same names before and after inflation. See `lora.read_lora` for formats.
        """
        from .lora import apply_lora, read_lora

        apply_lora(read_lora(path), {"unet": self.unet, "text_encoder": self.text_encoder}, weight, path)
        return self

    def save(self, directory: str | os.PathLike) -> Path:
        """Write the model in diffusers' component layout (safetensors only), as it is in memory (dtype included).

        `unet` is what `load` and Tune-A-Video's loader read; `unet_2d` holds the same weights file (no second copy,
        where the file system has hard links) under the configuration of diffusers' UNet2DConditionModel, which takes
        the 2D part and leaves the temporal layers.

        Everything is written beside the target and renamed, so that an interrupted save leaves nothing under the
        final name. An earlier saved model there is replaced; any other non-empty directory is an error.
        """
        target = Path(directory).absolute()
        if target.exists() and not (
            target.is_dir() and ((target / "model_index.json").is_file() or not any(target.iterdir()))
        ):
            raise ValueError(f"directory: expected a new, empty or earlier model directory, got {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            self._write(staging / "new")
            if target.exists():
                target.rename(staging / "old")
            (staging / "new").rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target

    def _write(self, root: Path) -> None:
        from safetensors.torch import save_file

        for part in ("unet", "scheduler"):
            (root / part).mkdir(parents=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.unet.state_dict().items()}
        save_file(weights, root / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        self.vae.save_pretrained(root / "vae", safe_serialization=True)
        with quiet_transformers():
            self.text_encoder.save_pretrained(root / "text_encoder")
        self.tokenizer.save_pretrained(root / "tokenizer")
        index = {
            "_class_name": "VideoModel",
            "unet": ["diffusers", "UNet2DConditionModel"],  # what a pipeline is to be given, from unet_2d
            "vae": ["diffusers", type(self.vae).__name__],
            "text_encoder": ["transformers", type(self.text_encoder).__name__],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", self.scheduler_config.get("_class_name", "DDIMScheduler")],
        }
        self._write_2d(root)
        if self.tuning is not None:
            (root / "tuning.json").write_text(json.dumps(self.tuning, indent=2) + "\n")
        for name, data in (
            ("unet/config.json", self.unet.config),
            ("scheduler/scheduler_config.json", self.scheduler_config),
            ("model_index.json", index),
        ):
            (root / name).write_text(json.dumps(data, indent=2) + "\n")

    def _write_2d(self, root: Path) -> None:
        """The network once more, as diffusers' 2D class knows it."""
        folder, name = root / "unet_2d", "diffusion_pytorch_model.safetensors"
        folder.mkdir()
        try:
            os.link(root / "unet" / name, folder / name)
        except OSError:
            shutil.copyfile(root / "unet" / name, folder / name)
        config = {k: v for k, v in self.unet.config.items() if k not in _VIDEO_KEYS}
        for key in ("down_block_types", "up_block_types"):
            config[key] = [kind.replace("3D", "2D") for kind in config[key]]
        config |= {"_class_name": "UNet2DConditionModel", "mid_block_type": "UNetMidBlock2DCrossAttn"}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
