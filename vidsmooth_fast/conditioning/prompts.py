"""Prompts over time: one text, a list spread over the video, or texts at chosen frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Prompt = str | Sequence[str] | dict[int, str]


@dataclass(frozen=True)
class PromptTrack:
    """Text embeddings at key frames; between keys they are interpolated linearly.

    keys: frame of each embedding, ascending, in frames.
    embeddings: (len(keys), L, D), any float dtype.
    period: the number of frames after which the track repeats (a looped video), or None.
    """

    keys: tuple[int, ...]
    embeddings: Tensor
    period: int | None = None

    def at(self, frames: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The distinct embeddings needed at `frames`, and which of them each frame uses.

        frames: positions in frames.
        Returns rows (R, L, D) without repetitions, and index (len(frames),) int64 into them.
        """
        mixes = [self._mix(position) for position in frames]
        distinct = {mix: row for row, mix in enumerate(dict.fromkeys(mixes))}
        rows = torch.stack(
            [
                self.embeddings[left]
                if share == 0
                else self.embeddings[left].lerp(self.embeddings[right], share)
                for left, right, share in distinct
            ]
        )
        return rows, torch.tensor([distinct[mix] for mix in mixes])

    def _mix(self, position: float) -> tuple[int, int, float]:
        """(left key, right key, share of the right one) at `position`."""
        last = len(self.keys) - 1
        if last == 0:
            return 0, 0, 0.0
        if self.period is not None:
            position %= self.period
            if not self.keys[0] <= position < self.keys[-1]:
                gap = self.keys[0] + self.period - self.keys[-1]
                return _canonical(last, 0, (position - self.keys[-1]) % self.period / gap)
        if position <= self.keys[0]:
            return 0, 0, 0.0
        if position >= self.keys[-1]:
            return last, last, 0.0
        right = next(i for i, key in enumerate(self.keys) if key > position)
        left = right - 1
        return _canonical(left, right, (position - self.keys[left]) / (self.keys[right] - self.keys[left]))


def _canonical(left: int, right: int, share: float) -> tuple[int, int, float]:
    return (left, left, 0.0) if share == 0 else (left, right, share)


def prompt_keys(prompt: Prompt, frames: int, *, loop: bool = False, name: str = "prompt") -> dict[int, str]:
    """The texts of `prompt` by the frame at which each holds exactly.

    A string holds everywhere. A list is spread evenly: the first text at frame 0, the last at the last frame; in a
    loop the way from the last text back to the first is as long as the others.
    A dict is taken as it is. Raises ValueError for anything else, an empty one, or a key outside the video.
    """
    if isinstance(prompt, str):
        return {0: prompt}
    if isinstance(prompt, dict):
        keys = dict(prompt)
    elif isinstance(prompt, Sequence):
        span = frames / max(len(prompt), 1) if loop else (frames - 1) / max(len(prompt) - 1, 1)
        keys = {round(i * span): text for i, text in enumerate(prompt)}
        if len(keys) < len(prompt):
            raise ValueError(f"{name}: {len(prompt)} texts do not fit in {frames} frames")
    else:
        raise ValueError(
            f"{name}: expected a string, a list of strings or {{frame: string}}, got {type(prompt).__name__}"
        )
    if not keys:
        raise ValueError(f"{name}: expected at least one text, got none")
    for frame, text in keys.items():
        if not isinstance(frame, int) or not 0 <= frame < frames:
            raise ValueError(f"{name}: key frames must be integers in 0..{frames - 1}, got {frame!r}")
        if not isinstance(text, str):
            raise ValueError(f"{name}: texts must be strings, got {type(text).__name__} at frame {frame}")
    return dict(sorted(keys.items()))


def encode_prompt(
    prompt: Prompt,
    frames: int,
    encode: Callable[[list[str]], Tensor],
    *,
    loop: bool = False,
    name: str = "prompt",
) -> PromptTrack:
    """Encode every text of `prompt` once. `encode` maps n texts to (n, L, D); [000] calls the result h^i."""
    keys = prompt_keys(prompt, frames, loop=loop, name=name)
    return PromptTrack(tuple(keys), encode(list(keys.values())), frames if loop else None)
