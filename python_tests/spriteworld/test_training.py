"""The training script at toy size: every stage runs, continues to the same weights after a kill, and packages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from vidsmooth_fast.spriteworld.captions import random_caption
from vidsmooth_fast.spriteworld.dataset import _drawing, _mask, object_masks
from vidsmooth_fast.spriteworld.diffusion import TextToVideo, alphas, train_clips
from vidsmooth_fast.spriteworld.images import crops, dead_leaves
from vidsmooth_fast.spriteworld.package import LIMIT, weight_bytes
from vidsmooth_fast.spriteworld.render import random_scene
from vidsmooth_fast.spriteworld.runner import Schedule, train
from vidsmooth_fast.spriteworld.text import LENGTH, build_tokenizer, tokens
from vidsmooth_fast.spriteworld.train import main

EMBEDDED = Path(__file__).parents[2] / "vidsmooth_fast" / "models" / "embedded" / "sprite-world"
TINY = ["--tiny", "--workers", "1", "--steps", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which every stage has run two steps, packaged."""
    out = tmp_path_factory.mktemp("run")
    threads = torch.get_num_threads()
    for stage in ("vae", "unet", "temporal", "decoder", "sharpen", "package"):
        main([stage, "--out", str(out), *TINY])
    torch.set_num_threads(threads)
    return out


def test_every_stage_runs_and_loads_with_the_public_classes(trained):
    from transformers import CLIPTextModel, CLIPTokenizer

    root = trained / "sprite-world"
    vae = AutoencoderKL.from_pretrained(root / "vae", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(root / "text_encoder", local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
    assert vae.config.scaling_factor > 0
    width = json.loads((root / "unet" / "config.json").read_text())["cross_attention_dim"]
    assert encoder(tokens(tokenizer, ["a red car"])).last_hidden_state.shape == (1, LENGTH, width)


def test_temporal_layers_learn_only_in_their_stage(trained):
    pictures, clips = (
        torch.load(trained / f"{s}.pt", weights_only=True)["model"] for s in ("unet", "temporal")
    )
    out = [k for k in pictures if "attn_temp.to_out.0.weight" in k]
    assert out and all((pictures[k] == 0).all() for k in out)
    assert any((clips[k] != 0).any() for k in out)


def test_sharpening_changes_the_decoder_alone(trained):
    before, after = (
        torch.load(trained / f"{stage}.pt", weights_only=True)["model"] for stage in ("decoder", "sharpen")
    )
    after = {k.removeprefix("vae."): v for k, v in after.items() if k.startswith("vae.")}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(k.startswith(("decoder.", "post_quant_conv.")) for k in changed)
    packaged = AutoencoderKL.from_pretrained(trained / "sprite-world" / "vae", local_files_only=True)
    mean = torch.load(trained / "sharpen.pt", weights_only=True)["mean"]
    for name, value in packaged.state_dict().items():
        assert torch.equal(value.float(), mean[f"vae.{name}"].half().float()), name


class Interrupted(Exception):
    pass


def test_a_stopped_run_continues_to_the_same_weights(tmp_path):
    def fresh():
        torch.manual_seed(0)
        return nn.Linear(4, 4)

    def run(model, folder, *, stop_at=None):
        def loss(step, generator):
            if step == stop_at:
                raise Interrupted
            x = torch.randn(8, 4, generator=generator)
            return (model(x) - x.flip(1)).pow(2).mean()

        folder.mkdir(exist_ok=True)
        train(
            model, loss, Schedule(20, lr=1e-2, warmup=3), folder / "m.pt", save_every=0, log=lambda line: None
        )

    whole, part = fresh(), fresh()
    run(whole, tmp_path / "a")
    with pytest.raises(Interrupted):
        run(part, tmp_path / "b", stop_at=11)
    again = fresh()
    run(again, tmp_path / "b")
    assert torch.equal(whole.weight, again.weight)
    a, b = (torch.load(tmp_path / f / "m.pt", weights_only=True)["mean"] for f in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_a_killed_stage_continues_to_the_same_weights(tmp_path):
    """The real script, killed without warning, then started again."""

    def command(out):
        arguments = ["vae", "--out", str(out), "--tiny", "--workers", "1", "--steps", "12"]
        return [sys.executable, "-m", "vidsmooth_fast.spriteworld.train", *arguments]

    subprocess.run(command(tmp_path / "a"), check=True, stdout=subprocess.DEVNULL)
    first = [*command(tmp_path / "b"), "--minutes", "0"]
    subprocess.run(first, check=True, stdout=subprocess.DEVNULL)  # a checkpoint at step 0
    running = subprocess.Popen(command(tmp_path / "b"), stdout=subprocess.DEVNULL)
    time.sleep(6)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    subprocess.run(command(tmp_path / "b"), check=True, stdout=subprocess.DEVNULL)
    a, b = (torch.load(tmp_path / f / "vae.pt", weights_only=True)["model"] for f in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_tokenizer_takes_any_words():
    tokenizer = build_tokenizer()
    rng = np.random.default_rng(0)
    longest = max(len(tokenizer(random_caption(random_scene(rng), rng)).input_ids) for _ in range(200))
    assert longest <= LENGTH
    for text in ("a man is hiking", "Ein Käse über 北京 🚀", "zzz-qqq!?"):
        ids = tokenizer(text).input_ids
        assert len(ids) > 3 and ids.count(tokenizer.unk_token_id) == 1  # the end token only
    assert tokens(tokenizer, ["", "x " * 99]).shape == (2, LENGTH)


def test_schedule_is_stable_diffusions():
    from diffusers import DDIMScheduler

    from vidsmooth_fast.spriteworld.diffusion import SCHEDULER

    theirs = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod
    torch.testing.assert_close(alphas()[0] ** 2, theirs, atol=1e-6, rtol=1e-5)


def test_synthetic_pictures_are_seeded_and_crops_have_their_size():
    a, b = (dead_leaves(np.random.default_rng(3), 64) for _ in range(2))
    assert np.array_equal(a, b) and a.std() > 5
    assert crops(a[None], 5, 32, np.random.default_rng(0)).shape == (5, 32, 32, 3)


def test_missing_stage_is_named(tmp_path):
    with pytest.raises(ValueError, match="expected a trained autoencoder"):
        main(["unet", "--out", str(tmp_path), *TINY])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["unet", "--device", "cuda"], "no CUDA device"),
        (["vae", "--scenes", "3"], "stages unet and temporal"),
    ],
)
def test_what_cannot_be_trained_so_is_said_in_a_line(tmp_path, monkeypatch, arguments, line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=line):
        main([*arguments, "--out", str(tmp_path), *TINY])


def test_a_clip_longer_than_the_batch_is_refused(trained):
    with pytest.raises(ValueError, match="multiple of the 16 frames"):
        train_clips(trained, steps=1, minutes=0, batch=24)


def test_all_cores_draw_what_one_draws():
    """As for a GPU, which leaves the cores free."""
    mask = partial(_mask, 3, 2, 16)
    with _drawing(torch.device("cuda")) as over:
        drawn = np.stack(list(over(mask, range(5))))
    assert drawn.any() and np.array_equal(
        drawn, object_masks(5, 2, seed=3, size=16, device=torch.device("cpu"))
    )


def test_networks_size():
    model = TextToVideo()
    size = 2 * sum(p.numel() for p in model.parameters())
    assert size < LIMIT - 2_000_000  # the rest is the autoencoder


def test_embedded_weights_are_small_and_load():
    import vidsmooth_fast

    assert weight_bytes(EMBEDDED) <= LIMIT
    model = vidsmooth_fast.load("sprite-world", device="cpu", dtype="float32")
    assert model.default_size == (128, 128) and model.downsampling == 4 and model.latent_channels == 4
    assert model.encode_text(["a red car is driving on the snow"]).shape[1:] == (LENGTH, 128)
