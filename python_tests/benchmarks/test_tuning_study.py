"""The tuning study: its order, how it goes on, and its page, without tuning anything."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest


@pytest.fixture
def study(monkeypatch, tmp_path):
    """benchmarks/tuning_study.py, writing into a folder of its own, with a fixed fingerprint of the weights."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    for name in ("tuning_study", "_timing", "_judges"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import tuning_study

    for name, path in {
        "ROWS": "rows.jsonl",
        "WORK": "work",
        "PAGE": "tuning.md",
        "SHEET": "tuning.png",
    }.items():
        monkeypatch.setattr(tuning_study, name, tmp_path / path)
    monkeypatch.setattr(tuning_study, "ROOT", tmp_path)
    monkeypatch.setattr(tuning_study, "weights", lambda: "0")
    return tuning_study


def row(study, clip: str, method: str, flicker: float = 2.0) -> dict:
    values = {metric: [flicker + edit for edit in range(4)] for metric in study.METRICS}
    if clip in study.REAL:
        values["agreement"] = []
    return {
        "clip": clip, "method": method, "weights": "0", **study.SETTINGS, "metrics": values, "tuning_seconds": 1.0,
        "seconds": 3600.0, "machine": "m", "threads": 1, "torch": "t", "commit": "c", "date": "2000-01-01",
    }  # fmt: skip


def test_a_study_goes_on_clip_by_clip(study, monkeypatch, capsys):
    asked = []

    def one_row(clip, method, settings):
        asked.append((clip, method))
        return None if clip == "car-turn" else row(study, clip, method)

    monkeypatch.setattr(study, "one_row", one_row)
    study.run(["0", "1", "car-turn"], list(study.METHODS), math.inf)
    others = [m for m in study.METHODS if m not in study.MAIN]
    main = [(c, m) for c in ("0", "1", "car-turn") for m in study.MAIN]
    assert asked == main + [(c, m) for c in ("0", "1") for m in others]
    assert "0 untuned: 3600 s" in capsys.readouterr().out
    asked.clear()
    study.run(["0", "1", "2"], ["plain", "inr"], math.inf)
    assert asked == [("2", "plain"), ("2", "inr")]
    monkeypatch.setitem(study.SETTINGS, "steps", 7)  # rows of other settings do not count
    assert len(study.to_do(["0"], ["plain"])) == 1


def test_the_page_says_how_many_and_what_helps(study, monkeypatch, capsys):
    import json

    found = [row(study, str(clip), method) for clip in range(3) for method in ("untuned", "plain")]
    found += [row(study, str(clip), "inr", 1.0 + clip / 10) for clip in range(3)]
    found += [row(study, "0", "smooth"), row(study, "man-skiing", "plain")]
    study.ROWS.write_text("".join(json.dumps(r) + "\n" for r in found))
    study.PAGE.write_text(f"before\n{study.BEGIN}\nold\n{study.END}\nafter\n")
    study.report()
    text = study.PAGE.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "3 of 12 clips of sprite-world and 1 real ones" in text and "| inr | 3 | 2.6 (" in text
    assert "`inr` against `plain`, 3 clips: flicker -0.9" in text and "**better**" in text
    assert "| smooth | 1 | 3.5 |" in text  # one clip has no interval
    assert "| plain | 1 | 3.5 | 3.5 | 3.5 | – |" in text  # a real clip has no agreement
