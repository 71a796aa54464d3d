"""The parts of VideoUNet: ResNet block, attention layers, transformer block, time embedding.

Layout: feature maps are (B*F, C, H, W) in channels_last, so that tokens (B*F, H*W, C) and the frames of one video
(B, C, F*H, W) are views of the same memory; nothing here permutes data. F varies fastest in the first axis.

Parameter names are those of Tune-A-Video's checkpoints (and, without the temporal layers, of diffusers).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidsmooth_fast.ops.group_norm_silu import group_norm_silu
from vidsmooth_fast.ops.sparse_causal_attention import sparse_causal_attention
from vidsmooth_fast.ops.temporal_attention import temporal_attention

from .convolution import convolution
from .feed_forward import FeedForward
from .frozen import FrozenTaps, frozen
from .linear import Linear, linear


@dataclass(frozen=True)
class AttentionWindows:
    """Overlapping windows for temporal attention (FreeNoise, arXiv 2310.15169 §3.2; `merge="attention"`).

    Frame f gets sum_i w_i(f) out_i(f) / sum_i w_i(f) over the windows i that contain it.

    starts: first frame of every window; with `loop`, frames are taken modulo the video's length.
    weights: omega, weight of each frame inside a window, (K,), fp32.
    loop: windows may run over the end of the video and continue at its beginning.
    """

    starts: tuple[int, ...]
    weights: Tensor
    loop: bool = False

    def check(self, frames: int) -> None:
        """Raises: ValueError when a window leaves a video of `frames` frames without `loop`."""
        last = max(self.starts, default=0) + self.weights.numel()
        if not self.loop and (last > frames or min(self.starts, default=0) < 0):
            raise ValueError(
                f"windows: expected them inside {frames} frames without loop, got one ending at {last}"
            )


@dataclass
class Pass:
    """What every block needs to know about one forward pass.

    frames: F. images: B*G*F, how many there are after the guidance branches have parted. time: one row per timestep,
    or one, per ResNet: (1 or B, C). text: (key, value) per cross-attention, each (rows, L, C). recompute: keep no
    intermediate results for the gradients. The remaining fields select variants, as documented in `VideoUNet.forward`.
    """

    frames: int
    images: int = 0
    time: tuple[Tensor, ...] = ()
    text: tuple[tuple[Tensor, Tensor], ...] = ()
    norm_over_frames: bool = True
    attn1_frames: str = "first-previous"
    windows: AttentionWindows | None = None
    skip_temporal: bool = False
    recompute: bool = False
    compiled: str = (
        ""  # the backend of torch.compile by which ResNets and transformer blocks run; none where empty
    )
    here: tuple[Tensor, ...] = ()  # what the one block that is compiled needs of `time` or `text`
    copies: int = 0  # how often it repeats features that all branches share; 0: by `images`
    _kv_frames: dict = field(default_factory=dict)

    def part(self, x: Tensor) -> Tensor:
        """Features (B*F, ...) that all guidance branches share, once for each: (B*G*F, ...). Others as they are."""
        copies = self.copies or max(1, self.images // x.shape[0])
        if copies == 1:
            return x
        y = x.permute(0, 2, 3, 1) if x.dim() == 4 else x  # keeps channels_last
        videos = y.unflatten(0, (-1, 1, self.frames))
        y = videos.expand(-1, copies, *videos.shape[2:]).flatten(0, 2)
        return y.permute(0, 3, 1, 2) if x.dim() == 4 else y

    def kv_frames(self) -> Tensor:
        loop = self.windows is not None and self.windows.loop
        if self.attn1_frames not in self._kv_frames:
            self._kv_frames[self.attn1_frames] = kv_frames(self.attn1_frames, self.frames, loop)
        return self._kv_frames[self.attn1_frames]


def run(block: ResnetBlock | TransformerBlock, x: Tensor, ctx: Pass) -> Tensor:
    """block(x, ctx); where the pass says so, compiled.

    Blocks of one kind and shape share their compiled code, and any number of videos does: what tells one block of the
    network from another, and one batch from another, is taken out of the pass before.
    """
    if not ctx.compiled or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return block(x, ctx)
    here = block.needs(ctx)
    for tensor in (x, *here):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    copies = max(1, ctx.images // x.shape[0])
    local = replace(ctx, images=0, time=(), text=(), compiled="", here=here, copies=copies)
    return _compiled(type(block), ctx.compiled)(block, x, local)


@functools.cache
def _compiled(kind: type[nn.Module], backend: str) -> Callable[..., Tensor]:
    return torch.compile(kind.forward, backend=backend)


def kv_frames(kind: str, frames: int, loop: bool = False) -> Tensor:
    """Which frames' tokens are the keys of each frame in self-attention, int64 (F, R).

    "first-previous": [0, f-1] (frame 0 sees itself twice), Tune-A-Video. "first": [0], Text2Video-Zero.
    "self": [f], a plain 2D network. "all": every frame. "neighbours": with the middle frame m = F // 2,
    [m, the next frame on the way to m] (m sees itself twice), the bi-directional attention of Gen-L-Video.
    loop: the frames are a whole looped video, in which the last one comes before frame 0.
    """
    f = torch.arange(frames)
    if kind == "first-previous":
        return torch.stack([torch.zeros_like(f), (f - 1) % frames if loop else (f - 1).clamp(min=0)], dim=1)
    if kind == "first":
        return torch.zeros(frames, 1, dtype=torch.int64)
    if kind == "self":
        return f[:, None]
    if kind == "all":
        return f[None].expand(frames, frames)
    if kind == "neighbours":
        middle = torch.full_like(f, frames // 2)
        return torch.stack([middle, f + (middle - f).sign()], dim=1)
    raise ValueError(f"attn1_frames: expected first-previous, first, self, all or neighbours, got {kind!r}")


def normalise(x: Tensor, norm: nn.GroupNorm, frames: int = 1, silu: bool = True) -> Tensor:
    """GroupNorm of (B*F, C, H, W) with statistics over `frames` consecutive images (1: each alone), then SiLU."""
    return group_norm_silu(
        x, norm.weight, norm.bias, groups=norm.num_groups, frames=frames, eps=norm.eps, silu=silu
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for tokens (N, Tq, h*d), (N, Tk, h*d) -> (N, Tq, h*d), through SDPA.

    SDPA keeps scores in fp32 whatever the dtype, which is what `upcast_attention` asks for.
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections of one attention layer; which tokens meet which is the subclass's business.

    to_q, to_k, to_v: no bias. to_out.0: with bias.
    """

    def __init__(self, dim: int, heads: int, kv_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(dim, dim, bias=False)
        self.to_k = Linear(kv_dim or dim, dim, bias=False)
        self.to_v = Linear(kv_dim or dim, dim, bias=False)
        self.to_out = nn.ModuleList([Linear(dim, dim)])


class SparseCausalAttention(Attention):
    """Self-attention whose keys come from the frames that `Pass.attn1_frames` names. (B*F, P, C) -> same."""

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        n, p, c = x.shape
        frames, kind = ctx.frames, ctx.attn1_frames
        if frames == 1 or kind == "self":  # one frame seen R times is one frame seen once
            out = attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads)
        elif kind == "first":  # every frame of a video attends to the same tokens: project them once
            first = x.view(n // frames, frames, p, c)[:, 0]
            q = self.to_q(x).view(n // frames, frames * p, c)
            out = attend(q, self.to_k(first), self.to_v(first), self.heads)
        elif kind == "all":
            video = x.view(n // frames, frames * p, c)
            out = attend(self.to_q(video), self.to_k(video), self.to_v(video), self.heads)
        else:
            out = sparse_causal_attention(
                self.to_q(x), self.to_k(x), self.to_v(x),
                frames=frames, heads=self.heads, kv_frames=ctx.kv_frames(),
            )  # fmt: skip
        return self.to_out[0](out.reshape(n, p, c))


class CrossAttention(Attention):
    """Attention to text whose keys and values were projected beforehand. (B*F, P, C) -> same.

    Text rows are shared by B*F / rows consecutive frames: their tokens are seen as one long sequence, so that no
    text is repeated. rows is 1, B or B*F. Inference on a CPU takes the kernel of sparse-causal attention, whose
    only key frame is then the text: PyTorch's loses much time on narrow heads.
    """

    index: int = 0  # position among the network's cross-attentions, set by VideoUNet

    def project(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text (rows, L, D) -> key, value (rows, L, C)."""
        return self.to_k(text), self.to_v(text)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        n, p, c = x.shape
        k, v = ctx.here or ctx.text[self.index]
        rows, q = k.shape[0], self.to_q(x)
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
            out = attend(q.view(rows, n // rows * p, c), k, v, self.heads)
        else:
            frames = n // rows
            the_text = torch.zeros(frames, 1, dtype=torch.int64)
            out = sparse_causal_attention(q, k, v, frames=frames, heads=self.heads, kv_frames=the_text)
        return self.to_out[0](out.view(n, p, c))


class TemporalAttention(Attention):
    """Every pixel attends to itself in the other frames. (B*F, P, C) -> same. `to_out` starts at zero."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        nn.init.zeros_(self.to_out[0].weight)
        nn.init.zeros_(self.to_out[0].bias)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        frames = ctx.frames
        if frames == 1:  # softmax over one frame is 1
            return self.to_out[0](self.to_v(x))
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if ctx.windows is None:
            out = temporal_attention(q, k, v, frames=frames, heads=self.heads)
        else:  # merged before `to_out`, which is affine: this changes nothing
            starts, weights = ctx.windows.starts, ctx.windows.weights.to(q.device)
            out = temporal_attention(q, k, v, frames=frames, heads=self.heads, starts=starts, weights=weights)
        return self.to_out[0](out)


class TransformerBlock(nn.Module):
    """Sparse-causal self-attention, cross-attention, feed-forward, temporal attention; each on a LayerNorm, each added.

    tokens (B*F, P, C) -> same.
    """

    def needs(self, ctx: Pass) -> tuple[Tensor, ...]:
        """What it reads of a pass by its own place in the network, for `run`."""
        if ctx.attn1_frames in ("first-previous", "neighbours"):
            ctx.kv_frames()  # made before a graph is
        return ctx.text[self.attn2.index]

    def __init__(self, dim: int, heads: int, cross_dim: int) -> None:
        super().__init__()
        self.attn1, self.norm1 = SparseCausalAttention(dim, heads), nn.LayerNorm(dim)
        self.attn2, self.norm2 = CrossAttention(dim, heads, cross_dim), nn.LayerNorm(dim)
        self.ff, self.norm3 = FeedForward(dim), nn.LayerNorm(dim)
        self.attn_temp, self.norm_temp = TemporalAttention(dim, heads), nn.LayerNorm(dim)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        x = ctx.part(self.attn1(self.norm1(x), ctx) + x)  # from here on the text makes a difference
        x = self.attn2(self.norm2(x), ctx) + x
        x = self.ff(self.norm3(x)) + x
        if not ctx.skip_temporal:
            x = self.attn_temp(self.norm_temp(x), ctx) + x
        return x


class Transformer(nn.Module):
    """Per-frame GroupNorm (eps 1e-6), projection, transformer blocks, projection, residual. (B*F, C, H, W) -> same."""

    def __init__(self, dim: int, heads: int, cross_dim: int, groups: int, layers: int, linear: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim) if linear else nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, heads, cross_dim) for _ in range(layers)
        )
        self.proj_out = nn.Linear(dim, dim) if linear else nn.Conv2d(dim, dim, 1)

    @staticmethod
    def _project(layer: nn.Linear | nn.Conv2d, tokens: Tensor) -> Tensor:
        """A 1x1 convolution is a linear layer on tokens."""
        return linear(tokens, layer.weight.flatten(1), layer.bias)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        y = normalise(x, self.norm, silu=False).permute(0, 2, 3, 1).reshape(n, h * w, c)
        y = self._project(self.proj_in, y)
        for block in self.transformer_blocks:
            y = run(block, y, ctx)
        y = self._project(self.proj_out, y) + ctx.part(tokens)
        return y.view(y.shape[0], h, w, c).permute(0, 3, 1, 2)  # an exporter cannot divide to find -1


class TemporalConv(nn.Module):
    """Convolution over time: x_f + P x_{f-1} + N x_{f+1}, P and N linear over the channels, zero at first.

    It follows a spatial convolution, which serves as its middle tap (Make-A-Video, arXiv 2209.14792 §3.2.1).
    Attention over frames cannot tell before from after; this can, so motion gets a direction. Beyond the ends of the
    video there is nothing to add; a loop closes. (B*F, C, H, W) channels_last -> same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.previous = Linear(channels, channels, bias=False)
        self.next = Linear(channels, channels, bias=False)
        nn.init.zeros_(self.previous.weight)
        nn.init.zeros_(self.next.weight)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        n, c, h, w = x.shape
        video = x.permute(0, 2, 3, 1).reshape(n // ctx.frames, ctx.frames, h * w, c)
        loop = ctx.windows is not None and ctx.windows.loop
        if torch.compiler.is_compiling():  # slices would fix in the graph that there are three frames or more
            first, last = (video[:, -1:], video[:, :1]) if loop else [torch.zeros_like(video[:, :1])] * 2
            before = torch.cat([first, video], dim=1)[:, : ctx.frames]
            after = torch.cat([video, last], dim=1)[:, 1:]
            out = video + self.previous(before) + self.next(after)
            return out.view(n, h, w, c).permute(0, 3, 1, 2)
        previous, following = self.previous.weight, self.next.weight
        if frozen(x, previous, following):
            out = FrozenTaps.apply(video, previous, following, loop)
            return out.view(n, h, w, c).permute(0, 3, 1, 2)
        out = video.clone()
        out[:, 1:] += self.previous(video[:, :-1])
        out[:, :-1] += self.next(video[:, 1:])
        if loop:
            out[:, :1] += self.previous(video[:, -1:])
            out[:, -1:] += self.next(video[:, :1])
        return out.view(n, h, w, c).permute(0, 3, 1, 2)


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, conv, + shortcut. (B*F, C_in, H, W) -> (B*F, C_out, H, W).

    temporal: the second convolution is followed by one over time.
    """

    index: int = 0  # position among the network's ResNets, set by VideoUNet

    def needs(self, ctx: Pass) -> tuple[Tensor, ...]:
        """What it reads of a pass by its own place in the network, for `run`."""
        return (ctx.time[self.index],)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        time_dim: int,
        groups: int,
        eps: float,
        temporal: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_temp = TemporalConv(c_out) if temporal else None
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None
        self.scale = scale

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        over = ctx.frames if ctx.norm_over_frames else 1
        (time,) = ctx.here or (ctx.time[self.index],)
        h = normalise(x, self.norm1, over)
        if time.shape[0] == 1:  # one timestep for everything: the convolution's bias carries it at no cost
            h = convolution(h, self.conv1.weight, self.conv1.bias + time[0])
        else:
            per_image = time[:, None].expand(-1, x.shape[0] // time.shape[0], -1).flatten(0, 1)
            h = convolution(h, self.conv1.weight, self.conv1.bias) + per_image[:, :, None, None]
        h = convolution(normalise(h, self.norm2, over), self.conv2.weight, self.conv2.bias)
        if self.conv_temp is not None and ctx.frames > 1 and not ctx.skip_temporal:
            h = self.conv_temp(h, ctx)
        h = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return h if self.scale == 1 else h / self.scale


class Downsample(nn.Module):
    """3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to `size` (H, W), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = F.interpolate(x, size=size, mode="nearest")
        return convolution(x, self.conv.weight, self.conv.bias)


def sinusoid(timesteps: Tensor, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal features of (N,) timesteps in training steps (fractions allowed), fp32 (N, dim)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - freq_shift)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return F.pad(torch.cat(parts, dim=1), (0, dim % 2))


class TimestepEmbedding(nn.Module):
    """linear_1, SiLU, linear_2."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim_in, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
