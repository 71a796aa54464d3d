"""The fused operators: one name each, found in `ops/<name>.py` with its schema, reference and dispatch."""

from ._dispatch import backend, report
from .noise_constraint import noise_constraint
from .sparse_causal_attention import sparse_causal_attention
from .temporal_attention import temporal_attention

__all__ = [
    "backend",
    "noise_constraint",
    "report",
    "sparse_causal_attention",
    "temporal_attention",
]
