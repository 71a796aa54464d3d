"""The fused operators: one name each, found in `ops/<name>.py` with its schema, reference and dispatch."""

from ._dispatch import backend, report
from .convolution import convolution
from .denoise_step import denoise_step
from .feed_forward import feed_forward
from .group_norm_silu import group_norm_silu
from .inversion_blend import inversion_blend
from .noise_constraint import noise_constraint
from .sparse_causal_attention import sparse_causal_attention
from .temporal_attention import temporal_attention
from .window_merge import window_merge

__all__ = [
    "backend",
    "convolution",
    "denoise_step",
    "feed_forward",
    "group_norm_silu",
    "inversion_blend",
    "noise_constraint",
    "report",
    "sparse_causal_attention",
    "temporal_attention",
    "window_merge",
]
