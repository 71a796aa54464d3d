"""ControlNets as diffusers has them: reading one, and whether it was made for a network like the model's."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .latent_model import LatentModel
from .pretrained import read_pretrained
from .weights import find_weights, variant_of


class Residuals(NamedTuple):
    """What ControlNets add to a network's skip connections, in order, and to its middle: (images, C, h, w) each."""

    down: tuple[Tensor, ...]
    middle: Tensor


def load_controlnet(network: Any, model: LatentModel) -> Any:
    """A `diffusers.ControlNetModel` that fits `model`, on its device and in its dtype.

    network: its directory, its Hub id, or one that is loaded already, which stays as it is.
    Raises: ValueError, one line, for what cannot be read or was made for another network.
    """
    from diffusers import ControlNetModel

    if not model.takes_residuals:
        raise ValueError(
            f"controls: {model.name} was exported without inputs for them; export it with controls"
        )
    if isinstance(network, str | os.PathLike):
        loaded = _read(ControlNetModel, os.path.expanduser(os.fspath(network)), model.dtype)
    elif isinstance(network, ControlNetModel):
        loaded = copy.deepcopy(network)
    else:
        raise ValueError(
            f"controls: expected a directory, a Hub id or a diffusers ControlNetModel, got {type(network).__name__}"
        )
    _check_fits(loaded.config, model)
    # Not diffusers' own `to`, which warns of a list of modules to be kept in float32 even where that is empty.
    torch.nn.Module.to(loaded, model.device, model.dtype, memory_format=torch.channels_last)
    return loaded.eval().requires_grad_(False)


def name_of(network: Any) -> str:
    """What to call a ControlNet in settings and messages."""
    return os.fspath(network) if isinstance(network, str | os.PathLike) else type(network).__name__


def _read(kind: type, place: str, dtype: torch.dtype) -> Any:
    options: dict[str, Any] = {"torch_dtype": dtype}
    try:
        if Path(place).is_dir():
            options |= variant_of(find_weights(Path(place), "diffusion_pytorch_model"))
            options |= {"local_files_only": True, "low_cpu_mem_usage": False}
        return read_pretrained(kind, place, **options)
    except ValueError as error:
        raise ValueError(f"controls: cannot read a ControlNet from {place}: {error}") from error


def _check_fits(config: Any, model: LatentModel) -> None:
    network, down = model.network_config, len(config.conditioning_embedding_out_channels) - 1
    width = network["cross_attention_dim"]
    for what, theirs, ours in (
        ("channels", list(config.block_out_channels), list(network["block_out_channels"])),
        ("layers a level", config.layers_per_block, network["layers_per_block"]),
        ("text width", config.cross_attention_dim, width),
        ("latent channels", config.in_channels, model.latent_channels),
        ("pixels per latent", 2**down, model.downsampling),
        ("map channels", config.conditioning_channels, 3),
        ("classes", config.class_embed_type or config.num_class_embeds, None),
        ("further embeddings", config.addition_embed_type or config.encoder_hid_dim, None),
        ("pooled residuals", config.global_pool_conditions, False),
    ):
        if theirs != ours:
            raise ValueError(
                f"controls: the ControlNet was made for another network: {what} {theirs}, here {ours}"
            )
