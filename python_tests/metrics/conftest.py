"""Small networks with random weights, in the layouts of transformers and diffusers."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A transformers CLIP directory, written by the training script at toy size."""
    from vidsmooth_fast.spriteworld.clip import build, image_processor
    from vidsmooth_fast.spriteworld.text import build_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build(tokenizer, tiny=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor()(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory):
    """A diffusers AutoencoderKL directory: 4 channels, downsampling 2."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4,
        ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def networks(clip_folder, autoencoder_folder):
    """Arguments of `evaluate`, so that it is quick."""
    return {"clip": clip_folder, "autoencoder": autoencoder_folder, "flow": "dis"}
