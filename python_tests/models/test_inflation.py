"""Against diffusers: a freshly inflated network is the 2D network frame by frame; full sizes have its names."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.models.weights import build_unet, is_temporal

TINY = {
    "sample_size": 8,
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 12,
}
STYLES = {
    "sd1": {**TINY, "attention_head_dim": 4},
    "sd2": {**TINY, "attention_head_dim": [2, 4, 8], "use_linear_projection": True, "upcast_attention": True},
    "centred": {
        **TINY, "center_input_sample": True, "flip_sin_to_cos": False, "freq_shift": 1, "mid_block_scale_factor": 1.5,
    },
    "plain first": {
        **TINY,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "transformer_layers_per_block": 2,
    },
}  # fmt: skip


def both(style: str) -> tuple[UNet2DConditionModel, VideoUNet]:
    torch.manual_seed(0)
    flat = UNet2DConditionModel(**STYLES[style]).eval()
    config = {**flat.config, "_class_name": "UNet2DConditionModel", "attn1_frames": "self"}
    return flat, build_unet(config, flat.state_dict(), source="2D", dtype=torch.float32).eval()


def to_frames(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [(8, 8), (9, 6)])
@torch.inference_mode()
def test_fresh_inflation_equals_the_2d_network(style, size):
    flat, video = both(style)
    x, text = torch.randn(2, 4, 3, *size), torch.randn(2, 5, 12)
    ours = to_frames(video(x, 421, text))
    theirs = flat(to_frames(x), 421, text.repeat_interleave(3, 0)).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    skipped = to_frames(video(x, 421, text, skip_temporal=True))
    torch.testing.assert_close(skipped, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("style", ["sd1", "plain first"])
@torch.inference_mode()
def test_control_residuals_as_in_diffusers(style):
    flat, video = both(style)
    x, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 5, 12)
    sizes = [(16, 8)] + ([(16, 8)] * 2 + [(16, 4)] + [(32, 4)] * 2 + [(32, 2)] + [(32, 2)] * 2)
    if style == "plain first":
        sizes = [(16, 8), (16, 8), (16, 4), (32, 4), (32, 2), (32, 2)]
    down = tuple(torch.randn(2, c, s, s) for c, s in sizes)
    mid = torch.randn(2, 32, 2, 2)
    ours = to_frames(video(x, 3, text, down_residuals=down, mid_residual=mid))
    theirs = flat(
        to_frames(x), 3, text.repeat_interleave(2, 0),
        down_block_additional_residuals=down, mid_block_additional_residual=mid,
    ).sample  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("style", ["sd1", "plain first"])
@torch.inference_mode()
def test_adapter_residuals_as_in_diffusers(style):
    flat, video = both(style)
    x, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 5, 12)
    # an attention level takes it before its downsampler, a plain level after
    sizes = [(16, 8), (32, 4), (32, 2)] if style == "sd1" else [(16, 4), (32, 4), (32, 2)]
    adapters = [torch.randn(2, c, s, s) for c, s in sizes]
    ours = to_frames(video(x, 3, text, adapter_residuals=tuple(adapters)))
    theirs = flat(
        to_frames(x), 3, text.repeat_interleave(2, 0), down_intrablock_additional_residuals=list(adapters)
    ).sample  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


SD1 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD2 = {
    **SD1, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": False,
    "num_class_embeds": None, "only_cross_attention": False, "resnet_time_scale_shift": "default",
    "sample_size": 96, "upcast_attention": True, "use_linear_projection": True,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "count"), [(SD1, 859_520_964), (SD2, 865_910_724)], ids=["sd-1.4-1.5", "sd-2.x"]
)
def test_stable_diffusion_configurations(config, count):
    with torch.device("meta"):
        video = VideoUNet.from_config(config)
        flat = UNet2DConditionModel.from_config(config)
    shapes = {k: v.shape for k, v in video.state_dict().items() if not is_temporal(k)}
    assert shapes == {k: v.shape for k, v in flat.state_dict().items()}
    assert sum(v.numel() for v in shapes.values()) == count
    added = {k for k in video.state_dict() if is_temporal(k)}
    assert len(added) == 16 * 7  # 16 transformer blocks; to_q, to_k, to_v, to_out.0 (2), norm_temp (2)
    assert read_back(video) == shapes


def read_back(video: VideoUNet) -> dict:
    """The shapes of a network made from another's own configuration."""
    with torch.device("meta"):
        again = VideoUNet.from_config(video.config)
    return {k: v.shape for k, v in again.state_dict().items() if not is_temporal(k)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"num_class_embeds": 10}, "num_class_embeds"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"only_cross_attention": [True, True, True, False]}, "only_cross_attention"),
        ({"act_fn": "mish"}, "act_fn"),
        ({"conv_in_kernel": 5}, "conv_in_kernel"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "up_block_types"),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim"),
        ({"attention_head_dim": 7}, "attention_head_dim"),
        ({"norm_num_groups": 48}, "norm_num_groups"),
        ({"layers_per_block": [1, 2, 2, 2]}, "layers_per_block"),
        ({"attn1_frames": "last"}, "attn1_frames"),
        ({"use_motion_module": True}, "use_motion_module"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named) as error, torch.device("meta"):
        VideoUNet.from_config({**SD1, **change})
    assert "\n" not in str(error.value)
