"""The renderer: seeded, with ground truth that agrees with the pictures, edits that share a motion, honest captions."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from vidsmooth_fast.spriteworld.backgrounds import BACKGROUNDS
from vidsmooth_fast.spriteworld.captions import PLACES, VERBS, caption, random_caption
from vidsmooth_fast.spriteworld.objects import OBJECTS
from vidsmooth_fast.spriteworld.render import (
    COLOURS,
    HELD_OUT_SEED,
    STYLES,
    Scene,
    held_out_triple,
    random_scene,
    render_clip,
    render_frame,
)

EVERY = [Scene(o, list(COLOURS)[i % 6], b, STYLES[i % 2], seed=i)
         for i, (o, b) in enumerate(itertools.product(OBJECTS, BACKGROUNDS))]  # fmt: skip


def test_world_is_as_large_as_promised():
    assert min(len(OBJECTS), len(COLOURS), len(BACKGROUNDS)) >= 6 and len(STYLES) == 2


def test_same_seed_same_pictures_other_seed_other_pictures():
    scene = Scene("car", "red", "snow", "realistic", seed=5)
    a, b = (render_clip(scene, 3, 64) for _ in range(2))
    assert np.array_equal(a.frames, b.frames) and np.array_equal(a.flow, b.flow)
    assert not np.array_equal(a.frames, render_clip(scene.edit(seed=6), 3, 64).frames)


def test_frames_do_not_depend_on_how_many_are_drawn():
    scene = Scene("bird", "blue", "city", "cartoon", seed=9)
    long = render_clip(scene, 6, 48).frames
    assert np.array_equal(long[4:], render_clip(scene, 2, 48, start=4).frames)


@pytest.mark.parametrize("scene", EVERY, ids=lambda s: f"{s.object}-{s.background}")
def test_flow_carries_the_object_to_the_next_frame(scene):
    """Frame t + 1 read through the flow gives frame t, wherever the object is and stays the same part."""
    clip = render_clip(scene, 2, 128, start=40)
    now, after = clip.frames.astype(np.float32)
    inside = cv2.erode(clip.mask[0].astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert 0.03 < clip.mask[0].mean() < 0.4
    grid = np.stack(np.meshgrid(np.arange(128), np.arange(128)), -1).astype(np.float32)
    where = grid + clip.flow[0]
    warped = cv2.remap(after, where[..., 0], where[..., 1], cv2.INTER_CUBIC)
    warped_error = np.median(np.abs(warped - now)[inside])
    all_error = np.abs(warped - now)[inside].mean()
    still_error = np.abs(after - now)[inside].mean()
    assert warped_error < 3  # of 255; the mean also has what a wing, a wheel or a rolling sector uncovers
    assert all_error < 14 and all_error < still_error + 1


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_background_moves_left(background):
    clip = render_clip(Scene("ball", "red", background, "cartoon", seed=3), 1, 128)
    horizontal = clip.flow[0, ..., 0][~clip.mask[0]]
    moving = horizontal[np.abs(horizontal) > 0.05]
    assert moving.size > 1000 and (moving < 0).all()


@pytest.mark.parametrize("name", OBJECTS)
def test_object_stays_in_view_for_ever(name):
    for seed, t in itertools.product(range(4), (0, 333, 5000.5)):
        mask = render_frame(Scene(name, "green", "sea", "cartoon", seed=seed), t, 64, truth=True).mask()
        width = np.flatnonzero(mask.any(0))
        assert 0.3 < (width[-1] - width[0]) / 64 < 0.7
        assert width[0] > 0 and width[-1] < 63 and mask.any(1)[0] == 0


@pytest.mark.parametrize("edit", [{"colour": "blue"}, {"background": "meadow"}, {"style": "realistic"}])
def test_an_edit_keeps_the_motion(edit):
    scene = Scene("rocket", "red", "beach", "cartoon", seed=12)
    ours, other = (render_clip(s, 4, 96) for s in (scene, scene.edit(**edit)))
    same = (ours.mask == other.mask).mean()
    assert same > 0.985  # what hides the object differs with the background, nothing else
    both = ours.mask & other.mask
    np.testing.assert_allclose(ours.flow[both], other.flow[both], atol=1e-5)
    assert not np.array_equal(ours.frames, other.frames)


def test_an_edited_object_moves_alike():
    scene = Scene("car", "red", "road", "cartoon", seed=12)
    sway = []
    for name in ("car", "ball"):
        mask = render_clip(scene.edit(object=name), 12, 96, stride=4).mask
        sway.append([np.flatnonzero(m.any(0))[[0, -1]].mean() for m in mask])
    assert np.corrcoef(sway)[0, 1] > 0.95


def test_held_out_seeds_and_triples_are_never_trained_on():
    rng = np.random.default_rng(0)
    training = [random_scene(rng) for _ in range(300)]
    assert all(s.seed < HELD_OUT_SEED and not held_out_triple(s) for s in training)
    assert all(random_scene(rng, held_out=True).seed >= HELD_OUT_SEED for _ in range(50))
    triples = [
        held_out_triple(Scene(o, c, b, "cartoon")) for o in OBJECTS for c in COLOURS for b in BACKGROUNDS
    ]
    assert 0.04 < np.mean(triples) < 0.15


def test_captions_name_every_attribute():
    for scene in EVERY:
        text = caption(scene)
        for word in (
            scene.object,
            scene.colour,
            PLACES[scene.background],
            VERBS[scene.object],
            f"{scene.style} style",
        ):
            assert word in text
    assert (
        caption(Scene("car", "red", "snow", "cartoon")) == "a red car is driving on the snow, cartoon style"
    )
    assert caption(Scene("bird", "orange", "city", "realistic")).startswith(
        "an orange bird is flying over the city"
    )


def test_random_captions_always_name_the_object_and_mostly_the_rest():
    rng = np.random.default_rng(1)
    scene = Scene("fish", "purple", "meadow", "realistic")
    texts = [random_caption(scene, rng) for _ in range(400)]
    assert all("fish" in t for t in texts) and len(set(texts)) > 20
    for word, low in (("purple", 0.85), ("meadow", 0.85), ("realistic style", 0.75)):
        share = np.mean([word in t for t in texts])
        assert low < share < 1


def test_bad_scenes_say_what_is_expected():
    with pytest.raises(ValueError, match="object: expected one of car.* got 'tank'"):
        Scene("tank", "red", "road", "cartoon")
    with pytest.raises(ValueError, match="frames: expected at least 1, got 0"):
        render_clip(EVERY[0], 0)
    with pytest.raises(ValueError, match="truth: expected"):
        render_frame(EVERY[0], 0).flow()
