"""`vidsmooth-fast tune` and `consistency`: what a person types, and one line per error."""

import sys

import numpy as np
import pytest

import vidsmooth_fast as vsf
from python_tests.tiny import tiny_model
from python_tests.training.clips import sliding
from vidsmooth_fast import cli
from vidsmooth_fast.training.command import parse_loss, parse_pair, parse_trainable
from vidsmooth_fast.video_panels import write_picture


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a clip and an edited frame."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model(folder / "tiny")
    sliding(5).save(folder / "clip.mp4")
    write_picture(folder / "edited.png", np.full((16, 16, 3), 200, np.uint8))
    return folder


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of `vidsmooth-fast *arguments`."""
    monkeypatch.setattr(sys, "argv", ["vidsmooth-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


def test_tune_and_sample_what_it_wrote(monkeypatch, capsys, place):
    code, out, err = run(
        monkeypatch, capsys, "tune", place / "tiny", place / "clip.mp4", "a red car", "-o", place / "tuned",
        "--steps", 2, "--frames", 4, "--loss", "plain=1,inr-forward=0.5", "--trainable", 2, "--quiet",
    )  # fmt: skip
    assert (code, err) == (0, "") and out.strip().endswith("tuned")
    said = vsf.load(place / "tuned").tuning
    assert said["prompt"] == "a red car" and said["settings"]["loss"] == {"plain": 1.0, "inr-forward": 0.5}
    assert said["settings"]["trainable"] == 2 and said["clip"]["frames"] == 4
    assert (place / "tuned" / "lora.safetensors").is_file() and (place / "tuned.run" / "losses.png").is_file()


def test_a_box_says_what_is_foreground(monkeypatch, capsys, place):
    seen = {}

    def masks(frames, **prompts):
        seen.update(prompts, frames=len(list(frames)))
        found = np.zeros((3, 16, 16), bool)
        found[:, 2:12, 2:12] = True
        return found

    monkeypatch.setattr("vidsmooth_fast.conditioning.masks.foreground_masks", masks)
    code, _, err = run(
        monkeypatch, capsys, "tune", place / "tiny", place / "clip.mp4", "a red car", "-o", place / "boxed",
        "--steps", 1, "--frames", 3, "--loss", "foreground", "--box", 2, 2, 12, 12, "--quiet",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert seen == {"checkpoint": None, "point": None, "box": (2, 2, 12, 12), "frames": 3}


def test_tune_on_a_combined_dataset(monkeypatch, capsys, place):
    code, out, err = run(
        monkeypatch, capsys, "tune", place / "tiny", place / "clip.mp4", "", "-o", place / "combined", "--steps", 1,
        "--pair", f"1:{place / 'edited.png'}:a blue boat", "--pictures",
    )  # fmt: skip
    assert code == 0 and out == f"{place / 'combined'}\n" and "trained parameters" in err
    settings = vsf.load(place / "combined").tuning["settings"]
    wanted = {
        "pairs": 1,
        "lr": 1e-5,
        "timesteps": [0, 500],
        "trainable": "all",
        "loss": {"plain": 1.0},
        "steps": 1,
    }
    assert settings.items() >= wanted.items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a red car", "--loss", "sharp"], "loss: expected one of"),
        ([" "], "prompt: expected what the clip shows"),
        (["", "--pair", "first:x.png:a boat"], "pair: expected FRAME:PICTURE:PROMPT"),
        (["", "--pair", "1:missing.png:a boat"], "pair: cannot read the picture missing.png"),
        (["a red car", "--loss", "plain=much"], "loss: expected term=weight"),
        (["a red car", "--width", "15"], "size: expected"),
        (["a red car", "--height", "0"], "size: expected"),
        (["a red car", "--point", "8", "8"], "point: only a loss with masks uses it, such as foreground"),
        (
            ["a red car", "--loss", "foreground", "--point", "8", "99"],
            "point: expected coordinates inside 16x16",
        ),
        (
            ["a red car", "--loss", "foreground", "--box", "9", "9", "3", "3"],
            "box: expected (left, top, right, bottom)",
        ),
    ],
)
def test_one_line_errors(monkeypatch, capsys, place, arguments, message):
    fixed = [
        "tune",
        place / "tiny",
        place / "clip.mp4",
        arguments[0],
        "-o",
        place / "never" / "deeper",
        *arguments[1:],
        "--quiet",
    ]
    code, out, err = run(monkeypatch, capsys, *fixed)
    assert code == 1 and out == "" and err.count("\n") == 1 and message in err
    assert not (place / "never").exists()


def test_consistency_refuses_before_any_work(monkeypatch, capsys, place):
    code, _, err = run(
        monkeypatch, capsys, "consistency", place / "clip.mp4", "--prompt", "a red car", "-o", place / "never",
        "--model", place / "tiny", "--steps", 4, "--step", 9, "--quiet",
    )  # fmt: skip
    assert code == 1 and "step: expected 1 to 2, one of the 3 reverse steps taken, got 9" in err
    assert not (place / "never").exists()


def test_consistency_refuses_a_box_outside(monkeypatch, capsys, place):
    code, _, err = run(
        monkeypatch, capsys, "consistency", place / "clip.mp4", "--prompt", "a red car", "-o", place / "never",
        "--model", place / "tiny", "--box", 0, 0, 99, 9, "--quiet",
    )  # fmt: skip
    assert code == 1 and "box: expected coordinates inside 16x16" in err and not (place / "never").exists()


def test_parsing():
    assert parse_loss("inr") == "inr" and parse_loss("plain=1, smooth=0.2") == {"plain": 1.0, "smooth": 0.2}
    assert parse_trainable(["8"]) == 8 and parse_trainable(["all"]) == "all"
    assert parse_trainable(["attn2.to_k", "ff"]) == ["attn2.to_k", "ff"]
    with pytest.raises(ValueError, match="FRAME:PICTURE:PROMPT"):
        parse_pair("3:only.png")
