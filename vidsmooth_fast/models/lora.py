"""LoRA files: low-rank updates added to the weights.

diffusers reads and renames the published formats; the sum W + weight * (alpha / r) * up @ down is done here, so that
no adapter library is needed and the inflated network, whose 2D layers keep their names, takes them as well.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

_UP, _DOWN = ".lora_B.weight", ".lora_A.weight"
PARTS = ("unet", "text_encoder")


def read_lora(path: str | os.PathLike) -> dict[str, dict[str, Tensor]]:
    """Updates by component and layer: {"unet" | "text_encoder": {layer name: delta}}, fp32.

    delta = (alpha / r) up @ down; alpha from the file (per layer, or in PEFT's metadata), else r. Files of diffusers,
    PEFT and kohya are understood; a pickled file is read as plain tensors only.

    Raises: ValueError, one line, naming the file, when it holds no LoRA or something that is not a plain one.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    from .weights import read_weights

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"lora: expected a file, got {path}")
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(read_weights(path))
    metadata = _metadata(path)
    result = {}
    for part in PARTS:
        pairs = _renamed(part, state, path)
        known = {_layer(k): float(v) for k, v in _renamed(part, _as_weights(alphas or {}), path).items()}
        layers = dict.fromkeys(_layer(key) for key in pairs)  # in the file's order
        if layers:
            result[part] = {name: _delta(name, pairs, known, metadata.get(part, {}), path) for name in layers}
    if not result:
        raise ValueError(f"lora: {path} holds no LoRA weights for a unet or a text encoder")
    return result


def _as_weights(alphas: dict[str, float]) -> dict[str, Tensor]:
    """diffusers' alphas under the names of the weights they belong to, so that one renaming serves both."""
    names = (k.removesuffix(".alpha") for k in alphas)
    names = (k if k.endswith(".down.weight") else f"{k}.lora.down.weight" for k in names)
    return {k: torch.tensor(float(v)) for k, v in zip(names, alphas.values(), strict=True)}


def _renamed(part: str, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The part's tensors under PEFT's names, `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    from diffusers.utils import state_dict_utils as names

    own = {k.removeprefix(part + "."): v.float() for k, v in state.items() if k.startswith(part + ".")}
    if own and part == "unet":
        own = names.convert_unet_state_dict_to_peft(own)
    elif own:
        mapping = {**names.DIFFUSERS_TO_PEFT, **names.DIFFUSERS_OLD_TO_PEFT}
        own = names.convert_state_dict(own, mapping)
        own = {
            k.replace(".lora.down.weight", _DOWN).replace(".lora.up.weight", _UP): v for k, v in own.items()
        }
    for key in own:
        if not key.endswith((_UP, _DOWN)):
            raise ValueError(f"lora: {path} holds {part}.{key}, which is not a plain LoRA weight")
    return own


def _layer(key: str) -> str:
    return key.removesuffix(_UP).removesuffix(_DOWN)


def _metadata(path: Path) -> dict[str, dict]:
    """PEFT's adapter settings by component, where a safetensors file carries them."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        settings = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    result: dict[str, dict] = {}
    for key, value in settings.items():
        part, _, name = key.partition(".")
        result.setdefault(part, {})[name] = value
    for part, values in result.items():
        for name in ("use_rslora", "use_dora"):
            if values.get(name):
                raise ValueError(f"lora: {path} uses {name} for its {part}, which is not implemented")
    return result


def _delta(
    name: str, pairs: dict[str, Tensor], alphas: dict[str, float], settings: dict, path: Path
) -> Tensor:
    up, down = pairs.get(name + _UP), pairs.get(name + _DOWN)
    if up is None or down is None:
        raise ValueError(f"lora: {path} holds only one half of {name}")
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise ValueError(f"lora: {path} has ranks {up.shape[1]} and {rank} for {name}")
    alpha = (settings.get("alpha_pattern") or {}).get(name, settings.get("lora_alpha") or rank)
    alpha = alphas.get(name, alpha)
    return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:]) * (alpha / rank)


@torch.no_grad()
def apply_lora(updates: dict, modules: dict[str, nn.Module], weight: float, path: str | os.PathLike) -> None:
    """Add `weight` times the updates to the modules' parameters, summed in fp32. All are checked before any changes.

    Raises: ValueError, one line, naming a layer that the model lacks or whose shape differs.
    """
    todo = []
    for part, deltas in updates.items():
        parameters = dict(modules[part].named_parameters())
        for name, delta in deltas.items():
            # recent transformers leave out the prefix that published text encoder files carry
            target = parameters.get(
                f"{name}.weight", parameters.get(f"{name.removeprefix('text_model.')}.weight")
            )
            if target is None:
                raise ValueError(f"lora: {path} changes {part}.{name}, which this model does not have")
            if target.squeeze().shape != delta.squeeze().shape:
                raise ValueError(
                    f"lora: {path} has {part}.{name} of shape {tuple(delta.shape)}, "
                    f"the model's is {tuple(target.shape)}"
                )
            todo.append((target, delta.view(target.shape)))
    for target, delta in todo:
        target.copy_(target.float() + weight * delta.to(target.device))
