"""The sampler's one pass over memory: merge windows, guide, constrain, step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _windows
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
from .noise_constraint import reference as constrain


def reference(
    pred: Tensor,
    x: Tensor,
    weights: Tensor,
    history: Tensor | None,
    reference: Tensor | None,
    noise: Tensor | None,
    starts: Sequence[int],
    *,
    branch_weights: Sequence[float],
    a: float,
    b: float,
    c: float,
    to_eps: Sequence[float],
    to_clean: Sequence[float] | None,
    c_over_lambda: float,
    strength: float,
    noise_scale: float,
    loop: bool,
) -> tuple[Tensor, Tensor]:
    """The equations in plain PyTorch; arguments as in :func:`denoise_step`, weights already (C, K, H, W)."""
    frames = x.shape[2]
    branches = zip(branch_weights, pred, strict=True)
    eps = sum(w * _windows.merge(branch, starts, weights, frames) for w, branch in branches)
    if tuple(to_eps) != (0, 1):
        eps = to_eps[0] * x + to_eps[1] * eps
    if strength != 0:
        eps = constrain(eps, x, reference, c_over_lambda=c_over_lambda, strength=strength, loop=loop)
    out = a * x + b * eps
    if history is not None:
        out = out + c * history
    if noise is not None:
        out = out + noise_scale * noise
    clean = x.new_empty(0) if to_clean is None else to_clean[0] * x + to_clean[1] * eps
    return out.to(x.dtype).contiguous(), clean.to(x.dtype).contiguous()


def _compiled(
    pred: Tensor,
    x: Tensor,
    weights: Tensor,
    history: Tensor | None,
    reference: Tensor | None,
    noise: Tensor | None,
    starts: Sequence[int],
    *,
    branch_weights: Sequence[float],
    a: float,
    b: float,
    c: float,
    to_eps: Sequence[float],
    to_clean: Sequence[float] | None,
    c_over_lambda: float,
    strength: float,
    noise_scale: float,
    loop: bool,
) -> tuple[Tensor, Tensor]:
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    clean = out.new_empty(0 if to_clean is None else x.shape)
    coverage = _windows.compiled_coverage(pred.device, tuple(starts), pred.shape[4], x.shape[2])
    videos = []
    for video in (x, history, reference, noise):
        videos += [0, ()] if video is None else [video.data_ptr(), video.stride()]
    extension().denoise_step(
        DTYPE_CODES[pred.dtype],
        x.shape,
        pred.data_ptr(),
        pred.stride(),
        pred.shape[4],
        branch_weights,
        weights.data_ptr(),
        weights.stride(),
        [t.data_ptr() for t in coverage],
        *videos,
        a,
        b,
        c,
        noise_scale,
        to_eps,
        to_clean or (0.0, 0.0),
        c_over_lambda,
        strength,
        loop,
        out.data_ptr(),
        0 if to_clean is None else clean.data_ptr(),
        where(pred),
    )
    return out, clean


def _triton_supports(pred, x=None, *_args, branch_weights=(), **_settings):
    if len(branch_weights) > 8:
        return False, f"the Triton kernel merges up to 8 guidance branches, got {len(branch_weights)}"
    return triton_supports(pred, x)


def _triton(pred, x, weights, history, reference, noise, starts, *, to_clean, branch_weights, **settings):
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    clean = x.new_empty(0 if to_clean is None else x.shape)
    table, most = _windows.coverage_on(x.device, tuple(starts), pred.shape[4], x.shape[2])
    triton_kernel("denoise_step")(
        pred,
        x,
        weights,
        history,
        reference,
        noise,
        table,
        most,
        out,
        None if to_clean is None else clean,
        branch_weights=tuple(branch_weights),
        to_clean=to_clean,
        **settings,
    )
    return out, clean


def _cuda_supports(pred, *args, **settings):
    if pred.dim() == 7 and len(pred) > 8:  # they travel with the launch
        return False, f"the CUDA kernel takes at most 8 branches, got {len(pred)}"
    return cuda_supports(pred, *args, **settings)


def _fake(pred, x, weights, history, reference, noise, starts, *, to_clean, **_):
    return x.new_empty(x.shape), x.new_empty(0 if to_clean is None else x.shape)


_op = register(
    "denoise_step(Tensor pred, Tensor x, Tensor weights, Tensor? history, Tensor? reference, Tensor? noise, "
    "int[] starts, *, float[] branch_weights, float a, float b, float c, float[] to_eps, float[]? to_clean, "
    "float c_over_lambda, float strength, float noise_scale, bool loop) -> (Tensor, Tensor)",
    torch_backend=reference,
    fake=_fake,
    triton=Backend(_triton_supports, _triton),
    cpu=Backend(cpu_supports, _compiled),
    cuda=Backend(_cuda_supports, _compiled),
)


def _pair(name: str, value: Sequence[float]) -> tuple[float, float]:
    if len(value) != 2:
        raise ValueError(f"{name}: expected two factors, (of x, of the prediction), got {value}")
    return float(value[0]), float(value[1])


def denoise_step(
    pred: Tensor,
    x: Tensor,
    starts: Sequence[int] | Tensor,
    weights: Tensor,
    *,
    branch_weights: Sequence[float],
    a: float,
    b: float,
    c: float = 0.0,
    history: Tensor | None = None,
    to_eps: Sequence[float] = (0.0, 1.0),
    to_clean: Sequence[float] | None = None,
    c_over_lambda: float = 0.0,
    strength: float = 0.0,
    reference: Tensor | None = None,
    noise: Tensor | None = None,
    noise_scale: float = 0.0,
    loop: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Take one affine sampling step on merged, guided, smoothed predictions.

    p   = Σ_g branch_weights[g] · window_merge(pred[g], starts, weights)
    ε   = to_eps[0]·x + to_eps[1]·p
    ε'  = noise_constraint(ε, x, c_over_lambda, strength, reference, loop)
    out = a·x + b·ε' + c·history + noise_scale·noise
    clean = to_clean[0]·x + to_clean[1]·ε'

    pred: what the network returned, G guidance branches of N windows of K frames, (G, B, N, C, K, H, W), any
        floating dtype and strides.
    x: noisy latents, (B, C, F, H, W), fp32, like history, reference and noise where given.
    starts, weights: as in window_merge; on a GPU, the first call with new windows belongs outside CUDA graph capture.
    branch_weights: G factors that sum to 1; (1 − s, s) is text guidance of scale s.
    to_eps: from the network's prediction to noise; (0, 1) when it predicts noise.
    to_clean: coefficients of the second result, or None for none.
    backend: names of the backends that may be used, best first, e.g. "triton" or "cuda,torch"; None leaves the choice
        to the dispatch (`ops.backend`, `VIDSMOOTH_BACKEND`).
    Sums are kept in fp32. For inference only: there is no gradient.
    Returns (out, clean), contiguous fp32 of shape (B, C, F, H, W); clean is None without to_clean.
    Raises ValueError for empty, mixed or wrongly shaped input, or when a frame is in no window.
    Source: design §4: an affine step of the weighted mean is the weighted mean of the steps ([000] eq. 19).
    """
    _checks.floating("pred", pred, "G, B, N, C, K, H, W")
    _checks.floating("x", x, "B, C, F, H, W")
    if x.dtype != torch.float32:
        raise ValueError(f"x: expected torch.float32, got {x.dtype}")
    if x.device != pred.device:
        raise ValueError(f"x: expected the device of pred, {pred.device}, got {x.device}")
    branches, batch, windows, channels, _, *pixels = pred.shape
    if (x.shape[0], x.shape[1], *x.shape[3:]) != (batch, channels, *pixels):
        wanted = (batch, channels, "F", *pixels)
        raise ValueError(f"x: expected shape {wanted} to go with pred, got {tuple(x.shape)}")
    for name, video in (("history", history), ("reference", reference), ("noise", noise)):
        if video is not None:
            _checks.like(name, video, "x", x)
    for name, video, factor in (("history", history, c), ("noise", noise, noise_scale)):
        if video is None and factor != 0:
            raise ValueError(f"{name}: expected a tensor like x because its factor is {factor}, got None")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (pred, x)):
        raise ValueError(
            "pred, x: expected no gradients (call it under torch.no_grad()), got requires_grad=True"
        )
    if len(branch_weights) != branches:
        raise ValueError(
            f"branch_weights: expected {branches}, one per branch of pred, got {len(branch_weights)}"
        )
    out, clean = _op(
        pred,
        x,
        _windows.check_weights(weights, pred),
        history if c != 0 else None,
        reference,
        noise if noise_scale != 0 else None,
        _windows.check(starts, windows),
        branch_weights=[float(w) for w in branch_weights],
        a=a,
        b=b,
        c=c,
        to_eps=_pair("to_eps", to_eps),
        to_clean=None if to_clean is None else _pair("to_clean", to_clean),
        c_over_lambda=c_over_lambda,
        strength=strength,
        noise_scale=noise_scale,
        loop=loop,
        backend=backend,
    )
    return out, None if to_clean is None else clean
