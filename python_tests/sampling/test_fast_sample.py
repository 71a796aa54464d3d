"""fast_sample as its users call it: the same result however it was computed, and refusals before any work."""

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from python_tests.tiny import tiny_model
from vidsmooth_fast import Control, InversionBlend, NoiseConstraint, Video, fast_sample, invert
from vidsmooth_fast.sampling import budget
from vidsmooth_fast.sampling.latents import back_and_forth
from vidsmooth_fast.sampling.windowed import WindowedPredictor
from vidsmooth_fast.video import Sound

QUICK = dict(steps=3, window=4, stride=2, guidance=2.0, progress=False)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def clip():
    """Seven frames of a bright square that moves over a gradient."""
    frames = []
    for i in range(7):
        frame = np.tile(np.linspace(30, 200, 16, dtype=np.uint8)[None, :, None], (16, 1, 3))
        frame[4:10, i : i + 6] = (250, 60, 60)
        frames.append(frame)
    return Video.from_frames(frames, fps=12)


def sample(model, prompt="a red car", frames=7, **options):
    return fast_sample(model, prompt, frames, **{**QUICK, **options})


def test_returns_a_video_with_latents_and_settings(model):
    video = sample(model, frames=7)
    assert len(video) == 7 and video.size == (16, 16)
    assert video.latents.shape == (1, 4, 7, 8, 8) and video.latents.isfinite().all()
    settings = video.metadata["vidsmooth_fast"]
    assert settings["frames"] == 7 and settings["prompt"] == "a red car" and settings["init"] == "freenoise"


def test_one_frame_and_shorter_than_a_window(model):
    assert len(sample(model, frames=1)) == 1
    assert len(sample(model, frames=3)) == 3


@pytest.mark.parametrize("merge", ["latent", "attention"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "euler", "ddpm"])
def test_schedulers_and_merges(model, merge, scheduler):
    video = sample(model, merge=merge, scheduler=scheduler)
    assert video.latents.isfinite().all()


def test_merges_agree_when_one_window_holds_the_video(model):
    a, b = (sample(model, frames=6, window=6, stride=6, merge=m).latents for m in ("latent", "attention"))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_batch", [1, 2, 5])
def test_result_does_not_depend_on_batching(model, max_batch):
    a, b = (sample(model, max_batch=m).latents for m in ("auto", max_batch))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"smooth": NoiseConstraint(0.2), "eta": 0.5},
        {"loop": True, "scheduler": "dpmpp_2m"},
        {"with_source": True, "smooth": NoiseConstraint(0.2, "source"), "blend": InversionBlend(0.3)},
        {"prompt": ["a red car", "a blue boat"], "speed": "fast", "steps": 4},
    ],
    ids=["stochastic", "loop", "source", "reuse"],
)
def test_result_does_not_depend_on_where_the_video_is_cut(model, clip, monkeypatch, options):
    """Bit for bit, with the real network: the same windows share its calls."""
    options = {"prompt": "a red car", **options}
    if options.pop("with_source", False):
        options["source"] = clip
    whole = sample(model, frames=18, **options).latents
    cut, pieces = partial(WindowedPredictor, segment_frames=8), []
    monkeypatch.setattr(
        "vidsmooth_fast.sampling.job.WindowedPredictor",
        lambda *a, **k: (pieces.append(cut(*a, **k)), pieces[-1])[1],
    )
    assert torch.equal(sample(model, frames=18, **options).latents, whole)
    assert all(len(predictor.segments) > 2 for predictor in pieces)


def test_a_loop_whose_windows_all_overlap_is_one_segment(model, monkeypatch):
    """More windows than a segment takes, and no frame is complete before the last of them."""
    options = dict(frames=40, window=32, stride=1, loop=True, steps=1)
    cut = sample(model, **options).latents
    monkeypatch.setattr(
        "vidsmooth_fast.sampling.job.WindowedPredictor", partial(WindowedPredictor, segment_frames=4096)
    )
    assert torch.equal(sample(model, **options).latents, cut)


def test_same_seed_same_frames_other_seed_others(model):
    assert torch.equal(sample(model, seed=np.int64(3)).latents, sample(model, seed=3).latents)
    a, b, c = (sample(model, seed=s, eta=0.5).latents for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.allclose(a, c)


def test_prompts_over_time_reach_their_frames(model):
    one, both = sample(model, ["a red car", "a blue boat"], frames=12), sample(model, "a red car", frames=12)
    change = (one.latents - both.latents).abs().mean((0, 1, 3, 4))
    assert change[:2].mean() < change[-2:].mean()
    per_frame = sample(model, {0: "a red car", 11: "a blue boat"}, frames=12, merge="attention")
    assert per_frame.latents.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"smooth": NoiseConstraint(0.2)}])
def test_loop_has_no_first_frame(model, options):
    """With a loop every seam is alike: rotating the initial noise by a stride rotates the video."""
    noise = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    kw = dict(frames=8, loop=True, **options)
    still = sample(model, latents=noise, **kw).latents
    turned = sample(model, latents=noise.roll(2, 2), **kw).latents
    torch.testing.assert_close(turned, still.roll(2, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [3, 4])
def test_a_loop_of_one_window_is_closed_inside_the_network(model, frames):
    """As it is where windows are merged in attention; tiny models have temporal convolutions that see the ends."""
    options = dict(frames=frames, guidance=1.0)
    closed = sample(model, loop=True, **options).latents
    assert torch.equal(closed, sample(model, loop=True, merge="attention", **options).latents)
    assert not torch.allclose(closed, sample(model, **options).latents, atol=1e-2)


def test_source_sets_length_rate_and_layout(model, clip):
    video = sample(model, frames=10, source=clip, source_prompt="a red car")
    assert len(video) == 10 and video.fps == 12
    assert back_and_forth(7, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 4, 3]
    assert back_and_forth(1, 3).tolist() == [0, 0, 0]


def test_inversion_and_back_returns_to_the_source(clip):
    """Without guidance and with the same prompt, sampling undoes the inversion of a network that is smooth in x."""
    model = tiny_model()
    with torch.no_grad():
        model.unet.conv_out.weight *= 0.1
    options = dict(QUICK, steps=40, guidance=1.0)
    inversion = invert(model, clip, "a red car", steps=40, window=4, stride=2, progress=False)
    back = fast_sample(model, "a red car", 7, latents=inversion, **options)
    assert back.fps == clip.fps
    error = (back.latents - inversion.clean).pow(2).mean() / inversion.clean.pow(2).mean()
    assert error < 0.02, f"relative error {error:.3f}"
    edited = fast_sample(model, "a red car", 7, source=clip, source_prompt="a red car", **options)
    torch.testing.assert_close(edited.latents, back.latents, rtol=1e-4, atol=1e-4)


def test_inversion_runs_where_it_is_asked_to(model, clip, monkeypatch):
    used = []
    forward = type(model.unet).forward

    def watched(unet, *args, **kwargs):
        used.append(unet.dtype)
        return forward(unet, *args, **kwargs)

    monkeypatch.setattr(type(model.unet), "forward", watched)
    invert(model, clip, steps=1, window=4, stride=2, dtype="bfloat16", progress=False)
    assert set(used) == {torch.bfloat16} and model.dtype == torch.float32


def test_inversion_is_saved_and_read(model, clip, tmp_path):
    inversion = invert(
        model, clip, "a red car", steps=2, window=4, stride=2, blend=InversionBlend(0.3), progress=False
    )
    inversion.save(tmp_path / "inverted.safetensors")
    again = type(inversion).open(tmp_path / "inverted.safetensors")
    assert torch.equal(again.latents, inversion.latents) and again.prompt == "a red car" and again.fps == 12
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a safetensors file"):
        type(inversion).open(tmp_path / "broken.safetensors")


def test_a_shorter_clips_sound_is_left_out_aloud(model, clip):
    loud = Video.from_frames(list(clip), fps=12, audio=Sound(Path("song.wav"), Fraction(0), 7 / clip.fps))
    said = "it has 7 frames and the video 8: it goes on back and forth, without its sound"
    with pytest.warns(UserWarning, match=said):
        assert sample(model, frames=8, source=loud).audio is None
    assert sample(model, frames=7, source=loud).audio is not None


def test_low_strength_stays_near_the_source(model, clip):
    near, far = (sample(model, source=clip, strength=s, steps=10).latents for s in (0.2, 0.9))
    clean = model.encode_video(clip)
    assert (near - clean).pow(2).mean() < (far - clean).pow(2).mean()


def test_smoothing_smooths(model):
    """The second difference over time of the predicted video falls with the strength."""
    rough, smooth = (
        sample(model, frames=12, steps=10, init="independent", smooth=s).latents
        for s in (None, NoiseConstraint(0.25))
    )
    assert smooth.diff(n=2, dim=2).abs().mean() < 0.5 * rough.diff(n=2, dim=2).abs().mean()


def test_published_targets_default_to_shared_noise_and_warn_otherwise(model):
    video = sample(model, smooth=NoiseConstraint(0.1, "published"))
    assert video.metadata["vidsmooth_fast"]["init"] == "shared"
    with pytest.warns(UserWarning, match="amplifies flicker"):
        sample(model, smooth=NoiseConstraint(0.1, "simple"), init="independent")


def test_output_is_streamed_to_a_file_with_its_settings(model, tmp_path):
    video = sample(model, output=tmp_path / "video.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]
    again = Video.open(tmp_path / "video.mp4")
    assert len(again) == len(video) == 7
    assert again.metadata["vidsmooth_fast"]["prompt"] == "a red car"


def test_callback_sees_every_step(model):
    seen = []
    sample(model, callback=lambda step, total, latents: seen.append((step, total, tuple(latents.shape))))
    assert seen == [(i, 3, (1, 4, 7, 8, 8)) for i in (1, 2, 3)]


def test_half_precision_network_stays_close(model):
    full, half = sample(model).latents, sample(model, dtype="bfloat16").latents
    assert model.dtype == torch.float32, "the caller's model must stay as it was"
    assert half.dtype == torch.float32
    assert (half - full).pow(2).mean() < 0.02 * full.pow(2).mean()


KILLED = """
import sys, torch
sys.path.insert(0, {root!r})
from python_tests.tiny import tiny_model
from vidsmooth_fast import fast_sample, Video
torch.set_num_threads(1)
fast_sample(tiny_model(), "a red car", 7, source=Video.open({clip!r}), steps=6, window=4, stride=2, guidance=2.0,
            scheduler="dpmpp_2m", progress=False, resume={state!r}, output={output!r},
            callback=lambda *a: (print("step", flush=True), __import__("time").sleep(0.2)))
"""


@pytest.mark.parametrize("after", [0, 2, 5])
def test_killed_run_resumes_to_the_same_frames(clip, tmp_path, after):
    """The process is killed with SIGKILL after its n-th denoising step, or (0) during the inversion."""
    clip.save(tmp_path / "clip.mp4")
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))

    def start(name):
        paths = dict(
            clip=str(tmp_path / "clip.mp4"), state=str(tmp_path / name), output=str(tmp_path / f"{name}.mp4")
        )
        code = KILLED.format(root=root, **paths)
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    whole = start("whole")
    assert whole.wait(120) == 0
    killed = start("killed")
    if after == 0:
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
    for _ in range(after):
        assert killed.stdout.readline() == "step\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert (tmp_path / "killed").exists() and not (tmp_path / "killed.mp4").exists()
    again = start("killed")
    steps = len(again.stdout.read().splitlines())
    assert again.wait(120) == 0 and steps == 6 - after
    assert not (tmp_path / "killed").exists(), "a finished run leaves nothing to resume"
    a, b = (np.stack(list(Video.open(tmp_path / f"{name}.mp4"))) for name in ("whole", "killed"))
    assert np.array_equal(a, b)


def test_a_source_is_encoded_again_only_where_it_is_read(model, clip, tmp_path, monkeypatch):
    encoded, encode = [], type(model).encode_video
    monkeypatch.setattr(type(model), "encode_video", lambda *a, **k: (encoded.append(1), encode(*a, **k))[1])

    def stop(step, total, latents):
        raise KeyboardInterrupt

    for smooth, again in ((None, False), (NoiseConstraint(0.2, "source"), True)):
        options = dict(source=clip, smooth=smooth, resume=tmp_path / "state")
        with pytest.raises(KeyboardInterrupt):
            sample(model, callback=stop, **options)
        encoded.clear()
        resumed = sample(model, **options).latents
        assert bool(encoded) is again
        assert torch.equal(resumed, sample(model, source=clip, smooth=smooth).latents)


def test_the_state_and_the_video_are_kept_apart(model, tmp_path):
    for state, output in (("a.mp4", "a.mp4"), ("frames/state", "frames"), ("frames/./state", "frames/")):
        (tmp_path / "frames").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="^resume: .* is the output, or in it; keep the state elsewhere"):
            sample(model, resume=tmp_path / state, output=f"{tmp_path}/{output}")


def test_the_state_may_be_in_the_home_directory(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def look(step, total, latents):
        assert (tmp_path / "state").exists()

    sample(model, resume="~/state", callback=look)


def test_resuming_another_run_is_refused(model, tmp_path):
    state = tmp_path / "state"

    def stop(step, total, latents):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, resume=state, callback=stop)
    with pytest.raises(ValueError, match="another model, prompt, source or settings"):
        sample(model, "a blue boat", resume=state)
    other = tiny_model()
    with torch.no_grad():
        other.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight += 1
    with pytest.raises(ValueError, match="another model, prompt, source or settings"):
        sample(other, resume=state)
    state.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a safetensors file"):
        sample(model, resume=state)


def test_ctrl_c_leaves_no_output(model, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model), "decode_latents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample(model, output=tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frames": 0}, "frames: expected a whole number of at least 1"),
        ({"frames": 2.5}, "frames: expected a whole number"),
        ({"window": 1}, "window: expected a whole number of at least 2"),
        ({"stride": 5}, "stride: expected at most the window"),
        ({"stride": 0}, "stride"),
        ({"steps": 0}, "steps"),
        ({"scheduler": "plms"}, "scheduler: expected one of ddim, dpmpp_2m"),
        ({"window_weights": "boxcar"}, "window_weights: expected one of flat"),
        ({"merge": "pixels"}, "merge: expected one of latent, attention"),
        ({"init": "zeros"}, "init: expected one of"),
        ({"init": "inversion"}, "needs a source"),
        ({"guidance": -1}, "guidance"),
        ({"strength": 0}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"eta": 2}, "eta"),
        ({"height": 17}, "height: expected a multiple of 2 for this model, got 17; try 16 or 18"),
        ({"width": 1}, "width"),
        ({"max_batch": 0}, "max_batch"),
        ({"smooth": 0.3}, "expected a NoiseConstraint"),
        ({"smooth": NoiseConstraint(0.1, "source")}, "needs a source clip"),
        ({"blend": InversionBlend(0.5)}, "acts on the inversion"),
        (
            {"latents": torch.zeros(1, 4, 6, 8, 12)},
            r"latents: expected shape \(1, 4, 7, 8, 8\), .* those of frames=6, height=16, width=24",
        ),
        ({"latents": [1.0]}, "latents: expected an Inversion, or a tensor of finite"),
        ({"latents": torch.full((1, 4, 7, 8, 8), float("nan"))}, "latents: expected an Inversion, or"),
        ({"controls": 1}, "controls: expected a Control or a list of them"),
        ({"controls": Control("nowhere")}, "maps .canny. are the edges of a source"),
        (
            {
                "controls": Control(
                    "/nonexistent/net", Video.from_frames([np.zeros((8, 8, 3), np.uint8)], fps=8)
                )
            },
            "/nonexistent/net",
        ),
        ({"strength": 0.5}, "there is none"),
        ({"guidance": float("inf")}, "guidance"),
        ({"height": 0}, "height: expected a whole number"),
        ({"eta": 0.5, "scheduler": "euler"}, "eta: is DDIM's noise"),
        ({"steps": 2000}, "steps"),
        ({"negative_prompt": {0: "a", "1": "b"}}, "negative_prompt: key frames must be integers"),
        ({"source": "nowhere.mp4"}, "nowhere.mp4"),
        ({"source": np.zeros((2, 8, 8, 3), np.uint8)}, "video: expected a path, got ndarray"),
        ({"speed": ["fast"]}, "speed: expected one of"),
        ({"seed": True}, "seed: expected an integer, got True"),
        ({"output": "video.xyz"}, "xyz"),
        ({"output": "/proc/video.mp4"}, "/proc"),
        ({"resume": "/nonexistent/state"}, "resume: cannot write in /nonexistent"),
        ({"resume": "/proc/state"}, "resume: cannot write in /proc"),
        ({"resume": "/proc"}, "resume: expected the path of a file, and /proc is a folder"),
        ({"resume": 123}, "resume: expected the path of a file, got int"),
        ({"callback": 3}, "callback: expected a function, got int"),
        ({"loop": "no"}, "loop: expected True or False, got 'no'"),
        ({"prompt": []}, "prompt"),
    ],
)
def test_bad_options_are_named_before_any_work(model, options, says, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("work was started")

    for owner, work in (
        (type(model.unet), "forward"),
        (type(model), "encode_video"),
        (type(model), "encode_text"),
    ):
        monkeypatch.setattr(owner, work, never)
    with pytest.raises((ValueError, OSError), match=says) as caught:
        sample(model, **{"prompt": "a red car", **options})
    assert "\n" not in str(caught.value)


def test_unknown_model():
    with pytest.raises(ValueError, match="sprite-wurld") as caught:
        fast_sample("sprite-wurld", "a red car", 4)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="model: expected a model, .* got int"):
        fast_sample(5, "a red car", 4)


def test_long_prompt_warns_and_says_what_was_cut(model):
    with pytest.warns(UserWarning, match="hiking"):
        sample(model, "a red car is driving on the snow , a blue boat is on the sea , a man is hiking")


def test_too_little_memory_is_said_before_the_work(model, monkeypatch):
    monkeypatch.setattr(budget, "free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match="free"):
        sample(model)


def test_pictures_that_memory_does_not_hold_want_a_file(model, monkeypatch, tmp_path):
    one = budget.network_bytes(model.unet.config, torch.float32, 1, 4, 8, 8)
    monkeypatch.setattr(budget, "free_bytes", lambda device: 4 * one)
    frames = 5 * one // (16 * 16 * 3)
    with pytest.raises(MemoryError, match="give output="):
        sample(model, frames=frames)


def test_latents_that_memory_does_not_hold_are_mapped(model, monkeypatch, tmp_path, capsys):
    run = dict(frames=400, steps=1, guidance=1.0, max_batch=2)
    expected = sample(model, **run).latents
    video = 4 * expected.numel()
    monkeypatch.setattr(budget, "free_bytes", lambda device: 15 * video)
    mapped = sample(model, **run, progress=True, output=tmp_path / "video.mp4")
    assert torch.equal(mapped.latents, expected)
    assert "latents in memory-mapped files" in capsys.readouterr().err


def test_small_memory_makes_small_batches(model, monkeypatch):
    calls = []
    forward = type(model.unet).forward
    monkeypatch.setattr(
        type(model.unet),
        "forward",
        lambda self, x, *a, **k: (calls.append(len(x) * k["branches"]), forward(self, x, *a, **k))[1],
    )
    sample(model)
    assert set(calls) == {2}, "a guidance pair in one call, where memory is plenty"
    calls.clear()
    one = budget.network_bytes(model.unet.config, torch.float32, 1, 4, 8, 8)
    monkeypatch.setattr(budget, "free_bytes", lambda device: 2.5 * one)
    sample(model)
    assert max(calls) == 1


class TestSuperWindows:
    """merge="attention" where memory does not hold all frames at once."""

    FRAMES = 40

    def small(self, model, monkeypatch, length):
        """As much memory as a network call of `length` frames needs, and the latents."""
        one = budget.network_bytes(model.unet.config, torch.float32, 1, length, 8, 8)
        free = int((one + 4 * 4 * 4 * self.FRAMES * 64) / budget.SHARE) + 1000
        monkeypatch.setattr(budget, "free_bytes", lambda device: free)

    def test_they_are_taken_and_said(self, model, monkeypatch, capsys):
        whole = sample(model, frames=self.FRAMES, merge="attention", progress=True)
        assert "super-windows" not in capsys.readouterr().err
        assert "super_window" not in whole.metadata["vidsmooth_fast"]
        lengths = []
        forward = type(model.unet).forward
        monkeypatch.setattr(
            type(model.unet),
            "forward",
            lambda self, x, *a, **k: (lengths.append(x.shape[2]), forward(self, x, *a, **k))[1],
        )
        self.small(model, monkeypatch, 21)
        video = sample(model, frames=self.FRAMES, merge="attention", progress=True)
        assert set(lengths) == {20}, "window + stride * 2^k frames, the longest that fits"
        assert "super-windows of 20 frames, on which the result depends" in capsys.readouterr().err
        assert video.metadata["vidsmooth_fast"]["super_window"] == 20
        difference = (video.latents - whole.latents).pow(2).mean() / whole.latents.pow(2).mean()
        assert 0 < difference < 0.1
        again = sample(model, frames=self.FRAMES, merge="attention", max_batch=1)
        torch.testing.assert_close(again.latents, video.latents, rtol=1e-4, atol=1e-4)

    def test_in_a_loop_and_with_prompts_over_time(self, model, monkeypatch):
        self.small(model, monkeypatch, 13)
        noise = torch.randn(1, 4, 40, 8, 8, generator=torch.Generator().manual_seed(0))
        kw = dict(frames=40, loop=True, merge="attention")
        still = sample(model, latents=noise, **kw)
        assert still.metadata["vidsmooth_fast"]["super_window"] == 12
        turned = sample(model, latents=noise.roll(8, 2), **kw).latents
        torch.testing.assert_close(turned, still.latents.roll(8, 2), rtol=1e-4, atol=1e-4)
        both = sample(model, {0: "a red car", 39: "a blue boat"}, frames=40, merge="attention")
        assert both.latents.isfinite().all()

    @pytest.mark.parametrize(("begun", "resumed"), [(21, 13), (21, 400), (400, 36)])
    def test_a_resumed_run_keeps_them_whatever_memory_there_is(
        self, model, monkeypatch, tmp_path, begun, resumed
    ):
        def stop(step, total, latents):
            raise KeyboardInterrupt

        kw = dict(frames=self.FRAMES, merge="attention")
        self.small(model, monkeypatch, begun)
        whole = sample(model, **kw)
        with pytest.raises(KeyboardInterrupt):
            sample(model, callback=stop, resume=tmp_path / "state", **kw)
        self.small(model, monkeypatch, resumed)
        again = sample(model, resume=tmp_path / "state", **kw)
        assert again.metadata == whole.metadata
        torch.testing.assert_close(again.latents, whole.latents, rtol=1e-4, atol=1e-4)

    def test_a_resumed_run_that_no_longer_fits_says_so(self, model, monkeypatch, tmp_path):
        def stop(step, total, latents):
            raise KeyboardInterrupt

        kw = dict(frames=self.FRAMES, merge="attention", resume=tmp_path / "state")
        with pytest.raises(KeyboardInterrupt):
            sample(model, callback=stop, **kw)
        self.small(model, monkeypatch, 8)
        with pytest.raises(MemoryError, match="for 40 frames at 16x16 in one network call"):
            sample(model, **kw)
        assert (tmp_path / "state").exists()


def test_overflow_in_the_inversion_is_stepped_again(clip, monkeypatch):
    model = tiny_model(dtype=torch.bfloat16)
    forward, calls = type(model.unet).forward, []

    def overflowing(self, *args, **kwargs):
        calls.append(self.dtype)
        out = forward(self, *args, **kwargs)
        return out * float("inf") if len(calls) == 2 else out

    monkeypatch.setattr(type(model.unet), "forward", overflowing)
    inversion = invert(model, clip, steps=4, window=8, stride=8, progress=False)
    assert inversion.latents.isfinite().all() and calls.count(torch.float32) == 1


@pytest.mark.parametrize("value", [["a car"], {0: "a", 3: "b"}, 3])
def test_an_inversion_takes_one_text(model, clip, tmp_path, value, monkeypatch):
    monkeypatch.setattr(type(model), "encode_video", None)
    with pytest.raises(ValueError, match="^prompt: expected a text, got"):
        invert(model, clip, value, steps=1, window=4, stride=2, output=tmp_path / "i.safetensors")


def test_time_is_promised_after_one_step_within_a_quarter(model, monkeypatch, capsys):
    forward = type(model.unet).forward

    def slow(self, *args, **kwargs):
        time.sleep(0.1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.unet), "forward", slow)
    timing = sample(model, steps=12, progress=True).timing
    assert timing["estimated_seconds"] == pytest.approx(timing["seconds"], rel=0.25)
    assert "about" in capsys.readouterr().err


def test_text_is_projected_once_and_time_embedded_once_a_step(model, monkeypatch):
    counts = {"project_text": 0, "embed_time": 0}
    for name in counts:
        original = getattr(type(model.unet), name)

        def counted(self, *args, name=name, original=original):
            counts[name] += 1
            return original(self, *args)

        monkeypatch.setattr(type(model.unet), name, counted)
    sample(model, frames=20, max_batch=1, steps=3)
    assert counts == {"project_text": 1, "embed_time": 3}


def test_results_are_ordinary_tensors(model, clip):
    assert not sample(model).latents.is_inference()
    assert not invert(model, clip, steps=1, window=4, stride=2, progress=False).clean.is_inference()


def test_random_state_of_the_caller_is_left_alone(model):
    before = torch.get_rng_state()
    sample(model, progress=True, eta=0.5)
    assert torch.equal(before, torch.get_rng_state())


def test_clip_longer_than_the_run_is_cut(model, clip):
    short = sample(model, frames=5, source=clip)
    assert len(short) == 5 and short.fps == 12
