"""LoRA files: low-rank updates added to the weights."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

_UP, _DOWN = "lora_B.weight", "lora_A.weight"


def read_lora(path: str | os.PathLike) -> dict[str, dict[str, Tensor]]:
    """Updates by component and weight name: {"unet" | "text_encoder": {"....weight": delta}}, fp32.

    delta = (alpha / r) up @ down, alpha = r where the file has none. Read and renamed by diffusers' own LoRA
    loader (diffusers, PEFT and kohya files); pickled files are read as plain tensors only.

    Raises: ValueError, one line, naming the file, when it holds no LoRA or something this does not apply.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    from .weights import read_weights

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"lora: expected a file, got {path}")
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(read_weights(path))
    alphas = {re.sub(r"\.alpha$", "", k): float(v) for k, v in (alphas or {}).items()}
    result: dict[str, dict[str, Tensor]] = {}
    for part in ("unet", "text_encoder"):
        own = {k.removeprefix(part + "."): v.float() for k, v in state.items() if k.startswith(part + ".")}
        if not own:
            continue
        own = convert_unet_state_dict_to_peft(own) if part == "unet" else convert_state_dict_to_peft(own)
        pairs: dict[str, dict[str, Tensor]] = {}
        for key, value in own.items():
            for side in (_UP, _DOWN):
                if key.endswith("." + side):
                    pairs.setdefault(key.removesuffix("." + side), {})[side] = value
                    break
            else:
                raise ValueError(f"lora: {path} holds {part}.{key}, which is not a plain LoRA weight")
        result[part] = {
            f"{name}.weight": _delta(f"{part}.{name}", pair, alphas, path) for name, pair in pairs.items()
        }
    if not result:
        raise ValueError(f"lora: {path} holds no LoRA weights for a unet or a text encoder")
    return result


def _delta(name: str, pair: dict[str, Tensor], alphas: dict[str, float], path: Path) -> Tensor:
    if len(pair) != 2:
        raise ValueError(f"lora: {path} holds only one half of {name}")
    up, down = pair[_UP], pair[_DOWN]
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise ValueError(f"lora: {path} has ranks {up.shape[1]} and {rank} for {name}")
    if up.dim() == 4:  # convolutions: a 1x1 after the down convolution, or both 1x1
        delta = torch.einsum("or,rihw->oihw", up.flatten(1), down)
    else:
        delta = up @ down
    return delta * (alphas.get(name, float(rank)) / rank)


@torch.no_grad()
def apply_lora(updates: dict, modules: dict[str, nn.Module], weight: float, path: str | os.PathLike) -> None:
    """Add `weight` times the updates to the modules' parameters, summed in fp32. All are checked before any changes.

    Raises: ValueError, one line, naming a weight that the model lacks or whose shape differs.
    """
    todo = []
    for part, deltas in updates.items():
        parameters = dict(modules[part].named_parameters())
        for name, delta in deltas.items():
            target = parameters.get(name)
            if target is None:
                raise ValueError(f"lora: {path} changes {part}.{name}, which this model does not have")
            if target.numel() != delta.numel() or target.shape[0] != delta.shape[0]:
                raise ValueError(
                    f"lora: {path} has {part}.{name} of shape {tuple(delta.shape)}, "
                    f"the model's is {tuple(target.shape)}"
                )
            todo.append((target, delta.view(target.shape)))
    for target, delta in todo:
        target.copy_(target.float() + weight * delta.to(target.device))
