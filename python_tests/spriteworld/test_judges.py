"""The judges of the embedded model: what must be perfect is, what must be worse is worse, and the command runs."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

import vidsmooth_fast as vsf
from vidsmooth_fast.spriteworld import evaluate, judge_clips, judge_edits, judge_pictures
from vidsmooth_fast.spriteworld.classifier import WORDS, Classifier, accuracy, labels, renders
from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, Scene, object_mask, random_scene, render_clip
from vidsmooth_fast.spriteworld.segmenter import find_object, masked_renders, overlap, train_segmenter

SCENE = Scene("car", "red", "road", "cartoon", seed=HELD_OUT_SEED + 5)


def silent(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def segmenter():
    return train_segmenter(steps=20, batch=6, count=40, log=silent)


def test_overlap():
    a = np.zeros((2, 4, 4), bool)
    b = a.copy()
    a[0, :2], b[0, :3] = True, True
    assert overlap(a, b).tolist() == [8 / 12, 0.0]


def test_the_segmenter_learns_where_objects_are(segmenter):
    frames, masks = masked_renders(12, 1, held_out=True)
    assert frames.shape == (12, 128, 128, 3) and masks.shape == (12, 128, 128)
    found = find_object(segmenter, frames)
    everywhere = overlap(np.ones_like(masks), masks).mean()
    assert overlap(found, masks).mean() > everywhere + 0.2


def test_classifier_shares():
    frames, found = renders(5, 1, held_out=True)
    shares = accuracy(Classifier().eval(), frames, found)
    assert list(shares) == list(WORDS) and all(0 <= v <= 1 for v in shares.values())
    assert found.tolist()[0] == labels(random_scene(np.random.default_rng([1, 7]), held_out=True))


def test_high_frequencies_and_kernel_distance():
    frames, _ = renders(8, 1)
    energy = judge_pictures.high_frequency_energy
    assert energy(frames) > 10 * energy(np.full_like(frames, 127))
    torch.manual_seed(0)
    a, b, far = torch.randn(300, 10), torch.randn(300, 10), torch.randn(300, 10) + 1
    same, other = (judge_pictures.kernel_distance(a, x) for x in (b, far))
    assert judge_pictures.kernel_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert 0 < same < other / 10


def test_silhouettes_of_renders_are_nearer_than_boxes(monkeypatch):
    monkeypatch.setattr(judge_pictures, "POSES", 20)
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng, held_out=True) for _ in range(6)]
    drawn = np.stack([object_mask(scene, 7.0, 128) for scene in scenes])
    box = np.zeros_like(drawn)
    box[:, 30:100, 30:100] = True
    shares = [judge_pictures.silhouette_overlap(m, scenes, np.random.default_rng(4)) for m in (drawn, box)]
    assert shares[0] > 0.75 and shares[0] > shares[1] + 0.2
    nothing = np.zeros_like(drawn)
    assert judge_pictures.silhouette_overlap(nothing, scenes, np.random.default_rng(4)) == 0


def test_motion_tells_a_scrolling_clip_from_its_reverse_and_from_a_still(segmenter):
    frames = render_clip(SCENE, 6, truth=False).frames
    length, left = judge_clips.motion(frames, segmenter)
    assert length > 0.3 and left == 1
    back_length, back_left = judge_clips.motion(frames[::-1], segmenter)
    assert back_length == pytest.approx(length, rel=0.3) and back_left == 0
    assert judge_clips.motion(np.repeat(frames[:1], 4, 0), segmenter)[0] < 0.01


def test_an_ideal_edit_is_judged_perfect(segmenter, monkeypatch):
    """With a "model" that renders what the prompt says, only the judges' own errors are left."""
    wanted: list[Scene] = []
    original = judge_edits.render_clip

    def spy(scene, frames, **options):
        wanted.append(scene)
        return original(scene, frames, **options)

    class Inverted:
        latents = None

    monkeypatch.setattr(judge_edits, "render_clip", spy)
    monkeypatch.setattr(judge_edits, "invert", lambda *a, **k: Inverted)
    monkeypatch.setattr(
        judge_edits, "fast_sample", lambda *a, **k: original(wanted[-2], 2, truth=False).frames
    )
    monkeypatch.setattr(
        judge_edits, "predict", lambda _c, frames: torch.tensor([labels(wanted[-2])] * len(frames))
    )
    monkeypatch.setattr(judge_edits, "find_object", lambda _s, _frames: original(wanted[-2], 2).mask)
    report = judge_edits.judge_edits(
        None, None, segmenter, clips=4, frames=2, steps=2, guidance=1.0, seed=0, log=silent
    )
    assert report == {"edits": 4, "edits_new_word": 1.0, "edits_other_words": 1.0, "edits_mask_iou": 1.0}
    monkeypatch.setattr(
        judge_edits, "predict", lambda _c, frames: torch.tensor([labels(wanted[-1])] * len(frames))
    )
    report = judge_edits.judge_edits(
        None, None, segmenter, clips=4, frames=2, steps=2, guidance=1.0, seed=0, log=silent
    )
    assert report["edits_new_word"] == 0.0 and report["edits_other_words"] == 1.0


def test_the_command_measures_every_part(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(judge_pictures, "POSES", 3)
    for name in ("train_classifier", "train_segmenter"):
        trains = getattr(evaluate, name)
        monkeypatch.setattr(evaluate, name, partial(trains, steps=2, batch=4, count=6))
    for name in ("renders", "masked_renders", "world_frames"):
        draws = getattr(evaluate, name)
        monkeypatch.setattr(evaluate, name, lambda _count, *a, draws=draws, **k: draws(6, *a, **k))
    clip = render_clip(SCENE, 3, truth=False).frames
    vsf.Video.from_frames(clip, fps=8).save(tmp_path / "real.mp4")
    report = evaluate.evaluate(
        "sprite-world", videos=tmp_path, pictures=4, clips=1, frames=3, edits=1, steps=2, log=silent
    )
    expected = {
        "model", "autoencoder_world_db", "autoencoder_real_db", "segmenter_iou", "pictures_object", "pictures_style",
        "pictures_kernel_distance_ratio", "pictures_high_frequency_ratio", "pictures_silhouette_iou",
        "renders_silhouette_iou", "clips_flow_ratio", "clips_that_scroll", "clips_flicker_ratio", "inversion_world_db",
        "inversion_real_db", "edits_new_word", "edits_other_words", "edits_mask_iou",
    }  # fmt: skip
    assert expected <= set(report)
    assert report["autoencoder_world_db"] > 25 and report["autoencoder_real_db"] > 20
    assert all(np.isfinite(v) for v in report.values() if not isinstance(v, str))

    smoothed = evaluate.evaluate(
        "sprite-world", parts=("clips",), clips=1, frames=3, steps=2, smooth=0.5, log=silent
    )
    assert smoothed["clips_flicker_ratio"] < 0.9 * report["clips_flicker_ratio"]

    evaluate.main(["--parts", "autoencoder"])
    line = json.loads(capsys.readouterr().out)
    assert set(line) == {"model", "autoencoder_world_db"}


def test_a_folder_without_clips(tmp_path):
    with pytest.raises(ValueError, match="expected mp4 files"):
        evaluate.real_frames(tmp_path)
