"""Captions worded like the field's own prompts: "a red car is driving on the snow, cartoon style"."""

from __future__ import annotations

import numpy as np

from .render import Scene

VERBS = {
    "car": "driving", "boat": "sailing", "ball": "rolling", "fish": "swimming", "bird": "flying", "rocket": "flying",
}  # fmt: skip
PLACES = {
    "road": "the road", "beach": "the beach", "snow": "the snow", "sea": "the sea",
    "meadow": "the meadow", "city": "the city at night",
}  # fmt: skip
WHERE = {"road": "on", "beach": "on", "snow": "on", "sea": "on", "meadow": "in", "city": "in"}
ABOVE = ("fish", "bird", "rocket")


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(scene: Scene) -> str:
    """The full caption, in the first wording."""
    where = "over" if scene.object in ABOVE else WHERE[scene.background]
    thing = f"{article(scene.colour)} {scene.colour} {scene.object}"
    return f"{thing} is {VERBS[scene.object]} {where} {PLACES[scene.background]}, {scene.style} style"


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many wordings; at times the style, the colour or the place is left out."""
    style = f"{scene.style} style" if rng.random() < 0.85 else ""
    colour = f"{scene.colour} " if rng.random() < 0.93 else ""
    thing = f"{article(colour or scene.object)} {colour}{scene.object}"
    over = "over" if scene.object in ABOVE else WHERE[scene.background]
    where = over if rng.random() < 0.6 else str(rng.choice(["on", "in", "over", "at"]))
    place = f"{where} {PLACES[scene.background]}" if rng.random() < 0.93 else ""
    verb = VERBS[scene.object] if rng.random() < 0.85 else "moving"
    kind = rng.integers(10)
    if kind < 6:
        text = f"{thing} is {verb} {place}"
    elif kind < 8:
        text = f"{thing} {verb} {place}"
    elif kind < 9:
        text = f"{thing} {place}"
    else:
        text = f"{place}, {thing} is {verb}" if place else thing
    text = " ".join(text.split())
    if not style:
        return text
    return f"{text}, {style}" if rng.random() < 0.85 else f"{style}, {text}"
