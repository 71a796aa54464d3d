from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from vidsmooth_fast import ops
from vidsmooth_fast.ops.sparse_causal_attention import _sources

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PATTERNS = {
    "first": lambda n: [[0] for _ in range(n)],
    "first, previous": lambda n: [[0, max(f - 1, 0)] for f in range(n)],
    "neighbours": lambda n: [[max(f - 1, 0), f, min(f + 1, n - 1)] for f in range(n)],  # ends count twice
    "all": lambda n: [list(range(n))] * n,
    "self": lambda n: [[f] for f in range(n)],
    "mixed": lambda n: [[(f * f + 1) % n, (3 * f) % n, n - 1, n - 1] for f in range(n)],
}


def frame_by_frame(q, k, v, frames, heads, rows, scale=None):
    """Concatenate the keys of each frame and attend, as Tune-A-Video does it."""
    q, k, v = (t.unflatten(0, (-1, frames)).unflatten(-1, (heads, -1)).transpose(2, 3) for t in (q, k, v))
    outs = []
    for frame, row in enumerate(rows):
        keys, values = (torch.cat([t[:, i] for i in row], 2) for t in (k, v))
        outs.append(F.scaled_dot_product_attention(q[:, frame], keys, values, scale=scale))
    return torch.stack(outs, 1).transpose(2, 3).flatten(3).flatten(0, 1)


def inputs(batch, frames, pixels, columns, dtype=torch.float32):
    return [torch.randn(batch * frames, pixels, columns).to(dtype) for _ in range(3)]


def check(within_rule, qkv, frames, heads, rows, scale=None):
    got = ops.sparse_causal_attention(*qkv, frames=frames, heads=heads, kv_frames=rows, scale=scale)
    exact = frame_by_frame(*(t.double() for t in qkv), frames, heads, rows, scale)
    assert got.dtype == qkv[0].dtype and got.is_contiguous()
    within_rule(got, frame_by_frame(*qkv, frames, heads, rows, scale), exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(each_backend, poisoned, within_rule, pattern, frames, dtype):
    torch.manual_seed(0)
    check(within_rule, inputs(2, frames, 33, 3 * 40, dtype), frames, 3, PATTERNS[pattern](frames))


@pytest.mark.parametrize(
    ("pixels", "heads", "width"),
    [(1, 1, 8), (7, 2, 64), (64, 2, 80), (100, 1, 160), (65, 3, 20), (300, 1, 7)],
)
def test_sizes(each_backend, within_rule, pixels, heads, width):
    torch.manual_seed(0)
    check(
        within_rule, inputs(3, 4, pixels, heads * width), 4, heads, PATTERNS["first, previous"](4), scale=0.2
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("frames", "pixels", "key_frames", "key_pixels", "width"),
    [(1, 50, 1, 77, 40), (3, 33, 1, 77, 16), (2, 16, 4, 5, 7), (3, 40, 2, 129, 33), (2, 70, 3, 1, 9)],
)
def test_keys_of_another_shape(
    each_backend, poisoned, within_rule, frames, pixels, key_frames, key_pixels, width, dtype
):
    """Text, for one: a few tokens that all frames of a video read."""
    torch.manual_seed(0)
    q = torch.randn(2 * frames, pixels, 3 * width).to(dtype)
    k, v = (torch.randn(2 * key_frames, key_pixels, 3 * width).to(dtype) for _ in "kv")
    rows = [[(f + i) % key_frames for i in range(key_frames)] for f in range(frames)]
    if each_backend == "triton":
        with pytest.raises(ValueError, match="the Triton kernel takes keys of the shape of q"):
            ops.sparse_causal_attention(q, k, v, frames=frames, heads=3, kv_frames=rows)
        return
    got = ops.sparse_causal_attention(q, k, v, frames=frames, heads=3, kv_frames=rows)

    def expected(dtype):
        k_, v_ = (t.to(dtype).unflatten(0, (2, key_frames)) for t in (k, v))
        out = []
        for video in range(2):
            for f, row in enumerate(rows):
                three = (q[video * frames + f].to(dtype), *(t[video, row].flatten(0, 1) for t in (k_, v_)))
                three = (t.unflatten(-1, (3, -1)).transpose(0, 1) for t in three)
                out.append(F.scaled_dot_product_attention(*three).transpose(0, 1).flatten(1))
        return torch.stack(out)

    assert got.dtype == dtype and got.is_contiguous()
    within_rule(got, expected(dtype), expected(torch.float64))


def test_negative_scale(each_backend, within_rule):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        check(within_rule, inputs(1, 2, 40, 2 * 9, dtype), 2, 2, PATTERNS["first, previous"](2), scale=-0.5)


def test_strides(each_backend):
    torch.manual_seed(0)
    fused = torch.randn(6, 10, 3 * 32)
    settings = {"frames": 3, "heads": 2, "kv_frames": PATTERNS["first, previous"](3)}
    expected = ops.sparse_causal_attention(*(t.contiguous() for t in fused.chunk(3, -1)), **settings)
    torch.testing.assert_close(ops.sparse_causal_attention(*fused.chunk(3, -1), **settings), expected)


def test_frames_listed_twice_are_read_once():
    assert _sources([[0, 0], [0, 1], [0, 0, 1], [1, 1, 0, 0]]) == (
        [0, 1, 3, 5, 7],
        [0, 0, 1, 0, 1, 1, 0],
        [0.0, 0.0, 0.0, math.log(2), 0.0, 0.0, 0.0],
    )


def test_scores_far_apart_do_not_overflow(each_backend, within_rule):
    torch.manual_seed(0)
    q, k, v = inputs(1, 3, 16, 32)
    q, k = (q * 2).round() * 10, (k * 2).round()  # integers: every score is exact, with or without FMA
    k[0] *= 100
    check(within_rule, (q, k, v), 3, 2, PATTERNS["first, previous"](3))


def test_gradients(each_backend):
    torch.manual_seed(0)
    qkv = [torch.randn(2 * 3, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def run(q, k, v):
        rows = PATTERNS["neighbours"](3)
        return ops.sparse_causal_attention(q, k, v, frames=3, heads=2, kv_frames=rows, scale=0.7)

    assert torch.autograd.gradcheck(run, qkv)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_in_every_dtype(each_backend, poisoned, within_rule, pattern, dtype):
    check_gradients(within_rule, 2, 5, 33, 3, 40, PATTERNS[pattern](5), dtype)


@pytest.mark.parametrize(
    ("frames", "pixels", "heads", "width"),
    [
        (1, 1, 1, 8),
        (2, 7, 2, 64),
        (3, 64, 2, 80),
        (4, 100, 1, 160),
        (2, 65, 3, 20),
        (3, 300, 1, 7),
        (4, 17, 2, 1),
    ],
)
def test_gradients_of_every_size(each_backend, poisoned, within_rule, frames, pixels, heads, width):
    rows = PATTERNS["first, previous"](frames)
    check_gradients(within_rule, 3, frames, pixels, heads, width, rows, torch.float32, scale=0.2)


def check_gradients(within_rule, batch, frames, pixels, heads, width, rows, dtype, scale=None):
    torch.manual_seed(0)
    qkv = inputs(batch, frames, pixels, heads * width, dtype)
    grad = torch.randn(qkv[0].shape).to(dtype)

    def gradients(function, *tensors):
        leaves = [t.clone().requires_grad_() for t in tensors[:3]]
        return torch.autograd.grad(function(*leaves), leaves, tensors[3])

    def ours(q, k, v):
        return ops.sparse_causal_attention(q, k, v, frames=frames, heads=heads, kv_frames=rows, scale=scale)

    def plain(q, k, v):
        return frame_by_frame(q, k, v, frames, heads, rows, scale)

    wide = gradients(plain, *(t.double() for t in (*qkv, grad)))
    for actual, by_torch, exact in zip(
        gradients(ours, *qkv, grad), gradients(plain, *qkv, grad), wide, strict=True
    ):
        within_rule(actual, by_torch, exact)


def test_the_default_dtype_changes_nothing(each_backend):
    torch.manual_seed(0)
    qkv, rows = inputs(2, 3, 17, 2 * 20), PATTERNS["neighbours"](3)

    def run():
        leaves = [t.clone().requires_grad_() for t in qkv]
        out = ops.sparse_causal_attention(*leaves, frames=3, heads=2, kv_frames=rows)
        return (out, *torch.autograd.grad(out.sum(), leaves))

    expected = run()
    torch.set_default_dtype(torch.float16)  # half the bytes of what the kernels write
    try:
        got = run()
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, wanted in zip(got, expected, strict=True):
        assert torch.equal(ours, wanted)


def test_gradients_of_views(each_backend):
    """Parts of a fused projection, a gradient whose columns lie apart, and queries alone."""
    torch.manual_seed(0)
    fused, grad = torch.randn(6, 10, 3 * 32), torch.randn(6, 32, 10).mT
    settings = {"frames": 3, "heads": 2, "kv_frames": PATTERNS["first, previous"](3)}

    def gradients(tensors, trained, grad):
        leaves = [t.detach().requires_grad_(n < trained) for n, t in enumerate(tensors)]
        out = ops.sparse_causal_attention(*leaves, **settings)
        return torch.autograd.grad(out, leaves[:trained], grad)

    dense = [t.contiguous() for t in fused.chunk(3, -1)]
    expected = gradients(dense, 3, grad.contiguous())
    for trained in (1, 3):
        torch.testing.assert_close(gradients(fused.chunk(3, -1), trained, grad), expected[:trained])


@pytest.mark.parametrize("keys", [False, True])
def test_plain_gradients(keys):
    """What stands in for the kernel where another backend is asked for, against PyTorch's own."""
    torch.manual_seed(0)
    qkv = [torch.randn(6, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    rows, grad = torch.tensor(PATTERNS["mixed"](3)), torch.randn(6, 5, 8, dtype=torch.float64)
    expected = torch.autograd.grad(frame_by_frame(*qkv, 3, 2, rows.tolist()), qkv, grad)
    op = torch.ops.vidsmooth.sparse_causal_attention_backward.default
    actual = op(grad, *(t.detach() for t in qkv), rows, frames=3, heads=2, keys=keys)
    for got, wanted in zip(actual, expected[: 3 if keys else 1], strict=False):
        torch.testing.assert_close(got, wanted)
    assert keys or all(t.numel() == 0 for t in actual[1:])


@pytest.mark.parametrize("keys", [False, True])
def test_opcheck_of_the_backward(keys):
    kv_frames = torch.tensor(PATTERNS["first, previous"](4))
    opcheck(
        torch.ops.vidsmooth.sparse_causal_attention_backward.default,
        (*inputs(2, 4, 3, 16), torch.randn(8, 3, 16), kv_frames),
        {"frames": 4, "heads": 2, "keys": keys},
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    kv_frames = torch.tensor(PATTERNS["first, previous"](4))
    opcheck(
        torch.ops.vidsmooth.sparse_causal_attention.default,
        (*inputs(2, 4, 3, 16, dtype), kv_frames),
        {"frames": 4, "heads": 2},
    )


@pytest.mark.parametrize("grad", [False, True])
def test_compiles_in_one_graph(grad):
    qkv = [t.requires_grad_(grad) for t in inputs(1, 4, 3, 16)]
    kv_frames = torch.tensor(PATTERNS["first, previous"](4))

    def run(q, k, v):
        return ops.sparse_causal_attention(q, k, v, frames=4, heads=2, kv_frames=kv_frames) + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*qkv), run(*qkv))


def test_the_published_layer(each_backend, golden):
    arrays, parameters = golden("tav_attention")
    frames, heads = parameters["f"], parameters["heads"]
    to_q, to_k, to_v, to_out = (
        arrays[f"weights.attn1.{name}.weight"] for name in ("to_q", "to_k", "to_v", "to_out.0")
    )
    x = arrays["sc.input"]
    rows = PATTERNS["first, previous"](frames)
    out = ops.sparse_causal_attention(
        x @ to_q.T, x @ to_k.T, x @ to_v.T, frames=frames, heads=heads, kv_frames=rows
    )
    out = out @ to_out.T + arrays["weights.attn1.to_out.0.bias"]
    torch.testing.assert_close(out, arrays["sc.output"], rtol=0, atol=1e-5)


QKV = torch.zeros(6, 4, 8)
ROWS = [[0, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": QKV[0]}, r"^q: expected a non-empty tensor of shape \(B\*F, P, h\*d\), got \(4, 8\)$"),
        ({"k": QKV[0]}, r"^k: expected the shape of q, \(6, 4, 8\), got \(4, 8\)$"),
        ({"k": QKV[:3], "v": QKV[:3]}, r"^k: expected shape \(2\*G, L, 8\), got \(3, 4, 8\)$"),
        ({"k": QKV[..., 1:], "v": QKV[..., 1:]}, r"^k: expected shape \(2\*G, L, 8\), got \(6, 4, 7\)$"),
        (
            {"k": QKV[:2].half(), "v": QKV[:2].half()},
            r"^k: expected the dtype of q, torch.float32, got torch",
        ),
        ({"v": QKV[:3]}, r"^v: expected the shape of k, \(6, 4, 8\), got \(3, 4, 8\)$"),
        ({"v": QKV.half()}, r"^v: expected the dtype of k, torch.float32, got torch.float16$"),
        ({"frames": 4}, r"^frames: expected a positive divisor of the 6 rows of q, got 4$"),
        ({"heads": 3}, r"^heads: expected a positive divisor of the 8 columns of q, got 3$"),
        (
            {"kv_frames": ROWS[:2]},
            r"^kv_frames: expected int64 of shape \(3, R\), got torch.int64 of \(2, 2\)$",
        ),
        ({"kv_frames": [[0], [0, 1], [0]]}, r"^kv_frames: expected 3 rows of equal length, got \[\[0\], "),
        ({"kv_frames": torch.zeros(3, 1)}, r"^kv_frames: expected int64 .* got torch.float32 of \(3, 1\)$"),
        ({"kv_frames": torch.zeros(3, 0, dtype=torch.int64)}, r"^kv_frames: expected at least one key frame"),
        ({"kv_frames": [[0], [3], [0]]}, r"^kv_frames: expected indices in \[0, 3\), got 3$"),
        (
            {"k": QKV[:4, :1], "v": QKV[:4, :1], "kv_frames": [[0], [2], [0]]},
            r"^kv_frames: expected indices in \[0, 2\), got 2$",
        ),
        ({"kv_frames": [[0], [-1], [0]]}, r"^kv_frames: expected indices in \[0, 3\), got -1$"),
    ],
)
def test_bad_input(change, message):
    arguments = {"q": QKV, "k": QKV, "v": QKV, "frames": 3, "heads": 2, "kv_frames": ROWS, **change}
    with pytest.raises(ValueError, match=message) as error:
        ops.sparse_causal_attention(**arguments)
    assert "\n" not in str(error.value)
