"""Reading network weights from disk, and fitting them to a VideoUNet."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from .pretrained import some
from .unet import VideoUNet

# Preference: the published full-precision file, then half precision; safetensors before pickles.
VARIANTS = ("", ".fp16", ".bf16")
SUFFIXES = (".safetensors", ".bin")


def weight_names(stem: str) -> list[str]:
    """File names under which a component's weights may be found, best first."""
    return [f"{stem}{variant}{suffix}" for suffix in SUFFIXES for variant in VARIANTS]


def find_weights(folder: Path, stem: str) -> Path:
    """The weights file of a component directory. Raises: ValueError naming the directory."""
    for name in weight_names(stem):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"{folder}: expected weights named {stem}.safetensors or {stem}.bin (or their .fp16 variants)"
    )


def variant_of(path: Path) -> dict:
    """`from_pretrained`'s arguments for a chosen weights file: its variant and format."""
    middle = path.name.split(".")[1:-1]
    return {"variant": middle[0] if middle else None, "use_safetensors": path.suffix == ".safetensors"}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from safetensors, or from a pickle that holds nothing but tensors (`weights_only=True`)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused, this pickle holds more than plain weights") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable weights file ({type(error).__name__})") from error
    except Exception as error:  # safetensors' own error class derives from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{path}: not a readable safetensors file") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(state).__name__}")
    return state


def is_temporal(name: str) -> bool:
    """Whether a parameter belongs to the layers that inflation adds."""
    return ".attn_temp." in name or ".norm_temp." in name or ".conv_temp." in name


def _fresh_temporal(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Initial value of an added parameter: as nn.Linear and nn.LayerNorm start; zero where a result is added."""
    if ".norm_temp." in name:
        return torch.full(like.shape, 1.0 if name.endswith("weight") else 0.0)
    if ".to_out." in name or ".conv_temp." in name:
        return torch.zeros(like.shape)
    bound = like.shape[1] ** -0.5
    return torch.empty(like.shape).uniform_(-bound, bound, generator=generator)


def build_unet(config: dict, state: dict[str, Tensor], *, source: str, dtype: torch.dtype) -> VideoUNet:
    """A VideoUNet holding the given weights.

    config: as for `VideoUNet.from_config`; a 2D configuration (`_class_name` UNet2DConditionModel) may lack the
        temporal layers, which then start fresh, the same way every time, and uses per-frame norm statistics
        unless it says otherwise.
    state: weights by Tune-A-Video's names, any float dtype. source: what to call them in messages.

    Raises: ValueError, one line, naming missing, unknown or wrongly shaped weights.
    """
    flat = config.get("_class_name") == "UNet2DConditionModel"
    if flat:
        config = {"norm_over_frames": False, **config}
    with torch.device("meta"):
        unet = VideoUNet.from_config(config)
    wanted = unet.state_dict()

    missing = [k for k in wanted if k not in state]
    temporal = [k for k in missing if is_temporal(k)]
    if temporal and len(temporal) == len([k for k in wanted if is_temporal(k)]) and flat:
        missing = [k for k in missing if not is_temporal(k)]
    if missing:
        raise ValueError(f"{source}: missing weights {some(missing)}")
    unknown = [k for k in state if k not in wanted]
    if unknown:
        raise ValueError(f"{source}: unknown weights {some(unknown)}")
    for name, like in wanted.items():
        if name in state and state[name].shape != like.shape:
            shape = tuple(state[name].shape)
            raise ValueError(f"{source}: {name} expected shape {tuple(like.shape)}, got {shape}")

    generator = torch.Generator().manual_seed(0)
    loaded = {}
    for name, like in wanted.items():
        value = state[name] if name in state else _fresh_temporal(name, like, generator)
        memory = torch.channels_last if value.dim() == 4 else torch.contiguous_format
        loaded[name] = value.to(dtype, copy=True, memory_format=memory)
    unet.load_state_dict(loaded, assign=True)
    return unet
