"""softmax(q kᵀ · scale) v and its gradients in plain PyTorch, for the references; q, k, v: (..., tokens, d)."""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    return torch.softmax(q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale), -1)


def attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of q, k and v, with the probabilities computed again."""
    p = probabilities(q, k, scale)
    dp = grad @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return ds @ k, ds.mT @ q, p.mT @ grad
