"""Checkpoints: whole or absent, refused where they do not belong, and a killed run ends where an unbroken one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from python_tests.tiny import tiny_model
from python_tests.training.clips import sliding as clip
from vidsmooth_fast.training.checkpoint import Checkpoints, State
from vidsmooth_fast.training.tuner import tune


def state(step: int) -> State:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    return State(step, {"w": weight}, optimizer.state_dict(), {"last_epoch": step}, {})


def test_a_round_trip_and_the_last_two_stay(tmp_path):
    kept = Checkpoints(tmp_path / "run", "mark", {"channels": (1, 2)})
    assert kept.load() is None and kept.last is None
    for step in (1, 2, 3):
        saved = state(step)
        kept.save(saved)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["step-000002", "step-000003"]
    assert {p.suffix for p in kept.last.iterdir()} == {".safetensors", ".json"}  # no pickles
    back = Checkpoints(tmp_path / "run", "mark", {"channels": [1, 2]}).load()
    assert back.step == 3 and torch.equal(back.weights["w"], saved.weights["w"])
    fresh = torch.optim.AdamW([torch.nn.Parameter(torch.randn(3, 2))])
    fresh.load_state_dict(back.optimizer)
    ours, theirs = fresh.state_dict()["state"][0], saved.optimizer["state"][0]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_unfinished_checkpoint_is_not_one(tmp_path):
    kept = Checkpoints(tmp_path, "mark", {})
    kept.save(state(1))
    (tmp_path / ".step-000002.part").mkdir()
    (tmp_path / ".step-000002.part" / "weights.safetensors").write_bytes(b"half")
    assert kept.load().step == 1
    kept.save(state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000002"]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint(tmp_path, name):
    kept = Checkpoints(tmp_path, "mark", {})
    kept.save(state(1))
    path = kept.save(state(2)) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        ValueError, match="step-000002 is damaged .* delete it to go on from step-000001"
    ) as caught:
        kept.load()
    assert "\n" not in str(caught.value)


def test_no_space_left(tmp_path, monkeypatch):
    """A real write error (a file larger than this process may write), and nothing of the last checkpoint is lost."""
    kept = Checkpoints(tmp_path, "mark", {})
    kept.save(state(1))
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from vidsmooth_fast.training.checkpoint import Checkpoints, State\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "s = State(2, {'w': torch.zeros(100_000)}, {'state': {}, 'param_groups': []}, {}, {})\n"
        "try:\n"
        "    Checkpoints(Path(sys.argv[1]), 'mark', {}).save(s)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot write the checkpoint" in ran.stdout and "the last checkpoint is" in ran.stdout
    assert ran.stdout.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"] and kept.load().step == 1


def test_another_run_and_another_network(tmp_path):
    options = dict(steps=2, lr=1e-3, checkpoint_every=1, progress=False, resume=tmp_path / "run")
    tune(tiny_model(), clip(), "a red car", **options)
    with pytest.raises(ValueError, match="another model, clip, prompt or settings"):
        tune(tiny_model(), clip(), "a blue boat", **options)
    with pytest.raises(ValueError, match="another model, clip, prompt or settings"):
        tune(tiny_model(), clip(seed=1), "a red car", **options)
    wide = tiny_model(block_out_channels=[16, 48])
    with pytest.raises(ValueError, match="belongs to another network: its block_out_channels is"):
        tune(wide, clip(), "a red car", **options)
    with pytest.raises(ValueError, match="more than the 1 steps"):
        tune(tiny_model(), clip(), "a red car", **{**options, "steps": 1})


def test_resuming_gives_the_same_weights(tmp_path):
    """More steps continue a finished run; the result is that of one run, to the last bit."""
    options = dict(lr=1e-3, lr_schedule="constant", checkpoint_every=2, progress=False)
    whole = tune(tiny_model(), clip(), "a red car", steps=5, **options)
    for steps in (3, 5):
        parts = tune(tiny_model(), clip(), "a red car", steps=steps, resume=tmp_path / "run", **options)
    same(whole, parts)
    lines = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


def same(a, b) -> None:
    ours, theirs = a.unet.state_dict(), b.unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


OPTIONS = dict(lr=1e-3, checkpoint_every=1, progress=False, lr_schedule="cosine", warmup=2)
SCRIPT = """
import sys
import torch
from python_tests.training import test_checkpoint as here

torch.set_num_threads(int(sys.argv[3]))  # another number of threads rounds otherwise
options = dict(steps=40, trainable=sys.argv[2], output=sys.argv[1], **here.OPTIONS)
here.tune(here.tiny_model(), here.clip(), "a red car", **options)
"""


@pytest.mark.parametrize("trainable", ["tune-a-video", pytest.param("all", marks=pytest.mark.slow)])
def test_killed_at_any_step(tmp_path, trainable):
    """SIGKILL twice, while it trains and writes; then the same weights as an unbroken run."""
    root, target = Path(__file__).parents[2], tmp_path / "model"
    command = [sys.executable, "-c", SCRIPT, str(target), trainable, str(torch.get_num_threads())]
    checkpoints = tmp_path / "model.run"

    def last() -> int:
        return max((int(p.name[5:]) for p in checkpoints.glob("step-*")), default=0)

    for step in (3, 11):
        process = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
        while process.poll() is None and last() < step:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    reached = last()
    assert 11 <= reached < 40 and not target.exists()

    options = dict(steps=40, trainable=trainable, **OPTIONS)
    resumed = tune(tiny_model(), clip(), "a red car", output=target, **options)
    same(resumed, tune(tiny_model(), clip(), "a red car", **options))
    logged = [json.loads(line)["step"] for line in (checkpoints / "losses.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 41))


def test_a_kill_during_validation_costs_no_samples(tmp_path, monkeypatch):
    """The checkpoint of the last step lies there already; the samples are made when the run goes on."""
    from vidsmooth_fast.training import run

    def killed(*_):
        raise KeyboardInterrupt

    options = dict(
        steps=2, lr=1e-3, progress=False, resume=tmp_path / "run", validation_prompts=["a blue boat"],
        validation_options={"steps": 2},
    )  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "sample_grid", killed)
        tune(tiny_model(), clip(), "a red car", **options)
    assert (tmp_path / "run" / "step-000002").is_dir()
    tune(tiny_model(), clip(), "a red car", **options)
    made = tmp_path / "run" / "samples-000002.mp4"
    before = made.stat().st_mtime_ns
    tune(tiny_model(), clip(), "a red car", **options)
    assert made.stat().st_mtime_ns == before


def test_validation_that_fails_costs_no_training(tmp_path):
    options = dict(validation_prompts=["a blue boat"], validation_options={"steps": 2, "smooth": 0.5})
    with pytest.warns(
        UserWarning, match="no validation samples after step 2: smooth: expected a NoiseConstraint"
    ):
        tune(tiny_model(), clip(), "a red car", steps=2, progress=False, resume=tmp_path / "run", **options)
    assert (tmp_path / "run" / "step-000002").is_dir()


def test_nan_stops_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    from vidsmooth_fast.training import run

    real, seen = run.Dataset.batch, []

    def poisoned(self, step, process=0):
        batch = real(self, step, process)
        seen.append(step)
        if step == 3:
            batch.target.fill_(float("nan"))
        return batch

    monkeypatch.setattr(run.Dataset, "batch", poisoned)
    options = dict(steps=6, lr=1e-3, checkpoint_every=2, progress=False, resume=tmp_path)
    with pytest.raises(
        FloatingPointError, match="loss is nan at step 4 of 6; the last good checkpoint is .*step-000002"
    ):
        tune(tiny_model(), clip(), "a red car", **options)
    monkeypatch.setattr(run.Dataset, "batch", real)
    finished = tune(tiny_model(), clip(), "a red car", **options)
    same(finished, tune(tiny_model(), clip(), "a red car", **{**options, "resume": None}))
