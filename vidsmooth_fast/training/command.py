"""What `vidsmooth-fast tune` was given, as arguments of `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vidsmooth_fast.models.loading import load_networks
from vidsmooth_fast.training.data import Pair
from vidsmooth_fast.training.losses import Objective
from vidsmooth_fast.training.tuner import COMBINED, tune
from vidsmooth_fast.video import Video


def parse_loss(text: str) -> str | dict[str, float]:
    """ "inr", or "plain=1,inr-forward=0.5" as {term: weight}."""
    if "=" not in text:
        return text
    terms = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            terms[name.strip()] = float(weight)
        except ValueError:
            raise ValueError(f"loss: expected term=weight, got {part!r}") from None
    return terms


def parse_trainable(values: Sequence[str]) -> str | int | list[str]:
    """One set or rank, or patterns."""
    if len(values) == 1:
        return int(values[0]) if values[0].lstrip("-").isdigit() else values[0]
    return list(values)


def parse_pair(text: str) -> Pair:
    """ "12:edited.png:a painting of a city"."""
    import numpy as np

    frame, _, rest = text.partition(":")
    path, _, prompt = rest.rpartition(":") if ":" in rest else (rest, "", "")
    if not frame.strip().isdigit() or not path or not prompt.strip():
        raise ValueError(f"pair: expected FRAME:PICTURE:PROMPT, got {text!r}")
    try:
        picture = np.asarray(Image.open(path).convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"pair: cannot read the picture {path} ({type(error).__name__})") from error
    return Pair(int(frame), picture, prompt.strip())


def tune_from_command(
    model: str,
    video: Path,
    prompt: str,
    options: dict,
    *,
    size: tuple[int | None, int | None],
    pairs: Sequence[str],
    masks: dict,
) -> None:
    """Run `tune`; options that are None take its defaults, or COMBINED's where there are pairs.

    size: (height, width), None for the model's. masks: `foreground_masks`'s checkpoint, point and box, or None each.
    Raises ValueError where one of them is given to a loss without masks, and what `foreground_masks` and `tune` raise.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if "loss" in options:
        options["loss"] = parse_loss(options["loss"])
    if "trainable" in options:
        options["trainable"] = parse_trainable(options["trainable"])
    masked = Objective(options.get("loss", "inr" if not pairs else COMBINED["loss"])).needs_mask
    given = [name for name, value in masks.items() if value is not None]
    if given and not masked:
        raise ValueError(f"{given[0]}: only a loss with masks uses it, such as foreground")
    options["pairs"] = [parse_pair(text) for text in pairs]
    if pairs:
        options = COMBINED | options
    loaded = load_networks(model, device=options.pop("device"), dtype="float32")
    clip = Video.open(video)
    height, width = size
    default = loaded.default_size
    options["size"] = (default[0] if height is None else height, default[1] if width is None else width)
    if masked:
        from vidsmooth_fast.conditioning.masks import foreground_masks

        part = clip[: options.get("frames", 24)] if len(clip) > options.get("frames", 24) else clip
        options["mask"] = foreground_masks(part.resized(options["size"]), **masks)
    tune(loaded, clip, prompt, **options)
