"""VideoUNet's own promises: exact savings, windows, half precision, gradients, errors."""

from __future__ import annotations

import pytest
import torch

from python_tests.tiny import tiny_unet_config
from vidsmooth_fast.models import AttentionWindows, VideoUNet
from vidsmooth_fast.models.blocks import Pass, attend
from vidsmooth_fast.models.unet import DeepFeatures, Level
from vidsmooth_fast.ops import window_merge


@pytest.fixture(scope="module")
def unet() -> VideoUNet:
    torch.manual_seed(0)
    unet = VideoUNet.from_config(tiny_unet_config())
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return unet.eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 5, 8, 8, generator=g), torch.randn(3, 7, 16, generator=g)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@torch.inference_mode()
def test_batch_makes_no_difference(unet, inputs):
    x, text = inputs
    whole = unet(x, 10, text)
    for i in range(3):
        close(unet(x[i : i + 1], 10, text[i : i + 1]), whole[i : i + 1])


@torch.inference_mode()
def test_text_and_time_computed_once_change_nothing(unet, inputs):
    x, text = inputs
    plain = unet(x, 10, text)
    kv = unet.project_text(text)
    assert torch.equal(unet(x, unet.embed_time(10), kv), plain)
    close(unet(x, torch.tensor([10, 10, 10]), kv), plain)
    assert unet.embed_time(10).projections[0].shape[0] == 1
    # one prompt, chosen for every row; one row for all; one row per frame
    same = kv.select(torch.tensor([1, 1, 1]))
    expected = unet(x, 10, text[1:2].expand(3, -1, -1))
    close(unet(x, 10, same), expected)
    close(unet(x, 10, kv.select(torch.tensor([1]))), expected)
    close(unet(x, 10, text.repeat_interleave(5, 0)), plain)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_over_frames": False, "temporal_conv": True, "use_linear_projection": True},
        {  # text enters at the second level only
            "down_block_types": ["DownBlock3D", "CrossAttnDownBlock3D"],
            "up_block_types": ["CrossAttnUpBlock3D", "UpBlock3D"],
        },
    ],
    ids=["plain", "2D", "late text"],
)
@torch.inference_mode()
def test_branches_share_what_comes_before_the_text_and_change_nothing(inputs, changes):
    torch.manual_seed(0)
    unet = VideoUNet.from_config(tiny_unet_config(**changes)).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, _ = inputs
    text = torch.randn(3 * 2, 7, 16)  # two branches of each video, next to each other
    twice = x.repeat_interleave(2, 0)
    close(unet(x, 10, text, branches=2), unet(twice, 10, text), 1e-4)
    times = torch.tensor([10, 300, 700])
    close(unet(x, times, text, branches=2), unet(twice, times.repeat_interleave(2), text), 1e-4)
    per_frame = torch.randn(3 * 2 * 5, 7, 16)
    close(unet(x, 10, per_frame, branches=2), unet(twice, 10, per_frame), 1e-4)
    # residuals for every branch, or for all of them
    down, middle = residuals_of(unet, x)

    def extra(times):
        down_, middle_ = (
            [r.unflatten(0, (3, 5)).repeat_interleave(times, 0).flatten(0, 1) for r in some]
            for some in (down, [middle])
        )
        return {"down_residuals": tuple(down_), "mid_residual": middle_[0]}

    expected = unet(twice, 10, text, **extra(2))
    for times in (1, 2):
        close(unet(x, 10, text, branches=2, **extra(times)), expected, 1e-4)
    with pytest.raises(ValueError, match=r"text: expected 1, 6 or 30 rows, got 3"):
        unet(x, 10, text[:3], branches=2)


def residuals_of(unet: VideoUNet, x: torch.Tensor):
    """Random residuals of the shapes that a ControlNet gives for x: (down, middle)."""
    g, shapes = torch.Generator().manual_seed(2), []
    down = [unet.conv_in]
    for level in unet.down_blocks:
        down += [*level.resnets, *getattr(level, "downsamplers", ())]
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out: shapes.append(out.shape))
        for module in (*down, unet.mid_block.resnets[1])
    ]
    unet(x, 10, torch.randn(3, 7, 16))
    for hook in hooks:
        hook.remove()
    made = [torch.randn(shape, generator=g) for shape in shapes]
    return made[:-1], made[-1]


@torch.inference_mode()
def test_fractional_timesteps(unet, inputs):
    x, text = inputs
    low, mid, high = (unet(x, t, text) for t in (10, 10.5, 11))
    assert (low - high).abs().max() > 0
    close(mid, (low + high) / 2, 0.2 * (low - high).abs().max().item())


@pytest.mark.parametrize("kind", ["first-previous", "first", "self", "all", "neighbours"])
@torch.inference_mode()
def test_one_frame_is_the_same_for_every_kind(unet, inputs, kind):
    x, text = inputs
    try:
        unet.attn1_frames = kind
        one = unet(x[:, :, :1], 10, text)
        assert unet.config["attn1_frames"] == kind
    finally:
        unet.attn1_frames = "first-previous"
    close(one, unet(x[:, :, :1], 10, text))


@torch.inference_mode()
def test_one_window_equals_none(unet, inputs):
    x, text = inputs
    for weights in (torch.ones(5), torch.tensor([1.0, 2, 3, 2, 1])):
        close(unet(x, 10, text, windows=AttentionWindows((0,), weights)), unet(x, 10, text))


@torch.inference_mode()
def test_windows_are_local(unet):
    """Frames of the first window do not see frames outside it; with norms per frame nothing else mixes frames."""
    windows = AttentionWindows((0, 2), torch.ones(3))
    attn = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn_temp
    tokens = torch.randn(10, 6, 16)
    other = tokens.clone()
    other[4::5] += 1  # the last frame of each video
    a, b = (attn(t, Pass(5, windows=windows)).unflatten(0, (2, 5)) for t in (tokens, other))
    assert torch.equal(a[:, :2], b[:, :2])
    assert (a[:, 2:] - b[:, 2:]).abs().amax(dim=(0, 2, 3)).min() > 0
    # frame 2 is the mean of what both windows say
    first, second = (attn(t, Pass(3)) for t in (slice_frames(tokens, 0), slice_frames(tokens, 2)))
    close(a[:, 2], (first.unflatten(0, (2, 3))[:, 2] + second.unflatten(0, (2, 3))[:, 0]) / 2)


def slice_frames(tokens: torch.Tensor, start: int) -> torch.Tensor:
    return tokens.unflatten(0, (2, 5))[:, start : start + 3].flatten(0, 1)


def test_windows_that_miss_a_frame_or_leave_the_video(unet, inputs):
    x, text = inputs
    for windows, message in (
        (AttentionWindows((0,), torch.ones(4)), "frame"),
        (AttentionWindows((0, 3), torch.ones(4)), "without loop"),
        (AttentionWindows((-1, 1), torch.ones(4)), "without loop"),
    ):
        with pytest.raises(ValueError, match=message):
            unet(x, 10, text, windows=windows)


@torch.inference_mode()
def test_a_looping_window_continues_at_the_beginning(unet):
    """Two windows around a circle: turning the circle by one window turns the result."""
    attn = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn_temp
    windows = AttentionWindows((0, 2), torch.tensor([1.0, 2.0, 1.0]), loop=True)
    tokens = torch.randn(4, 6, 16)
    out = attn(tokens, Pass(4, windows=windows))
    close(attn(tokens.roll(2, 0), Pass(4, windows=windows)), out.roll(2, 0))


def test_freenoise_window_merge(golden):
    """The published block's sum over windows, on every frame whose published divisor is the sum of the weights.

    (It counts a partial last window only on its new frames, and weighs the very last frames wrongly.)
    """
    a, p = golden("freenoise")
    expected = {(16, "flat"): 16, (16, "pyramid"): 16, (18, "flat"): 12, (18, "pyramid"): 11}
    for (frames, scheme), count in expected.items():
        key = f"f{frames}"
        case = next(c for c in p["cases"] if c["f"] == frames and c["scheme"] == scheme)
        weights, run = a[f"{key}.{scheme}.frame_weights"], freenoise_layers(a, p, a[f"{key}.input"])
        results = torch.stack([run(slice(start, end)) for start, end in case["windows"]])  # (N, P, K, C)
        merged = window_merge(
            results.permute(1, 0, 3, 2)[..., None, None],
            [s for s, _ in case["windows"]],
            weights,
            frames=frames,
        )[..., 0, 0].transpose(1, 2)
        total = torch.zeros(frames)
        for start, end in case["windows"]:
            total[start:end] += weights
        divisor = a[f"{key}.{scheme}.weight_sum"]
        right = (total - divisor).abs() < 1e-6
        assert right.sum() == count
        theirs = a[f"{key}.{scheme}.merged_numerator"] / divisor[None, :, None]
        close(merged[:, right], theirs[:, right])


def freenoise_layers(a: dict, p: dict, x: torch.Tensor):
    """The two self-attentions that the published block runs inside each window, written out."""
    w = {k.removeprefix("weights."): v for k, v in a.items() if k.startswith("weights.")}
    position = a["pos_embed_table"][:, : p["context_length"]]

    def attention(name: str, y: torch.Tensor) -> torch.Tensor:
        q, k, v = (torch.nn.functional.linear(y, w[f"{name}.to_{s}.weight"]) for s in "qkv")
        out = attend(q, k, v, p["heads"])
        return torch.nn.functional.linear(out, w[f"{name}.to_out.0.weight"], w[f"{name}.to_out.0.bias"])

    def run(index) -> torch.Tensor:
        y = x[:, index]
        for i in (1, 2):
            normed = torch.nn.functional.layer_norm(y, y.shape[-1:], w[f"norm{i}.weight"], w[f"norm{i}.bias"])
            y = attention(f"attn{i}", normed + position) + y
        return y

    return run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision(unet, inputs, dtype):
    x, text = inputs
    expected = unet(x, 10, text)
    half = VideoUNet.from_config(unet.config).to(dtype).eval()
    half.load_state_dict(unet.state_dict())
    out = half(x, 10, text)
    assert out.dtype == dtype and out.is_contiguous()
    relative = ((out.float() - expected).norm() / expected.norm()).item()
    assert relative < (0.03 if dtype == torch.bfloat16 else 0.004)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_scores_do_not_overflow(dtype):
    """What `upcast_attention` asks for: scores beyond the half-precision range still give finite weights."""
    q = torch.full((1, 4, 64), 200.0, dtype=dtype)
    v = torch.randn(1, 4, 64, dtype=dtype)
    out = attend(q, q, v, 1)  # scores before scaling: 64 * 200 * 200 = 2.6e6
    torch.testing.assert_close(
        out.float(), v.float().mean(1, keepdim=True).expand(1, 4, 64), rtol=0, atol=0.02
    )


def test_gradients_reach_every_parameter(unet, inputs):
    x, text = inputs
    x = x.clone().requires_grad_()
    for frames, timestep in ((5, 10), (1, torch.tensor([1, 2, 3]))):
        unet.zero_grad()
        unet(x[:, :, :frames], timestep, text).square().mean().backward()
        for name, p in unet.named_parameters():
            assert p.grad is not None or (frames == 1 and "attn_temp.to_" in name), name
            assert p.grad is None or p.grad.isfinite().all(), name
    unet.zero_grad()
    unet(x[:, :, :1], 10, text, skip_temporal=True).square().mean().backward()
    assert unet.up_blocks[1].attentions[0].transformer_blocks[0].norm_temp.weight.grad is None
    unet.zero_grad()


def test_gradient_against_finite_differences():
    torch.manual_seed(0)
    unet = VideoUNet.from_config(tiny_unet_config(block_out_channels=[4, 4], attention_head_dim=2)).double()
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    x, text = torch.randn(1, 4, 3, 4, 4, dtype=torch.float64), torch.randn(1, 3, 16, dtype=torch.float64)
    direction = torch.randn_like(x)

    def loss(s: float) -> torch.Tensor:
        return unet(x + s * direction, 7, text).square().sum()

    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(unet(leaf, 7, text).square().sum(), leaf)
    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    torch.testing.assert_close((grad * direction).sum(), numeric.detach(), rtol=1e-6, atol=1e-8)


def test_bad_input_is_named_in_one_line(unet, inputs):
    x, text = inputs
    cases = {
        "sample": lambda: unet(x[0], 10, text),
        "text": lambda: unet(x, 10, text[..., :5]),
        "text: ": lambda: unet(x, 10, text[:2]),
        "timestep": lambda: unet(x, torch.tensor([1, 2]), text),
        "down_residuals": lambda: unet(x, 10, text, down_residuals=(x,)),
        "adapter_residuals": lambda: unet(x, 10, text, adapter_residuals=(x,)),
    }
    for name, call in cases.items():
        with pytest.raises(ValueError, match=name) as error:
            call()
        assert "\n" not in str(error.value)


class TestDeepFeatures:
    """Deep-feature reuse: what is left out must be exactly what the earlier pass had computed."""

    @pytest.mark.parametrize("layers", [1, 2, 3])
    @torch.inference_mode()
    def test_the_same_input_gives_the_same_output(self, unet, inputs, layers):
        x, text = inputs
        deep = DeepFeatures(layers)
        assert torch.equal(unet(x, 10, text, deep=deep), unet(x, 10, text))
        assert deep.value is not None
        close(unet(x, 10, text, deep=deep), unet(x, 10, text))

    @pytest.mark.parametrize("layers", [1, 2, 3])
    @torch.inference_mode()
    def test_only_the_outer_layers_are_computed(self, unet, inputs, layers, monkeypatch):
        x, text = inputs
        deep, seen = DeepFeatures(layers), []
        unet(x, 10, text, branches=1, deep=deep)
        layer = Level.layer
        monkeypatch.setattr(
            Level, "layer", lambda self, i, y, ctx: (seen.append(self), layer(self, i, y, ctx))[1]
        )
        outer = unet(x + 1, 500, text, deep=deep)
        assert len([level for level in seen if level in list(unet.up_blocks)]) == layers
        assert unet.mid_block not in seen
        assert len([level for level in seen if level in list(unet.down_blocks)]) == min(layers - 1, 1)
        whole = unet(x + 1, 500, text)
        assert not torch.allclose(outer, whole, atol=1e-4), "what is deep depends on the input and the time"

    @torch.inference_mode()
    def test_branches_and_residuals(self, unet, inputs):
        x, text = inputs
        video, deep = x[:1], DeepFeatures(2)
        more = {
            "down_residuals": tuple(torch.randn(5, c, s, s) for c, s in ((16, 8), (16, 8), (16, 4), (32, 4))),
            "adapter_residuals": (torch.randn(5, 16, 8, 8), torch.randn(5, 32, 4, 4)),
        }
        expected = unet(video, 10, text[:2], branches=2, deep=deep, **more)
        close(unet(video, 10, text[:2], branches=2, deep=deep, **more), expected, 1e-4)

    def test_bad_input_is_named(self, unet, inputs):
        x, text = inputs
        with pytest.raises(ValueError, match="deep: expected 1 to 3 layers, got 4"):
            unet(x, 10, text, deep=DeepFeatures(4))
        with pytest.raises(ValueError, match="deep: expected features of 15 images, got 5"):
            unet(x, 10, text, deep=DeepFeatures(1, torch.zeros(5, 16, 8, 8)))
