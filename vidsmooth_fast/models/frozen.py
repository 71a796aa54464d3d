"""Layers whose weights are not trained, with gradients of their own: tuning trains few weights, and on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear import linear


def frozen(x: Tensor, *weights: Tensor) -> bool:
    """Whether the gradient goes through these weights and not into them, on a CPU, eagerly and in their dtype."""
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not any(w.requires_grad or w.dtype != x.dtype for w in weights)
    )


class FrozenTaps(torch.autograd.Function):
    """video_f + P video_{f-1} + N video_{f+1}; video (B, F, H*W, C).

    The gradient is the same operation with Nᵀ and Pᵀ. Autograd would copy it for each addition to a part of the frames.
    """

    @staticmethod
    def forward(ctx, video: Tensor, previous: Tensor, next: Tensor, loop: bool) -> Tensor:
        ctx.save_for_backward(previous, next)
        ctx.loop = loop
        out = video.clone(memory_format=torch.contiguous_format)
        taps = [(out[:, 1:], video[:, :-1], previous), (out[:, :-1], video[:, 1:], next)]
        if loop:
            taps += [(out[:, :1], video[:, -1:], previous), (out[:, -1:], video[:, :1], next)]
        for to, of, weight in taps:
            to.flatten(1, 2).baddbmm_(of.flatten(1, 2), weight.mT.expand(len(of), -1, -1))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        previous, next = ctx.saved_tensors
        return FrozenTaps.apply(grad, next.mT, previous.mT, ctx.loop), None, None, None


class FrozenFeedForward(torch.autograd.Function):
    """(h * gelu(g)) W_outᵀ + b_out with (h, g) = x W_inᵀ + b_in in halves; x (tokens, C).

    It goes through `chunk` tokens at a time, forward and backward: what is between the layers then stays in cache.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor, chunk: int
    ) -> Tensor:
        (to_hidden, to_gate), (b_hidden, b_gate) = w_in.chunk(2), b_in.chunk(2)
        out, kept = torch.empty_like(x), []
        for part, result in zip(x.split(chunk), out.split(chunk), strict=True):
            hidden, gate = linear(part, to_hidden, b_hidden), linear(part, to_gate, b_gate)
            opened = F.gelu(gate)
            result.copy_(linear(hidden * opened, w_out, b_out))
            kept += hidden, gate, opened
        ctx.save_for_backward(w_in, w_out, *kept)
        ctx.chunk = chunk
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        w_in, w_out, *kept = ctx.saved_tensors
        to_hidden, to_gate = w_in.chunk(2)
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
        chunks = zip(
            grad.split(ctx.chunk), out.split(ctx.chunk), kept[::3], kept[1::3], kept[2::3], strict=True
        )
        for part, result, hidden, gate, opened in chunks:
            inner = linear(part, w_out.mT)
            of_gate = torch.ops.aten.gelu_backward(inner * hidden, gate)
            torch.add(linear(inner.mul_(opened), to_hidden.mT), linear(of_gate, to_gate.mT), out=result)
        return out, None, None, None, None, None
