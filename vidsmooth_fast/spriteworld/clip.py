"""Train sprite-world's own CLIP, which scores text against frames offline; it can be killed and continued.

    python -m vidsmooth_fast.spriteworld.clip --out DIR [--minutes 10]            train, or go on training
    python -m vidsmooth_fast.spriteworld.clip --out DIR --to FOLDER               write the model directory
    python -m vidsmooth_fast.spriteworld.clip --check FOLDER                      how often it is right on new scenes

A `transformers.CLIPModel` small enough to ship. Each batch holds scenes together with edits of them (one word changed,
the same motion), so that telling colours, objects and backgrounds apart is what lowers the loss.
"""

from __future__ import annotations

import argparse
import json
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from ..metrics.clip_model import Clip, image_processor
from ..models.video_model import quiet_transformers
from .backgrounds import BACKGROUNDS
from .captions import PLACES, caption, random_caption
from .objects import OBJECTS
from .package import weight_bytes
from .render import COLOURS, STYLES, Scene, held_out_triple, random_scene, render_frame
from .runner import Schedule, in_parallel, load_average, rank_and_workers, train
from .text import LENGTH, build_tokenizer, tokens

SIZE = 64  # pixels a side that the network sees
LIMIT = 6_000_000  # bytes of weights
STEPS = 800
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
WORDS = {"object": OBJECTS, "colour": COLOURS, "background": BACKGROUNDS}
"""The words whose edits stand in one batch."""


def build(tokenizer, *, tiny: bool = False) -> CLIPModel:
    """A vision transformer on 8 x 8 patches and a text transformer; both project to one space."""
    width, layers = (32, 1) if tiny else (128, 4)
    text = dict(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=max(1, layers // 2), num_attention_heads=4, max_position_embeddings=LENGTH,
        hidden_act="gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4,
        image_size=SIZE, patch_size=8, hidden_act="gelu",
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def families(count: int, seed: int) -> tuple[np.ndarray, list[list[Scene]]]:
    """`count` scenes, each with an edit of its object, its colour and its background at the same moment.

    Returns (count, 4, SIZE, SIZE, 3) uint8, and the scenes; none is a triple held out from training.
    """
    rng = np.random.default_rng([seed, 11])
    pictures, scenes = np.empty((count, 1 + len(WORDS), SIZE, SIZE, 3), np.uint8), []
    for i in range(count):
        scene = random_scene(rng)
        family = [scene]
        for word, known in WORDS.items():
            others = [scene.edit(**{word: w}) for w in known if w != getattr(scene, word)]
            others = [s for s in others if not held_out_triple(s)]
            family.append(others[rng.integers(len(others))])
        moment = float(rng.uniform(0, 400))
        for j, member in enumerate(family):
            picture = render_frame(member, moment).picture()
            pictures[i, j] = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        scenes.append(family)
    return pictures, scenes


def fits(text: str, scene: Scene) -> bool:
    """Whether nothing that the caption says contradicts the scene."""
    said = {"object": OBJECTS, "colour": COLOURS, "style": STYLES}
    for word, known in said.items():
        found = [w for w in known if w in text.replace(",", "").split()]
        if found and getattr(scene, word) not in found:
            return False
    places = [b for b, phrase in PLACES.items() if phrase in text]
    return not places or scene.background in places


def to_pixels(pictures: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) fp32, normalised as the processor does."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def augment(x: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Shifts of up to 4 pixels, blur, brightness and noise, as sampled and compressed videos have them."""
    shifts = rng.integers(-4, 5, size=(len(x), 2))
    x = torch.stack([torch.roll(p, tuple(s), (1, 2)) for p, s in zip(x, shifts.tolist(), strict=True)])
    if rng.random() < 0.4:
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    gain = 1 + 0.1 * torch.randn(len(x), 1, 1, 1, generator=generator)
    lift = 0.15 * torch.randn(len(x), 1, 1, 1, generator=generator)
    return x * gain + lift + 0.1 * float(rng.random()) * torch.randn(x.shape, generator=generator)


def loss_of(model: CLIPModel, tokenizer, data, batch: int, step: int, generator: torch.Generator) -> Tensor:
    """Contrast of pictures and captions both ways; every caption that fits a picture counts as its own.

    Captions leave words out at times, so that several may fit: the target is uniform over those.
    """
    pictures, scenes = data
    rng = np.random.default_rng([step, 12])
    pick = rng.integers(len(scenes), size=batch)
    family = [s for i in pick for s in scenes[i]]
    texts = [random_caption(s, rng) for s in family]
    x = augment(to_pixels(pictures[pick].reshape(-1, SIZE, SIZE, 3)), rng, generator)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=tokens(tokenizer, texts), pixel_values=x)
    logits = out.logits_per_image.float()
    mine = torch.tensor([[fits(t, s) for t in texts] for s in family]).float()
    rows = F.cross_entropy(logits, mine / mine.sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, mine.T / mine.T.sum(1, keepdim=True))
    return (rows + columns) / 2


def train_clip(
    out: Path, *, steps: int, minutes: float, seed: int = 0, batch: int = 16, count: int = 2500, tiny: bool = False,
    log=print,
) -> None:  # fmt: skip
    """Train or continue in `out`; `batch` families of four a step and process."""
    torch.manual_seed(seed)
    rank, workers = rank_and_workers()
    batch, count = (3, 4) if tiny else (batch, count)
    tokenizer = build_tokenizer(seed=seed)
    model = build(tokenizer, tiny=tiny)
    data = families(max(count // workers, 2), seed * workers + rank)
    schedule = Schedule(steps, lr=1e-3, warmup=min(200, steps), ema=0.995)
    job = partial(loss_of, model, tokenizer, data, batch)
    train(model, job, schedule, out / "clip.pt", seed=seed, minutes=minutes, log=log)


def package(out: Path, target: Path, *, seed: int = 0, tiny: bool = False) -> str:
    """Write the moving average as an fp16 CLIP directory with its processor. Returns one line that says what.

    Raises ValueError when nothing was trained in `out` or the weights exceed LIMIT.
    """
    tokenizer = build_tokenizer(seed=seed)
    model = build(tokenizer, tiny=tiny)
    step = load_average(model, out / "clip.pt")
    with quiet_transformers():
        model.eval().half().save_pretrained(target)
    images = image_processor()(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE},
        image_mean=list(MEAN), image_std=list(STD),
    )  # fmt: skip
    CLIPProcessor(images, tokenizer).save_pretrained(target)
    # transformers 4 reads these two files instead of tokenizer.json, and this one instead of processor_config.json
    tokenizer.backend_tokenizer.model.save(str(target))
    images.save_pretrained(target)
    size = weight_bytes(target)
    if size > LIMIT:
        raise ValueError(f"model: expected at most {LIMIT} bytes of weights, got {size}")
    return f"{target}: step {step}, {size / 1e6:.2f} MB of weights"


def check(folder: Path, *, scenes: int = 300, seed: int = 0) -> dict:
    """How often the right caption wins, on frames of held-out scenes: among captions with one wrong word.

    Returns, for each kind of word and for all together, the share of `scenes` frames that are nearer to their own
    caption than to every caption in which that word is another (5 wrong ones for each kind, 15 together).
    """
    judge = Clip(folder, device="cpu")
    text = cache(lambda words: judge.text(words)[0])
    rng = np.random.default_rng([seed, 13])
    right = {word: [] for word in (*WORDS, "all")}
    for _ in range(scenes):
        scene = random_scene(rng, held_out=True)
        picture = render_frame(scene, float(rng.uniform(0, 400))).picture()
        wrong = {
            w: [scene.edit(**{w: v}) for v in known if v != getattr(scene, w)] for w, known in WORDS.items()
        }
        seen = judge.images([picture])[0]
        score = {
            s: float(seen @ text(caption(s))) for s in (scene, *(s for some in wrong.values() for s in some))
        }
        best = {w: max(score[s] for s in some) for w, some in wrong.items()}
        for word in WORDS:
            right[word].append(score[scene] > best[word])
        right["all"].append(score[scene] > max(best.values()))
    shares = {word: round(float(np.mean(hits)), 3) for word, hits in right.items()}
    return {"scenes": scenes, "right_caption_wins": shares}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vidsmooth_fast.spriteworld.clip", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of the checkpoint")
    parser.add_argument(
        "--to", type=Path, default=None, help="write the trained model to this folder instead"
    )
    parser.add_argument("--check", type=Path, default=None, help="judge the model in this folder instead")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop this run after so long")
    parser.add_argument("--steps", type=int, default=STEPS, help="length of the learning-rate schedule")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the gradient")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a toy size, to try the machinery")
    options = parser.parse_args(arguments)
    if options.check is not None:
        print(json.dumps(check(options.check)))
        return
    if options.out is None:
        parser.error("--out is needed, or --check")
    if options.to is not None:
        print(package(options.out, options.to, seed=options.seed, tiny=options.tiny))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    common = dict(
        out=options.out, steps=options.steps, minutes=options.minutes, seed=options.seed, tiny=options.tiny
    )
    in_parallel(options.workers, options.threads, _job, common)


def _job(common: dict) -> None:
    train_clip(**common, log=_log)


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
