"""Encoding beside decoding: the same file sooner, and nothing left behind when either fails."""

import threading
import time

import numpy as np
import pytest

from python_tests.tiny import tiny_model
from vidsmooth_fast import Video, fast_sample
from vidsmooth_fast.sampling.encoding import DEPTH, EncodingThread
from vidsmooth_fast.video import VideoWriter

SIZE = (16, 16)


def frames(count):
    return [np.full((*SIZE, 3), 5 * i, np.uint8) for i in range(count)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "video encoder"]


class Slow:
    """Stands for a writer whose encoder takes its time, or fails."""

    def __init__(self, seconds=0.0, fails_at=None, error=None):
        self.seconds, self.fails_at, self.error, self.got = seconds, fails_at, error, []

    def write(self, frame):
        time.sleep(self.seconds)
        if len(self.got) == self.fails_at:
            raise self.error
        self.got.append(int(frame[0, 0, 0]))


def test_the_file_is_the_same(tmp_path):
    some = frames(40)
    with VideoWriter(tmp_path / "plain.mp4", 8, SIZE) as writer:
        for frame in some:
            writer.write(frame)
    with VideoWriter(tmp_path / "thread.mp4", 8, SIZE) as writer, EncodingThread(writer) as encoder:
        for frame in some:
            encoder.write(frame)
    a, b = (np.stack(list(Video.open(tmp_path / f"{name}.mp4"))) for name in ("plain", "thread"))
    assert np.array_equal(a, b) and len(a) == 40


def test_decoding_and_encoding_overlap():
    slow, began = Slow(0.02), time.perf_counter()
    with EncodingThread(slow) as encoder:
        for frame in frames(30):
            time.sleep(0.02)  # decoding
            encoder.write(frame)
    assert slow.got == [5 * i for i in range(30)]
    assert time.perf_counter() - began < 0.8 * 30 * 0.04


def test_few_frames_wait():
    slow, ahead = Slow(0.003), []
    with EncodingThread(slow) as encoder:
        for i, frame in enumerate(frames(50)):
            encoder.write(frame)
            ahead.append(i + 1 - len(slow.got))
    assert DEPTH <= max(ahead) <= DEPTH + 2


@pytest.mark.parametrize("fails_at", [0, 3, 29])
def test_its_failure_is_the_callers(fails_at):
    slow = Slow(fails_at=fails_at, error=OSError(28, "the disk is full"))
    with pytest.raises(OSError, match="the disk is full"), EncodingThread(slow) as encoder:
        for frame in frames(30):
            encoder.write(frame)
    assert len(slow.got) == fails_at


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("after", [0, 5, 25])
def test_the_callers_failure_ends_it(tmp_path, error, after):
    with (
        pytest.raises(error),
        VideoWriter(tmp_path / "video.mp4", 8, SIZE) as writer,
        EncodingThread(writer) as encoder,
    ):
        for frame in frames(after):
            encoder.write(frame)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_interrupted_while_it_waits_for_the_last_frames(tmp_path, monkeypatch):
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(tmp_path / "video.mp4", 8, SIZE) as writer,
        EncodingThread(writer) as encoder,
    ):
        for frame in frames(10):
            encoder.write(frame)
        join, calls = encoder._thread.join, []

        def first_interrupted(timeout=None):
            calls.append(timeout)
            if len(calls) == 1:
                raise KeyboardInterrupt
            join(timeout)

        monkeypatch.setattr(encoder._thread, "join", first_interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_fast_sample(tmp_path, monkeypatch):
    def full(self, frame):
        raise OSError(28, f"cannot write {self.path}: no space left")

    monkeypatch.setattr(VideoWriter, "write", full)
    with pytest.raises(OSError, match="no space left"):
        fast_sample(
            tiny_model(),
            "a red car",
            5,
            steps=1,
            window=4,
            stride=2,
            progress=False,
            output=tmp_path / "a.mp4",
        )
    assert list(tmp_path.iterdir()) == []
