"""A video cut into segments is the video in one piece, bit for bit, and the device holds one segment."""

import logging
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from python_tests.sampling.test_engine import SD, Wobble, noise, schedule_of, texts
from vidsmooth_fast.conditioning.prompts import PromptTrack
from vidsmooth_fast.sampling import budget
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.inversion import invert_latents
from vidsmooth_fast.sampling.latents import Store, read_frames, write_frames
from vidsmooth_fast.sampling.segments import HALO, plan_segments
from vidsmooth_fast.sampling.smoothing import InversionBlend, NoiseConstraint
from vidsmooth_fast.sampling.windowed import WindowedPredictor, Windows
from vidsmooth_fast.sampling.windows import plan, window_length, window_weights

FRAMES, WINDOW, STRIDE = 29, 6, 3


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_window_is_predicted_once_and_every_frame_stepped_once(data):
    window = data.draw(st.integers(2, 24), "window")
    stride = data.draw(st.integers(1, window), "stride")
    frames = data.draw(st.integers(1, 200), "frames")
    count, loop = data.draw(st.integers(1, 40), "count"), data.draw(st.booleans(), "loop")
    starts, length = plan(frames, window, stride, loop), window_length(frames, window)
    whole = [sorted(i for i, s in enumerate(starts) if (f - s) % frames < length) for f in range(frames)]
    segments = plan_segments(starts, length, frames, count, loop=loop)
    assert [i for segment in segments for i in segment.predicted] == list(range(len(starts)))
    assert sorted(f % frames for s in segments for f in range(s.first, s.last)) == list(range(frames))
    held: list[int] = []
    for number, segment in enumerate(segments):
        assert number or not segment.head, "windows of the beginning are kept for an end that comes later"
        held = [*held[len(held) - segment.carried :], *segment.predicted]
        merged = [*range(segment.head), *held]
        assert [starts[i] % frames for i in merged] == [(s + segment.begin) % frames for s in segment.starts]
        reach = range(segment.first - HALO, segment.last + HALO)
        if segment.closed or (not loop and number == 0):
            reach = range(segment.first, reach.stop)
        if segment.closed or (not loop and segment is segments[-1]):
            reach = range(reach.start, segment.last)
        assert segment.begin <= reach.start and reach.stop <= segment.end
        for frame in reach:
            covering = [
                i
                for i, s in zip(merged, segment.starts, strict=True)
                if 0 <= frame - segment.begin - s < length
            ]
            if segment.closed:
                covering = whole[frame]
            assert covering == whole[frame % frames], "in the order in which the whole video merges them"
    most = max(len(s.starts) for s in segments)
    assert most <= 3 * max(count, 2 * window // stride + 4), "independent of the number of frames"


def predictor(denoiser, *tracks, segment_frames, loop=False, max_batch=2, frames=FRAMES, **kw):
    windows = Windows(plan(frames, WINDOW, STRIDE, loop), window_weights("hann", WINDOW), frames, loop)
    tracks = [PromptTrack((0,), t) if isinstance(t, torch.Tensor) else t for t in tracks]
    return WindowedPredictor(
        denoiser, windows, tracks, max_batch=max_batch, segment_frames=segment_frames, **kw
    )


def sampled(cut, denoiser=None, *, scheduler="ddim", loop=False, config=SD, eta=0.0, max_batch=2, **kw):
    schedule = schedule_of(5, scheduler=scheduler, config=config, eta=eta)
    predict = predictor(denoiser or Wobble(), *texts(), segment_frames=cut, loop=loop, max_batch=max_batch)
    assert (len(predict.segments) > 1) == (cut < 60)
    return denoise(predict, State(noise(FRAMES)), schedule, guidance=Guidance.of_scale(3.0), **kw)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheduler": "dpmpp_2m", "smooth": NoiseConstraint(0.2)},
        {"scheduler": "ddpm", "seed": 3},
        {"eta": 0.7, "smooth": NoiseConstraint(0.25, "published")},
        {"config": {**SD, "clip_sample": True}, "smooth": NoiseConstraint(0.1, "simple", (0.3, 0.8))},
        {"scheduler": "euler", "smooth": NoiseConstraint(0.25, "source"), "source": noise(FRAMES, seed=7)},
    ],
    ids=["ddim", "history", "ddpm", "eta", "clip", "source"],
)
@pytest.mark.parametrize("cut", [1, 12, 40])
def test_sampling_is_bit_for_bit_the_same(cut, options, loop):
    assert torch.equal(sampled(cut, loop=loop, **options), sampled(1000, loop=loop, **options))


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("noise_kind", ["implied", "shared", "independent"])
@pytest.mark.parametrize("at", ["step", "end"])
def test_inversion_is_bit_for_bit_the_same(at, noise_kind, loop):
    def inverted(cut):
        predict = predictor(Wobble(), texts()[0], segment_frames=cut, loop=loop)
        blend = InversionBlend(0.4, noise=noise_kind, at=at)
        return invert_latents(predict, noise(FRAMES), schedule_of(5), blend=blend)

    assert torch.equal(inverted(12), inverted(1000))


def test_half_precision_and_its_refuge_are_the_same():
    times = schedule_of(5).timesteps
    for bad in ([], [times[2]], times):
        states = []
        cut = sampled(12, Wobble(dtype=torch.bfloat16, bad_at=bad), after_step=states.append)
        assert torch.equal(cut, sampled(1000, Wobble(dtype=torch.bfloat16, bad_at=bad)))
        assert [state.done for state in states] == [1, 2, 3, 4, 5]


def test_one_bad_frame_is_found_in_any_segment():
    class BadOnce(Wobble):
        calls = 0

        def predict(self, latents, *args, **kwargs):
            out = super().predict(latents, *args, **kwargs)
            if self.dtype != torch.float32:
                BadOnce.calls += 1
                if BadOnce.calls == 6:  # in the middle of the first step
                    out[-1, 0, 3, 0, 0] = float("nan")
            return out

    assert sampled(12, BadOnce(dtype=torch.bfloat16)).isfinite().all() and BadOnce.calls > 6


def test_interrupted_between_segments_goes_on_from_the_last_step():
    states = []
    whole = sampled(12, scheduler="dpmpp_2m", after_step=states.append)
    for state in states[:-1]:
        predict = predictor(Wobble(), *texts(), segment_frames=40)
        rest = denoise(predict, state, schedule_of(5, scheduler="dpmpp_2m"), guidance=Guidance.of_scale(3.0))
        assert torch.equal(rest, whole)


@pytest.mark.parametrize("per_frame", [False, True])
def test_prompts_over_time_are_projected_by_segment(monkeypatch, per_frame):
    """More rows of text than may be kept: the same predictions from any cut, and never all rows at once."""
    g = torch.Generator().manual_seed(2)
    moving = PromptTrack((0, 13, 28), torch.randn(3, 3, 4, generator=g))
    seen = []

    class Reader(Wobble):
        def prepare_text(self, text):
            seen.append(len(text))
            return super().prepare_text(text)

        def predict(self, latents, timestep, text, **kw):
            n = len(latents) * kw["branches"]
            text.value = text.value.unflatten(0, (n, -1)).mean(1)
            return super().predict(latents, timestep, text, **kw)

    def result(cut, kept):
        monkeypatch.setattr("vidsmooth_fast.sampling.windowed.TEXT_ROWS", kept)
        predict = predictor(Reader(), texts()[0], moving, segment_frames=cut, per_frame_text=per_frame)
        return denoise(predict, State(noise(FRAMES)), schedule_of(3), guidance=Guidance.of_scale(2.0))

    expected = result(1000, 1000)
    assert len(seen) == 1
    most = seen.pop()
    assert torch.equal(result(12, 1000), expected)
    once = len(seen)
    seen.clear()
    assert torch.equal(result(12, 8), expected)
    assert len(seen) > once and max(seen) < most


def test_guidance_that_has_ended_holds_nothing():
    predict = predictor(Wobble(), *texts(), segment_frames=48)
    list(predict(noise(FRAMES), 500.0))
    assert predict._buffer is not None
    alone = predict.guided(False)
    assert predict._buffer is None and len(alone.tracks) == 1
    list(alone(noise(FRAMES), 500.0))
    assert predict.guided(True) is predict and alone._buffer is None


def test_device_holds_one_segment():
    """What the predictor keeps for 40 times as many frames is the same."""

    def held(frames):
        predict = predictor(Wobble(), *texts(), segment_frames=48, frames=frames)
        most = max(piece.x.numel() + piece.predictions.numel() for piece in predict(noise(frames), 500.0))
        return predict._buffer.numel() + most

    assert held(60) == held(2400)


class TestOutOfMemory:
    """A denoiser that cannot take more than some pairs."""

    class Small(Wobble):
        def __init__(self, limit, error=None, **kw):
            super().__init__(**kw)
            self.limit, self.error, self.seen = (
                limit,
                error or torch.OutOfMemoryError("CUDA out of memory."),
                [],
            )

        def predict(self, latents, *args, branches=1, **kwargs):
            self.seen.append(len(latents) * branches)
            if self.seen[-1] > self.limit:
                raise self.error
            return super().predict(latents, *args, branches=branches, **kwargs)

    cpu = RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12"
    )

    @pytest.mark.parametrize("error", [None, cpu], ids=["cuda", "cpu"])
    @pytest.mark.parametrize("limit", [1, 2, 3, 5])
    @pytest.mark.parametrize("cut", [30, 1000])
    def test_auto_shrinks_and_goes_on(self, limit, error, cut, caplog):
        small = self.Small(limit, error)
        predict = predictor(small, *texts(), segment_frames=cut, max_batch=16, shrinks=True)
        with caplog.at_level(logging.WARNING, "vidsmooth_fast"):
            video = denoise(predict, State(noise(FRAMES)), schedule_of(3), guidance=Guidance.of_scale(3.0))
        expected = denoise(
            predictor(Wobble(), *texts(), segment_frames=1000),
            State(noise(FRAMES)),
            schedule_of(3),
            guidance=Guidance.of_scale(3.0),
        )
        torch.testing.assert_close(video, expected, rtol=1e-6, atol=1e-6)
        failed = [n for n in small.seen if n > limit]
        assert 1 <= len(failed) <= 4, "it remembers what fits"
        assert max(small.seen[-len(small.seen) // 2 :]) <= limit and predict.max_batch <= limit
        assert "out of memory" in caplog.text

    def test_a_number_is_a_promise(self):
        predict = predictor(self.Small(3), *texts(), segment_frames=1000, max_batch=4)
        with pytest.raises(MemoryError, match="max_batch=2"):
            list(predict(noise(FRAMES), 500.0))

    def test_one_pair_too_many(self):
        predict = predictor(self.Small(0), *texts(), segment_frames=1000, max_batch=8, shrinks=True)
        with pytest.raises(MemoryError, match="height and width"):
            list(predict(noise(FRAMES), 500.0))

    def test_other_errors_pass(self):
        predict = predictor(
            self.Small(0, RuntimeError("shape mismatch")), *texts(), segment_frames=1000, shrinks=True
        )
        with pytest.raises(RuntimeError, match="shape mismatch"):
            list(predict(noise(FRAMES), 500.0))


class TestStore:
    shape = (1, 3, 7, 4, 5)

    def test_frames_modulo_the_length(self):
        video = noise(7)
        for begin, end in ((0, 7), (2, 5), (5, 9), (-2, 3), (-3, 11)):
            index = torch.arange(begin, end) % 7
            assert torch.equal(read_frames(video, begin, end, video.device), video[:, :, index])
        part, target = noise(4, seed=9), torch.zeros_like(video)
        write_frames(target, 5, part)
        assert torch.equal(target[:, :, [5, 6, 0, 1]], part) and not target[:, :, 2:5].any()

    def test_inside_a_video_nothing_is_copied(self):
        video = noise(7)
        assert read_frames(video, 1, 4, video.device).untyped_storage().data_ptr() == video.data_ptr()

    def test_large_videos_are_mapped_files(self, monkeypatch, tmp_path):
        """The same result from files; nothing stays in the folder, and a full disk is an error at once."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        expected = sampled(12, scheduler="dpmpp_2m")
        monkeypatch.setattr(budget, "free_bytes", lambda device: 10_000)
        store = Store(self.shape, torch.device("cpu"))
        assert store.mapped
        video = store.empty()
        assert video.shape == self.shape and video.dtype == torch.float32
        video[:] = 3
        assert list(tmp_path.iterdir()) == [], "the file has no name"
        assert torch.equal(sampled(12, scheduler="dpmpp_2m"), expected)
        monkeypatch.setattr("tempfile.tempdir", "/proc")
        with pytest.raises(OSError):
            store.empty()

    def test_small_ones_are_not(self):
        assert not Store(self.shape, torch.device("cpu")).mapped


def test_steps_are_counted_by_windows():
    """Each window goes through the network once in every step, whatever the cut."""
    counts = Counter()

    class Counting(Wobble):
        def predict(self, latents, timestep, text, controls=None, frame_offsets=None, branches=1):
            counts.update((timestep, start) for start in frame_offsets.tolist())
            return super().predict(latents, timestep, text, branches=branches)

    for cut in (12, 1000):
        counts.clear()
        sampled(cut, Counting(), loop=True)
        starts = plan(FRAMES, WINDOW, STRIDE, True)
        assert counts == {(t, s): 1 for t in schedule_of(5).timesteps for s in starts}
