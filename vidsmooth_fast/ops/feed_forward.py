"""The feed-forward layers of a transformer, gated by GELU, in one pass over the tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._dispatch import CHANNELS, DTYPE_CODES, Backend, cpu_supports, extension, register


def reference(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor, bias_out: Tensor | None
) -> Tensor:
    """The equation in plain PyTorch; arguments as in :func:`feed_forward`."""
    wide = _checks.wide(x)
    weight_in, bias_in, weight_out, bias_out = (
        None if t is None else t.to(wide.dtype) for t in (weight_in, bias_in, weight_out, bias_out)
    )
    hidden, gate = F.linear(wide, weight_in, bias_in).chunk(2, dim=-1)
    return F.linear(hidden * F.gelu(gate), weight_out, bias_out).to(x.dtype)


def _cpu_supports(x, weight_in=None, _bias_in=None, weight_out=None, _bias_out=None):
    supported, why = cpu_supports(x)  # weights and biases are converted
    if not supported:
        return False, why
    sizes = () if weight_in is None else (weight_in.shape[1], *weight_out.shape)
    if any(size % CHANNELS for size in sizes):
        return False, f"the C++ kernel takes multiples of {CHANNELS} columns, got {sizes}"
    if x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and extension().isa() != "avx512_bf16"):
        return (
            False,
            f"the C++ kernel takes float32, and bfloat16 where the processor has AVX512_BF16; got {x.dtype}",
        )
    return True, ""


def _cpu(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor, bias_out: Tensor | None
) -> Tensor:
    outputs, hidden = weight_out.shape
    inputs = weight_in.shape[1]
    x, weight_in, weight_out = (t.to(x.dtype).contiguous() for t in (x, weight_in, weight_out))
    bias_in, bias_out = (
        torch.zeros(size, dtype=torch.float32) if bias is None else bias.float().contiguous()
        for bias, size in ((bias_in, 2 * hidden), (bias_out, outputs))
    )
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
    extension().feed_forward(
        DTYPE_CODES[x.dtype],
        (x.numel() // inputs, inputs, hidden, outputs),
        x.data_ptr(),
        (weight_in.data_ptr(), weight_out.data_ptr()),
        (bias_in.data_ptr(), bias_out.data_ptr()),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def _fake(x, _weight_in, _bias_in, weight_out, _bias_out):
    return x.new_empty(*x.shape[:-1], weight_out.shape[0])


_op = register(
    "feed_forward(Tensor x, Tensor weight_in, Tensor? bias_in, Tensor weight_out, Tensor? bias_out, *) -> Tensor",
    torch_backend=reference,
    fake=_fake,
    cpu=Backend(_cpu_supports, _cpu),
)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    """Through the equation, computed anew: no hidden number was kept."""
    again = torch.is_grad_enabled()  # the gradient is to be differentiated itself
    with torch.enable_grad():
        y = reference(*ctx.saved_tensors)
    needed = [t for t, need in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True) if need]
    found = iter(torch.autograd.grad(y, needed, grad, create_graph=again))
    return tuple(next(found) if need else None for need in ctx.needs_input_grad)


torch.library.register_autograd("vidsmooth::feed_forward", _backward, setup_context=_setup_context)


def feed_forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    *,
    backend: str | None = None,
) -> Tensor:
    """(h · gelu(g)) W_outᵀ + b_out, (h, g) = x W_inᵀ + b_in in halves; GELU is the exact (erf) one.

    The C++ kernel takes a few rows through both layers at once: hidden numbers never leave the cache. Its normal
    distribution is exact to 1.1e-7, and gelu is 0 below -5.25.

    x: (..., C), any strides (fast where contiguous). weight_in: (2 H, C), weight_out: (O, H), any floating dtype.
    bias_in: (2 H,), bias_out: (O,), or None.
    backend: names of the backends that may be used instead, best first; there are "cpu" and "torch".
    Returns (..., O) in the dtype of x, contiguous; sums are kept in fp32, and on the C++ kernel the hidden numbers in
    the dtype of x. Differentiable in all five.
    Raises ValueError for empty or wrongly shaped input.
    Source: Shazeer, "GLU Variants Improve Transformer" (2020), GEGLU.
    """
    _checks.rows("x", x)
    _checks.layer("weight_in", weight_in, "bias_in", bias_in, x.shape[-1], x.device)
    _checks.floating("weight_out", weight_out, "O, H")
    hidden = weight_out.shape[1]
    if weight_in.shape[0] != 2 * hidden:
        raise ValueError(
            f"weight_in: expected {2 * hidden} rows, two for each column of weight_out, got {weight_in.shape[0]}"
        )
    _checks.layer("weight_out", weight_out, "bias_out", bias_out, hidden, x.device)
    return _op(x, weight_in, bias_in, weight_out, bias_out, backend=backend)
