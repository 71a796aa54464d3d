"""Plain baselines: the published algorithm as its authors wrote it, on the same weights as ours.

`PublishedUNet` follows showlab/Tune-A-Video (`tuneavideo/models`, run there on diffusers 0.11): every activation is a
five-dimensional (b, c, f, h, w) tensor, every convolution folds the frames into the batch and unfolds them again,
the text is repeated for each frame and projected for each frame, keys and values of [first, previous] frame are
concatenated, temporal attention permutes tokens to (b d) f c and back, and attention is
baddbmm, softmax, bmm over (batch * heads).  `published_sample` follows G-U-N/Gen-L-Video (`gen_long`): one window at
a time, two network calls for guidance, one DDIM step per window, average by count.

Nothing here is tuned and nothing here is wrong: it is the distance between the published program and this engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

__all__ = ["PublishedUNet", "attention_published", "attention_sdpa", "published_sample", "published_views"]

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, bool], torch.Tensor]


def _heads_to_batch(x: torch.Tensor, heads: int) -> torch.Tensor:
    rows, tokens, width = x.shape
    x = x.reshape(rows, tokens, heads, width // heads)
    return x.permute(0, 2, 1, 3).reshape(rows * heads, tokens, width // heads)


def _batch_to_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    rows, tokens, width = x.shape
    x = x.reshape(rows // heads, heads, tokens, width)
    return x.permute(0, 2, 1, 3).reshape(rows // heads, tokens, width * heads)


def attention_published(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, upcast: bool
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v with the whole score matrix in memory, as diffusers 0.11 computed it.

    q: (rows, tokens, heads * d); k, v: (rows, keys, heads * d); upcast: scores in fp32.  Returns the shape of q.
    """
    dtype = v.dtype
    q, k, v = (_heads_to_batch(x, heads) for x in (q, k, v))
    if upcast:
        q, k = q.float(), k.float()
    scores = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(scores, q, k.transpose(-1, -2), beta=0, alpha=q.shape[-1] ** -0.5)
    return _batch_to_heads(torch.bmm(scores.softmax(dim=-1).to(dtype), v), heads)


def attention_sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, upcast: bool
) -> torch.Tensor:
    """The same attention through PyTorch's fused call: the first thing a reader would change.

    Shapes as in `attention_published`; the fused kernel accumulates in fp32, so `upcast` needs no extra work.
    """
    del upcast
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class PublishedUNet:
    """Tune-A-Video's UNet evaluated from a state dict, operation by operation as published.

    state_dict: parameters under Tune-A-Video's names; config: its configuration (`norm_num_groups`, `norm_eps`,
    `attention_head_dim` meaning the number of heads, ...); attention: the attention function; dtype: of weights and
    activations.  Raises ValueError when the configuration asks for something Tune-A-Video's network does not have.
    """

    def __init__(
        self,
        state_dict: dict[str, torch.Tensor],
        config: dict,
        *,
        attention: Attention = attention_published,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        frames = config.get("attn1_frames", "first-previous")
        if frames not in ("first-previous", "first"):
            raise ValueError(f"config: attn1_frames must be 'first-previous' or 'first', got {frames!r}")
        # .contiguous() undoes channels_last: the published program never used it.
        self.weights = {
            name: value.detach().to(dtype=dtype, memory_format=torch.contiguous_format).contiguous()
            for name, value in state_dict.items()
        }
        self.attention = attention
        self.dtype = dtype
        self.groups = config.get("norm_num_groups", 32)
        self.eps = config.get("norm_eps", 1e-5)
        self.norm_over_frames = config.get("norm_over_frames", True)
        self.previous = frames == "first-previous"
        self.upcast = bool(config.get("upcast_attention", False))
        self.flip_sin_to_cos = config.get("flip_sin_to_cos", True)
        self.freq_shift = config.get("freq_shift", 0)
        self.down, self.up = len(config["down_block_types"]), len(config["up_block_types"])
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        self.heads = [heads] * self.down if isinstance(heads, int) else list(heads)

    def __call__(
        self, sample: torch.Tensor, timestep: int | torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """Predict. sample: (b, c, f, h, w); timestep: int or (b,); text: (b, tokens, width) -> (b, c, f, h, w)."""
        emb = self._time_embedding(timestep, sample.shape[0], sample.device)
        text = text.to(self.dtype)
        x = self._conv("conv_in", sample.to(self.dtype))
        skips = [x]
        for level in range(self.down):
            x = self._down(level, x, emb, text, skips)
        x = self._resnet("mid_block.resnets.0", x, emb)
        x = self._transformer("mid_block.attentions.0", x, text, self.heads[-1])
        x = self._resnet("mid_block.resnets.1", x, emb)
        for level in range(self.up):
            x = self._up(level, x, emb, text, skips)
        x = F.silu(self._group_norm("conv_norm_out", x, self.eps))
        return self._conv("conv_out", x)

    # Blocks

    def _down(
        self, level: int, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor, skips: list[torch.Tensor]
    ) -> torch.Tensor:
        block = f"down_blocks.{level}"
        for i in self._indices(f"{block}.resnets"):
            x = self._resnet(f"{block}.resnets.{i}", x, emb)
            if f"{block}.attentions.{i}.norm.weight" in self.weights:
                x = self._transformer(f"{block}.attentions.{i}", x, text, self.heads[level])
            skips.append(x)
        if f"{block}.downsamplers.0.conv.weight" in self.weights:
            x = self._conv(f"{block}.downsamplers.0.conv", x, stride=2)
            skips.append(x)
        return x

    def _up(
        self, level: int, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor, skips: list[torch.Tensor]
    ) -> torch.Tensor:
        block = f"up_blocks.{level}"
        for i in self._indices(f"{block}.resnets"):
            x = self._resnet(f"{block}.resnets.{i}", torch.cat([x, skips.pop()], dim=1), emb)
            if f"{block}.attentions.{i}.norm.weight" in self.weights:
                x = self._transformer(f"{block}.attentions.{i}", x, text, self.heads[-1 - level])
        if f"{block}.upsamplers.0.conv.weight" in self.weights:
            # Published: interpolation of the five-dimensional tensor, in fp32 even for bf16 networks.
            x = F.interpolate(x.float(), scale_factor=[1.0, 2.0, 2.0], mode="nearest").to(self.dtype)
            x = self._conv(f"{block}.upsamplers.0.conv", x)
        return x

    def _resnet(self, name: str, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = F.silu(self._group_norm(f"{name}.norm1", x, self.eps))
        h = self._conv(f"{name}.conv1", h)
        h = h + self._linear(f"{name}.time_emb_proj", F.silu(emb))[:, :, None, None, None]
        h = F.silu(self._group_norm(f"{name}.norm2", h, self.eps))
        h = self._conv(f"{name}.conv2", h)
        if f"{name}.conv_temp.previous.weight" in self.weights:  # sprite-world's, as Make-A-Video wrote it
            previous = self.weights[f"{name}.conv_temp.previous.weight"]
            following = self.weights[f"{name}.conv_temp.next.weight"]
            kernel = torch.stack([previous, torch.eye(len(previous)).to(h), following], dim=-1)
            b, c, f, height, width = h.shape
            rows = h.permute(0, 3, 4, 1, 2).reshape(-1, c, f)
            rows = F.conv1d(rows, kernel, padding=1)
            h = rows.reshape(b, height, width, c, f).permute(0, 3, 4, 1, 2)
        if f"{name}.conv_shortcut.weight" in self.weights:
            x = self._conv(f"{name}.conv_shortcut", x)
        return x + h

    def _transformer(self, name: str, x: torch.Tensor, text: torch.Tensor, heads: int) -> torch.Tensor:
        b, c, f, height, width = x.shape
        x = x.permute(0, 2, 1, 3, 4).reshape(b * f, c, height, width)
        text = text[:, None].expand(b, f, -1, -1).reshape(b * f, *text.shape[1:])
        w = self.weights
        h = F.group_norm(x, self.groups, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"], eps=1e-6)
        as_linear = w[f"{name}.proj_in.weight"].ndim == 2
        if not as_linear:
            h = F.conv2d(h, w[f"{name}.proj_in.weight"], w[f"{name}.proj_in.bias"])
        h = h.permute(0, 2, 3, 1).reshape(b * f, height * width, h.shape[1])
        if as_linear:
            h = self._linear(f"{name}.proj_in", h)
        for i in self._indices(f"{name}.transformer_blocks", "norm1.weight"):
            h = self._transformer_block(f"{name}.transformer_blocks.{i}", h, text, f, heads)
        if as_linear:
            h = self._linear(f"{name}.proj_out", h)
        h = h.reshape(b * f, height, width, -1).permute(0, 3, 1, 2).contiguous()
        if not as_linear:
            h = F.conv2d(h, w[f"{name}.proj_out.weight"], w[f"{name}.proj_out.bias"])
        h = h + x
        return h.reshape(b, f, c, height, width).permute(0, 2, 1, 3, 4)

    def _transformer_block(
        self, name: str, x: torch.Tensor, text: torch.Tensor, frames: int, heads: int
    ) -> torch.Tensor:
        x = self._spatial_attention(f"{name}.attn1", self._layer_norm(f"{name}.norm1", x), frames, heads) + x
        x = self._plain_attention(f"{name}.attn2", self._layer_norm(f"{name}.norm2", x), text, heads) + x
        hidden, gate = self._linear(f"{name}.ff.net.0.proj", self._layer_norm(f"{name}.norm3", x)).chunk(
            2, dim=-1
        )
        x = self._linear(f"{name}.ff.net.2", hidden * F.gelu(gate)) + x
        rows, tokens, width = x.shape
        x = x.reshape(rows // frames, frames, tokens, width).permute(0, 2, 1, 3).reshape(-1, frames, width)
        normed = self._layer_norm(f"{name}.norm_temp", x)
        x = self._plain_attention(f"{name}.attn_temp", normed, normed, heads) + x
        x = x.reshape(rows // frames, tokens, frames, width).permute(0, 2, 1, 3)
        return x.reshape(rows, tokens, width)

    def _plain_attention(self, name: str, x: torch.Tensor, context: torch.Tensor, heads: int) -> torch.Tensor:
        q = self._linear(f"{name}.to_q", x)
        k, v = self._linear(f"{name}.to_k", context), self._linear(f"{name}.to_v", context)
        return self._linear(f"{name}.to_out.0", self.attention(q, k, v, heads, self.upcast))

    def _spatial_attention(self, name: str, x: torch.Tensor, frames: int, heads: int) -> torch.Tensor:
        q, k, v = (self._linear(f"{name}.to_{which}", x) for which in "qkv")
        first = [0] * frames
        previous = [max(i - 1, 0) for i in range(frames)]

        def gather(t: torch.Tensor) -> torch.Tensor:
            t = t.reshape(-1, frames, *t.shape[1:])
            t = torch.cat([t[:, first], t[:, previous]], dim=2) if self.previous else t[:, first]
            return t.reshape(-1, *t.shape[2:])

        return self._linear(f"{name}.to_out.0", self.attention(q, gather(k), gather(v), heads, self.upcast))

    # Layers

    def _indices(self, prefix: str, probe: str = "norm1.weight") -> range:
        count = 0
        while f"{prefix}.{count}.{probe}" in self.weights:
            count += 1
        return range(count)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _layer_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _group_norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if self.norm_over_frames:
            return F.group_norm(x, self.groups, weight, bias, eps)
        b, c, f, h, w = x.shape
        x = F.group_norm(x.permute(0, 2, 1, 3, 4).reshape(b * f, c, h, w), self.groups, weight, bias, eps)
        return x.reshape(b, f, c, h, w).permute(0, 2, 1, 3, 4)

    def _conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = self.weights[f"{name}.weight"]
        b, c, f, h, w = x.shape
        x = x.permute(0, 2, 1, 3, 4).reshape(b * f, c, h, w)
        x = F.conv2d(x, weight, self.weights[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)
        return x.reshape(b, f, *x.shape[1:]).permute(0, 2, 1, 3, 4)

    def _time_embedding(self, timestep: int | torch.Tensor, rows: int, device: torch.device) -> torch.Tensor:
        width = self.weights["time_embedding.linear_1.weight"].shape[1]
        half = width // 2
        t = torch.as_tensor(timestep, device=device).reshape(-1).expand(rows).float()
        rate = torch.arange(half, dtype=torch.float32, device=device) * (
            -math.log(10000) / (half - self.freq_shift)
        )
        angle = t[:, None] * rate.exp()[None]
        parts = [angle.cos(), angle.sin()] if self.flip_sin_to_cos else [angle.sin(), angle.cos()]
        emb = self._linear("time_embedding.linear_1", torch.cat(parts, dim=-1).to(self.dtype))
        return self._linear("time_embedding.linear_2", F.silu(emb))


def published_views(frames: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Windows as Gen-L-Video lays them: [(0, window), (stride, stride + window), ...].

    Raises ValueError where the published rule would leave frames uncovered (it sets those to zero).
    """
    if frames < window or (frames - window) % stride:
        raise ValueError(
            f"frames: the published windows cover window + n*stride frames; got frames={frames}, "
            f"window={window}, stride={stride}"
        )
    return [(start, start + window) for start in range(0, frames - window + 1, stride)]


@torch.no_grad()
def published_sample(
    network: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    text: torch.Tensor,
    empty_text: torch.Tensor,
    scheduler_config: dict,
    *,
    steps: int,
    guidance: float = 7.5,
    window: int = 16,
    stride: int = 8,
    stop_after: int | None = None,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Gen-L-Video's window co-denoising: every window takes its own guided DDIM step, overlaps are averaged.

    network: (latents (1, c, window, h, w), timestep, text (1, tokens, width)) -> prediction; latents: (1, c, f, h, w)
    initial noise; text, empty_text: (1, tokens, width); scheduler_config: a diffusers scheduler configuration;
    stop_after: take only so many of the steps; on_step(step, latents) is called after each.  Returns the latents, fp32.
    Source: G-U-N/Gen-L-Video, `gen_long`.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config({**scheduler_config, "clip_sample": False})
    scheduler.set_timesteps(steps)
    views = published_views(latents.shape[2], window, stride)
    value, count = torch.zeros_like(latents), torch.zeros_like(latents)
    for step, t in enumerate(scheduler.timesteps[:stop_after]):
        value.zero_()
        count.zero_()
        for start, end in views:
            part = latents[:, :, start:end]
            without = network(part, t, empty_text).float()
            guided = without + guidance * (network(part, t, text).float() - without)
            value[:, :, start:end] += scheduler.step(guided, t, part).prev_sample
            count[:, :, start:end] += 1
        latents = torch.where(count > 0, value / count, value)
        if on_step is not None:
            on_step(step, latents)
    return latents
