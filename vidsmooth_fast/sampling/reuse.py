"""Deep-feature reuse: the network's inner blocks are computed at some steps only, and remembered in between."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidsmooth_fast.models.unet import DeepFeatures, Level, VideoUNet


@dataclass(frozen=True)
class DeepReuse:
    """Compute the whole network at every `period`-th step, and its outermost layers alone at the others.

    What the deep blocks say changes slowly from step to step (DeepCache, Ma et al., arXiv 2312.00858). Approximate.

    period: in steps; 1 computes everything at every step, and changes nothing.
    layers: how many of the last layers of the up path are always computed, with the skip connections they read. None
        is the whole outermost level.
    Raises ValueError for values below 1.
    """

    period: int = 2
    layers: int | None = None

    def __post_init__(self) -> None:
        for name in ("period", "layers"):
            value = getattr(self, name)
            if value is None and name == "layers":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"DeepReuse {name}: expected a whole number of at least 1, got {value!r}")

    def is_whole(self, step: int) -> bool:
        """Whether the whole network is due at this step, whatever went before: a run can be interrupted here."""
        return step % self.period == 0


def work_share(unet: VideoUNet, layers: int) -> float:
    """Roughly what part of a whole pass the outermost `layers` layers are: weights times pixels, without attention."""
    down = [(unet.conv_in, 0)]
    for level, block in enumerate(unet.down_blocks):
        down += [(_layer(block, i), level) for i in range(len(block.resnets))]
        down += [(sampler, level + 1) for sampler in getattr(block, "downsamplers", ())]
    up = []
    for level, block in zip(reversed(range(len(unet.up_blocks))), unet.up_blocks, strict=True):
        up += [(_layer(block, i), level) for i in range(len(block.resnets))]
    middle = [(unet.mid_block, len(unet.up_blocks) - 1)]

    def work(parts) -> float:
        return sum(weight.numel() / 4**level for modules, level in parts for weight in modules.parameters())

    return work(down[:layers] + up[-layers:]) / work(down + middle + up)


def _layer(block: Level, i: int) -> nn.ModuleList:
    """ResNet i of a level, and its transformer."""
    return nn.ModuleList([block.resnets[i], *(block.attentions[i : i + 1] if block.has_attention else ())])


class DeepMemory:
    """The deep features of every network call, kept from one step to the next.

    They serve the later steps of the period they were made in, and no others: so a result does not depend on where a
    run was interrupted, or on which steps had a guidance branch more, and a step that is taken twice is taken anew.

    period, layers: of a DeepReuse, none left open. on_host: keep them in pinned host memory instead of on the GPU.
    """

    def __init__(self, period: int, layers: int, *, on_host: bool = False):
        self.period, self.layers, self.on_host = period, layers, on_host
        self._kept: dict[Hashable, tuple[int, DeepFeatures]] = {}

    def of(self, call: Hashable, step: int) -> DeepFeatures:
        """Features for a network call at a step: those kept, or empty ones that the call will fill."""
        made, features = self._kept.get(call, (step, None))
        if made >= step or made // self.period != step // self.period:
            features = HostFeatures(self.layers) if self.on_host else DeepFeatures(self.layers)
            self._kept[call] = (step, features)
        return features

    def empty(self) -> DeepMemory:
        """Another of the same kind, with nothing in it."""
        return DeepMemory(self.period, self.layers, on_host=self.on_host)


class HostFeatures(DeepFeatures):
    """Deep features that wait in pinned host memory: copied there when they are made, and back when they are used."""

    @property
    def value(self) -> Tensor | None:
        return None if self._host is None else self._host.to(self._device, non_blocking=True)

    @value.setter
    def value(self, made: Tensor | None) -> None:
        self._host = made
        if made is not None:
            self._device = made.device
            self._host = torch.empty_like(made, device="cpu", pin_memory=made.is_cuda)
            self._host.copy_(made, non_blocking=True)
