"""VideoModel: a VideoUNet with its autoencoder, text encoder, tokenizer and scheduler configuration."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .directories import new_directory
from .latent_model import LatentModel
from .unet import VideoUNet

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


class VideoModel(LatentModel):
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
    def network_config(self) -> dict:
        return self.unet.config

    @property
    def autoencoder_config(self) -> Mapping:
        return self.vae.config

    @property
    def text_length(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @property
    def uses_attention_mask(self) -> bool:
        return getattr(self.text_encoder.config, "use_attention_mask", False)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> VideoModel:
        """Move to a device and a floating dtype, in place; returns self. Convolutions are kept channels_last."""
        for module in (self.unet, self.vae):
            # nn.Module's own `to`: diffusers' warns about a list of fp32 modules that is empty here
            torch.nn.Module.to(module, device=device, dtype=dtype, memory_format=torch.channels_last)
        self.text_encoder.to(device=device, dtype=torch.float32)
        return self

    def placed(self, device: torch.device, dtype: torch.dtype) -> VideoModel:
        return copy.deepcopy(self).to(device, dtype)

    def check_run(self, frames: int, height: int, width: int, merge: str) -> None:
        """Nothing to object: windows of every length and size go through VideoUNet, merged in either way."""

    def identity(self) -> tuple[dict, Iterable[Tensor]]:
        parts = (self.unet, self.vae, self.text_encoder)
        description = {"unet": self.unet.config, "scheduler": self.scheduler_config}
        return description, [parameter for part in parts for parameter in part.parameters()]

    def _embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return self.text_encoder(ids, attention_mask=mask)[0]

    def _to_latents(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent_dist.mean

    def _to_pixels(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, return_dict=False)[0]

    def _with_autoencoder_in_float32(self) -> VideoModel:
        other = copy.copy(self)
        other.vae = copy.deepcopy(self.vae).float()
        return other

    def compile(self, *, blocks: bool = True, cuda_graphs: bool = False) -> VideoModel:
        """Spend time once, in the first steps, for faster ones after them; returns self. See docs/speed.md.

        blocks: the network's blocks through torch.compile, kept for later processes (`VideoUNet.compile_blocks`).
        cuda_graphs: replay the network's calls as CUDA graphs, so that no time passes on the host between kernels.
        Results stay the same within the tolerance of the dtype. Raises: ValueError for CUDA graphs without CUDA.
        """
        if cuda_graphs and self.device.type != "cuda":
            raise ValueError(f"cuda_graphs: expected a model on a CUDA device, got one on {self.device}")
        if blocks:
            self.unet.compile_blocks()
        self.unet.cuda_graphs = cuda_graphs
        return self

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
        with new_directory(target, "model_index.json", "model") as root:
            self._write(root)
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
