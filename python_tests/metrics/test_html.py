"""The report page in a real browser: videos play in step, plots and table are there, nothing is fetched."""

from __future__ import annotations

import json
import re

import pytest

from vidsmooth_fast.metrics.batch import Batch, Judged, evaluate_many
from vidsmooth_fast.metrics.html import html
from vidsmooth_fast.metrics.inputs import Item, collect
from vidsmooth_fast.video import Video

from .chromium import Page, find_chromium
from .clips import flickering, pan

READY = "typeof players !== 'undefined' && players.length && players.every(p => p.readyState >= 2) && players.length"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Two edits and a shorter one, with their source, in one page."""
    root = tmp_path_factory.mktemp("page")
    for name, frames in (
        ("source", pan(40, 1)), ("calm", pan(40, 1)), ("restless", flickering(pan(40, 1), 12)), ("short", pan(24, 1))
    ):  # fmt: skip
        Video.from_frames(frames, fps=16).save(root / f"{name}.mp4")
    found = collect(
        [root / f"{name}.mp4" for name in ("calm", "restless", "short")], source=root / "source.mp4"
    )
    found.problems.append(("lost.mp4", "no such file"))
    names = ["flicker", "jitter", "motion", "psnr"]
    batch = evaluate_many(found, metrics=names, flow="dis", progress=False)
    path = root / "report.html"
    path.write_text(html(batch), encoding="utf-8")
    return path


def test_one_file_that_fetches_nothing(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
    assert "@import" not in text and not re.search(r"\bfetch\(|XMLHttpRequest|url\(", text)
    assert text.count("data:video/mp4;base64,") == 4 and "{{" not in text


def test_text_from_outside_cannot_become_markup(page_file):
    root = page_file.parent
    [judged] = evaluate_many(collect([root / "short.mp4"]), metrics=["jitter"], progress=False).judged
    name = "</script><script>alert(1)</script><!--"
    text = html(Batch([Judged(Item(root / "short.mp4", name), judged.report)]))
    assert text.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(data)["videos"][0]["name"] == name


@pytest.mark.skipif(
    find_chromium() is None, reason="chromium is not installed (Debian, Ubuntu: apt install chromium)"
)
def test_plays_in_step_in_chromium(page_file, tmp_path):
    with Page(tmp_path / "profile") as page:
        page.open(page_file.as_uri())
        assert page.until(READY) == 4
        times = "players.map(p => p.currentTime)"
        assert page.evaluate(times) == [0, 0, 0, 0]
        page.click("#play")
        page.until("players.every(p => p.currentTime > 0.2)")
        first = page.evaluate(times)
        page.until(f"players.every((p, i) => p.currentTime > {json.dumps(first)}[i] + 0.2)")
        page.click("#play")  # pause
        assert page.evaluate("playing") is False
        second = page.evaluate(times)
        assert all(b > a for a, b in zip(first, second, strict=True))
        assert max(second) - min(second) < 3 / 16, second  # three frames; the short one has not ended yet
        page.evaluate("seek(1.25)")
        page.until("players.every(p => !p.seeking)")
        assert page.evaluate("players.map(p => Math.floor(p.currentTime * 16 + 1e-3))") == [20] * 4
        page.click("#next")
        page.until("players.every(p => !p.seeking) && frame() === 21")
        assert page.evaluate("document.getElementById('clock').textContent").startswith("frame 22 of 40")

        assert page.evaluate("document.querySelectorAll('figure').length") == 4
        assert (
            page.evaluate(
                "[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('path').length)"
            )
            == [3] * 4
        )
        assert page.evaluate("[...document.querySelectorAll('svg path')].every(p => p.getTotalLength() > 50)")
        rows = page.evaluate("[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent)")
        assert rows == ["calm.mp4", "restless.mp4", "short.mp4", "mean", "95% interval"]
        assert (
            page.evaluate("document.querySelector('td.best').parentNode.cells[0].textContent")
            != "restless.mp4"
        )
        assert "lost.mp4: no such file" in page.evaluate("document.getElementById('remarks').textContent")
        assert "clip_t" not in page.evaluate(
            "document.getElementById('remarks').textContent"
        )  # not asked for
        page.screenshot(tmp_path / "report.png")
        assert (tmp_path / "report.png").stat().st_size > 50_000
