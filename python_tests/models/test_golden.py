"""VideoUNet against the numbers of the published programs, fp32, absolute 1e-5."""

from __future__ import annotations

import pytest
import torch

from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.models.blocks import Pass, SparseCausalAttention, TransformerBlock, kv_frames

TOLERANCE = 1e-5


def weights(arrays: dict, prefix: str = "weights.") -> dict:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def close(ours: torch.Tensor, theirs: torch.Tensor, atol: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def tav(golden):
    arrays, parameters = golden("tav_unet")
    unet = VideoUNet.from_config(parameters["config"])
    unet.load_state_dict(weights(arrays), strict=True)
    return unet.eval(), arrays, parameters


@torch.inference_mode()
def test_tune_a_video_unet(tav):
    unet, a, parameters = tav
    assert sum(p.numel() for p in unet.parameters()) == parameters["n_params"]
    out = unet(a["input.sample"], int(a["input.timestep"]), a["input.encoder_hidden_states"])
    close(out, a["output.sample"])


@torch.inference_mode()
def test_one_timestep_per_sample(tav):
    unet, a, _ = tav
    t = a["input.timestep_per_sample"].long()
    close(
        unet(a["input.sample"], t, a["input.encoder_hidden_states"]), a["output.sample_per_sample_timestep"]
    )


def to_tokens(x: torch.Tensor, b: int) -> torch.Tensor:
    """(B*P, F, C) of the published temporal path -> our (B*F, P, C)."""
    return x.unflatten(0, (b, -1)).transpose(1, 2).flatten(0, 1)


@pytest.fixture(scope="module")
def block(golden):
    arrays, p = golden("tav_attention")
    block = TransformerBlock(p["dim"], p["heads"], p["cross_attention_dim"])
    block.load_state_dict(weights(arrays), strict=True)
    return block, arrays, p


@torch.inference_mode()
def test_sparse_causal_attention(block):
    block, a, p = block
    close(block.attn1(a["sc.input"], Pass(p["f"])), a["sc.output"])
    close(block.attn1(a["sc_f1.input"], Pass(1)), a["sc_f1.output"])


@torch.inference_mode()
def test_temporal_attention(block):
    block, a, p = block
    b = p["b"]
    close(block.attn_temp(to_tokens(a["temp.input"], b), Pass(p["f"])), to_tokens(a["temp.output"], b))


@torch.inference_mode()
def test_whole_block_and_its_stages(block):
    block, a, p = block
    ctx = Pass(p["f"], text=(block.attn2.project(a["block.encoder_hidden_states"]),))  # one text per frame
    x = a["block.input"]
    close(block.norm1(x), a["block.norm1_out"])
    close(block.attn1(block.norm1(x), ctx) + x, a["block.after_sparse_causal"])
    x = a["block.after_sparse_causal"]
    close(block.attn2(block.norm2(x), ctx) + x, a["block.after_cross"])
    x = a["block.before_temporal"]
    close(block.norm_temp(x), to_tokens(a["block.temporal_attn_in"], p["b"]))
    close(block.attn_temp(block.norm_temp(x), ctx), to_tokens(a["block.temporal_attn_out"], p["b"]))
    close(block(a["block.input"], ctx), a["block.output"])


@torch.inference_mode()
def test_text2video_zero_first_frame_attention(golden):
    a, p = golden("crossframe")
    attn = SparseCausalAttention(p["dim"], p["heads"])
    attn.load_state_dict(weights(a, "self.weights."))
    ctx = Pass(p["f"], attn1_frames="first")
    close(attn(a["self.input"], ctx), a["self.output"])


@pytest.mark.parametrize("kind", ["first", "all", "self"])
@torch.inference_mode()
def test_shortcuts_equal_the_general_operator(kind):
    """`first`, `all` and `self` skip the general operator; the result is the operator's."""
    from vidsmooth_fast.ops.sparse_causal_attention import sparse_causal_attention

    torch.manual_seed(0)
    frames, attn = 5, SparseCausalAttention(16, 4)
    x = torch.randn(2 * frames, 6, 16)
    general = sparse_causal_attention(
        attn.to_q(x), attn.to_k(x), attn.to_v(x), frames=frames, heads=4, kv_frames=kv_frames(kind, frames)
    )
    close(attn(x, Pass(frames, attn1_frames=kind)), attn.to_out[0](general), 1e-6)


def test_neighbour_frames_meet_in_the_middle():
    assert kv_frames("neighbours", 6).tolist() == [[3, 1], [3, 2], [3, 3], [3, 3], [3, 3], [3, 4]]
    assert kv_frames("first-previous", 3).tolist() == [[0, 0], [0, 0], [0, 1]]


@torch.inference_mode()
def test_gen_l_video_network(golden):
    """Gen-L-Video's network (keys from the middle frame and the neighbour towards it): its first co-denoising step."""
    a, p = golden("genlv_merge_glvunet_even")
    unet = VideoUNet.from_config({**p["config"], "attn1_frames": "neighbours"})
    # `id_embedding` numbers the clips when several are tuned together; it takes no part in this run
    unet.load_state_dict(
        {k: v for k, v in weights(a).items() if not k.startswith("id_embedding")}, strict=True
    )
    t, s = (int(v) for v in a["input.timesteps"][:2])
    x, text = a["input.latents"], torch.cat([a["input.uncond_text"], a["input.cond_text"]])
    total, count = torch.zeros_like(x), torch.zeros(1, 1, x.shape[2], 1, 1)
    for start, end in a["views"].long().tolist():
        empty, full = unet(x[:, :, start:end].expand(2, -1, -1, -1, -1), t, text).chunk(2)
        total[:, :, start:end] += empty + p["guidance_scale"] * (full - empty)
        count[:, :, start:end] += 1
    schedule = p["scheduler"]
    betas = (
        torch.linspace(schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5, 1000, dtype=torch.float64)
        ** 2
    )
    alpha = (1 - betas).cumprod(0)
    scale = (alpha[s] / alpha[t]).sqrt()
    stepped = scale * x + ((1 - alpha[s]).sqrt() - scale * (1 - alpha[t]).sqrt()) * total / count
    close(stepped.float(), a["gen.latents"][0], 1e-4)
