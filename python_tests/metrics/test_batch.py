"""Many videos: what names them, what fails is named and the rest goes on, and the files that come out."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from vidsmooth_fast.cli import app
from vidsmooth_fast.metrics.batch import Batch, evaluate_many
from vidsmooth_fast.metrics.command import WRITERS, evaluate_files
from vidsmooth_fast.metrics.inputs import collect

from .clips import flickering, pan, video

TABLE = """Video name,Our GT caption,Style Change Caption,Object Change Caption,Source
DAVIS Videos:,,,,
hike,A man is hiking,"A man is hiking, anime style",A robot is hiking,davis
swim,A fish swims,,A boat swims,davis
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos, one of them in a folder of its own, one of pictures, and one that is broken."""
    root = tmp_path_factory.mktemp("videos")
    (root / "sub").mkdir()
    video(pan(6)).save(root / "a2.mp4")
    video(flickering(pan(6), 6)).save(root / "a10.mp4")
    video(pan(5)).save(root / "sub" / "b.gif")
    video(pan(4)).save(root / "pictures")
    (root / "broken.mp4").write_text("no video")
    (root / "notes.txt").write_text("to be left alone")
    return root


def names(found):
    return [item.name for item in found.items]


def test_folders_globs_and_files(folder):
    assert names(collect([folder])) == ["a2.mp4", "a10.mp4", "broken.mp4", "pictures", "sub/b.gif"]
    assert names(collect([folder / "a2.mp4"])) == ["a2.mp4"]
    assert names(collect([f"{folder}/a*"])) == ["a10.mp4", "a2.mp4"]
    assert names(collect([f"{folder}/**/*.gif"])) == ["b.gif"]
    assert names(collect([folder / "pictures"])) == ["pictures"]
    assert collect([folder / "none.mp4"]).problems[0][1] == "no such file"
    assert collect([f"{folder}/z*"]).problems[0][1] == "no file matches"
    empty = folder / "sub" / "empty"
    empty.mkdir(exist_ok=True)
    assert collect([empty]).problems == [(str(empty), "a folder without videos")]


def test_sources_by_name(folder):
    one = collect([folder / "a2.mp4"], source=folder / "a10.mp4")
    assert one.items[0].source == folder / "a10.mp4"
    many = collect([folder / "a2.mp4", folder / "sub" / "b.gif"], source=folder / "sub")
    assert [item.source and item.source.name for item in many.items] == [None, "b.gif"]
    assert "no source called a2" in many.problems[0][1]
    with pytest.raises(FileNotFoundError, match="source: no such"):
        collect([folder], source=folder / "none")


def test_pictures_of_every_kind_and_folders_with_dots(tmp_path):
    for place in ("edited/v1.5", "sources/v1.5"):
        (tmp_path / place).mkdir(parents=True)
        for number in (10, 2):
            Image.new("RGB", (8, 8)).save(tmp_path / place / f"{number}.tif")
    found = collect([tmp_path / "edited"], source=tmp_path / "sources")
    assert not found.problems and [i.video for i in found.items] == [tmp_path / "edited" / "v1.5"]
    assert found.items[0].source == tmp_path / "sources" / "v1.5"


def test_a_table_of_edits(tmp_path):
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "hike").mkdir()
    for path in ("hike/style.mp4", "hike_object.mp4", "swim_object.webm", "originals/hike.mp4"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    found = collect([tmp_path / "table.csv"], source=tmp_path / "originals")
    assert [(i.name, i.prompt, i.group) for i in found.items] == [
        ("hike style", "A man is hiking, anime style", "hike"),
        ("hike object", "A robot is hiking", "hike"),
        ("swim object", "A boat swims", "swim"),
    ]
    assert [item.source and item.source.stem for item in found.items] == ["hike", "hike", None]
    reasons = dict(found.problems)
    assert "has no prompt for it" in found.problems[1][1]
    assert "no video swim_style.* or swim/style.*" in reasons["swim style"]
    assert "no source called swim" in reasons["swim"]
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns of a LOVEU-TGVE table"):
        collect([tmp_path / "table.csv"])
    (tmp_path / "table.csv").write_text(TABLE.splitlines()[0])
    assert collect([tmp_path / "table.csv"]).problems == [
        (str(tmp_path / "table.csv"), "a table without clips")
    ]
    with pytest.raises(FileNotFoundError, match="no such table"):
        collect([tmp_path / "none.csv"])


@pytest.fixture(scope="module")
def batch(folder, clip_folder, autoencoder_folder):
    found = collect([folder, folder / "none.mp4"], prompt="a car")
    return evaluate_many(found, clip=clip_folder, autoencoder=autoencoder_folder, flow="dis", progress=False)


def test_what_fails_is_named_and_the_rest_is_judged(batch, folder):
    assert [item.name for item, _ in batch.reports] == ["a2.mp4", "a10.mp4", "pictures", "sub/b.gif"]
    assert [name for name, _ in batch.failures] == [str(folder / "none.mp4"), "broken.mp4"]
    assert "is not a video" in batch.failures[1][1]


def test_a_codec_that_nobody_knows_costs_the_others_nothing(folder, tmp_path):
    for name in ("a.mp4", "c.mp4"):
        (tmp_path / name).write_bytes((folder / "a2.mp4").read_bytes())
    (tmp_path / "b.mp4").write_bytes((folder / "a2.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    found = evaluate_many(collect([tmp_path]), metrics=["flicker_raw"], progress=False)
    assert [item.name for item, _ in found.reports] == ["a.mp4", "c.mp4"]
    assert found.failures == [("b.mp4", found.failures[0][1])] and "knows its codec" in found.failures[0][1]


def test_a_bug_in_one_video_costs_the_others_nothing(folder, monkeypatch):
    from vidsmooth_fast.metrics import batch as module

    real = module.evaluate

    def broken(video, **options):
        if str(video).endswith("a10.mp4"):
            raise AssertionError("of a decoder")
        return real(video, **options)

    monkeypatch.setattr(module, "evaluate", broken)
    found = evaluate_many(collect([f"{folder}/a*"]), metrics=["flicker_raw"], progress=False)
    assert [item.name for item, _ in found.reports] == ["a2.mp4"]
    assert found.failures == [("a10.mp4", "of a decoder")]


def test_what_is_judged_survives_ctrl_c(folder, monkeypatch):
    from vidsmooth_fast.metrics import batch as module

    judge, asked = module.evaluate, []

    def interrupted(video, **options):
        asked.append(video)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return judge(video, **options)

    monkeypatch.setattr(module, "evaluate", interrupted)
    found = collect([folder / "a2.mp4", folder / "a10.mp4", folder / "pictures"])
    some = evaluate_many(found, metrics=["jitter"], progress=False)
    assert [item.name for item, _ in some.reports] == ["a2.mp4"]
    assert some.failures == [("a10.mp4", "interrupted"), ("pictures", "interrupted")]
    asked[:] = [0]
    with pytest.raises(KeyboardInterrupt):
        evaluate_many(found, metrics=["jitter"], progress=False)


def test_the_table_fits_the_terminal(batch):
    for columns in (80, 120, 300):
        lines = batch.table(columns).splitlines()
        assert max(map(len, lines[:8])) <= columns
    assert "mean" in batch.table() and "a10.mp4" in batch.table() and "DIS" in batch.table()
    one = Batch(batch.judged[:1])
    assert one.table() == str(one.reports[0][1])
    assert Batch([]).table() == ""


def test_csv_and_json(batch):
    rows = list(csv.DictReader(batch.to_csv().splitlines()))
    assert [row["name"] for row in rows] == ["a2.mp4", "a10.mp4", "broken.mp4", "pictures", "sub/b.gif"]
    assert float(rows[0]["flicker"]) == batch.reports[0][1]["flicker"]
    assert "psnr" not in rows[0] and "seam_score" not in rows[0]  # no video has them
    assert "is not a video" in rows[2]["error"] and rows[0]["prompt"] == "a car"
    data = json.loads(batch.to_json())
    assert data["videos"][1]["values"]["flicker"] > data["videos"][0]["values"]["flicker"]
    assert data["summary"]["flicker"]["videos"] == 4
    assert (
        data["summary"]["flicker"]["low"]
        <= data["summary"]["flicker"]["mean"]
        <= data["summary"]["flicker"]["high"]
    )
    assert "error" in data["videos"][2] and data["problems"][0]["reason"] == "no such file"


def test_command_line(folder, clip_folder, autoencoder_folder, tmp_path):
    run = CliRunner().invoke
    common = [
        "--quiet",
        "--flow",
        "dis",
        "--clip",
        str(clip_folder),
        "--autoencoder",
        str(autoencoder_folder),
    ]
    files = [f"--{kind}={tmp_path / f'r.{kind}'}" for kind in ("json", "csv", "html")]
    good = run(app, ["evaluate", str(folder / "a2.mp4"), "--prompt", "a car", *common, *files])
    assert good.exit_code == 0, good.output
    assert "flicker_raw" in good.output and all(
        (tmp_path / f"r.{kind}").stat().st_size for kind in ("json", "csv", "html")
    )
    partly = run(
        app, ["evaluate", str(folder / "a2.mp4"), str(folder / "broken.mp4"), "-m", "jitter", "--quiet"]
    )
    assert (
        partly.exit_code == 1 and "jitter" in partly.output and "broken.mp4 is not a video" in partly.output
    )
    listed = run(app, ["evaluate", "--list"])
    assert listed.exit_code == 0 and "warping_error" in listed.output
    for arguments, message in (
        ([], "inputs: expected videos"),
        ([str(folder / "a2.mp4"), "-m", "flicer"], "got 'flicer'"),
        (
            [str(folder / "a2.mp4"), "--flow", "lucas"],
            "vidsmooth-fast: flow: expected one of auto, dis, raft",
        ),
        (
            [str(folder / "a2.mp4"), "--html", str(tmp_path / "none" / "r.html")],
            "html: expected the name of a file",
        ),
    ):
        bad = run(app, ["evaluate", *arguments, "--quiet"])
        assert bad.exit_code == 1 and message in bad.output, bad.output


def test_what_is_read_is_not_written(folder, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    before = (folder / "a2.mp4").read_bytes()
    for arguments in (
        [str(folder / "a2.mp4"), "--csv", str(folder / "a2.mp4")],
        [str(tmp_path / "t.csv"), "--csv", str(tmp_path / "t.csv")],
        [str(folder / "a10.mp4"), "--source", str(folder / "a2.mp4"), "--csv", str(folder / "a2.mp4")],
    ):
        bad = CliRunner().invoke(app, ["evaluate", *arguments, "-m", "jitter", "--quiet"])
        assert bad.exit_code == 1 and "is one of the files to be read" in bad.output
    assert (folder / "a2.mp4").read_bytes() == before and (tmp_path / "t.csv").read_text() == TABLE
    (tmp_path / "t.csv").write_text(TABLE.splitlines()[0])
    bad = CliRunner().invoke(app, ["evaluate", str(tmp_path / "t.csv"), "--quiet"])
    assert bad.exit_code == 1 and bad.stdout == "" and "a table without clips" in bad.stderr


def test_a_file_that_cannot_be_written_costs_no_numbers(folder, tmp_path, monkeypatch):
    def fail(batch):
        raise OSError("disk full")

    monkeypatch.setitem(WRITERS, "json", fail)
    table, failures = evaluate_files(
        [str(folder / "a2.mp4")],
        outputs={"json": tmp_path / "r.json", "csv": tmp_path / "r.csv"},
        metrics=["jitter"],
        progress=False,
    )
    assert "jitter" in table and failures == [(str(tmp_path / "r.json"), "not written: disk full")]
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]
