"""When each decoded picture is on screen, and the constant frame rate it is read at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

STANDARD_RATES = tuple(
    Fraction(n, d)
    for n, d in (
        (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1),
        (5, 1), (8, 1), (10, 1), (12, 1), (15, 1), (20, 1), (100, 1), (120, 1),
    )
)  # fmt: skip
FASTEST_RATE = 120
"""A variable-rate file is never resampled to more frames per second than this."""


def as_rate(value: object, name: str = "fps") -> Fraction:
    """Frames per second as an exact fraction; 29.97 and its like become 30000/1001.

    Raises: ValueError when `value` is not a positive, finite number.
    """
    try:
        rate = Fraction(value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise ValueError(f"{name} must be a positive number of frames per second, got {value!r}")
    if rate.denominator <= 1001:
        return rate
    near = min(STANDARD_RATES, key=lambda s: abs(s - rate))
    return near if abs(near / rate - 1) < Fraction(1, 10000) else rate.limit_denominator(1001)


@dataclass(frozen=True)
class Timeline:
    """times: ticks at which the decodable pictures appear, (n,) int64, increasing; time_base: seconds per tick;
    fps: the constant rate; picks: which picture frame i of the constant-rate video shows, (count,) int64, or None when
    it is picture i itself."""

    times: np.ndarray
    time_base: Fraction
    fps: Fraction
    picks: np.ndarray | None = None

    @property
    def count(self) -> int:
        return len(self.times) if self.picks is None else len(self.picks)

    def picture(self, frame: int) -> int:
        return frame if self.picks is None else int(self.picks[frame])

    def seconds(self, tick: int) -> Fraction:
        return Fraction(tick) * self.time_base


def make_timeline(
    times: Iterable[int],
    time_base: Fraction,
    *,
    last_duration: int = 0,
    hints: Iterable[Fraction | None] = (),
) -> Timeline:
    """Constant-rate reading of pictures that appear at `times`.

    When some rate r puts every picture within a quarter of a frame (or one tick) of `t_0 + k / r`, the pictures are
    taken one by one at that rate. Otherwise the rate is variable: r is 1 / (median interval), and frame i shows the
    picture that is on screen in the middle of its interval, so that long pictures repeat, pictures much shorter than
    the rest may be passed over, and the duration stays right to half a frame.

    times: ticks, increasing. time_base: seconds per tick. last_duration: ticks the last picture stays, 0 when
    unknown. hints: rates that the container states, best first.
    """
    times = np.asarray(list(times), np.int64)
    hints = [Fraction(h) for h in hints if h]
    n = len(times)
    if n == 1:
        stay = Fraction(int(last_duration)) * time_base
        rate = next(iter(hints), None) or (1 / stay if stay else Fraction(25))
        return Timeline(times, time_base, min(rate, Fraction(1000)))

    elapsed = (times - times[0]).astype(np.float64) * float(time_base)
    mean = Fraction(n - 1) / (Fraction(int(times[-1] - times[0])) * time_base)
    candidates = []
    for rate in [*hints, mean]:
        near = min(STANDARD_RATES, key=lambda s: abs(s - rate))
        if abs(near / rate - 1) < Fraction(1, 200):
            candidates.append(near)
    candidates += [*hints, mean]

    def drift(rate: Fraction) -> float:
        return float(np.abs(elapsed - np.arange(n) / float(rate)).max())

    tick = 1.01 * float(time_base)
    errors = [max(drift(rate), tick) for rate in candidates]
    best = int(np.argmin(errors))
    if errors[best] <= max(tick, 0.25 / float(candidates[best])):
        return Timeline(times, time_base, candidates[best])

    interval = Fraction(int(np.median(np.diff(times)))) * time_base
    rate = as_rate(1 / interval)
    near = min(STANDARD_RATES, key=lambda s: abs(s - rate))
    if abs(near / rate - 1) < Fraction(1, 20):
        rate = near
    rate = min(rate, Fraction(FASTEST_RATE))
    stay = last_duration if last_duration > 0 else int(np.median(np.diff(times)))
    total = (Fraction(int(times[-1] - times[0])) + stay) * time_base
    count = max(1, round(total * rate))
    # Frames per tick; exact, because pictures often change just in the middle of a frame.
    tick = time_base * rate
    middle = (2 * np.arange(count) + 1) * tick.denominator // (2 * tick.numerator)
    picks = np.searchsorted(times - times[0], middle, side="right") - 1
    return Timeline(times, time_base, rate, picks)
