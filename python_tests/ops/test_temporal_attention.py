from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FRAMES = [1, 2, 3, 5, 7, 8, 13, 16, 17, 24, 32, 33, 64]
WIDTHS = [8, 40, 64, 80, 96, 160, 20, 36, 3, 1]


def eager(q, k, v, frames, heads, scale=None):
    """What a user of PyTorch writes: permute, scaled_dot_product_attention, permute."""

    def split(t):
        t = t.unflatten(0, (-1, frames)).unflatten(-1, (heads, -1))
        return t.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()

    out = F.scaled_dot_product_attention(split(q), split(k), split(v), scale=scale)
    return out.unflatten(0, (-1, q.shape[1])).permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)


def windowed(q, k, v, frames, heads, starts, weights):
    """One window after another, as FreeNoise's attention does it."""
    total, mass = torch.zeros_like(q).unflatten(0, (-1, frames)), torch.zeros(frames, dtype=q.dtype)
    for start in starts:
        index = [(start + i) % frames for i in range(len(weights))]
        part = [t.unflatten(0, (-1, frames))[:, index].flatten(0, 1) for t in (q, k, v)]
        out = eager(*part, len(weights), heads).unflatten(0, (-1, len(weights)))
        total[:, index] += weights.to(q.dtype)[:, None, None] * out
        mass[index] += weights.to(q.dtype)
    return (total / mass[:, None, None]).flatten(0, 1)


def inputs(batch, frames, pixels, columns, dtype=torch.float32):
    return [torch.randn(batch * frames, pixels, columns).to(dtype) for _ in range(3)]


def check(within_rule, qkv, frames, heads, scale=None):
    got = ops.temporal_attention(*qkv, frames=frames, heads=heads, scale=scale)
    exact = eager(*(t.double() for t in qkv), frames, heads, scale)
    assert got.dtype == qkv[0].dtype and got.is_contiguous()
    within_rule(got, eager(*qkv, frames, heads, scale), exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frames", FRAMES)
def test_every_number_of_frames(each_backend, poisoned, within_rule, frames, dtype):
    torch.manual_seed(0)
    check(within_rule, inputs(2, frames, 31, 3 * 40, dtype), frames, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frames", [65, 100, 256])
def test_long_videos(each_backend, poisoned, within_rule, frames, dtype):
    torch.manual_seed(0)
    check(within_rule, inputs(1, frames, 3, 2 * 20, dtype), frames, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_head_width(each_backend, poisoned, within_rule, width, dtype):
    torch.manual_seed(0)
    check(within_rule, inputs(2, 13, 50, 5 * width, dtype), 13, 5)


@pytest.mark.parametrize(("batch", "pixels", "heads"), [(37, 1, 1), (3, 7, 2), (1, 64, 8), (2, 100, 4)])
def test_every_size(each_backend, poisoned, within_rule, batch, pixels, heads):
    torch.manual_seed(0)
    check(within_rule, inputs(batch, 9, pixels, heads * 24), 9, heads)


def test_threads_share_the_work(each_backend, poisoned, within_rule):
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        check(within_rule, inputs(2, 5, 131, 4 * 64), 5, 4)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 40, 64, 80, 96, 160, 20, 36])
@pytest.mark.parametrize("frames", FRAMES)
def test_every_combination(each_backend, poisoned, within_rule, frames, width, dtype):
    torch.manual_seed(0)
    for pixels in (7, 64):
        check(within_rule, inputs(3, frames, pixels, 3 * width, dtype), frames, 3)


def test_slices_of_a_fused_projection(each_backend):
    torch.manual_seed(0)
    fused = torch.randn(12, 10, 3 * 40)
    settings = {"frames": 6, "heads": 2}
    expected = ops.temporal_attention(*(t.contiguous() for t in fused.chunk(3, -1)), **settings)
    torch.testing.assert_close(ops.temporal_attention(*fused.chunk(3, -1), **settings), expected)
    every_second = torch.randn(12, 20, 40)[:, ::2]
    torch.testing.assert_close(
        ops.temporal_attention(every_second, every_second, every_second, **settings),
        ops.temporal_attention(*[every_second.contiguous()] * 3, **settings),
    )


def test_columns_far_apart_run_on_the_reference():
    q = torch.randn(6, 16, 5).transpose(1, 2)
    expected = ops.temporal_attention(*[q.contiguous()] * 3, frames=6, heads=2)
    torch.testing.assert_close(ops.temporal_attention(q, q, q, frames=6, heads=2), expected)


def test_large_scores_do_not_overflow(each_backend, within_rule):
    torch.manual_seed(0)
    q, k = (
        torch.randint(-3, 4, (16, 20, 32)).float() for _ in range(2)
    )  # exact scores, up to 144 and 14,400
    v = torch.randn(16, 20, 32)
    check(within_rule, (q, k, v), 8, 2, scale=1.0)
    check(within_rule, (q * 100, k, v), 8, 2, scale=1.0)


def test_what_is_not_finite_stays_in_its_pixel_and_head(each_backend):
    q, k, v = inputs(1, 8, 3, 2 * 16)
    expected = ops.temporal_attention(q, k, v, frames=8, heads=2)
    k[3, 1, 20] = float("nan")
    got = ops.temporal_attention(q, k, v, frames=8, heads=2)
    hit = torch.zeros_like(q, dtype=torch.bool)
    hit[:, 1, 16:] = True
    assert torch.equal(got.isnan(), hit)
    torch.testing.assert_close(got[~hit], expected[~hit])


WINDOWS = [
    (24, [0, 8], [float(i) for i in range(1, 17)]),
    (40, [0, 8, 16, 24], [1.0] * 16),
    (20, [0, 5, 10, 15], [0.5, 2, 3, 4, 5, 5, 4, 3, 2, 0.5]),  # a loop
    (7, [0, 2, 4, 6], [0.25, 1, 0.5]),
    (5, [3], [1.0, 2, 3, 2, 1]),
    (4, [2, 2, 2], [1.0, 2, 3, 2]),
    (80, [*range(0, 64, 8), 64], [1.0, 2, 3, 4, 5, 6, 7, 8] * 2),
    (100, list(range(0, 100, 20)), [float(i) for i in range(1, 41)]),  # long windows around a loop
    (150, list(range(0, 150, 15)), [float(i) for i in range(33, 0, -1)]),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("frames", "starts", "weights"), WINDOWS)
def test_windows(each_backend, poisoned, within_rule, frames, starts, weights, dtype):
    torch.manual_seed(0)
    weights = torch.tensor(weights)
    for width in (40, 20, 5):
        qkv = inputs(2, frames, 40 if frames < 64 else 3, 3 * width, dtype)
        got = ops.temporal_attention(*qkv, frames=frames, heads=3, starts=starts, weights=weights)
        exact = windowed(*(t.double() for t in qkv), frames, 3, starts, weights)
        within_rule(got, windowed(*qkv, frames, 3, starts, weights), exact)


def test_weights_that_lie_apart(each_backend):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 5, 2, 16)
    apart = torch.tensor([[1.0, 9.0], [2.0, 9.0], [4.0, 9.0]])[:, 0]
    settings = {"frames": 5, "heads": 1, "starts": [0, 2]}
    for weights in (apart, torch.ones(1).expand(3)):
        got = ops.temporal_attention(q, k, v, weights=weights, **settings)
        expected = ops.temporal_attention(q, k, v, weights=weights.contiguous(), **settings)
        torch.testing.assert_close(got, expected)


def test_what_the_triton_kernel_cannot_take_is_said():
    q, weights = torch.zeros(200, 1, 8), torch.ones(40)
    supports = _dispatch._operators["temporal_attention"]["triton"].supports
    fits, why = supports(q, q, q, weights, frames=200, heads=1, starts=[0])
    assert (fits, why) == (
        False,
        "the Triton kernel takes windows of up to 33 of more than 128 frames, got 40",
    )
    wide = torch.zeros(2, 1, 300)
    assert "heads of up to 256 columns, got 300" in supports(wide, wide, wide, frames=2, heads=1)[1]
    on_gpu = torch.zeros(64, 1, 160, device="meta")
    for wide in (on_gpu, on_gpu[:17], on_gpu[..., :96]):
        why = supports(wide, wide, wide, frames=len(wide), heads=1)[1]
        assert f"spills registers for more than 16 frames of fp32 heads of {wide.shape[2]} columns" in why
    for fine in (on_gpu[:16], on_gpu.half(), on_gpu[..., :80]):  # refused for another reason: no GPU
        assert "spills" not in supports(fine, fine, fine, frames=len(fine), heads=1)[1]
    gradient = _dispatch._operators["temporal_attention_backward"]["triton"].supports
    narrow, weights = on_gpu[..., :80], torch.ones(16)
    assert "more than 32 frames of fp32" in gradient(narrow, narrow, narrow, narrow, frames=64, heads=1)[1]
    assert "spills" not in gradient(*(narrow[:32],) * 4, frames=32, heads=1)[1]
    assert "more than 16 frames of fp32" in gradient(*(narrow[:32],) * 4, weights, frames=32, heads=1)[1]
    assert "up to 64 frames, got 200" in gradient(q, q, q, q, frames=200, heads=1)[1]


def test_one_window_of_all_frames_is_plain_attention(each_backend):
    q, k, v = inputs(2, 12, 5, 32)
    plain = ops.temporal_attention(q, k, v, frames=12, heads=2)
    got = ops.temporal_attention(
        q, k, v, frames=12, heads=2, starts=torch.tensor([12]), weights=torch.rand(12) + 1
    )
    torch.testing.assert_close(got, plain)


@pytest.mark.parametrize("windows", [{}, {"starts": [0, 3], "weights": torch.tensor([1.0, 2, 1])}])
def test_gradients(windows):
    torch.manual_seed(0)
    qkv = [torch.randn(2 * 5, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def run(q, k, v):
        return ops.temporal_attention(q, k, v, frames=5, heads=2, scale=0.7, **windows)

    assert torch.autograd.gradcheck(run, qkv)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("starts", [None, [0, 4, 8], [2, 7, 12]], ids=["plain", "windows", "a loop"])
def test_gradients_in_every_dtype(each_backend, poisoned, within_rule, starts, dtype):
    torch.manual_seed(0)
    qkv, grad = inputs(2, 16, 9, 4 * 40, dtype), torch.randn(32, 9, 160).to(dtype)
    weights = None if starts is None else torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1])

    def gradients(function, *tensors):
        leaves = [t.clone().requires_grad_() for t in tensors[:3]]
        return torch.autograd.grad(function(*leaves), leaves, tensors[3])

    def ours(q, k, v):
        return ops.temporal_attention(q, k, v, frames=16, heads=4, starts=starts, weights=weights)

    def plain(q, k, v):
        return eager(q, k, v, 16, 4) if starts is None else windowed(q, k, v, 16, 4, starts, weights)

    wide = gradients(plain, *(t.double() for t in (*qkv, grad)))
    for got, by_torch, exact in zip(
        gradients(ours, *qkv, grad), gradients(plain, *qkv, grad), wide, strict=True
    ):
        within_rule(got, by_torch, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    qkv = [t.requires_grad_() for t in inputs(2, 4, 3, 16, dtype)]
    op = torch.ops.vidsmooth.temporal_attention.default
    opcheck(op, tuple(qkv), {"frames": 4, "heads": 2})
    opcheck(op, (*qkv, torch.ones(3)), {"frames": 4, "heads": 2, "scale": 0.5, "starts": [0, 2]})


@pytest.mark.parametrize("windows", [{}, {"starts": [0, 2], "weights": torch.tensor([1.0, 2])}])
def test_compiles_in_one_graph(windows):
    qkv = [t.requires_grad_() for t in inputs(1, 4, 3, 16)]

    def run(q, k, v):
        return ops.temporal_attention(q, k, v, frames=4, heads=2, **windows) + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*qkv), run(*qkv))
    for got, expected in zip(
        torch.autograd.grad(compiled(*qkv).sum(), qkv), torch.autograd.grad(run(*qkv).sum(), qkv), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_the_published_layer(each_backend, golden):
    arrays, parameters = golden("tav_attention")
    frames, heads = parameters["f"], parameters["heads"]
    to_q, to_k, to_v, to_out = (
        arrays[f"weights.attn_temp.{name}.weight"] for name in ("to_q", "to_k", "to_v", "to_out.0")
    )

    def tokens(t):  # (b·d, f, c) -> (b·f, d, c)
        return t.unflatten(0, (-1, pixels)).transpose(1, 2).flatten(0, 1)

    pixels = arrays["sc.input"].shape[1]
    x = tokens(arrays["temp.input"])
    out = ops.temporal_attention(x @ to_q.T, x @ to_k.T, x @ to_v.T, frames=frames, heads=heads)
    out = out @ to_out.T + arrays["weights.attn_temp.to_out.0.bias"]
    torch.testing.assert_close(out, tokens(arrays["temp.output"]), rtol=0, atol=1e-5)


QKV = torch.zeros(6, 4, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": QKV[0]}, r"^q: expected a non-empty tensor of shape \(B\*F, P, h\*d\), got \(4, 8\)$"),
        ({"q": QKV[:0]}, r"^q: expected a non-empty tensor .* got \(0, 4, 8\)$"),
        ({"q": QKV.int()}, r"^q: expected a floating-point tensor, got torch.int32$"),
        ({"k": QKV[:3]}, r"^k: expected the shape of q, \(6, 4, 8\), got \(3, 4, 8\)$"),
        ({"v": QKV.half()}, r"^v: expected the dtype of q, torch.float32, got torch.float16$"),
        ({"frames": 4}, r"^frames: expected a positive divisor of the 6 rows of q, got 4$"),
        ({"frames": 0}, r"^frames: expected a positive divisor of the 6 rows of q, got 0$"),
        ({"heads": 3}, r"^heads: expected a positive divisor of the 8 columns of q, got 3$"),
        ({"starts": [0]}, r"^weights: expected together with starts, or neither of them"),
        (
            {"starts": [0], "weights": torch.ones(2)},
            r"^starts: expected windows of 2 that cover all 3 frames",
        ),
        ({"starts": [0], "weights": torch.ones(4)}, r"^weights: expected at most 3, .* got 4$"),
        ({"starts": [0], "weights": [1.0]}, r"^weights: expected a floating-point tensor .* got list$"),
        (
            {"starts": [0.5], "weights": torch.ones(3)},
            r"^starts: expected 1 ints, one per window, got \[0.5\]$",
        ),
    ],
)
def test_bad_input(change, message):
    arguments = {"q": QKV, "k": QKV, "v": QKV, "frames": 3, "heads": 2, **change}
    with pytest.raises(ValueError, match=message) as error:
        ops.temporal_attention(**arguments)
    assert "\n" not in str(error.value)
