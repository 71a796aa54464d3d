"""Reading a UNet's configuration: Tune-A-Video's, diffusers' UNet2DConditionModel's, or our own.

The three share their key names, so one table says what is built, what is accepted only at its plain value,
and everything else is refused by name: a network that is silently not the one described gives wrong pictures.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

ATTN1_FRAMES = ("first-previous", "first", "self", "all", "neighbours")

# Keys that other configurations carry and that change the network; accepted only at these (plain) values.
_PLAIN_VALUES: dict[str, tuple] = {
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0, 0.0, None),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (False, None),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False, None),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1, 1.0, None),
    "resnet_skip_time_act": (False, None),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Keys without effect on the networks built here (the head count of an embedding that is refused above, ...).
_IGNORED = {"addition_embed_type_num_heads"}

_DOWN = {
    "CrossAttnDownBlock3D": True, "CrossAttnDownBlock2D": True, "DownBlock3D": False, "DownBlock2D": False,
}  # fmt: skip
_UP = {"CrossAttnUpBlock3D": True, "CrossAttnUpBlock2D": True, "UpBlock3D": False, "UpBlock2D": False}
_MID = ("UNetMidBlock3DCrossAttn", "UNetMidBlock2DCrossAttn")


@dataclass(frozen=True)
class UNetConfig:
    """Everything that shapes a VideoUNet, one entry per level where levels may differ.

    heads: number of attention heads per level (configurations call it `attention_head_dim`).
    attn1_frames: whose tokens are the keys of self-attention; see `blocks.kv_frames`.
    temporal_conv: every ResNet ends with a convolution over neighbouring frames; see `blocks.TemporalConv`.
    norm_over_frames: ResNet GroupNorm statistics over all frames of the window (Tune-A-Video) or per frame.
    """

    in_channels: int
    out_channels: int
    sample_size: int | tuple[int, int] | None
    channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    layers_per_block: int
    transformer_layers: int
    cross_attention_dim: int
    heads: tuple[int, ...]
    norm_groups: int
    norm_eps: float
    mid_scale: float
    linear_projection: bool
    upcast_attention: bool
    center_input: bool
    flip_sin_to_cos: bool
    freq_shift: float
    norm_over_frames: bool
    attn1_frames: str
    temporal_conv: bool

    @property
    def time_dim(self) -> int:
        return self.channels[0] * 4

    def to_dict(self) -> dict:
        """The configuration under the published key names, as written to unet/config.json."""
        return {
            "_class_name": "VideoUNet",
            "sample_size": self.sample_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "center_input_sample": self.center_input,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "down_block_types": [("CrossAttn" if a else "") + "DownBlock3D" for a in self.down_attention],
            "mid_block_type": _MID[0],
            "up_block_types": [("CrossAttn" if a else "") + "UpBlock3D" for a in self.up_attention],
            "block_out_channels": list(self.channels),
            "layers_per_block": self.layers_per_block,
            "transformer_layers_per_block": self.transformer_layers,
            "mid_block_scale_factor": self.mid_scale,
            "act_fn": "silu",
            "norm_num_groups": self.norm_groups,
            "norm_eps": self.norm_eps,
            "cross_attention_dim": self.cross_attention_dim,
            "attention_head_dim": list(self.heads),
            "use_linear_projection": self.linear_projection,
            "upcast_attention": self.upcast_attention,
            "norm_over_frames": self.norm_over_frames,
            "attn1_frames": self.attn1_frames,
            "temporal_conv": self.temporal_conv,
        }

    def as_dict(self) -> dict:
        return asdict(self)


def _uniform(key: str, value, levels: int) -> int:
    """An int, or a list of equal ints (diffusers allows one per level), as an int."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(not isinstance(v, int) for v in values) or len(set(values)) != 1 or len(values) not in (1, levels):
        raise ValueError(f"config {key}: expected one integer for all {levels} levels, got {value!r}")
    return values[0]


def read_config(config: dict) -> UNetConfig:
    """Check a configuration dictionary and return what it describes.

    config: keys of Tune-A-Video's UNet3DConditionModel or diffusers' UNet2DConditionModel (2D block names are
        read as their inflated forms), plus ours: `norm_over_frames` (default true), `attn1_frames`
        (default "first-previous") and `temporal_conv` (default false). Missing keys take the Stable Diffusion
        1.x defaults of those classes.

    Raises: ValueError, one line, naming the first key that asks for something not implemented.
    """
    c = {k: v for k, v in dict(config).items() if not k.startswith("_") and k not in _IGNORED}
    for key, plain in _PLAIN_VALUES.items():
        if key not in c:
            continue
        value = c.pop(key)
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(v not in plain for v in values):
            raise ValueError(f"config {key}: only {plain[0]!r} is implemented, got {value!r}")

    channels = tuple(c.pop("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(channels)
    down = c.pop("down_block_types", ["CrossAttnDownBlock3D"] * (levels - 1) + ["DownBlock3D"])
    up = c.pop("up_block_types", ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * (levels - 1))
    mid = c.pop("mid_block_type", _MID[0])
    for key, names, known in (("down_block_types", down, _DOWN), ("up_block_types", up, _UP)):
        if len(names) != levels:
            raise ValueError(
                f"config {key}: expected {levels} names (one per block_out_channels), got {len(names)}"
            )
        for name in names:
            if name not in known:
                raise ValueError(f"config {key}: expected one of {sorted(known)}, got {name!r}")
    if mid not in _MID:
        raise ValueError(f"config mid_block_type: expected one of {list(_MID)}, got {mid!r}")
    act = c.pop("act_fn", "silu")
    if act not in ("silu", "swish"):
        raise ValueError(f"config act_fn: only 'silu' is implemented, got {act!r}")

    heads = c.pop("attention_head_dim", 8)
    heads = (heads,) * levels if isinstance(heads, int) else tuple(heads)
    if len(heads) != levels:
        raise ValueError(f"config attention_head_dim: expected {levels} head counts, got {list(heads)}")
    groups = c.pop("norm_num_groups", 32)
    for width, h in zip(channels, heads, strict=True):
        if width % h:
            raise ValueError(f"config attention_head_dim: {h} heads do not divide {width} channels")
        if width % groups:
            raise ValueError(f"config norm_num_groups: {groups} groups do not divide {width} channels")
    attn1 = c.pop("attn1_frames", "first-previous")
    if attn1 not in ATTN1_FRAMES:
        raise ValueError(f"config attn1_frames: expected one of {list(ATTN1_FRAMES)}, got {attn1!r}")
    sample_size = c.pop("sample_size", None)

    result = UNetConfig(
        in_channels=c.pop("in_channels", 4),
        out_channels=c.pop("out_channels", 4),
        sample_size=tuple(sample_size) if isinstance(sample_size, list) else sample_size,
        channels=channels,
        down_attention=tuple(_DOWN[n] for n in down),
        up_attention=tuple(_UP[n] for n in up),
        layers_per_block=_uniform("layers_per_block", c.pop("layers_per_block", 2), levels),
        transformer_layers=_uniform(
            "transformer_layers_per_block", c.pop("transformer_layers_per_block", 1), levels
        ),
        cross_attention_dim=_uniform("cross_attention_dim", c.pop("cross_attention_dim", 1280), levels),
        heads=heads,
        norm_groups=groups,
        norm_eps=c.pop("norm_eps", 1e-5),
        mid_scale=c.pop("mid_block_scale_factor", 1),
        linear_projection=bool(c.pop("use_linear_projection", False)),
        upcast_attention=bool(c.pop("upcast_attention", False)),
        center_input=bool(c.pop("center_input_sample", False)),
        flip_sin_to_cos=bool(c.pop("flip_sin_to_cos", True)),
        freq_shift=c.pop("freq_shift", 0),
        norm_over_frames=bool(c.pop("norm_over_frames", True)),
        attn1_frames=attn1,
        temporal_conv=bool(c.pop("temporal_conv", False)),
    )
    for key, value in c.items():
        if value not in (None, False):
            raise ValueError(f"config {key}: this key is not implemented, got {value!r}")
    return result
