"""The feed-forward of a transformer block, gated by GELU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidsmooth_fast import ops
from vidsmooth_fast.ops._dispatch import extension

from .frozen import FrozenFeedForward, frozen
from .kernels import kernel_runs
from .linear import Linear, linear


class GEGLU(nn.Module):
    """proj(x) split in halves (h, g): h * gelu(g), exact (erf) GELU.

    On a CPU the halves are projected separately: the same arithmetic, but everything after it reads contiguous memory
    (feed-forward of 8,192 tokens of width 128, bf16, 1 core: 19.6 ms against 26.8 ms; fp32 40.8 against 53.8).
    An exported graph keeps the weights as they are.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden * 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            hidden, gate = self.proj(x).chunk(2, dim=-1)
            return hidden * F.gelu(gate)
        (w_hidden, w_gate), (b_hidden, b_gate) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        hidden, gate = linear(x, w_hidden, b_hidden), linear(x, w_gate, b_gate, gelu=True)
        return hidden * gate if torch.is_grad_enabled() else gate.mul_(hidden)


class FeedForward(nn.Module):
    """dim -> GEGLU 4 dim -> dim, (N, P, dim) -> same. The published `net.1` is a dropout of probability zero.

    Inference on a CPU takes `ops.feed_forward` where it pays, and else 2,048 tokens at a time: the wide intermediate
    then stays in cache, and its memory is reused instead of being mapped anew for every layer. So do gradients that
    only pass through. A compiled or exported graph takes all tokens at once: how many pieces there are would be fixed
    in it.
    """

    CHUNK = 2048

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, dim * 4), nn.Identity(), Linear(dim * 4, dim)])

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.net[0].proj, self.net[2]
        weights = first.weight, first.bias, last.weight, last.bias
        if frozen(x, *weights):
            return FrozenFeedForward.apply(x.flatten(0, 1), *weights, self.CHUNK).view(x.shape)
        if not torch.is_grad_enabled() and kernel_runs(x, *weights) and _pays(x):
            return ops.feed_forward(x, *weights)
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
            return self.net[2](self.net[0](x))
        tokens = x.flatten(0, 1)
        out = torch.empty_like(tokens)
        for part, result in zip(tokens.split(self.CHUNK), out.split(self.CHUNK), strict=True):
            result.copy_(self.net[2](self.net[0](part)))
        return out.view(x.shape)


def _pays(x: Tensor) -> bool:
    """Whether `ops.feed_forward` is faster for images of so many tokens: it puts the weights in order at every call.

    Zen 4, 2 cores, against oneDNN in pieces of 2,048 tokens, 16 images and more: fp32 1.6 times at width 48, 1.3 at 128
    and 256, 1.15 at 320, 1.04 at 640; bf16 1.6, 1.3, 1.2, 1.02; with 16 tokens an image (width 1,280) 0.9 times.
    Where the processor has bf16 matrix units oneDNN uses them.
    """
    if x.shape[1] < 64:
        return False
    if x.dtype == torch.bfloat16:
        module = extension()
        multiplies = module is not None and module.isa() == "avx512_bf16"
        return multiplies and not torch.cpu._is_amx_tile_supported()
    return x.dtype == torch.float32
