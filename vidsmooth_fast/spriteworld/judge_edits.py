"""Inversion and back, and editing by inversion, against the exact edits that the world knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..sampling.fast_sample import fast_sample
from ..sampling.inversion import invert
from ..video import Video
from .autoencoder import psnr
from .captions import caption
from .classifier import WORDS, Classifier, labels, predict
from .render import random_scene, render_clip
from .segmenter import Segmenter, find_object, overlap

FPS = 16


def round_trip(model, video: Video, prompt: str, *, steps: int) -> float:
    """PSNR in dB of inverting and sampling again without guidance, against the autoencoder's own reconstruction."""
    inversion = invert(model, video, prompt, steps=steps, progress=False)
    again = fast_sample(
        model,
        prompt,
        len(video),
        source=video,
        latents=inversion.latents,
        steps=steps,
        guidance=1,
        progress=False,
    )
    plain = np.stack(list(model.decode_latents(model.encode_video(video))))
    return psnr(plain, np.stack(list(again)))


def judge_inversion(
    model, *, clips: int, frames: int, steps: int, videos: Path | None, seed: int, log=print
) -> dict[str, float]:
    """Mean PSNR of `round_trip` over held-out world clips, and over as many real ones from the folder `videos`."""
    rng, world = np.random.default_rng([seed, 14]), []
    for _ in range(clips):
        scene = random_scene(rng, held_out=True)
        video = Video.from_frames(render_clip(scene, frames, truth=False).frames, fps=FPS)
        world.append(round_trip(model, video, caption(scene), steps=steps))
        log(f"inversion and back: {caption(scene)}: {world[-1]:.1f} dB")
    report = {"inversion_clips": clips, "inversion_world_db": round(float(np.mean(world)), 2)}
    if videos is not None:
        real = []
        for path in sorted(videos.glob("*.mp4"))[:clips]:
            real.append(
                round_trip(model, Video.open(path, frames=frames, size=model.default_size), "", steps=steps)
            )
            log(f"inversion and back: {path.name}: {real[-1]:.1f} dB")
        report["inversion_real_db"] = round(float(np.mean(real)), 2)
    return report


def judge_edits(
    model, classifier: Classifier, segmenter: Segmenter, *, clips: int, frames: int, steps: int, guidance: float,
    seed: int, log=print,
) -> dict[str, float]:  # fmt: skip
    """Edit `clips` held-out clips, one word each in turn, and compare with the same scene rendered with that word."""
    rng = np.random.default_rng([seed, 15])
    changed, kept, ious = [], [], []
    for i in range(clips):
        scene = random_scene(rng, held_out=True)
        word = list(WORDS)[i % len(WORDS)]
        other = str(rng.choice([w for w in WORDS[word] if w != getattr(scene, word)]))
        ideal = render_clip(scene.edit(**{word: other}), frames)
        video = Video.from_frames(render_clip(scene, frames, truth=False).frames, fps=FPS)
        sampling = {"steps": steps, "scheduler": "dpmpp_2m", "progress": False}
        inversion = invert(model, video, caption(scene), **sampling)
        edited = fast_sample(
            model,
            caption(ideal.scene),
            frames,
            source=video,
            latents=inversion.latents,
            guidance=guidance,
            **sampling,
        )
        edited = np.stack(list(edited))
        right = (predict(classifier, edited).numpy() == np.array(labels(ideal.scene))).mean(0)
        changed.append(right[list(WORDS).index(word)])
        kept.append(np.delete(right, list(WORDS).index(word)).mean())
        ious.append(overlap(find_object(segmenter, edited), ideal.mask).mean())
        log(f"edit {i + 1}/{clips}: {caption(scene)} -> {other}: new word in {changed[-1]:.0%} of frames, others in "
            f"{kept[-1]:.0%}, mask overlap {ious[-1]:.2f}")  # fmt: skip
    return {
        "edits": clips,
        "edits_new_word": round(float(np.mean(changed)), 3),
        "edits_other_words": round(float(np.mean(kept)), 3),
        "edits_mask_iou": round(float(np.mean(ious)), 3),
    }
