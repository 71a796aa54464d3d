"""Every metric says what it is, and the documents say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidsmooth_fast.metrics.registry import METRICS, choose, inserted, listing, summary

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_states_range_direction_unit_source_and_cost(metric):
    assert metric.low < metric.high and metric.better in ("lower", "higher", "neither")
    assert metric.source and metric.cost and metric.title and summary(metric).endswith(".")
    assert isinstance(metric.unit, str) and metric.least >= 1
    assert set(metric.needs) <= {"prompt", "source", "joins", "flow", "clip", "autoencoder"}


def test_the_page_is_what_the_registry_says():
    text = PAGE.read_text()
    assert inserted(text) == text, "run python -m vidsmooth_fast.metrics.registry docs/metrics.md"
    with pytest.raises(ValueError, match="expected the lines"):
        inserted("nothing")


def test_listing_and_choice():
    assert [line.split()[0] for line in listing().splitlines()] == list(METRICS)
    assert [m.name for m in choose(["ssim", "clip_t"])] == ["clip_t", "ssim"]
    assert [m.name for m in choose("jitter")] == ["jitter"]
