"""tune: what comes back, what is written, which weights move, and bad input before any work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vidsmooth_fast as vsf
from python_tests.tiny import tiny_model
from python_tests.training.clips import sliding
from vidsmooth_fast.training.data import Dataset, Pair, clip_items, read_clip
from vidsmooth_fast.training.noising import Noising
from vidsmooth_fast.training.tuner import COMBINED, tune
from vidsmooth_fast.video import Video

QUICK = dict(steps=2, lr=1e-2, progress=False)


@pytest.fixture(scope="module")
def flat_dir(tmp_path_factory):
    """A diffusers directory with a 2D network, as Stable Diffusion comes."""
    path = tmp_path_factory.mktemp("flat") / "flat"
    tiny_model(path)
    unet = path / "unet"
    weights = load_file(unet / "diffusion_pytorch_model.safetensors")
    from safetensors.torch import save_file

    save_file(
        {k: v for k, v in weights.items() if "_temp" not in k}, unet / "diffusion_pytorch_model.safetensors"
    )
    (unet / "config.json").write_text((path / "unet_2d" / "config.json").read_text())
    return path


@pytest.fixture(scope="module")
def tuned(flat_dir, tmp_path_factory):
    """(model, directory, losses) of a short run from 2D weights, with a validation sample."""
    out, seen = tmp_path_factory.mktemp("tuned") / "model", []
    model = tune(
        flat_dir, sliding(6), "a red car", frames=5, output=out, validation_prompts=["a blue boat"], validation_every=2,
        validation_options={"steps": 2}, callback=lambda *values: seen.append(values), dtype="float32", **QUICK,
    )  # fmt: skip
    return model, out, seen


def test_the_result_remembers_its_clip(tuned):
    model, out, seen = tuned
    assert [(step, steps) for step, steps, _ in seen] == [(1, 2), (2, 2)]
    assert set(seen[0][2]) == {"loss", "loss/plain", "loss/inr"}
    assert model.tuning["prompt"] == "a red car" and model.tuning["settings"]["loss"] == {
        "plain": 1.0,
        "inr": 2.0,
    }
    assert model.tuning["clip"]["frames"] == 5 and model.tuning["clip"]["fps"] == "8"
    again = vsf.load(out, dtype="float32")
    assert again.tuning == model.tuning
    ours, theirs = model.unet.state_dict(), again.unet.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    video = vsf.fast_sample(
        out, "a blue boat", 6, steps=2, window=4, stride=2, dtype="float32", progress=False
    )
    assert len(video) == 6


def test_fresh_inflation_is_trained_as_tune_a_video_does(tuned, flat_dir):
    """Statistics over all frames, published parameters only; an already tuned network keeps its own statistics."""
    model, _, _ = tuned
    before = vsf.load(flat_dir, dtype="float32")
    assert model.unet.norm_over_frames and not before.unet.norm_over_frames
    old, new = before.unet.state_dict(), model.unet.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and all(any(p in n for p in ("attn1.to_q", "attn2.to_q", "attn_temp")) for n in moved)
    assert any("down_blocks" in n for n in moved) and any("attn_temp.to_out" in n for n in moved)
    assert not tune(tiny_model(norm_over_frames=False), sliding(), "a car", **QUICK).unet.norm_over_frames


def test_curves_samples_and_checkpoint_lie_beside(tuned):
    _, out, seen = tuned
    run = out.with_name("model.run")
    names = {p.name for p in run.iterdir()}
    assert {"losses.jsonl", "losses.png", "tensorboard", "samples-000002.mp4", "step-000002"} <= names
    rows = [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [values["loss"] for _, _, values in seen]
    grid = Video.open(run / "samples-000002.mp4")
    assert len(grid) == 5 and grid.size[1] > grid.size[0]
    assert not list(run.rglob("*.pt")) and not list(out.rglob("*.bin"))


@pytest.mark.slow
def test_two_processes_share_every_step(tmp_path):
    """torchrun: each process has its own noise, and the logged loss is that of both."""
    tiny_model(tmp_path / "tiny")
    sliding(4).save(tmp_path / "clip.mp4")
    script = tmp_path / "script.py"
    script.write_text(
        "import vidsmooth_fast as vsf\n"
        "if __name__ == '__main__':\n"
        "    vsf.tune('tiny', 'clip.mp4', 'a red car', loss='plain', steps=2, lr=1e-2, frames=4, device='cpu',\n"
        "             output='tuned', progress=False)\n"
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
    ]
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "tuned.run" / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]

    model = vsf.load(tmp_path / "tiny", dtype="float32")
    noising = Noising(model.scheduler_config, model.prediction_type)
    clip = read_clip(Video.open(tmp_path / "clip.mp4"), 4, model.default_size, pictures=False)
    data = Dataset(clip_items(model, clip, "a red car", None, pictures=False), noising, (0, 1000), 1, seed=0)
    losses = []
    for process in range(2):
        batch = data.batch(0, process)
        with torch.no_grad():
            error = model.unet(batch.noisy, batch.t, batch.text) - batch.target
        losses.append(float(error.square().mean()))
    assert losses[0] != losses[1] and rows[0]["loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    tuned = vsf.load(tmp_path / "tuned", dtype="float32").unet.state_dict()
    assert any(not torch.equal(value, tuned[name]) for name, value in model.unet.state_dict().items())


def test_published_names_and_configuration(tuned, golden):
    """Tune-A-Video's class builds itself from this configuration and finds every parameter under its name."""
    _, out, _ = tuned
    arrays, p = golden("tav_unet")
    config = json.loads((out / "unet" / "config.json").read_text())
    constructor = {
        "sample_size", "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos", "freq_shift",
        "down_block_types", "mid_block_type", "up_block_types", "block_out_channels", "layers_per_block",
        "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim", "attention_head_dim",
        "use_linear_projection", "upcast_attention",
    }  # fmt: skip
    assert constructor <= set(config) and constructor <= set(p["config"]) | {"sample_size"}
    theirs = {k.removeprefix("weights.") for k in arrays if k.startswith("weights.")}
    assert set(load_file(out / "unet" / "diffusion_pytorch_model.safetensors")) == theirs


def test_diffusers_reads_the_2d_part(tuned):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    model, out, _ = tuned
    flat, info = UNet2DConditionModel.from_pretrained(out, subfolder="unet_2d", output_loading_info=True)
    assert not info["missing_keys"] and all("_temp" in k for k in info["unexpected_keys"])
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 16)
    with torch.inference_mode():
        theirs = flat(x, 500, text).sample
        ours = model.unet(x[:, :, None], 500, text, skip_temporal=True)[:, :, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    pipe = StableDiffusionPipeline.from_pretrained(
        out, unet=flat, safety_checker=None, feature_extractor=None
    )
    picture = pipe("a red car", num_inference_steps=2, height=16, width=16, output_type="np").images
    assert picture.shape == (1, 16, 16, 3)
    assert (
        out / "unet_2d" / "diffusion_pytorch_model.safetensors"
    ).stat().st_nlink == 2  # one file, two names


@pytest.mark.parametrize(
    "trainable", ["tune-a-video", "temporal", "all", ["attn2.to_k", "up_blocks.*.ff.*"], 2]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_chosen_parameter_moves(trainable, recompute):
    from vidsmooth_fast.training.trainable import choose, merge

    model = tiny_model()
    names = list(choose(model.unet, trainable))
    merge(model.unet)
    options = dict(trainable=trainable, gradient_checkpointing=recompute, weight_decay=0.0, **QUICK)
    result = tune(model, sliding(), "a red car", **options)
    assert not any(p.requires_grad for p in result.unet.parameters())
    old, new = model.unet.state_dict(), result.unet.state_dict()
    assert old.keys() == new.keys()
    moved = {n for n in old if not torch.equal(old[n], new[n])}
    if trainable == 2:
        names = [n.replace(".parametrizations", "").rsplit(".0.", 1)[0] for n in names]
    assert moved == set(names)


def test_the_published_set_is_trained():
    """Queries of the attention over frames and of the text's, and all of temporal attention ([003] section 4.1)."""
    from vidsmooth_fast.training.trainable import choose

    model = tiny_model()
    parts = ("attn1.to_q.", "attn2.to_q.", "attn_temp.")
    published = {n for n, _ in model.unet.named_parameters() if any(f".{part}" in n for part in parts)}
    assert set(choose(model.unet, "tune-a-video")) == published
    assert all(any(f".{part}" in n for n in published) for part in parts)


def test_a_pair_goes_from_the_original_to_the_edit():
    """[002]: from the noised original frame to the edited one."""
    from vidsmooth_fast.training.data import pair_items

    model, frames = tiny_model(), np.stack(list(sliding()))
    edited = 255 - frames[2]
    (item,) = pair_items(model, frames, [Pair(2, edited, "a blue car")])
    torch.testing.assert_close(item.origin, model.encode_video([frames[2]]))
    torch.testing.assert_close(item.aim, model.encode_video([edited]))
    torch.testing.assert_close(item.text, model.encode_text(["a blue car"]))
    assert not torch.allclose(item.origin, item.aim)


def test_low_rank_updates_load_as_lora(tmp_path):
    base = tiny_model(tmp_path / "base")
    tuned = tune(
        tmp_path / "base",
        sliding(),
        "a red car",
        trainable=2,
        output=tmp_path / "out",
        dtype="float32",
        **QUICK,
    )
    again = vsf.load(tmp_path / "base", dtype="float32", lora=tmp_path / "out" / "lora.safetensors")
    for name, value in tuned.unet.state_dict().items():
        torch.testing.assert_close(again.unet.state_dict()[name], value, rtol=0, atol=1e-6)
    assert any(not torch.equal(v, base.unet.state_dict()[n]) for n, v in tuned.unet.state_dict().items())


def test_master_weights_are_full_precision(tmp_path):
    """A model loaded in half precision is tuned from its files' full weights, or says that they are rounded."""
    tiny_model(tmp_path / "base")
    half = vsf.load(tmp_path / "base", dtype="bfloat16")
    options = dict(dtype="float32", **QUICK)
    from_half, from_full = (
        tune(m, sliding(), "a red car", **options)
        for m in (half, vsf.load(tmp_path / "base", dtype="float32"))
    )
    ours, theirs = from_half.unet.state_dict(), from_full.unet.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert (
        half.dtype == torch.bfloat16 and tune(half, sliding(), "a red car", **QUICK).dtype == torch.bfloat16
    )
    with torch.no_grad():
        half.unet.conv_in.bias.add_(1)
    with pytest.warns(UserWarning, match="rounded to bfloat16"):
        tune(half, sliding(), "a red car", **QUICK)


def test_autocast_in_bf16_follows_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        losses[precision] = []
        tune(
            tiny_model(), sliding(), "a red car", precision=precision, steps=4, lr=1e-3, progress=False,
            callback=lambda step, steps, values, to=losses[precision]: to.append(values["loss"]),
        )  # fmt: skip
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2) and losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_tuning_lowers_the_loss(prediction):
    """Stable Diffusion 2.x's layout too: v-prediction, linear projections, heads per level, upcast attention."""
    second = dict(use_linear_projection=True, attention_head_dim=[2, 4], upcast_attention=True)
    model = tiny_model(prediction_type=prediction, **(second if prediction == "v_prediction" else {}))
    losses = []
    tuned = tune(
        model, sliding(3), "a red car", loss="plain", steps=24, lr=3e-3, trainable="all", progress=False,
        callback=lambda step, steps, values: losses.append(values["loss"]),
    )  # fmt: skip
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])
    video = vsf.fast_sample(tuned, "a red car", 3, steps=2, window=3, stride=3, progress=False)
    assert video.latents.isfinite().all()


def test_v_as_epsilon_is_what_blurs():
    """The same v-network, tuned and sampled as what it is, and as if it predicted noise ([001]'s trouble with 2.1)."""
    from vidsmooth_fast.spriteworld.captions import caption
    from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, Scene, render_clip

    def sharpness(pictures):
        grey = [p.astype(np.float32).mean(-1) for p in pictures]
        return float(np.mean([(g - cv2.GaussianBlur(g, (5, 5), 1.0)) ** 2 for g in grey]))

    scene = Scene("car", "red", "road", "cartoon", seed=HELD_OUT_SEED)
    clip = Video.from_frames(render_clip(scene, 2, truth=False).frames, fps=8).resized((64, 64))
    ours = vsf.load("sprite-world", dtype="float32")
    assert ours.prediction_type == "v_prediction"
    mistaken = vsf.VideoModel(
        ours.unet, ours.vae, ours.text_encoder, ours.tokenizer,
        {**ours.scheduler_config, "prediction_type": "epsilon"}, name="mistaken",
    )  # fmt: skip
    detail, error = [], []
    for model in (ours, mistaken):
        tuned = tune(
            model, clip, caption(scene), loss="plain", steps=3, lr=1e-4, size=(64, 64), progress=False
        )
        video = vsf.fast_sample(
            tuned, caption(scene), 2, source=clip, height=64, width=64, steps=8, guidance=1.0, window=2, stride=2,
            progress=False,
        )  # fmt: skip
        frames, wanted = np.stack(list(video)), np.stack(list(clip))
        detail.append(sharpness(frames) / sharpness(wanted))
        error.append(float(((frames.astype(np.float32) - wanted) ** 2).mean()))
    assert detail[0] > 2 * detail[1] and error[0] < error[1] / 4


def test_combined_dataset(monkeypatch):
    """Frames without text and an edited frame with it; late steps; sampled from the noised source."""
    clip = sliding(4)
    edited = 255 - clip[1]
    pairs = [Pair(1, edited, "a blue boat")]
    settings = COMBINED | QUICK | {"steps": 3}
    for pictures in (True, False):
        model = tiny_model()
        tuned = tune(model, clip, "", pairs=pairs, pictures=pictures, batch_size=2, **settings)
        old, new = model.unet.state_dict(), tuned.unet.state_dict()
        temporal = [n for n in old if "_temp" in n]
        assert any(not torch.equal(old[n], new[n]) for n in temporal) == (not pictures)
        assert tuned.tuning["settings"]["timesteps"] == [0, 500]
    video = vsf.fast_sample(
        tuned, "a blue boat", 4, source=clip, strength=0.5, steps=4, window=4, stride=4, progress=False
    )
    assert len(video) == 4


def test_pairs_start_from_the_noised_original():
    """x_t is the original's, and the target is the noise that would have made x_t of the edited frame."""
    from vidsmooth_fast.training.data import Dataset, Item
    from vidsmooth_fast.training.noising import Noising

    g = torch.Generator().manual_seed(0)
    origin, aim = (torch.randn(1, 4, 1, 3, 3, generator=g) for _ in range(2))
    for kind in ("epsilon", "v_prediction"):
        noising = Noising({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}, kind)
        data = Dataset([Item(origin, aim, torch.zeros(1, 2, 3), None, 1.0)], noising, (100, 500), 1, 0)
        for step in range(5):
            batch = data.batch(step)
            assert 100 <= int(batch.t) < 500
            noise = noising.implied_noise(batch.noisy, origin, batch.t)
            assert 0.3 < float(noise.std()) < 2.0
            torch.testing.assert_close(
                noising.clean(batch.target, batch.noisy, batch.t), aim, rtol=1e-3, atol=1e-4
            )
            again = data.batch(step)
            assert torch.equal(again.noisy, batch.noisy) and not torch.equal(
                data.batch(step, 1).noisy, batch.noisy
            )


def test_foreground_weighs_more():
    mask = np.zeros((4, 16, 16), bool)
    mask[:, 4:12, 4:12] = True
    seen = []
    tune(
        tiny_model(), sliding(), "a red car", loss="foreground", mask=mask, **QUICK,
        callback=lambda step, steps, values: seen.append(values),
    )  # fmt: skip
    first = seen[0]
    total = first["loss/plain"] + first["loss/foreground"] + 0.5 * first["loss/background"]
    assert first["loss"] == pytest.approx(total, rel=1e-5)


def test_the_given_model_stays(tmp_path):
    model = tiny_model()
    before = {n: p.clone() for n, p in model.unet.state_dict().items()}
    tune(model, sliding(), "a red car", trainable=2, **QUICK)
    assert all(torch.equal(p, before[n]) for n, p in model.unet.state_dict().items())
    assert list(model.unet.state_dict()) == list(before) and model.tuning is None


def flat(value: int, frames: int = 4) -> Video:
    return Video.from_frames([np.full((16, 16, 3), value, np.uint8)] * frames, fps=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "prompt: expected what the clip shows"),
        ({"prompt": None}, "prompt: expected what the clip shows"),
        ({"video": sliding(1)}, "video: expected at least 2 frames"),
        ({"video": flat(0)}, r"nothing is to be seen in these 4 frames, all values lie in 0\.\.0"),
        ({"loss": "sharp"}, "loss: expected one of"),
        ({"loss": "foreground"}, "mask: this loss needs"),
        ({"loss": "foreground", "mask": np.ones((4, 16, 16))}, "mask: everything is foreground"),
        ({"loss": "foreground", "mask": np.zeros((4, 16, 16))}, "mask: nothing is foreground"),
        ({"loss": "foreground", "mask": np.ones((2, 16, 16))}, r"mask: expected shape \(4, H, W\)"),
        ({"loss": {"smooth": 1.0}, "frames": 2}, "compare neighbouring frames and vanish for 2"),
        ({"loss": {"inr": 1.0}, "pictures": True}, "compare neighbouring frames and vanish for 1"),
        ({"steps": 0}, "steps: expected a whole number of at least 1"),
        ({"lr": float("nan")}, "lr: expected a number above 0, got nan"),
        ({"timesteps": (500, 500)}, "timesteps: expected"),
        ({"timesteps": (0, 2000)}, "timesteps: expected at most 1000"),
        ({"size": (15, 16)}, "size: expected"),
        ({"size": 128}, r"size: expected \(height, width\)"),
        ({"trainable": "attn3"}, "'attn3' fits none"),
        ({"trainable": 99}, "expected a rank of 1 to"),
        ({"trainable": None}, "trainable: expected a set's name, patterns or a rank"),
        ({"trainable": "temporal", "pictures": True}, "temporal layers only"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"lr_schedule": "wave"}, "lr_schedule: expected one of"),
        ({"validation_prompts": "a car"}, "validation_prompts: expected a list"),
        ({"validation_prompts": ["a car"]}, "validation_prompts: their samples need a folder"),
        ({"validation_options": {"nonsense": 1}}, "validation_options: fast_sample has no option nonsense"),
        ({"checkpoint_every": 0}, "checkpoint_every: expected"),
        ({"gradient_checkpointing": "often"}, "gradient_checkpointing: expected"),
        ({"pairs": [Pair(9, np.zeros((16, 16, 3), np.uint8), "a car")]}, r"pairs\[0\]: expected a frame in 0\.\.3"),
        ({"pairs": [Pair(0, np.zeros((16, 16, 3), np.uint8), "")]}, r"pairs\[0\]: expected a prompt"),
    ],
)  # fmt: skip
def test_bad_input(change, message):
    arguments = {"video": sliding(), "prompt": "a red car", **QUICK, **change}
    model, video, prompt = tiny_model(), arguments.pop("video"), arguments.pop("prompt")
    with pytest.raises(ValueError, match=message) as caught:
        tune(model, video, prompt, **arguments)
    assert "\n" not in str(caught.value)


def test_bad_output_is_refused_before_any_work(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="output: expected a new, empty or earlier model directory"):
        tune(tiny_model(), sliding(), "a red car", output=tmp_path / "photos", **QUICK)
    with pytest.raises(ValueError, match="resume: expected a folder"):
        tune(tiny_model(), sliding(), "a red car", resume=tmp_path / "photos" / "me.jpg", **QUICK)
    assert (tmp_path / "photos" / "me.jpg").read_bytes() == b"x"


def test_no_space_for_the_result(tmp_path, monkeypatch):
    """The run is not lost: its last checkpoint is named, and the same call only has to write."""

    def full(self, root):
        (root / "unet").mkdir(parents=True)
        (root / "unet" / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    options = dict(output=tmp_path / "out", dtype="float32", **QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(vsf.VideoModel, "_write", full)
        with pytest.raises(
            OSError, match="cannot write the tuned model .*No space left on device.*out.run holds"
        ):
            tune(tiny_model(), sliding(), "a red car", **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.run"]
    seen = []
    tune(tiny_model(), sliding(), "a red car", callback=lambda *values: seen.append(values), **options)
    assert not seen and vsf.load(tmp_path / "out").tuning["prompt"] == "a red car"


def test_other_predictions_are_refused():
    with pytest.raises(ValueError, match="epsilon or v_prediction, got 'sample'"):
        tune(tiny_model(prediction_type="sample"), sliding(), "a red car", **QUICK)


def test_the_network_is_tuned_on_the_device_it_is_on(monkeypatch):
    """A network on cuda:1 stays there; of several launched processes each takes its own GPU."""
    from vidsmooth_fast.training.run import accelerated
    from vidsmooth_fast.training.tuner import _own_gpu

    with accelerated(torch.device("cpu"), "fp32", unused=False) as accelerator:
        assert accelerator.prepare(torch.nn.Linear(2, 2, device="meta")).weight.is_meta
    assert _own_gpu(torch.device("cuda:1")) == torch.device("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _own_gpu(torch.device("cuda")) == _own_gpu(torch.device("cuda:0")) == torch.device("cuda:1")
    assert _own_gpu(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.slow
def test_two_processes_share_each_step(tmp_path):
    """Two launched CPU processes: one result, unlike that of one process, with twice the noise."""
    root = Path(__file__).parents[2]
    script = tmp_path / "launched.py"
    script.write_text(
        "import sys\n"
        "from python_tests.tiny import tiny_model\n"
        "from python_tests.training.clips import sliding\n"
        "from vidsmooth_fast.training.tuner import tune\n"
        "quick = dict(steps=2, lr=1e-2, progress=False)\n"
        f"tune(tiny_model(), sliding(), 'a red car', output={str(tmp_path / 'out')!r}, **quick)\n"
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    ran = subprocess.run(
        launch, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    together = vsf.load(tmp_path / "out", dtype="float32").unet.state_dict()
    alone = tune(tiny_model(), sliding(), "a red car", **QUICK).unet.state_dict()
    name = "mid_block.attentions.0.transformer_blocks.0.attn_temp.to_out.0.weight"
    assert not torch.equal(together[name], alone[name])
