"""Blend inverted noise with what its neighbours in time say it should be."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._cuda import cuda_supports, where
from ._dispatch import (
    DTYPE_CODES,
    Backend,
    cpu_supports,
    extension,
    register,
    triton_kernel,
    triton_supports,
)


def _neighbours(frames: int, loop: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frame numbers before and after each frame; at an end, the one neighbour there is stands in for both."""
    n = torch.arange(frames, device=device)
    if loop:
        return (n - 1) % frames, (n + 1) % frames
    return (n - 1).abs(), frames - 1 - (frames - 2 - n).abs()


def reference(
    inverted: Tensor,
    noise: Tensor,
    *,
    weight: float,
    forward: float = 0.5,
    backward: float = 0.5,
    loop: bool = False,
) -> Tensor:
    """The equation in plain PyTorch; arguments as in :func:`inversion_blend`, any one dtype."""
    if inverted.shape[2] == 1:
        return inverted.clone(memory_format=torch.contiguous_format)
    before, after = _neighbours(inverted.shape[2], loop, inverted.device)
    v, e = _checks.wide(inverted), _checks.wide(noise)
    from_before = v[:, :, before] + e - e[:, :, before]
    from_after = v[:, :, after] + e - e[:, :, after]
    blended = (1 - weight) * v + weight * (forward * from_before + backward * from_after)
    return blended.to(inverted.dtype).contiguous()


def _compiled(
    inverted: Tensor,
    noise: Tensor,
    *,
    weight: float,
    forward: float = 0.5,
    backward: float = 0.5,
    loop: bool = False,
) -> Tensor:
    out = torch.empty(inverted.shape, dtype=inverted.dtype, device=inverted.device)
    extension().inversion_blend(
        DTYPE_CODES[inverted.dtype],
        inverted.shape,
        inverted.data_ptr(),
        inverted.stride(),
        noise.data_ptr(),
        noise.stride(),
        out.data_ptr(),
        weight,
        forward,
        backward,
        loop,
        where(inverted),
    )
    return out


def _triton(
    inverted: Tensor,
    noise: Tensor,
    *,
    weight: float,
    forward: float = 0.5,
    backward: float = 0.5,
    loop: bool = False,
) -> Tensor:
    if inverted.shape[2] == 1:
        return inverted.clone(memory_format=torch.contiguous_format)
    out = torch.empty(inverted.shape, dtype=inverted.dtype, device=inverted.device)
    triton_kernel("inversion_blend")(
        inverted, noise, out, weight=weight, forward=forward, backward=backward, loop=loop
    )
    return out


def _fake(inverted, noise, *, weight, forward=0.5, backward=0.5, loop=False):
    return inverted.new_empty(inverted.shape)


_op = register(
    "inversion_blend(Tensor inverted, Tensor noise, *, float weight, float forward=0.5, float backward=0.5, "
    "bool loop=False) -> Tensor",
    torch_backend=reference,
    fake=_fake,
    triton=Backend(triton_supports, _triton),
    cpu=Backend(cpu_supports, _compiled),
    cuda=Backend(cuda_supports, _compiled),
)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    ctx.settings = keyword_only_inputs


def _backward(ctx, grad):
    # Linear: with P and N the choice of the frame before and after,
    # out = (1 - w) v + w (f P + b N) (v - e) + w (f + b) e, so the adjoint scatters where P and N gather.
    weight, forward, backward = (ctx.settings[key] for key in ("weight", "forward", "backward"))
    if grad.shape[2] == 1:
        return grad, torch.zeros_like(grad)
    before, after = _neighbours(grad.shape[2], ctx.settings["loop"], grad.device)
    g = _checks.wide(grad)
    spread = (
        torch.zeros_like(g)
        .index_add(2, before, weight * forward * g)
        .index_add(2, after, weight * backward * g)
    )
    to_noise = weight * (forward + backward) * g - spread
    return ((1 - weight) * g + spread).to(grad.dtype), to_noise.to(grad.dtype)


torch.library.register_autograd("vidsmooth::inversion_blend", _backward, setup_context=_setup_context)


def inversion_blend(
    inverted: Tensor,
    noise: Tensor,
    *,
    weight: float,
    forward: float = 0.5,
    backward: float = 0.5,
    loop: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Mix each frame's inverted noise with the noise that its neighbours imply.

    out_n = (1−w)·ε̃_n + w·(f·(ε̃_{n−1} + ε_n − ε_{n−1}) + b·(ε̃_{n+1} + ε_n − ε_{n+1}))

    At the first and last frame the one existing direction takes the whole weight f + b, unless loop, where they
    are neighbours. A single frame is returned as it came.

    inverted: ε̃, noise found by inversion, (B, C, F, H, W), any strides.
    noise: ε, random noise whose differences over frames relate the frames, like inverted.
    weight: w in [0, 1]. forward, backward: f and b, shares of the earlier and the later neighbour.
    backend: names of the backends that may be used, best first, e.g. "triton" or "cuda,torch"; None leaves the choice
        to the dispatch (`ops.backend`, `VIDSMOOTH_BACKEND`).
    Returns a contiguous tensor like inverted; differentiable in both tensors.
    Raises ValueError for empty, mixed or wrongly shaped input.
    Source: derived from the text of [004] (its typeset equations are missing): frames at one step satisfy
    ε_n − ε_m = ε̃_n − ε̃_m, solved for ε̃_n from either neighbour.
    """
    _checks.floating("inverted", inverted, "B, C, F, H, W")
    _checks.like("noise", noise, "inverted", inverted)
    return _op(inverted, noise, weight=weight, forward=forward, backward=backward, loop=loop, backend=backend)
