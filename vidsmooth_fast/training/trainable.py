"""Which weights are tuned: a named set, patterns, or low-rank updates of a given rank."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vidsmooth_fast.models.unet import VideoUNet
from vidsmooth_fast.models.weights import is_temporal

SETS = ("tune-a-video", "temporal", "all")
TUNE_A_VIDEO = ("attn1.to_q", "attn2.to_q", "attn_temp")
ADAPTED = ("attn1", "attn2", "attn_temp")  # whose projections get low-rank updates

Trainable = str | int | Sequence[str]


def _matches(name: str, pattern: str) -> bool:
    """Whether a parameter's dotted name fits the pattern, or has it as one of its parts ("attn1.to_q")."""
    return any(fnmatchcase(name, p) for p in (pattern, f"*.{pattern}", f"{pattern}.*", f"*.{pattern}.*"))


class LowRank(nn.Module):
    """W -> W + up @ down; up (out, r) starts at zero, down (r, in) Gaussian of deviation 1/r (arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        down = torch.randn(rank, weight.shape[1], generator=generator) / rank
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def choose(unet: VideoUNet, trainable: Trainable, *, seed: int = 0) -> dict[str, nn.Parameter]:
    """Let exactly the chosen parameters require gradients; returns them by name, in the network's order.

    trainable: "tune-a-video" (queries of both attentions and temporal attention, as published), "temporal" (every
        layer that inflation adds), "all"; patterns such as "attn2.to_k" or "up_blocks.*.attn_temp.*"; or a whole
        number r: low-rank updates of rank r to the projections of all attentions (seed: of their initial values), which
        `merge` adds to the weights.

    Raises: ValueError naming what fits no parameter.
    """
    unet.requires_grad_(False)
    if isinstance(trainable, int) and not isinstance(trainable, bool):
        return _adapt(unet, trainable, seed)
    parameters = dict(unet.named_parameters())
    if trainable == "all":
        names = list(parameters)
    elif trainable == "temporal":
        names = [n for n in parameters if is_temporal(n)]
    else:
        patterns = [trainable] if isinstance(trainable, str) else list(trainable)
        if patterns == ["tune-a-video"]:
            patterns = list(TUNE_A_VIDEO)
        for pattern in patterns:
            if not isinstance(pattern, str) or not any(_matches(n, pattern) for n in parameters):
                sets = ", ".join(SETS)
                raise ValueError(
                    f"trainable: expected {sets}, a rank, or patterns of parameter names; {pattern!r} fits none"
                )
        names = [n for n in parameters if any(_matches(n, p) for p in patterns)]
    if not names:
        raise ValueError(f"trainable: {trainable!r} chooses no parameter")
    for name in names:
        parameters[name].requires_grad_(True)
    return {name: parameters[name] for name in names}


def _adapted(unet: VideoUNet) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and any(f".{part}.to_" in name for part in ADAPTED)
    }


def _adapt(unet: VideoUNet, rank: int, seed: int) -> dict[str, nn.Parameter]:
    layers = _adapted(unet)
    widest = min(min(layer.weight.shape) for layer in layers.values())
    if not 1 <= rank <= widest:
        raise ValueError(f"trainable: expected a rank of 1 to {widest} for this network, got {rank}")
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, generator))
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


def low_rank_updates(unet: VideoUNet) -> dict[str, Tensor]:
    """The low-rank updates under the names that `load(lora=)`, PEFT and diffusers read; {} where there are none."""
    tensors = {}
    for name, layer in _adapted(unet).items():
        if parametrize.is_parametrized(layer, "weight"):
            update = layer.parametrizations.weight[0]
            tensors[f"unet.{name}.lora_A.weight"] = update.down.detach().cpu().clone()
            tensors[f"unet.{name}.lora_B.weight"] = update.up.detach().cpu().clone()
    return tensors


def merge(unet: VideoUNet) -> None:
    """Add low-rank updates to the weights they belong to: afterwards the network has its usual parameters."""
    for layer in _adapted(unet).values():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
    unet.requires_grad_(False)
