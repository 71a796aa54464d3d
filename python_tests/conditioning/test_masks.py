"""Foreground masks: GrabCut on the sprite world against its truth, and the real Segment Anything, tiny and random."""

import sys

import numpy as np
import pytest
import torch

from vidsmooth_fast.conditioning.masks import foreground_masks
from vidsmooth_fast.conditioning.segment_anything import load_predictor, make_predictor
from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, Scene, render_clip


def overlap(a, b) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture(scope="module")
def clip():
    return render_clip(Scene("car", "red", "road", "cartoon", seed=HELD_OUT_SEED + 1), 6)


def test_grabcut_finds_what_moves(clip):
    masks = foreground_masks(clip.frames)
    assert masks.shape == clip.mask.shape and masks.dtype == bool
    assert np.mean([overlap(m, t) for m, t in zip(masks, clip.mask, strict=True)]) > 0.6


def test_a_box_or_a_point_says_which_object(clip):
    rows, columns = np.nonzero(clip.mask[0])
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    masks = foreground_masks(clip.frames, box=box)
    assert np.mean([overlap(m, t) for m, t in zip(masks, clip.mask, strict=True)]) > 0.7
    pointed = foreground_masks(clip.frames[:2], point=(columns.mean(), rows.mean()))
    assert overlap(pointed[0], clip.mask[0]) > 0.4


def tiny_sam():
    """A whole SAM of 64-pixel pictures with random weights."""
    from vidsmooth_fast.conditioning.segment_anything import _torchvision

    with _torchvision():
        from segment_anything.modeling import (
            ImageEncoderViT,
            MaskDecoder,
            PromptEncoder,
            Sam,
            TwoWayTransformer,
        )
    torch.manual_seed(0)
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, out_chans=16, window_size=0,
            use_rel_pos=True, global_attn_indexes=(0,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=16, transformer=TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=32)
        ),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("prompt", [{}, {"point": (60, 60)}, {"box": (30, 30, 90, 90)}])
def test_the_real_segment_anything(clip, prompt):
    """The package's own predictor: pictures resized, prompts encoded, masks decoded to the frame's size."""
    before = {name for name in sys.modules if name.startswith("torchvision")}
    predictor = make_predictor(tiny_sam())
    assert type(predictor).__module__ == "segment_anything.predictor"
    masks = foreground_masks(clip.frames[:3], predictor=predictor, **prompt)
    assert masks.shape == (3, 128, 128) and 0 < masks.mean() < 1
    again = foreground_masks(clip.frames[:3], predictor=make_predictor(tiny_sam()), **prompt)
    assert np.array_equal(masks, again)
    try:
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError):
        assert {
            name for name in sys.modules if name.startswith("torchvision")
        } <= before  # nothing stands in for it


def test_the_predictor_resizes_as_torchvision_does(clip):
    """The stand-in's result against the antialiased bilinear rule, written out by PyTorch."""
    from vidsmooth_fast.conditioning.segment_anything import _resize, _to_pil_image

    frame = clip.frames[0]
    ours = np.asarray(_resize(_to_pil_image(frame), (48, 64))).astype(np.float32)
    x = torch.from_numpy(frame).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(x.float(), size=(48, 64), mode="bilinear", antialias=True)
    assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 1.0


def test_bad_prompts_and_pictures(clip, tmp_path):
    flat = [np.full((32, 32, 3), 90, np.uint8)] * 2
    for call, message in (
        (lambda: foreground_masks([]), "video: expected at least one frame"),
        (lambda: foreground_masks(flat, point=(99, 0)), "point: expected coordinates inside 32x32"),
        (lambda: foreground_masks(flat, box=(9, 9, 3, 3)), "box: expected"),
        (lambda: foreground_masks(flat, box=(0, 0, 32, 32)), "everything was found to be foreground"),
        (lambda: foreground_masks(flat, checkpoint=tmp_path / "sam_vit_b.pth"), "found no file"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    (tmp_path / "sam_vit_b.pth").write_bytes(b"no weights")
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="expected one of vit_h, vit_l, vit_b in the file's name"):
        load_predictor(tmp_path / "other.pth")
