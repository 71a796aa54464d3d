"""What a waiting person sees: bars with time left, and estimates of memory and time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm


class Progress:
    """Bars on standard error, and an estimate of the whole time after one measured step.

    items: cost of the steps that remain in all phases together, in the unit in which the estimate counts, (window,
        branch) pairs.
    rest: called once, after the measured step; returns the seconds that everything after the last step will take.
    """

    def __init__(self, enabled: bool, items: float, rest: Callable[[], float]):
        self.enabled = enabled
        self.started = time.perf_counter()
        self.estimated_seconds: float | None = None
        self._items = items
        self._rest = rest
        self._bar: tqdm | None = None
        self._last: float | None = None
        self._costs: list[float] = []

    def say(self, text: str) -> None:
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    def phase(
        self, name: str, steps: int, *, done: int = 0, costs: Sequence[float] = (), unit: str = "step"
    ) -> None:
        """A new bar of `steps`, `done` of which are; `costs`: of every step, of those that are done too."""
        self.close()
        self._costs = list(costs[done:])
        self._last = None
        self._bar = tqdm(desc=name, total=steps, initial=done, unit=unit, disable=not self.enabled)

    def step(self) -> None:
        """One more step is done. The first of a phase warms up; the second is the measured one."""
        now = time.perf_counter()
        self._bar.update()
        cost = self._costs.pop(0) if self._costs else 0
        self._items -= cost
        if self.enabled and self._last is not None and self.estimated_seconds is None and cost:
            per_item = (now - self._last) / cost
            self.estimated_seconds = now - self.started + self._items * per_item + self._rest()
            self.say(f"about {duration(self.estimated_seconds)} in all, from one measured step")
        self._last = time.perf_counter()

    def timing(self) -> dict[str, float | None]:
        """Seconds since the start, and what the measured step had promised (None for runs too short for one)."""
        return {"seconds": time.perf_counter() - self.started, "estimated_seconds": self.estimated_seconds}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """A length of time in the two units a person would use: "48 s", "3 min 20 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
