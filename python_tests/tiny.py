"""A whole model small enough for tests: random weights, a word tokenizer, a text encoder, an autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch

from vidsmooth_fast.models import VideoModel, VideoUNet

WORDS = ["a", "red", "blue", "car", "boat", "is", "driving", "on", "the", "snow", "sea", "man", "hiking", ","]


def tiny_tokenizer(max_length: int = 16):
    """A CLIP tokenizer that knows single characters and the words above."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    vocab = letters + [c + "</w>" for c in letters]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                vocab.append("".join(pair))
            pieces = ["".join(pair), *pieces[2:]]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocab))},
        merges=merges,
        model_max_length=max_length,
    )


def tiny_unet_config(cross_attention_dim: int = 16, **changes) -> dict:
    return {
        "sample_size": 8,
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": cross_attention_dim,
        **changes,
    }


def tiny_model(
    directory: str | Path | None = None,
    *,
    prediction_type: str = "epsilon",
    seed: int = 0,
    cross_attention_dim: int = 16,
    downsampling: int = 2,
    dtype: torch.dtype = torch.float32,
    **unet_changes,
) -> VideoModel:
    """A VideoModel with 8x8 latents and active temporal layers; saved to `directory` when one is given.

    downsampling: 2 or 4 (pixels per latent). unet_changes: further keys of the network's configuration.
    The same arguments give the same weights; the global random state is left as it was.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = VideoUNet.from_config(tiny_unet_config(cross_attention_dim, **unet_changes))
        for name, parameter in unet.named_parameters():
            if "attn_temp.to_out" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        levels = {2: 2, 4: 3}[downsampling]
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=[8, 16, 16][:levels],
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
        )
        tokenizer = tiny_tokenizer()
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=cross_attention_dim,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    model = VideoModel(unet.to(dtype), vae, encoder, tokenizer, scheduler, name="tiny")
    if directory is not None:
        model.path = model.save(directory)
    return model
