"""VideoUNet: the Stable Diffusion 1.x/2.x network inflated over time.

Parameter names are those of Tune-A-Video's checkpoints; a diffusers 2D UNet's names are the same without
`attn_temp` and `norm_temp`. Convolutions stay two-dimensional and see frames as a batch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import (
    AttentionWindows,
    CrossAttention,
    Downsample,
    Pass,
    ResnetBlock,
    TimestepEmbedding,
    Transformer,
    Upsample,
    normalise,
    run,
    sinusoid,
)
from .config import ATTN1_FRAMES, UNetConfig, read_config

LAYOUT = torch.channels_last
"""Of weights and feature maps: tokens are then a view of a map. `benchmarks/end_to_end.py --switches` tries another."""


@dataclass(frozen=True)
class TextKV:
    """Keys and values of one or more prompts for every cross-attention, in network order.

    pairs: ((key, value), ...), each (rows, L, C).
    """

    pairs: tuple[tuple[Tensor, Tensor], ...]

    @property
    def rows(self) -> int:
        return self.pairs[0][0].shape[0] if self.pairs else 0

    def select(self, rows: Tensor) -> TextKV:
        """The given rows (int64, repeats allowed), as a new TextKV."""
        return TextKV(tuple((k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.pairs))


@dataclass(frozen=True)
class TimeEmbedding:
    """What a timestep adds inside every ResNet block, in network order: (1 or B, C) each."""

    projections: tuple[Tensor, ...]


@dataclass
class DeepFeatures:
    """What deep-feature reuse keeps of one forward pass for the next (DeepCache, arXiv 2312.00858).

    layers: how many of the up path's last layers every pass computes, with the skip connections they read.
    value: what the first of those layers was given, (B*G*F, C, H, W), as the last whole pass left it. None asks for
        a whole pass, which fills it; otherwise everything deeper is left out and `value` takes its place.
    """

    layers: int
    value: Tensor | None = None


class Level(nn.Module):
    """One level of the down or up path (or the middle): ResNets, each followed by its transformer if any."""

    def __init__(self, resnets: list[ResnetBlock], attentions: list[Transformer]) -> None:
        super().__init__()
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)

    @property
    def has_attention(self) -> bool:
        return hasattr(self, "attentions")

    def layer(self, i: int, x: Tensor, ctx: Pass) -> Tensor:
        """ResNet i, then its transformer. Where the pass says so, both are computed again for their gradients.

        Not the reentrant kind of checkpoint: that gives trained parameters no gradient where x itself needs none.
        """
        if ctx.recompute:
            return checkpoint(self._layer, i, x, ctx, use_reentrant=False, preserve_rng_state=False)
        return self._layer(i, x, ctx)

    def _layer(self, i: int, x: Tensor, ctx: Pass) -> Tensor:
        x = run(self.resnets[i], x, ctx)
        return self.attentions[i](x, ctx) if self.has_attention and i < len(self.attentions) else x


class VideoUNet(nn.Module):
    """Predicts the noise (or v, or x0) of every frame of a window.

    Build with `VideoUNet.from_config(dict)`. `attn1_frames` and `norm_over_frames` may be changed afterwards:
    they select behaviour, not weights. So may `gradient_checkpointing` (False at first): keep only the input of each
    layer for the gradients, and compute the rest again. `compiled`, a backend of torch.compile, is set by
    `compile_blocks`; `cuda_graphs` asks the sampling loop to replay calls as CUDA graphs.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self._config = config
        self.attn1_frames = config.attn1_frames
        self.norm_over_frames = config.norm_over_frames
        self.gradient_checkpointing = False
        self.compiled = ""
        self.cuda_graphs = False
        ch, n = config.channels, len(config.channels)
        resnet = {
            "time_dim": config.time_dim, "groups": config.norm_groups, "eps": config.norm_eps,
            "temporal": config.temporal_conv,
        }  # fmt: skip

        def transformer(dim: int, heads: int) -> Transformer:
            return Transformer(
                dim, heads, config.cross_attention_dim, config.norm_groups,
                config.transformer_layers, config.linear_projection,
            )  # fmt: skip

        self.conv_in = nn.Conv2d(config.in_channels, ch[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(ch[0], config.time_dim)

        self.down_blocks = nn.ModuleList()
        skips = [ch[0]]  # channels of every skip connection, in the order the down path makes them
        for i, width in enumerate(ch):
            c_in = ch[max(i - 1, 0)]
            layers = config.layers_per_block
            level = Level(
                [ResnetBlock(c_in if j == 0 else width, width, **resnet) for j in range(layers)],
                [transformer(width, config.heads[i]) for _ in range(layers * config.down_attention[i])],
            )
            skips += [width] * layers
            if i < n - 1:
                level.downsamplers = nn.ModuleList([Downsample(width)])
                skips.append(width)
            self.down_blocks.append(level)

        self.mid_block = Level(
            [ResnetBlock(ch[-1], ch[-1], **resnet, scale=config.mid_scale) for _ in range(2)],
            [transformer(ch[-1], config.heads[-1])],
        )

        self.up_blocks = nn.ModuleList()
        c_in = ch[-1]
        for i in reversed(range(n)):
            width, layers = ch[i], config.layers_per_block + 1
            resnets = []
            for _ in range(layers):
                resnets.append(ResnetBlock(c_in + skips.pop(), width, **resnet))
                c_in = width
            attentions = layers * config.up_attention[n - 1 - i]
            level = Level(resnets, [transformer(width, config.heads[i]) for _ in range(attentions)])
            if i > 0:
                level.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(level)

        self.conv_norm_out = nn.GroupNorm(config.norm_groups, ch[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(ch[0], config.out_channels, 3, padding=1)

        # Plain lists beside the module tree: they give time and text their order without adding parameter names.
        self._resnets = [m for m in self.modules() if isinstance(m, ResnetBlock)]
        self._cross = [m for m in self.modules() if isinstance(m, CrossAttention)]
        for i, m in enumerate(self._resnets):
            m.index = i
        for i, m in enumerate(self._cross):
            m.index = i
        self.to(memory_format=LAYOUT)

    @classmethod
    def from_config(cls, config: dict) -> VideoUNet:
        """A network with fresh weights. See `config.read_config` for the keys. Raises ValueError naming a bad key."""
        return cls(read_config(config))

    @property
    def config(self) -> dict:
        """The configuration under its published key names (what unet/config.json holds)."""
        current = replace(
            self._config, attn1_frames=self.attn1_frames, norm_over_frames=self.norm_over_frames
        )
        return current.to_dict()

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    @property
    def in_channels(self) -> int:
        return self._config.in_channels

    @property
    def out_channels(self) -> int:
        return self._config.out_channels

    def compile_blocks(self, backend: str = "inductor") -> VideoUNet:
        """Run ResNets and transformer blocks through torch.compile from here on, where no gradients are wanted.

        The network is compiled block by block: equal blocks share their code, and neither the number of windows in a
        call nor the text compiles anything again. (Other sizes of picture or window do.) What is compiled is kept
        for later processes, in TORCHINDUCTOR_CACHE_DIR where that is set and in the user's cache otherwise.
        Returns self.
        """
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        # The usual place is the folder for temporary files; torch may have set the variable to it.
        usual = default_cache_dir()
        if os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual) == usual:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "vidsmooth-fast" / "inductor")
        # Every width of ResNet is one more graph of the same code; the usual limit of 8 would leave some uncompiled.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 64)
        self.compiled = backend
        return self

    def embed_time(self, timestep: float | Tensor) -> TimeEmbedding:
        """Everything that depends on the timestep alone, once per step.

        timestep: training steps (fractions allowed), a number or (B,). A number is computed on one row.
        """
        if isinstance(timestep, Tensor):
            t = timestep.to(self.device).reshape(-1)
        else:  # filled on the device: a copy of the number would be waited for
            t = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
        c = self._config
        features = sinusoid(t, c.channels[0], c.flip_sin_to_cos, c.freq_shift).to(self.dtype)
        emb = nn.functional.silu(self.time_embedding(features))
        return TimeEmbedding(tuple(m.time_emb_proj(emb) for m in self._resnets))

    def project_text(self, text: Tensor) -> TextKV:
        """Keys and values of every cross-attention, once per prompt. text: (rows, L, D)."""
        if text.dim() != 3 or text.shape[-1] != self._config.cross_attention_dim:
            raise ValueError(
                f"text: expected shape (rows, tokens, {self._config.cross_attention_dim}), got {tuple(text.shape)}"
            )
        text = text.to(self.device, self.dtype)
        return TextKV(tuple(m.project(text) for m in self._cross))

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor | TimeEmbedding,
        text: Tensor | TextKV,
        *,
        down_residuals: tuple[Tensor, ...] | None = None,
        mid_residual: Tensor | None = None,
        adapter_residuals: tuple[Tensor, ...] | None = None,
        windows: AttentionWindows | None = None,
        skip_temporal: bool = False,
        branches: int = 1,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """The network's prediction for every frame.

        sample: noisy latents, (B, C, F, H, W), any float dtype (computed in the network's).
        timestep: training steps, a number or (B,), or the result of `embed_time`.
        text: embeddings (rows, L, D) with rows = 1, B*G, or B*G*F (one prompt per frame, F fastest), or the result
            of `project_text`.
        down_residuals, mid_residual: a ControlNet's, (B*F, C, H, W) each, added to the skip connections and the
            middle. adapter_residuals: a T2I-Adapter's, one per level.
        windows: temporal attention in overlapping windows over all F frames, merged by weight
            (`merge="attention"`). Norm statistics and the first key frame are then those of all F frames.
        skip_temporal: leave the temporal layers out (2D training and inference). With F = 1 they are
            kept but cheap: attention over one frame is to_out(to_v(x)).
        branches: G, predictions of every video that differ in their text alone (classifier-free guidance). What
            comes before the first cross-attention is then computed once for all of them.
        deep: the deep features of an earlier pass over the same videos and branches, in place of computing them; or an
            empty one, to be filled.

        Returns (B*G, C_out, F, H, W), G faster than B, contiguous, in the network's dtype.

        Raises: ValueError naming the argument with a wrong shape.
        """
        if sample.dim() != 5 or sample.shape[1] != self._config.in_channels:
            raise ValueError(
                f"sample: expected shape (B, {self._config.in_channels}, F, H, W), got {tuple(sample.shape)}"
            )
        b, _, frames, height, width = sample.shape
        time = timestep if isinstance(timestep, TimeEmbedding) else self.embed_time(timestep)
        kv = text if isinstance(text, TextKV) else self.project_text(text)
        videos = b * branches
        if kv.rows not in (1, videos, videos * frames):
            raise ValueError(f"text: expected 1, {videos} or {videos * frames} rows, got {kv.rows}")
        rows = time.projections[0].shape[0]
        if rows not in (1, b):
            raise ValueError(f"timestep: expected one number or {b}, got {rows}")
        if self.attn1_frames not in ATTN1_FRAMES:
            raise ValueError(f"attn1_frames: expected one of {list(ATTN1_FRAMES)}, got {self.attn1_frames!r}")
        if windows is not None:
            windows.check(frames)
        layers = sum(len(level.resnets) for level in self.up_blocks)
        if deep is not None and not 1 <= deep.layers < layers:
            raise ValueError(f"deep: expected 1 to {layers - 1} layers, got {deep.layers}")
        kept = None if deep is None else deep.value  # read once: it may have to come from the host
        reusing = kept is not None
        if reusing and kept.shape[0] != videos * frames:
            raise ValueError(f"deep: expected features of {videos * frames} images, got {kept.shape[0]}")
        ctx = Pass(
            frames,
            videos * frames,
            time.projections,
            kv.pairs,
            self.norm_over_frames,
            self.attn1_frames,
            windows,
            skip_temporal,
            recompute=self.gradient_checkpointing and torch.is_grad_enabled(),
            compiled=self.compiled,
        )

        x = sample.to(self.dtype).transpose(1, 2).reshape(b * frames, -1, height, width)
        x = x.contiguous(memory_format=LAYOUT)
        if self._config.center_input:
            x = 2 * x - 1
        x = self.conv_in(x)

        skips = [x]
        adapters = list(adapter_residuals or ())
        if adapters and len(adapters) != len(self.down_blocks):
            raise ValueError(f"adapter_residuals: expected {len(self.down_blocks)}, got {len(adapters)}")
        needed = deep.layers if reusing else layers  # every layer of the up path reads one skip connection
        for level in self.down_blocks:
            x = self._down(level, x, ctx, skips, adapters.pop(0) if adapters else None, needed)

        if down_residuals is not None:
            if len(down_residuals) != layers:
                raise ValueError(f"down_residuals: expected {layers}, got {len(down_residuals)}")
            skips = [ctx.part(s) + ctx.part(r) for s, r in zip(skips, down_residuals, strict=False)]

        if not reusing:
            x = self.mid_block.layer(0, x, ctx)
            x = self.mid_block.layer(1, x, ctx)
            if mid_residual is not None:
                x = ctx.part(x) + ctx.part(mid_residual)

        left = layers  # layers of the up path that are still to come
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                if deep is not None and left == deep.layers:
                    if reusing:
                        x = kept
                    else:
                        deep.value = x
                if left <= needed:
                    x = level.layer(i, torch.cat([ctx.part(x), ctx.part(skips.pop())], dim=1), ctx)
                left -= 1
            if hasattr(level, "upsamplers") and left < needed:
                x = level.upsamplers[0](x, tuple(skips[-1].shape[-2:]))

        x = normalise(x, self.conv_norm_out, frames if self.norm_over_frames else 1)
        x = self.conv_out(x)
        return x.reshape(videos, frames, -1, height, width).transpose(1, 2).contiguous()

    @staticmethod
    def _down(
        level: Level, x: Tensor, ctx: Pass, skips: list[Tensor], adapter: Tensor | None, needed: int
    ) -> Tensor:
        """One level of the down path; appends its skip connections, until there are as many as `needed`.

        A T2I-Adapter's residual joins an attention level after its last layer, a plain level after its
        downsampler (diffusers' order).
        """
        last = len(level.resnets) - 1
        for i in range(last + 1):
            if len(skips) == needed:
                return x
            x = level.layer(i, x, ctx)
            if i == last and adapter is not None and level.has_attention:
                x = ctx.part(x) + ctx.part(adapter)
            skips.append(x)
        if hasattr(level, "downsamplers"):
            if len(skips) == needed:
                return x
            x = level.downsamplers[0](x)
            skips.append(x)
        if adapter is not None and not level.has_attention:
            x = skips[-1] = ctx.part(x) + ctx.part(adapter)
        return x
