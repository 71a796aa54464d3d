"""What every metric promises: a still video is perfect, disorder and flicker cost, known motion is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsmooth_fast import evaluate
from vidsmooth_fast.metrics.registry import METRICS, WEIGHT_FREE
from vidsmooth_fast.metrics.seam_score import window_joins

from .clips import flickering, pan, still, texture, video

PERFECT = {
    "clip_f": 100, "clip_f_adjacent": 100, "vl_score": 100, "warping_error": 0, "flicker": 0, "flicker_raw": 0,
    "jitter": 0, "motion": 0, "seam_score": 1, "loop_gap": 1, "colour_drift": 0, "psnr": 100, "ssim": 1,
}  # fmt: skip
ORDER = ("clip_f_adjacent", "vl_score", "flicker_raw", "jitter", "motion", "warping_error", "flicker")
"""Metrics that see the order of frames, and so get worse (or see more motion) when it is shuffled."""


def worse(name: str, than: float, value: float) -> bool:
    return value < than if METRICS[name].better == "higher" else value > than


@pytest.mark.parametrize("loop", [False, True])
def test_a_still_video_is_perfect(networks, loop):
    frames = still(24)
    report = evaluate(
        video(frames), prompt="a car", source=video(frames), window=8, stride=4, loop=loop, **networks
    )
    assert set(report) == set(METRICS)
    for name, value in PERFECT.items():
        assert report[name] == pytest.approx(value, abs=1e-4), name
    assert -100 <= report["clip_t"] <= 100


def test_every_value_is_in_its_range(networks):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 40, 3), dtype=np.uint8) for _ in range(20)]
    extremes = [np.full((48, 40, 3), 255 * (n % 2), np.uint8) for n in range(20)]
    for frames in (noise, extremes):
        report = evaluate(video(frames), prompt="a", source=video(noise), window=8, stride=4, **networks)
        for name, value in report.items():
            assert math.isnan(value) or METRICS[name].low - 1e-6 <= value <= METRICS[name].high + 1e-6, name


def test_shuffling_worsens_what_sees_order_and_nothing_else(networks):
    frames = flickering(pan(10, 1), 2)
    shuffled = [frames[n] for n in (5, 0, 7, 2, 9, 4, 1, 8, 3, 6)]
    before, after = (evaluate(video(f), prompt="a car", **networks) for f in (frames, shuffled))
    for name in ORDER:
        assert worse(name, before[name], after[name]), name
    for name in ("clip_f", "clip_t"):
        assert after[name] == pytest.approx(before[name], abs=1e-4), name


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_known_translation_gives_the_known_flow(step):
    report = evaluate(
        video(pan(5, step, 96)), metrics=["motion", "flicker", "flicker_raw", "warping_error"], flow="dis"
    )
    assert report["motion"] == pytest.approx(step, rel=0.05)
    assert report["flicker"] < 0.25 * report["flicker_raw"]
    assert report["warping_error"] < 0.5


def test_added_flicker_is_monotone(networks):
    names = ["warping_error", "flicker", "flicker_raw", "jitter", "psnr", "ssim", "colour_drift", "vl_score"]
    base = pan(6, 2)
    reports = [
        evaluate(video(flickering(base, amount)), source=video(base), metrics=names, **networks)
        for amount in (0, 4, 8, 16, 24)
    ]
    for name in names:
        values = [report[name] for report in reports]
        if name == "vl_score":  # random weights: only the ends must be in order
            values = values[:: len(values) - 1]
        assert all(worse(name, a, b) for a, b in zip(values, values[1:], strict=False)), (name, values)


def test_clip_f_is_the_mean_over_all_pairs(clip_folder):
    from vidsmooth_fast.metrics.clip_model import Clip

    clip, frames = Clip(clip_folder), pan(9, 3)
    e = clip.images(frames)
    cosines = e @ e.T
    report = evaluate(video(frames), metrics=["clip_f", "clip_f_adjacent"], clip=clip)
    assert report["clip_f"] == pytest.approx(100 * cosines[np.triu_indices(9, 1)].mean(), abs=1e-4)
    assert report["clip_f_adjacent"] == pytest.approx(100 * np.diagonal(cosines, 1).mean(), abs=1e-4)
    assert report.series["clip_f"][4] == pytest.approx(100 * cosines[4, :4].mean(), abs=1e-4)


def test_clip_t_is_the_mean_cosine(clip_folder):
    from transformers import CLIPModel, CLIPTokenizer

    from vidsmooth_fast.metrics.clip_model import Clip

    clip, frames = Clip(clip_folder), pan(3, 3)
    text, cut = clip.text("a red car is driving on the snow")
    assert cut == "" and clip.text("a red car " * 30)[1] != ""
    ids = CLIPTokenizer.from_pretrained(clip_folder)(
        ["a red car is driving on the snow"], return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(clip_folder).eval()
    expected = model.text_projection(model.text_model(**ids).pooler_output)[0].double().detach().numpy()
    assert text == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    report = evaluate(video(frames), prompt="a red car is driving on the snow", metrics="clip_t", clip=clip)
    assert report["clip_t"] == pytest.approx(100 * (clip.images(frames) @ text).mean(), abs=1e-6)


def test_seams_show_where_windows_join():
    frames = [texture(32, 32, seed=n // 4) for n in range(24)]  # jumps every 4 frames
    metrics = ["seam_score"]
    at_joins = evaluate(video(frames), metrics=metrics, window=8, stride=4)["seam_score"]
    elsewhere = evaluate(video(frames[2:] + frames[:2]), metrics=metrics, window=8, stride=4)["seam_score"]
    assert at_joins > 20 and elsewhere < 1


@given(frames=st.integers(2, 60), window=st.integers(2, 20), stride=st.integers(1, 20), loop=st.booleans())
@settings(max_examples=100, deadline=None)
def test_joins_are_where_windows_begin_or_have_ended(frames, window, stride, loop):
    from vidsmooth_fast.sampling.windows import plan, window_length

    stride = min(stride, window)
    joins, length = window_joins(frames, window, stride, loop=loop), window_length(frames, window)
    ends = {
        (s + e) % frames if loop else s + e for s in plan(frames, window, stride, loop) for e in (0, length)
    }
    if frames <= window:
        assert not joins
    elif not loop:
        assert joins == ends - {0, frames}
    else:
        assert joins <= ends


def test_a_loop_counts_the_jump_home():
    frames = pan(12, 2)
    open_, closed = (
        evaluate(video(frames), loop=loop, metrics=["flicker_raw", "loop_gap"]) for loop in (False, True)
    )
    assert closed["flicker_raw"] > open_["flicker_raw"]
    assert closed["loop_gap"] == open_["loop_gap"] > 2
    there_and_back = frames + frames[-2:0:-1]
    assert evaluate(video(there_and_back), metrics="loop_gap")["loop_gap"] == pytest.approx(1, abs=0.2)


def test_colour_drift_sees_drift():
    fade = [np.clip(texture(32, 32).astype(int) + 2 * n, 0, 255).astype(np.uint8) for n in range(12)]
    report = evaluate(video(fade), metrics=["colour_drift", "jitter"])
    assert report["colour_drift"] > 3 and report["jitter"] < 0.2
    assert report.series["colour_drift"][0] == 0 and np.all(np.diff(report.series["colour_drift"]) > 0)


def test_memory_does_not_grow_with_length(tmp_path):
    import tracemalloc

    class Endless:
        """A video that renders each frame when it is asked for."""

        def __init__(self, count):
            self.count, self.picture = count, texture(96, 96)

        def __len__(self):
            return self.count

        def __getitem__(self, n):
            return np.roll(self.picture, n, 1)

    from vidsmooth_fast.video import Video

    def peak(count):
        clip = Video.from_frames(Endless(count), fps=8)
        tracemalloc.reset_peak()
        evaluate(clip, source=clip, metrics=WEIGHT_FREE, window=8, stride=4, loop=True, flow="dis")
        return tracemalloc.get_traced_memory()[1]

    peak(16)
    tracemalloc.start()
    try:
        assert peak(120) < peak(16) + 100_000
    finally:
        tracemalloc.stop()
