"""The losses of a run: lines of JSON, a picture, and TensorBoard's format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

SMOOTHING = 0.9
"""Weight of the past in the drawn running mean."""


class Curves:
    """Losses by step in `losses.jsonl`, drawn in `losses.png`, and under `tensorboard/`.

    folder: made when needed. done: steps already taken; later lines, of a killed run, are dropped.
    The picture needs matplotlib and TensorBoard's files tensorboardX, both in the extra `train`; without them the
    lines of JSON are all there is, and `missing` names what was not found.
    """

    def __init__(self, folder: Path, done: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.missing: list[str] = []
        self._path = folder / "losses.jsonl"
        self._rows = [row for row in _read(self._path) if row["step"] <= done]
        partial = self._path.with_suffix(".part")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        os.replace(partial, self._path)
        self._file = self._path.open("a", buffering=1)
        self._board = None
        try:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1, flush_secs=30)
        except ImportError:
            self.missing.append("tensorboardX")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One finished step, counted from 1."""
        row = {"step": step, **values}
        self._rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def draw(self) -> Path | None:
        """Write losses.png: every step, and the running mean. Returns its path, None without matplotlib."""
        if not self._rows:
            return None
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            self.missing.append("matplotlib")
            return None
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
        steps = [row["step"] for row in self._rows]
        for name in (n for n in self._rows[-1] if n.startswith("loss")):
            values = [row.get(name, float("nan")) for row in self._rows]
            (line,) = axes.plot(steps, values, linewidth=0.6, alpha=0.35)
            axes.plot(steps, running_mean(values), color=line.get_color(), label=name.removeprefix("loss/"))
        axes.legend()
        target = self.folder / "losses.png"
        partial = target.with_name("losses.part.png")
        figure.savefig(partial, dpi=120)
        os.replace(partial, target)
        return target

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def running_mean(values: list[float]) -> list[float]:
    """Exponential, without the bias of its start."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = SMOOTHING * total + (1 - SMOOTHING) * value, SMOOTHING * weight + 1 - SMOOTHING
        means.append(total / weight)
    return means


def _read(path: Path) -> list[dict]:
    """The whole lines of a file of JSON; a last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
