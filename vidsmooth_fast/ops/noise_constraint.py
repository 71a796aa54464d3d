"""Pull the noise predictions of neighbouring frames together."""

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


def _second_difference(y: Tensor) -> Tensor:
    """Δy_n = 2 y_n − y_{n−1} − y_{n+1}, the frames (axis 2) in a circle."""
    return 2 * y - y.roll(1, 2) - y.roll(-1, 2)


def _interior(y: Tensor, loop: bool) -> Tensor:
    """y where the constraint acts, 0 elsewhere: everywhere in a loop, else not at the first and last frame."""
    if loop:
        return y
    y = y.clone()  # and no tensor of indices: its copy to a GPU would be waited for
    y[:, :, 0] = 0
    y[:, :, -1] = 0
    return y


def reference(
    eps: Tensor,
    x: Tensor,
    reference: Tensor | None = None,
    *,
    c_over_lambda: float,
    strength: float,
    loop: bool = False,
) -> Tensor:
    """The equation in plain PyTorch; arguments as in :func:`noise_constraint`, any one dtype."""
    change = _second_difference(_checks.wide(eps)) - c_over_lambda * _second_difference(_checks.wide(x))
    if reference is not None:
        change = change + _second_difference(_checks.wide(reference))
    return (_checks.wide(eps) - strength * _interior(change, loop)).to(eps.dtype).contiguous()


def _compiled(
    eps: Tensor,
    x: Tensor,
    reference: Tensor | None = None,
    *,
    c_over_lambda: float,
    strength: float,
    loop: bool = False,
) -> Tensor:
    out = torch.empty(eps.shape, dtype=eps.dtype, device=eps.device)
    ref = (0, ()) if reference is None else (reference.data_ptr(), reference.stride())
    extension().noise_constraint(
        DTYPE_CODES[eps.dtype],
        eps.shape,
        eps.data_ptr(),
        eps.stride(),
        x.data_ptr(),
        x.stride(),
        *ref,
        out.data_ptr(),
        c_over_lambda,
        strength,
        loop,
        where(eps),
    )
    return out


def _triton(
    eps: Tensor,
    x: Tensor,
    reference: Tensor | None = None,
    *,
    c_over_lambda: float,
    strength: float,
    loop: bool = False,
) -> Tensor:
    out = torch.empty(eps.shape, dtype=eps.dtype, device=eps.device)
    triton_kernel("noise_constraint")(
        eps, x, reference, out, c_over_lambda=c_over_lambda, strength=strength, loop=loop
    )
    return out


def _fake(eps, x, reference=None, *, c_over_lambda, strength, loop=False):
    return eps.new_empty(eps.shape)


_op = register(
    "noise_constraint(Tensor eps, Tensor x, Tensor? reference=None, *, float c_over_lambda, float strength, "
    "bool loop=False) -> Tensor",
    torch_backend=reference,
    fake=_fake,
    triton=Backend(triton_supports, _triton),
    cpu=Backend(cpu_supports, _compiled),
    cuda=Backend(cuda_supports, _compiled),
)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    ctx.settings = keyword_only_inputs
    ctx.has_reference = len(inputs) > 2 and inputs[2] is not None


def _backward(ctx, grad):
    # Linear: with D the circular difference (symmetric) and M the mask of the frames acted on,
    # out = eps - strength·M D (eps - c x + r), so the adjoint is D M. M has removed both ends before D
    # carries anything around the circle, except in a loop, where D should.
    strength, c = ctx.settings["strength"], ctx.settings["c_over_lambda"]
    pulled = strength * _second_difference(_interior(_checks.wide(grad), ctx.settings["loop"]))
    to_reference = (-pulled).to(grad.dtype) if ctx.has_reference else None
    return (_checks.wide(grad) - pulled).to(grad.dtype), (c * pulled).to(grad.dtype), to_reference


torch.library.register_autograd("vidsmooth::noise_constraint", _backward, setup_context=_setup_context)


def noise_constraint(
    eps: Tensor,
    x: Tensor,
    *,
    c_over_lambda: float,
    strength: float,
    reference: Tensor | None = None,
    loop: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Reduce the second difference over frames of a noise prediction, or make it follow a reference.

    out_n = ε_n − strength·(Δε_n − c_over_lambda·Δx_n + Δr_n),  Δy_n = 2 y_n − y_{n−1} − y_{n+1}

    for interior frames n, all from the old values at once; the first and last frame are returned unchanged
    unless loop, where they are neighbours.

    eps: predicted noise ε, (B, C, F, H, W), any strides.
    x: noisy latents, like eps.
    c_over_lambda: factor on the differences of x; 1/√(1−ᾱ_t) acts on the predicted clean latents (design §4).
    strength: λ₃; 0 leaves eps as it is.
    reference: r, like eps: the result's differences are pulled towards c·Δx − Δr.
    backend: names of the backends that may be used, best first, e.g. "triton" or "cuda,torch"; None leaves the choice
        to the dispatch (`ops.backend`, `VIDSMOOTH_BACKEND`).
    Returns a contiguous tensor like eps; differentiable in eps, x and reference.
    Raises ValueError for empty, mixed or wrongly shaped input.
    Source: "NC" of [003], equations 3 and 5.
    """
    _checks.floating("eps", eps, "B, C, F, H, W")
    _checks.like("x", x, "eps", eps)
    if reference is not None:
        _checks.like("reference", reference, "eps", eps)
    return _op(eps, x, reference, c_over_lambda=c_over_lambda, strength=strength, loop=loop, backend=backend)
