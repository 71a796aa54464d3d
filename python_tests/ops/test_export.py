"""Every operator goes through torch.export as one node, and the exported program gives the same result."""

from __future__ import annotations

import pytest
import torch

from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch

VIDEO = torch.randn(1, 2, 8, 3, 4)
WINDOWS = torch.randn(1, 3, 2, 4, 3, 4)
WEIGHTS = torch.tensor([1.0, 2, 2, 1])
TOKENS = torch.randn(8, 5, 12)
ATTENTION = {"frames": 4, "heads": 2}
STEP = {"branch_weights": (-1.0, 2.0), "a": 0.9, "b": 0.1, "strength": 0.25, "to_clean": (1.0, 0.5)}

CALLS = {
    "denoise_step": lambda: (
        lambda pred, x, w: ops.denoise_step(pred, x, [0, 2, 4], w, **STEP),
        (torch.stack([WINDOWS, WINDOWS]), VIDEO, WEIGHTS),
    ),
    "convolution": lambda: (
        ops.convolution,
        (torch.randn(2, 16, 4, 5), torch.randn(32, 16, 3, 3), torch.randn(32)),
    ),
    "feed_forward": lambda: (
        ops.feed_forward,
        (torch.randn(3, 5, 16), torch.randn(64, 16), torch.randn(64), torch.randn(16, 32), torch.randn(16)),
    ),
    "group_norm_silu": lambda: (
        lambda x, w, b: ops.group_norm_silu(x, w, b, groups=3, frames=2),
        (torch.randn(4, 6, 3, 5), torch.randn(6), torch.randn(6)),
    ),
    "inversion_blend": lambda: (lambda v, e: ops.inversion_blend(v, e, weight=0.3), (VIDEO, VIDEO + 1)),
    "noise_constraint": lambda: (
        lambda e, x: ops.noise_constraint(e, x, c_over_lambda=1.0, strength=0.2, backend="torch"),
        (VIDEO, VIDEO + 1),
    ),
    "sparse_causal_attention": lambda: (
        lambda q, k, v: ops.sparse_causal_attention(q, k, v, kv_frames=[[0], [0], [0], [1]], **ATTENTION),
        (TOKENS, TOKENS + 1, TOKENS - 1),
    ),
    "temporal_attention": lambda: (
        lambda q, k, v: ops.temporal_attention(q, k, v, **ATTENTION),
        (TOKENS, TOKENS + 1, TOKENS - 1),
    ),
    "window_merge": lambda: (
        lambda v, w: ops.window_merge(v, [0, 2, 4], w, frames=8),
        (WINDOWS, WEIGHTS),
    ),
}


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def test_every_operator_is_here():
    assert set(CALLS) == {name for name in _dispatch._operators if not name.endswith("_backward")}


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("operator", CALLS)
def test_export(operator, strict):
    function, args = CALLS[operator]()
    with torch.no_grad():
        program = torch.export.export(Module(function), args, strict=strict)
        torch.testing.assert_close(program.module()(*args), function(*args))
    target = getattr(torch.ops.vidsmooth, operator).default
    assert [node.target for node in program.graph.nodes].count(target) == 1


def test_a_backend_named_by_argument_is_kept():
    function, args = CALLS["noise_constraint"]()
    program = torch.export.export(Module(function), args)
    (node,) = [n for n in program.graph.nodes if n.target == torch.ops.vidsmooth.noise_constraint.default]
    assert node.kwargs["backend"] == "torch"
