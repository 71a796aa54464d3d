"""The command line: what a person types, what is written, and one line per error."""

import inspect
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import vidsmooth_fast
from python_tests.tiny import tiny_model
from vidsmooth_fast import DeepReuse, InversionBlend, NoiseConstraint, Video, cli
from vidsmooth_fast.sampling.inversion import Inversion


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(path)
    return str(path)


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of `vidsmooth-fast *arguments`."""
    monkeypatch.setattr(sys, "argv", ["vidsmooth-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


def test_sample_invert_and_info(monkeypatch, capsys, tmp_path, model_dir):
    quick = ["--steps", 2, "--window", 4, "--stride", 2, "--quiet"]
    code, out, err = run(
        monkeypatch,
        capsys,
        "sample",
        model_dir,
        "a red car",
        "--frames",
        6,
        *quick,
        *("--speed", "fast", "--reuse", 2, "--guidance-interval", 0, 0.5, "--decoder", "linear"),
        "-o",
        tmp_path / "car.mp4",
    )
    assert (code, err) == (0, "") and out.strip().endswith("car.mp4")
    car = Video.open(tmp_path / "car.mp4")
    settings = car.metadata["vidsmooth_fast"]
    assert len(car) == 6 and (settings["speed"], settings["scheduler"]) == ("fast", "dpmpp_2m")
    assert settings["reuse"]["period"] == 2 and list(settings["guidance_interval"]) == [0, 0.5]
    assert settings["decoder"] == "linear"

    code, _, err = run(
        monkeypatch,
        capsys,
        *("sample", model_dir, "a blue boat", "--source", tmp_path / "car.mp4", "--frames", 6, *quick),
        *("--smooth", 0.1, "--smooth-target", "source", "--blend", 0.3, "--merge", "attention"),
        *("-o", tmp_path / "pictures"),
    )
    assert (code, err) == (0, "") and len(list((tmp_path / "pictures").glob("*.png"))) == 6

    code, _, err = run(
        monkeypatch,
        capsys,
        "invert",
        model_dir,
        tmp_path / "car.mp4",
        *quick,
        "-o",
        tmp_path / "car.safetensors",
    )
    assert (code, err) == (0, "")
    assert Inversion.open(tmp_path / "car.safetensors").latents.shape == (1, 4, 6, 8, 8)

    code, out, _ = run(monkeypatch, capsys, "info")
    assert code == 0
    for name in ("temporal_attention", "sparse_causal_attention", "noise_constraint", "inversion_blend"):
        assert name in out
    assert "window_merge" in out and "denoise_step" in out and "torch" in out


def test_progress_tells_memory_and_time(monkeypatch, capsys, tmp_path, model_dir):
    _, _, err = run(
        monkeypatch,
        capsys,
        "sample",
        model_dir,
        "a red car",
        "--frames",
        6,
        "--steps",
        4,
        "-o",
        tmp_path / "a.mp4",
    )
    assert re.search(r"6 frames at 16x16, 4 steps of ddim, .* about [\d.]+ [GM]iB of memory", err)
    assert re.search(r"about \d+ s in all", err) and "denoising" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--frames", 0], "frames: expected a whole number of at least 1, got 0"),
        (["--scheduler", "plms"], "scheduler: expected one of"),
        (["--window", 1], "window: expected a whole number of at least 2"),
        (["--window", 4, "--stride", 5], "stride: expected at most the window"),
        (["--height", 15], "height: expected a multiple of 2"),
        (["--source", "nowhere.mp4"], "nowhere.mp4"),
        (["--output", "video.xyz"], "xyz"),
        (["--output", "/proc/nowhere/video.mp4"], "/proc"),
        (["--dtype", "int8"], "dtype"),
        (["--device", "gpu9"], "device"),
        (["--smooth", 0.9], "NoiseConstraint strength"),
        (["--smooth", 0.1, "--smooth-target", "source"], "needs a source clip"),
        (["--smooth-target", "clean"], "--smooth-target: expected a strength beside it"),
    ],
)
def test_bad_input_takes_one_line(monkeypatch, capsys, tmp_path, model_dir, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(
        monkeypatch, capsys, "sample", model_dir, "a red car", "-o", "video.mp4", "-q", *arguments
    )
    assert code == 1 and out == "" and says in err
    assert err.count("\n") == 1 and err.startswith("vidsmooth-fast: ")
    assert list(tmp_path.iterdir()) == []


def recorded(monkeypatch, name):
    """What the command line gives to a verb of the package: a list of (positional, keywords)."""
    calls = []
    monkeypatch.setattr(vidsmooth_fast, name, lambda *args, **kw: calls.append((args, kw)), raising=False)
    return calls


def test_every_option_of_sample_arrives(monkeypatch, capsys, tmp_path):
    parameters = inspect.signature(vidsmooth_fast.fast_sample).parameters
    calls = recorded(monkeypatch, "fast_sample")
    given = {
        "source_prompt": "a boat", "strength": 0.5, "speed": "fast", "steps": 7, "guidance": 3.0,
        "negative_prompt": "fog", "window": 6, "stride": 3, "window_weights": "flat", "merge": "attention",
        "init": "shared", "scheduler": "euler", "eta": 0.25, "height": 32, "width": 48, "seed": 5, "decoder": "linear",
        "device": "cpu", "dtype": "float32", "max_batch": 3, "resume": tmp_path / "state",
        "output": tmp_path / "out.mp4",
    }  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    special = ["--frames", 9, "--reuse", 4, "--guidance-interval", 0.1, 0.9, "--smooth", 0.2, "--blend", 0.3]
    special += ["--smooth-target", "simple", "--loop", "--quiet"]
    run(monkeypatch, capsys, "sample", "world", "a car", "a bird", *words, *special)
    ((model, prompt, frames), keywords), = calls  # fmt: skip
    assert (model, prompt, frames) == ("world", ["a car", "a bird"], 9)
    assert parameters.keys() - keywords.keys() == {"model", "prompt", "frames", "callback"}
    assert {name: keywords[name] for name in given} == given
    assert keywords["reuse"] == DeepReuse(4) and keywords["guidance_interval"] == (0.1, 0.9)
    assert keywords["smooth"] == NoiseConstraint(0.2, "simple") and keywords["blend"] == InversionBlend(0.3)
    assert keywords["loop"] is True and keywords["progress"] is False


def test_every_option_of_invert_arrives(monkeypatch, capsys, tmp_path):
    calls = recorded(monkeypatch, "invert")
    given = {
        "steps": 7, "frames": 9, "window": 6, "stride": 3, "scheduler": "flow", "height": 32, "width": 48,
        "device": "cpu", "dtype": "float32", "output": tmp_path / "i.safetensors",
    }  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    run(monkeypatch, capsys, "invert", "world", "a.mp4", "--prompt", "a car", "--blend", 0.3, "-q", *words)
    (arguments, keywords), = calls  # fmt: skip
    assert arguments == ("world", Path("a.mp4"), "a car")
    assert keywords == {**given, "blend": InversionBlend(0.3), "progress": False}


def test_a_backend_that_cannot_run_takes_one_line(monkeypatch, capsys, tmp_path, model_dir):
    monkeypatch.setenv("VIDSMOOTH_BACKEND", "cuda")
    to = tmp_path / "a.mp4"
    code, _, err = run(monkeypatch, capsys, "sample", model_dir, "a car", "--frames", 2, "--quiet", "-o", to)
    assert code == 1 and err.count("\n") == 1 and "no requested backend can run (cuda: " in err


def test_help_shows_what_is_taken_where_an_option_is_left_out(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "sample", "--help")
    for default in ("[clean]", "[canny]", "[sized to memory", "else 256]", "[50; or as --speed]"):
        assert default in " ".join(out.split())


def test_length_and_rate_come_from_what_is_given(monkeypatch, capsys, tmp_path, model_dir):
    clip, noise = tmp_path / "clip.mp4", tmp_path / "clip.safetensors"
    Video.from_frames([np.full((16, 16, 3), 40 * i, np.uint8) for i in range(5)], fps=12).save(clip)
    quick = ["--steps", 2, "--window", 4, "--stride", 2, "--quiet"]
    code, _, err = run(
        monkeypatch, capsys, "sample", model_dir, "a car", "--source", clip, *quick, "-o", tmp_path / "a.mp4"
    )
    assert (code, err) == (0, "") and len(Video.open(tmp_path / "a.mp4")) == 5
    code, _, err = run(monkeypatch, capsys, "invert", model_dir, clip, *quick, "-o", noise)
    assert (code, err) == (0, "")
    again = ["sample", model_dir, "a car", "--latents", noise, "-o", tmp_path / "b.mp4", *quick]
    assert run(monkeypatch, capsys, *again)[0] == 0
    video = Video.open(tmp_path / "b.mp4")
    assert len(video) == 5 and video.fps == 12
    code, _, err = run(monkeypatch, capsys, *again, "--steps", 5)
    assert code == 1 and "latents: inverted to timestep 501 in 2 steps" in err and err.count("\n") == 1


def test_the_source_is_never_the_output(monkeypatch, capsys, tmp_path, model_dir):
    clip, model = tmp_path / "clip.mp4", model_dir
    Video.from_frames([np.zeros((16, 16, 3), np.uint8)] * 3, fps=12).save(clip)
    (tmp_path / "link.mp4").symlink_to(clip)
    (tmp_path / "folder.safetensors").mkdir()
    before, names = clip.read_bytes(), sorted(os.listdir(tmp_path))
    for arguments, says in (
        (["sample", model, "a car", "--source", clip, "-o", clip], "is the source itself"),
        (["sample", model, "a car", "--source", tmp_path / "link.mp4", "-o", clip], "is the source itself"),
        (["invert", model, clip, "-o", clip], "output: expected the name of a .safetensors file"),
        (["invert", model, clip, "-o", tmp_path], "output: expected the name of a .safetensors file"),
        (
            ["invert", model, clip, "-o", tmp_path / "folder.safetensors"],
            "output: expected the name of a .safe",
        ),
    ):
        code, _, err = run(monkeypatch, capsys, *arguments, "--steps", 1, "-q")
        assert code == 1 and says in err and err.count("\n") == 1
    assert clip.read_bytes() == before and sorted(os.listdir(tmp_path)) == names


def test_unknown_model_takes_one_line(monkeypatch, capsys, tmp_path):
    code, _, err = run(
        monkeypatch, capsys, "sample", "sprite-wurld", "a red car", "-o", tmp_path / "video.mp4"
    )
    assert code == 1 and "sprite-wurld" in err and err.count("\n") == 1


def test_not_a_video_takes_one_line(monkeypatch, capsys, tmp_path, model_dir):
    (tmp_path / "notes.mp4").write_text("not a video")
    code, _, err = run(
        monkeypatch,
        capsys,
        *("sample", model_dir, "a car", "--source", tmp_path / "notes.mp4", "-o", tmp_path / "v.mp4", "-q"),
    )
    assert code == 1 and "notes.mp4" in err and err.count("\n") == 1


def test_ctrl_c_takes_one_line_and_leaves_no_file(tmp_path, model_dir):
    code = "import sys; sys.argv[0] = 'vidsmooth-fast'; from vidsmooth_fast.cli import main; main()"
    arguments = [
        "sample",
        model_dir,
        "a red car",
        "--frames",
        "64",
        "--steps",
        "900",
        "-o",
        str(tmp_path / "v.mp4"),
    ]
    arguments += ["--resume", str(tmp_path / "state")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "state").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.rstrip().endswith("vidsmooth-fast: interrupted") and "Traceback" not in err
    assert os.listdir(tmp_path) == ["state"], "only what --resume asked for is left"
