"""`vidsmooth-fast demo --gallery`: a video for every prompt and a page that shows them all."""

from __future__ import annotations

import re

from typer.testing import CliRunner

import vidsmooth_fast as vsf
from vidsmooth_fast.cli import app
from vidsmooth_fast.spriteworld import gallery


def test_the_page_shows_a_video_for_every_prompt(tmp_path, monkeypatch):
    assert len(gallery.PROMPTS) == 12
    monkeypatch.setattr(gallery, "PROMPTS", ("a red car", "a <b> & bird"))
    monkeypatch.setitem(gallery.SAMPLING, "steps", 2)
    done = CliRunner().invoke(
        app, ["demo", "--gallery", "--frames", "3", "--quiet", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    files = re.findall(r'<video src="([^"]+)"', page)
    assert len(files) == 2 and "a &lt;b&gt; &amp; bird" in page and "2 videos of 3 frames" in page
    for file in files:
        assert len(vsf.Video.open(tmp_path / "out" / file)) == 3
    # the same seeds give the same videos, other seeds others
    first = vsf.Video.open(tmp_path / "out" / files[0])[0]
    gallery.run_gallery(tmp_path / "again", frames=3, progress=False)
    gallery.run_gallery(tmp_path / "other", frames=3, seed=5, progress=False)
    assert (vsf.Video.open(tmp_path / "again" / files[0])[0] == first).all()
    assert (vsf.Video.open(tmp_path / "other" / files[0])[0] != first).any()
