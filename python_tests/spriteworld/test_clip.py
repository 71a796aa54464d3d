"""sprite-world's CLIP: the script trains, continues and packages; the embedded one knows the world's words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vidsmooth_fast.metrics.clip_model import EMBEDDED_CLIP, Clip
from vidsmooth_fast.models.loading import EMBEDDED
from vidsmooth_fast.spriteworld.captions import caption, random_caption
from vidsmooth_fast.spriteworld.clip import LIMIT, check, families, fits, main
from vidsmooth_fast.spriteworld.package import weight_bytes
from vidsmooth_fast.spriteworld.render import Scene, held_out_triple, random_scene, render_frame

TINY = ["--tiny", "--workers", "1"]
FOLDER = EMBEDDED / EMBEDDED_CLIP


def test_trains_continues_and_packages(tmp_path, capsys):
    from transformers import CLIPModel, CLIPProcessor

    threads = torch.get_num_threads()
    for minutes in ("0", "1"):
        main(["--out", str(tmp_path / "run"), "--steps", "2", "--minutes", minutes, *TINY])
    torch.set_num_threads(threads)
    main(["--out", str(tmp_path / "run"), "--to", str(tmp_path / "clip"), *TINY])
    assert "resumed" in capsys.readouterr().out
    model = CLIPModel.from_pretrained(tmp_path / "clip", dtype=torch.float32, local_files_only=True)
    processor = CLIPProcessor.from_pretrained(tmp_path / "clip", local_files_only=True)
    picture = render_frame(Scene("car", "red", "snow", "cartoon"), 0).picture()
    inputs = processor(text=["a red car"], images=[picture], return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (1, 1)
    main(["--check", str(tmp_path / "clip")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["scenes"] == 300
    with pytest.raises(ValueError, match="expected a checkpoint"):
        main(["--out", str(tmp_path), "--to", str(tmp_path / "none"), *TINY])


def test_captions_fit_the_scenes_they_do_not_contradict():
    scene, rng = Scene("car", "red", "sea", "cartoon"), np.random.default_rng(0)
    assert fits("a car moving", scene) and fits("cartoon style, a red car", scene)
    assert not fits("a blue car", scene) and not fits("a red boat on the sea", scene)
    assert not fits("a red car in the city at night", scene) and not fits("a red car, realistic style", scene)
    for _ in range(50):
        other = random_scene(rng)
        assert fits(random_caption(other, rng), other) and fits(caption(other), other)


def test_families_hold_an_edit_of_each_word_and_nothing_held_out():
    pictures, scenes = families(3, seed=0)
    assert pictures.shape == (3, 4, 64, 64, 3)
    for first, thing, colour, place in scenes:
        assert thing.object != first.object and thing.edit(object=first.object) == first
        assert colour.colour != first.colour and place.background != first.background
        assert not any(held_out_triple(s) for s in (first, thing, colour, place))


def test_the_embedded_one_knows_colours_objects_and_backgrounds():
    assert weight_bytes(FOLDER) <= LIMIT
    shares = check(FOLDER, scenes=100)["right_caption_wins"]
    assert shares["colour"] > 0.9 and shares["background"] > 0.9 and shares["object"] > 0.8


def test_the_default_of_evaluate_is_the_embedded_one():
    import vidsmooth_fast as vsf
    from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, render_clip

    scene = Scene("boat", "green", "sea", "cartoon", seed=HELD_OUT_SEED + 7)
    clip = vsf.Video.from_frames(render_clip(scene, 3, truth=False).frames, fps=8)
    right, wrong = (
        vsf.evaluate(clip, prompt=caption(s), metrics="clip_t")
        for s in (scene, scene.edit(colour="red", object="car"))
    )
    assert right["clip_t"] > wrong["clip_t"] + 10 and right.settings["clip"] == EMBEDDED_CLIP
    assert Clip().name == EMBEDDED_CLIP
