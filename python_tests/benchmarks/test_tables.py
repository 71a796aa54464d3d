"""The papers' tables: what a line is kept by, the clips, and the page, without sampling anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED


@pytest.fixture
def tables(monkeypatch, tmp_path):
    """benchmarks/tables.py, writing into a folder of its own, with a fixed fingerprint of the weights."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    for name in ("tables", "_tables_report", "gain_curves", "_timing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import tables

    monkeypatch.setattr(tables, "LINES", tmp_path / "tables.jsonl")
    monkeypatch.setattr(tables, "WORK", tmp_path / "work")
    monkeypatch.setattr(tables, "weights", lambda: "0")
    tables.key_of.cache_clear()
    return tables


def line(tables, clip: int, method: str, shift: float = 0.0) -> dict:
    row = {column: 10.0 + clip + shift for column in (*tables.METRICS, "agreement")}
    row["spectrum"] = [1.0 + shift] * (tables.FRAMES // 2 + 1)
    edits = {edit: row for edit in ("style", "object", "background", "multiple")}
    about = {"machine": "m", "threads": 1, "torch": "t", "commit": "c", "date": "2000-01-01"}
    return {
        "clip": clip,
        "method": method,
        "key": tables.key_of(method),
        "edits": edits,
        "seconds": 1.0,
        **about,
    }


def test_methods_differ_and_name_their_baselines(tables):
    keys = [tables.key_of(name) for name in tables.METHODS]
    assert len(set(keys)) == len(keys)
    assert all(method.baseline in tables.METHODS or not method.baseline for method in tables.METHODS.values())
    assert all(method.baseline for method in tables.METHODS.values() if method.paper)


def test_clips_are_held_out_and_edited_in_what_they_say(tables):
    seen = set()
    for number in range(tables.CLIPS):
        clip = tables.Clip(number)
        assert clip.scene.seed >= HELD_OUT_SEED and tables.Clip(number).edits == clip.edits
        seen.add(clip.scene)
        for edit, words in {
            "multiple": {"colour", "background"},
            "style": {"style"},
            "object": {"object"},
        }.items():
            changed = {w for w in ("object", "colour", "background", "style", "seed")
                       if getattr(clip.edits[edit], w) != getattr(clip.scene, w)}  # fmt: skip
            assert changed == words
    assert len(seen) == tables.CLIPS


def test_a_run_goes_on_and_lines_of_other_weights_do_not_count(tables, monkeypatch):
    asked = []

    def record(bench, name, clip, *, keep):
        asked.append((clip.number, name))
        return line(tables, clip.number, name)

    monkeypatch.setattr(tables.Bench, "record", record)
    tables.run(["none", "shared"], 2, 1)
    tables.run(["none", "shared"], 3, 1)
    assert asked == [(0, "none"), (0, "shared"), (1, "none"), (1, "shared"), (2, "none"), (2, "shared")]
    monkeypatch.setattr(tables, "weights", lambda: "1")
    tables.key_of.cache_clear()
    assert tables.lines() == {}


def test_wherever_a_run_ends_methods_were_compared_on_the_same_clips(tables):
    order = tables.to_do(list(tables.METHODS), 3)
    assert len(set(order)) == len(order) == 3 * len(tables.METHODS)
    assert [name for _, name in order[: len(tables.GROUPS["papers"])]] == list(tables.GROUPS["papers"])
    for group in tables.GROUPS.values():
        clips = [clip for clip, name in order if name in group]
        assert clips == sorted(clips)  # every method of a clip before the next clip
    needed = {tables.METHODS[name].baseline for name in tables.GROUPS["papers"]} - {""}
    assert needed <= set(tables.GROUPS["papers"])
    assert tables.chosen("tuned,none") == ["plain", "smooth", "inr", "none"]


def test_time_left_is_that_of_lines_of_the_same_kind(tables):
    found = [{**line(tables, clip, "none"), "seconds": 10.0 * (clip + 1)} for clip in range(3)]
    found.append({**line(tables, 0, "plain"), "seconds": 500.0})
    tables.LINES.write_text("".join(json.dumps(record) + "\n" for record in found))
    assert (tables.expected("none"), tables.expected("clean-0.25")) == (20.0, 20.0)
    assert tables.expected("inr") == 500.0 and tables.expected("ideal") != tables.expected("ideal")  # nan


def test_the_page_compares_with_the_papers(tables, monkeypatch, tmp_path):
    import _tables_report

    monkeypatch.setattr(_tables_report, "PAGE", tmp_path / "results.md")
    found = [line(tables, clip, "plain") for clip in range(4)]
    found += [line(tables, clip, "smooth", 0.5 + clip / 10) for clip in range(4)]
    found += [line(tables, clip, "none") for clip in range(4)] + [line(tables, 0, "clean-0.25", -0.5)]
    tables.LINES.write_text("".join(json.dumps(record) + "\n" for record in found))
    text = _tables_report.write_page().read_text()
    assert "| smooth loss | 4 |" in text
    assert "| [003] Table 1 and [004] Table 1 | smooth loss | vl_score ↑ | +2.74 | +0.650" in text
    assert "**disagrees**" in text and "agrees" in text  # clip_t rose where the paper's fell
    assert "| clean, 0.25 | inversion | 0.71 (" in text
    assert "Not measured yet: " in text and "FateZero" in text


def test_spectrum_finds_a_frequency(tables):
    n = torch.arange(24)
    wave = torch.cos(2 * torch.pi * n / 4)[None, None, :, None, None].expand(1, 4, 24, 2, 2)
    power = torch.tensor(tables.temporal_spectrum(wave + 7))
    assert len(power) == 13 and power.argmax() == 6 and power[0] < 0.01 * power[6]
