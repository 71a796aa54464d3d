"""The diffusion stages: pictures first (2D weights and text encoder), then clips (temporal layers).

v-prediction on Stable Diffusion's schedule: 1000 steps, scaled-linear betas 0.00085 … 0.012,
    x_t = a z + s e,   v = a e - s z,   a² = the cumulative product of 1 - beta,   s² = 1 - a².
Norm statistics are per frame, so that a frame means the same in a window of any length.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models.unet import VideoUNet
from .autoencoder import load_vae
from .captions import random_caption
from .dataset import clip_latents, object_masks
from .runner import Schedule, load_average, train
from .text import build_text_encoder, build_tokenizer, tokens

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
CHANNELS = (48, 96, 128)


def unet_config(channels: tuple[int, ...] = CHANNELS, width: int = 128, groups: int = 16) -> dict:
    return {
        "sample_size": 32, "in_channels": 4, "out_channels": 4, "block_out_channels": channels, "layers_per_block": 1,
        "down_block_types": ["DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"],
        "up_block_types": ["CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"],
        "cross_attention_dim": width, "attention_head_dim": [max(c // 32, 1) for c in channels],
        "norm_num_groups": groups, "norm_over_frames": False, "attn1_frames": "first-previous",
        "temporal_conv": True,
    }  # fmt: skip


class TextToVideo(nn.Module):
    """Text encoder and UNet, trained together. forward: noisy (B, F, 4, h, w), t (B,), ids (B, L) -> v, same shape."""

    def __init__(self, *, tiny: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = 32 if tiny else 128
        self.tokenizer = build_tokenizer(seed=seed)
        self.text_encoder = build_text_encoder(self.tokenizer, width=width, layers=1 if tiny else 2)
        self.unet = VideoUNet.from_config(unet_config((16, 32, 32), width, 8) if tiny else unet_config())

    @classmethod
    def of(cls, model) -> TextToVideo:
        """The networks of a loaded VideoModel, to be called as here."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.tokenizer, new.text_encoder, new.unet = model.tokenizer, model.text_encoder, model.unet
        return new.eval()

    def encode(self, texts: list[str]) -> Tensor:
        return self.text_encoder(tokens(self.tokenizer, texts))[0]

    def forward(self, x: Tensor, t: Tensor, texts: list[str], *, pictures: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            text = self.encode(texts)
            v = self.unet(x.transpose(1, 2), t, text, skip_temporal=pictures)
        return v.float().transpose(1, 2)


def alphas() -> tuple[Tensor, Tensor]:
    """a and s of x_t = a z + s e for t = 0 … 999."""
    beta = (
        torch.linspace(
            SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64
        )
        ** 2
    )
    bar = torch.cumprod(1 - beta, 0)
    return bar.sqrt().float(), (1 - bar).sqrt().float()


def loss_of(
    model: TextToVideo, data, shapes, pictures: bool, step: int, generator: torch.Generator
) -> Tensor:
    """Squared error of v, four times as heavy where the object is.

    The object fills a tenth of the picture and is what people look at. data: latents, scenes, object masks. shapes:
    (clips, frames) to draw from, each of the same number of frames in all. One caption in ten is empty (for guidance).
    Frames of a clip share t; their noises are independent.
    """
    z_all, scenes, masks = data
    rng = np.random.default_rng([step, 5])
    clips, frames = shapes[int(rng.integers(len(shapes)))]
    pick = rng.integers(len(scenes), size=clips)
    start = rng.integers(z_all.shape[1] - frames + 1, size=clips)
    z = torch.stack([z_all[i, s : s + frames] for i, s in zip(pick, start, strict=True)]).float()
    texts = ["" if rng.random() < 0.1 else random_caption(scenes[i], rng) for i in pick]
    # Stratified in t: less variance for the same number of pictures.
    u = (torch.arange(clips) + torch.rand(clips, generator=generator)) / clips
    t = (u * 1000).long().clamp(max=999)
    a, s = (c[t][:, None, None, None, None] for c in alphas())
    noise = torch.randn(z.shape, generator=generator)
    v = model(a * z + s * noise, t, texts, pictures=pictures)
    heavy = 1 + 3 * torch.stack([masks[i, f : f + frames] for i, f in zip(pick, start, strict=True)]).float()
    return (heavy[:, :, None] * (v - (a * noise - s * z)).pow(2)).mean()


@torch.inference_mode()
def sample(
    model: TextToVideo, texts: list[str], *, frames: int = 1, steps: int = 25, guidance: float = 4.0, seed: int = 0,
    size: int = 32,
) -> Tensor:  # fmt: skip
    """DDIM with guidance -> scaled latents (n, frames, 4, size, size). For looking at training, not for users."""
    a, s = alphas()
    times = torch.linspace(999, 0, steps + 1).round().long()
    x = torch.randn(len(texts), frames, 4, size, size, generator=torch.Generator().manual_seed(seed))
    both = texts + [""] * len(texts)
    for now, after in zip(times[:-1], times[1:], strict=True):
        v, plain = model(torch.cat([x, x]), now.repeat(len(both)), both, pictures=frames == 1).chunk(2)
        v = plain + guidance * (v - plain)
        clean, noise = a[now] * x - s[now] * v, s[now] * x + a[now] * v
        x = a[after] * clean + s[after] * noise
    return clean


def train_images(
    out: Path, *, steps: int, minutes: float, seed: int = 0, batch: int = 16, scenes: int = 5000, tiny: bool = False,
    lr: float = 1.2e-3, log=print,
) -> None:  # fmt: skip
    """Text encoder and 2D weights, from single frames and from pairs of frames (whose keys are another frame's)."""
    vae = load_vae(out)
    scenes, batch, size = (6, 2, 32) if tiny else (scenes, batch, 128)
    data = clip_latents(vae, out / "latents", scenes, 2, seed=seed, size=size, log=log)
    data = (*data, object_masks(scenes, 2, seed=seed, size=size // 4))
    model = TextToVideo(tiny=tiny, seed=seed)
    temporal = [p for n, p in model.named_parameters() if "_temp" in n]
    rest = [p for n, p in model.named_parameters() if "_temp" not in n]
    for p in temporal:
        p.requires_grad_(False)
    schedule = Schedule(steps, lr=lr, warmup=min(150, steps), ema=0.998)
    shapes = ((batch, 1), (batch, 1), (batch // 2, 2))
    train(
        model, partial(loss_of, model, data, shapes, True), schedule, out / "unet.pt", seed=seed, minutes=minutes,
        groups=[{"params": rest, "scale": 1.0}], log=log,
    )  # fmt: skip


def train_clips(
    out: Path, *, steps: int, minutes: float, seed: int = 0, clips: int = 1500, frames: int = 16, tiny: bool = False,
    lr: float = 6e-4, log=print,
) -> None:  # fmt: skip
    """Temporal layers at the full rate, everything else at a quarter of it, from clips of 8 and 16 frames.

    One batch in three is of single frames, so that many captions stay in view and one frame alone still works.
    """
    vae = load_vae(out)
    clips, frames, size = (2, 4, 32) if tiny else (clips, frames, 128)
    data = clip_latents(vae, out / "latents", clips, frames, seed=seed + 1, size=size, part=20, log=log)
    data = (*data, object_masks(clips, frames, seed=seed + 1, size=size // 4))
    model = TextToVideo(tiny=tiny, seed=seed)
    load_average(model, out / "unet.pt")
    temporal = [p for n, p in model.named_parameters() if "_temp" in n]
    rest = [p for n, p in model.named_parameters() if "_temp" not in n]
    schedule = Schedule(steps, lr=lr, warmup=min(50, steps), ema=0.995)
    shapes = ((1, frames), (2, frames // 2), (frames, 1))
    train(
        model, partial(loss_of, model, data, shapes, False), schedule, out / "temporal.pt", seed=seed + 1,
        minutes=minutes, groups=[{"params": temporal, "scale": 1.0}, {"params": rest, "scale": 0.25}], log=log,
    )  # fmt: skip


def trained(out: Path, *, tiny: bool = False) -> TextToVideo:
    """The furthest trained model in `out` (clips if there, else pictures), with its moving average."""
    model = TextToVideo(tiny=tiny)
    checkpoint = out / "temporal.pt"
    load_average(model, checkpoint if checkpoint.exists() else out / "unet.pt")
    return model.eval()
