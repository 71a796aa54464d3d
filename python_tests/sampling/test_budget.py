"""The estimate of memory against what a network call really holds, tensor by tensor."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from python_tests.tiny import tiny_model
from vidsmooth_fast.models.unet import VideoUNet
from vidsmooth_fast.sampling import budget
from vidsmooth_fast.sampling.job import Job
from vidsmooth_fast.sampling.options import Options

STABLE_DIFFUSION = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
    "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,
}
SMALL = {**STABLE_DIFFUSION, "block_out_channels": [128, 256, 256], "cross_attention_dim": 256}
SMALL |= {"down_block_types": ["CrossAttnDownBlock3D"] * 2 + ["DownBlock3D"]}
SMALL |= {"up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 2}
SPRITES = {**SMALL, "block_out_channels": [48, 96, 128], "layers_per_block": 1, "cross_attention_dim": 128}
SPRITES |= {"down_block_types": ["DownBlock3D"] + ["CrossAttnDownBlock3D"] * 2, "temporal_conv": True}
SPRITES |= {"up_block_types": ["CrossAttnUpBlock3D"] * 2 + ["UpBlock3D"], "norm_num_groups": 16}


class Held(TorchDispatchMode):
    """The most bytes that tensors made inside hold at once."""

    def __init__(self, known):
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and (key := t.untyped_storage()._cdata) not in self.known:
                self.alive[key] = StorageWeakRef(t.untyped_storage()), t.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def held_by_a_call(config, device, dtype, windows, branches, frames, size):
    with torch.device(device):
        unet = VideoUNet.from_config(config).to(dtype).eval()
        x = torch.zeros(windows, 4, frames, size, size, dtype=dtype)
        text = torch.zeros(windows * branches, 8, config["cross_attention_dim"], dtype=dtype)
    with torch.inference_mode():
        text, time = unet.project_text(text), unet.embed_time(5)
        known = [x, *unet.parameters(), *time.projections, *(t for pair in text.pairs for t in pair)]
        with Held(known) as held:
            unet(x, time, text, branches=branches)
    return held.peak, unet.config


@pytest.mark.parametrize(
    ("config", "dtype", "windows", "branches", "frames", "size"),
    [
        (STABLE_DIFFUSION, torch.float16, 1, 2, 16, 64),
        (STABLE_DIFFUSION, torch.float16, 3, 1, 8, 32),
        (SMALL, torch.bfloat16, 1, 2, 16, 32),
        (SPRITES, torch.float32, 1, 1, 64, 32),
    ],
)
def test_network_on_a_gpu(config, dtype, windows, branches, frames, size):
    peak, config = held_by_a_call(config, "meta", dtype, windows, branches, frames, size)
    estimate = budget.network_bytes(config, dtype, windows * branches, frames, size, size, on_cpu=False)
    assert estimate == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize("config", [SMALL, SPRITES])
def test_network_on_a_cpu(config, monkeypatch):
    """There the feed-forward goes through the tokens in pieces; the heap's share is another matter."""
    monkeypatch.setattr(budget, "HEAP", 1)
    peak, config = held_by_a_call(config, "cpu", torch.float32, 1, 2, 4, 32)
    assert budget.network_bytes(config, torch.float32, 2, 4, 32, 32) == pytest.approx(peak, rel=0.25)


def test_autoencoder(monkeypatch):
    monkeypatch.setattr(budget, "HEAP", 1)
    vae = tiny_model(downsampling=4).vae
    z = torch.zeros(3, 4, 16, 16)
    with torch.inference_mode(), Held([z, *vae.parameters()]) as held:
        vae.decode(z)
    estimate = budget.autoencoder_bytes(vae.config, torch.float32, 3, 64, 64)
    assert estimate == pytest.approx(held.peak, rel=0.4), "small maps: the pictures count"


def test_large_blocks_do_not_come_from_the_heap():
    assert budget.block_bytes(budget.HEAP_BLOCK, on_cpu=True) == budget.HEAP_BLOCK
    assert budget.block_bytes(1000, on_cpu=True) == 1000 * budget.HEAP
    assert budget.block_bytes(1000, on_cpu=False) == 1000


def test_memory_grows_by_the_hosts_latents_alone():
    """Of 16 times as many frames only latents and pictures know."""
    model = tiny_model()

    def job(frames, **kw):
        options = Options(frames=frames, init="shared").for_model(model, has_source=False, has_latents=False)
        return Job(model, options, (2,), **kw)

    short, long = job(1000), job(16_000)
    one = short._needs.segment(short.windows, 2, 2)
    assert long._needs.segment(long.windows, 2, 2) == one
    assert long._needs.latents == 16 * short._needs.latents
    assert job(1000, keeps_frames=False)._needs.pictures == 0
    assert short._needs.pictures == 1000 * 16 * 16 * 3


def test_on_a_gpu_the_hosts_memory_is_said_too():
    model = tiny_model()
    options = Options(frames=8, init="shared").for_model(model, has_source=False, has_latents=False)
    job = Job(model, options, (2,))
    assert "of memory" in job.describe(2) and "on the host" not in job.describe(2)
    on_cpu, job._on_gpu = job._fixed(2, 2), True
    assert "of memory on the GPU and " in job.describe(2) and "on the host" in job.describe(2)
    assert job._fixed(2, 2) == on_cpu - job._needs.latents, "the latents are the host's"


def test_a_call_on_a_gpu_has_no_map_that_needs_64_bits():
    """Stable Diffusion at 512 x 512: 16 frames of 960 channels on 64 x 64, before the last up block's first ResNet."""
    pairs = budget.most_pairs(STABLE_DIFFUSION, 16, 64, 64)
    assert pairs == 34 and pairs * 16 * 960 * 64 * 64 < 2**31 <= (pairs + 1) * 16 * 960 * 64 * 64
    assert budget.most_pairs(STABLE_DIFFUSION, 4096, 64, 64) == 1
