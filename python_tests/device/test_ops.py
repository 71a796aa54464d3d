"""Every operator on a GPU, on its Triton and on its CUDA kernel; skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch
from vidsmooth_fast.ops._windows import check_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KERNELS = ["triton", "cuda"]
DEVICE = "cuda"


def check_error(actual: torch.Tensor, torch_result: torch.Tensor, exact: torch.Tensor) -> None:
    """Error at most max(twice what PyTorch itself makes in that dtype, 2 ulp of the largest reference value)."""
    assert actual.shape == exact.shape
    largest = exact.abs().max()
    ulp = torch.finfo(actual.dtype).eps * 2.0 ** torch.floor(torch.log2(largest)).item()
    limit = max(2 * (torch_result.double() - exact).abs().max().item(), 2 * ulp)
    error = (actual.double() - exact).abs().max().item()  # NaN fails the comparison
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"


class Call:
    """A call of an operator: function(*tensors), where tensors lie on the GPU; None stays None."""

    def __init__(self, operator, function, *tensors, device=DEVICE):
        self.operator, self.function = operator, function
        self.tensors = [t if t is None else t.to(device) for t in tensors]

    def __call__(self, *tensors):
        out = self.function(*(tensors or self.tensors))
        return [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]

    def plain(self, wide: bool = False):
        """On the plain PyTorch reference, in fp64 if wide."""
        with ops.backend("torch"):
            return self(*(t if t is None or not wide else t.double() for t in self.tensors))


def constrain(dtype, shape=(2, 4, 9, 6, 8), loop=False, device=DEVICE):
    def function(eps, x, r):
        return ops.noise_constraint(eps, x, reference=r, c_over_lambda=1.7, strength=0.3, loop=loop)

    return Call(
        "noise_constraint", function, *(torch.randn(shape).to(dtype) for _ in range(3)), device=device
    )


def blend(dtype, shape=(2, 4, 9, 6, 8), loop=False, device=DEVICE):
    def function(inverted, noise):
        return ops.inversion_blend(inverted, noise, weight=0.4, forward=0.7, backward=0.2, loop=loop)

    return Call("inversion_blend", function, *(torch.randn(shape).to(dtype) for _ in range(2)), device=device)


STARTS, LENGTH, FRAMES = [0, 2, 4, 6, 7], 4, 11


def merge(dtype, pixels=(6, 8), weights=None, device=DEVICE):
    windows = torch.randn(2, len(STARTS), 3, LENGTH, *pixels).to(dtype)

    def function(windows, weights):
        return ops.window_merge(windows, STARTS, weights, frames=FRAMES)

    weights = torch.rand(LENGTH) + 0.1 if weights is None else weights
    return Call("window_merge", function, windows, weights, device=device)


def step(dtype, pixels=(6, 8), loop=False, device=DEVICE):
    pred = torch.randn(2, 2, len(STARTS), 3, LENGTH, *pixels).to(dtype)
    videos = [torch.randn(2, 3, FRAMES, *pixels) for _ in range(4)]
    settings = {"a": 0.9, "b": -0.4, "c": 0.3, "noise_scale": 0.1, "to_clean": (1.3, -0.8), "loop": loop}
    settings |= {"branch_weights": [-2.0, 3.0], "to_eps": (0.6, 0.8), "strength": 0.2, "c_over_lambda": 1.2}

    def function(pred, x, history, reference, noise, weights):
        tensors = {"history": history, "reference": reference, "noise": noise}
        if x.dtype == torch.float64:  # for the reference alone: the operator takes fp32
            from vidsmooth_fast.ops.denoise_step import reference as plain

            full = check_weights(weights, pred)
            return plain(pred, x, full, history, reference, noise, STARTS, **settings)
        return ops.denoise_step(pred, x, STARTS, weights, **settings, **tensors)

    return Call("denoise_step", function, pred, *videos, torch.rand(LENGTH) + 0.1, device=device)


def temporal(dtype, frames=16, pixels=9, heads=2, width=40, windows=None, device=DEVICE):
    settings = {"frames": frames, "heads": heads}
    qkv = [torch.randn(2 * frames, pixels, heads * width).to(dtype) for _ in range(3)]
    weights = torch.tensor(windows[1]) if windows else None

    def function(q, k, v, weights):
        given = {"starts": windows[0], "weights": weights} if windows else {}
        return ops.temporal_attention(q, k, v, **settings, **given)

    return Call("temporal_attention", function, *qkv, weights, device=device)


def sparse(dtype, frames=5, pixels=33, heads=2, width=40, device=DEVICE):
    kv_frames = torch.tensor([[0, max(frame - 1, 0)] for frame in range(frames)])
    qkv = [torch.randn(2 * frames, pixels, heads * width).to(dtype) for _ in range(3)]

    def function(q, k, v):
        return ops.sparse_causal_attention(q, k, v, frames=frames, heads=heads, kv_frames=kv_frames)

    return Call("sparse_causal_attention", function, *qkv, device=device)


def norm(dtype, shape=(6, 40, 9, 7), groups=4, frames=3, silu=True, device=DEVICE):
    def function(x, weight, bias):
        return ops.group_norm_silu(x, weight, bias, groups=groups, frames=frames, silu=silu)

    x = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
    return Call(
        "group_norm_silu", function, x, torch.randn(shape[1]) + 1, torch.randn(shape[1]), device=device
    )


CASES = {
    "noise_constraint": constrain,
    "noise_constraint, odd": lambda dtype, **to: constrain(dtype, (1, 3, 7, 5, 7), True, **to),
    "noise_constraint, large": lambda dtype, **to: constrain(dtype, (1, 4, 64, 64, 64), **to),
    "inversion_blend": blend,
    "inversion_blend, odd": lambda dtype, **to: blend(dtype, (1, 3, 7, 5, 7), True, **to),
    "inversion_blend, one frame": lambda dtype, **to: blend(dtype, (1, 3, 1, 4, 8), **to),
    "window_merge": merge,
    "window_merge, odd": lambda dtype, **to: merge(dtype, (5, 7), **to),
    "window_merge, weights of pixels": lambda dtype, **to: merge(
        dtype, (6, 8), torch.rand(3, LENGTH, 6, 8) + 0.1, **to
    ),
    "denoise_step": step,
    "denoise_step, odd": lambda dtype, **to: step(dtype, (5, 7), **to),
    **{
        f"temporal_attention, {frames} frames": lambda dtype, frames=frames, **to: temporal(
            dtype, frames, **to
        )
        for frames in (1, 8, 16, 24, 32, 64)
    },
    **{
        f"temporal_attention, width {width}": lambda dtype, width=width, **to: temporal(
            dtype, 13, width=width, **to
        )
        for width in (64, 80, 96, 128, 160, 20)
    },
    "temporal_attention, windows": lambda dtype, **to: temporal(
        dtype, 40, windows=([0, 8, 16, 24], [float(i) for i in range(1, 17)]), **to
    ),
    "temporal_attention, windows of 32 frames": lambda dtype, **to: temporal(
        dtype, 32, windows=([0, 8, 16], [float(i) for i in range(1, 17)]), **to
    ),
    "temporal_attention, windows around a loop": lambda dtype, **to: temporal(
        dtype, 7, windows=([0, 2, 4, 6], [0.25, 1, 0.5]), **to
    ),
    "temporal_attention, windows of a long video": lambda dtype, **to: temporal(
        dtype, 256, 3, windows=(list(range(0, 241, 8)), [float(i) for i in range(1, 17)]), **to
    ),
    "sparse_causal_attention": sparse,
    "sparse_causal_attention, wide": lambda dtype, **to: sparse(dtype, width=160, **to),
    **{
        f"sparse_causal_attention, 1024 pixels of width {width}": lambda dtype, width=width, **to: sparse(
            dtype, 3, 1024, width=width, **to
        )
        for width in (40, 80)
    },
    "group_norm_silu": norm,
    "group_norm_silu, each image": lambda dtype, **to: norm(dtype, (4, 320, 16, 16), 32, 1, False, **to),
    "group_norm_silu, over 16 frames": lambda dtype, **to: norm(dtype, (32, 320, 32, 32), 32, 16, **to),
}
ONE_EACH = [name for name in CASES if "," not in name] + ["temporal_attention, 16 frames"]


@pytest.fixture(params=KERNELS)
def kernel(request):
    with ops.backend(request.param):
        yield request.param


def needs(kernel: str, call: Call) -> None:
    """Skip where the operator has no such kernel; a kernel that cannot run here is a failure."""
    if kernel not in _dispatch._operators[call.operator]:
        pytest.skip(f"{call.operator} has no {kernel} kernel")


@pytest.fixture
def poisoned():
    """torch.empty returns NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_the_reference(kernel, poisoned, case, dtype):
    torch.manual_seed(0)
    call = CASES[case](dtype)
    needs(kernel, call)
    for got, eager, exact in zip(call(), call.plain(), call.plain(wide=True), strict=True):
        check_error(got, eager, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", ["temporal_attention, 16 frames", "temporal_attention, windows of 32 frames", "group_norm_silu"]
)
def test_gradients(kernel, case, dtype):
    torch.manual_seed(0)
    call = CASES[case](dtype)
    needs(kernel, call)
    wanted = 3

    def gradients(wide: bool):
        leaves = [t if t is None else (t.double() if wide else t) for t in call.tensors]
        leaves = [t.clone().requires_grad_() if i < wanted else t for i, t in enumerate(leaves)]
        (out,) = call(*leaves)
        return torch.autograd.grad(out, leaves[:wanted], torch.ones_like(out) * 0.5)

    ours = gradients(False)
    with ops.backend("torch"):
        eager, exact = gradients(False), gradients(True)
    for got, theirs, right in zip(ours, eager, exact, strict=True):
        check_error(got, theirs, right)


@pytest.mark.parametrize("case", ONE_EACH)
def test_strides_are_followed(kernel, case):
    """Tensors whose elements lie apart or off by one element give what dense ones give."""
    torch.manual_seed(0)
    call = CASES[case](torch.float32)
    needs(kernel, call)
    expected = call()
    shifted = []
    for t in call.tensors:
        if t is None:
            shifted.append(t)
            continue
        room = torch.empty(t.numel() + 1, device=DEVICE)[1:]
        shifted.append(room.as_strided(t.size(), t.stride()).copy_(t))
    for got, wanted in zip(call(*shifted), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("case", ONE_EACH)
def test_graph_capture(kernel, case):
    """A captured call computes again on new values in the same memory."""
    torch.manual_seed(0)
    call = CASES[case](torch.bfloat16)
    needs(kernel, call)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    call.tensors[0].copy_(torch.randn(call.tensors[0].shape))
    graph.replay()
    torch.cuda.synchronize()
    for got, expected in zip(captured, call(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("case", ONE_EACH)
def test_on_another_stream(kernel, case):
    torch.manual_seed(0)
    call = CASES[case](torch.float32)
    needs(kernel, call)
    expected, values = call(), call.tensors[0].clone()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call.tensors[0].fill_(float("nan"))
        torch.cuda._sleep(20_000_000)  # the input arrives late: a kernel on the default stream would not wait
        call.tensors[0].copy_(values)
        got = call()
    stream.synchronize()
    for ours, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device: nothing to switch between")
@pytest.mark.parametrize("case", ONE_EACH)
def test_on_another_device(kernel, case):
    torch.manual_seed(0)
    call = CASES[case](torch.float32, device="cuda:1")
    needs(kernel, call)
    for got, expected in zip(call(), call.plain(), strict=True):
        assert got.device == torch.device("cuda:1")
        torch.testing.assert_close(got, expected)
    assert torch.cuda.current_device() == 0
