"""docs/results.md from benchmarks/results/tables.jsonl; called by tables.py."""

from __future__ import annotations

import math
from pathlib import Path

import gain_curves
import numpy as np
from tables import CLIPS, FRAMES, GUIDANCE, METHODS, MISSING, SAMPLING, STRENGTH, TUNING, WORK, Method, lines

from vidsmooth_fast.metrics.registry import ARROWS
from vidsmooth_fast.metrics.registry import METRICS as REGISTRY
from vidsmooth_fast.metrics.report import bootstrap_interval
from vidsmooth_fast.video import Video
from vidsmooth_fast.video_panels import contact_sheet, write_picture

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
COLUMNS = (
    "clip_t", "agreement", "clip_f", "clip_f_adjacent", "vl_score", "motion", "warping_error", "flicker", "jitter",
    "seam_score", "psnr",
)  # fmt: skip
PERIODS = (12, 6, 4, 3, 2.4, 2)  # in frames
EXAMPLE = "multiple"
STILLS = 4


def name_of(column: str) -> str:
    if column == "agreement":
        return "text agreement ↑"
    return f"{column} {ARROWS[REGISTRY[column].better]}".strip()


def values(method: str, column: str, done: dict) -> dict[tuple[int, str], float]:
    """(clip, edit) -> number."""
    found = {}
    for (clip, name), record in done.items():
        for edit, row in record["edits"].items() if name == method else ():
            if row.get(column) is not None:
                found[clip, edit] = row[column]
    return found


def with_interval(numbers: list[float], clips: list[int]) -> str:
    mean, low, high = bootstrap_interval(numbers, clips)
    digits = 3 if abs(mean) < 10 else 2
    spread = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{spread}"


def section_table(title: str, rows: dict[str, Method], done: dict) -> list[str]:
    """Every method of a section that has lines, under its baseline on the same clips; nothing where only the baseline
    has any."""
    own = {clip for clip, method in done if method in rows}
    if not own:
        return []
    done = {(clip, method): record for (clip, method), record in done.items() if clip in own}
    names = list(dict.fromkeys([*(m.baseline for m in rows.values() if m.baseline), *rows]))
    table = []
    for name in names:
        clips = sorted({clip for clip, method in done if method == name})
        if not clips:
            continue
        cells = []
        for column in COLUMNS:
            found = values(name, column, done)
            cells.append(with_interval(list(found.values()), [clip for clip, _ in found]) if found else "")
        table.append([METHODS[name].title, str(len(clips)), *cells])
    head = ["", "clips", *map(name_of, COLUMNS)]
    lines_ = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return [*lines_, *(f"| {' | '.join(row)} |" for row in table), ""]


def difference(method: str, column: str, done: dict) -> tuple[float, float, float, int]:
    """Mean of method - baseline over edits that both have, its interval, and the number of clips."""
    ours, base = values(method, column, done), values(METHODS[method].baseline, column, done)
    both = sorted(ours.keys() & base.keys())
    mean, low, high = bootstrap_interval([ours[k] - base[k] for k in both], [clip for clip, _ in both])
    return mean, low, high, len({clip for clip, _ in both})


def directions(done: dict) -> list[str]:
    """Where the papers say which way a number goes: what we find."""
    rows = []
    for name, method in METHODS.items():
        for column, paper in method.paper.items():
            mean, low, high, clips = difference(name, column, done)
            if math.isnan(low):
                continue
            verdict = "undecided" if low <= 0 <= high else "agrees" if mean * paper > 0 else "**disagrees**"
            stated = f"{paper:+.2f}" if abs(paper) != 1 else ("higher" if paper > 0 else "lower")
            where = method.section.split(":")[0]
            rows.append(
                f"| {where} | {method.title} | {name_of(column)} | {stated} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] "
                f"| {clips} | {verdict} |"
            )
    if not rows:
        return []
    head = "| table | method | number | paper | ours, method − baseline | clips | direction |"
    note = (
        "The text of [004] at hand says that its optical flow was improved, not which way; *lower* is this project's "
        "reading. An interval is that of one comparison: of twenty without any effect, one leaves out zero."
    )
    return ["## Directions, against the papers'", "", note, "", head, "|---" * 7 + "|", *rows, ""]


def response(done: dict) -> list[str]:
    """Temporal frequency response on real runs (amplitude against the baseline's) beside the linear model's."""
    plan = gain_curves.schedule(SAMPLING["steps"], SAMPLING["scheduler"])
    plain = gain_curves.constraint_gain(None, plan).abs()
    rows = []
    for name, method in METHODS.items():
        ours, base = values(name, "spectrum", done), values(method.baseline, "spectrum", done)
        both = ours.keys() & base.keys()
        if method.smooth is None or not both:
            continue
        power = [np.mean([np.array(some[k]) for k in both], 0) for some in (ours, base)]
        measured = np.sqrt(power[0] / power[1])
        predicted = None
        if method.smooth.target == "clean" and method.start == "inversion":
            predicted = (gain_curves.constraint_gain(method.smooth, plan).abs() / plain).numpy()
        cells = []
        for period in PERIODS:
            model = "" if predicted is None else f" ({predicted[round(gain_curves.FRAMES / period)]:.2g})"
            cells.append(f"{measured[round(FRAMES / period)]:.2f}{model}")
        start = "one noise" if method.start == "shared" else "inversion"
        rows.append(f"| {method.title} | {start} | {' | '.join(cells)} |")
    if not rows:
        return []
    head = ["constraint", "start", *(f"period {p:g}" for p in PERIODS)]
    return [
        "## Frequency response of the noise constraint",
        "",
        "Amplitude of the final latents at each temporal period (in frames) against the same run without the "
        "constraint, and in brackets what `benchmarks/gain_curves.py` predicts for an exact linear denoiser without "
        "any idea of time, from independent noise. A network that follows prompts and keeps frames alike is neither: "
        "where it differs, the real numbers count. There is no such prediction where all frames share their noise, nor "
        "for what a source keeps.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *rows,
        "",
    ]


def examples(done: dict) -> list[str]:
    """A sheet of stills of clip 0 for the rows that disagree with a paper, beside their baselines."""
    wanted = []
    for name, method in METHODS.items():
        for column, paper in method.paper.items():
            mean, low, high, _ = difference(name, column, done)
            if not math.isnan(low) and not low <= 0 <= high and mean * paper < 0:
                wanted += [method.baseline, name]
    pictures, labels = [], []
    for name in dict.fromkeys(["source", "ideal", *wanted] if wanted else []):
        path = WORK / "examples" / f"0-{EXAMPLE}-{name}.mp4"
        if path.exists():
            video = Video.open(path)
            pictures += [video[n] for n in range(10, 10 + STILLS)]
            labels += [name, *[""] * (STILLS - 1)]
    if not pictures:
        return []
    target = PAGE.parent / "images" / "results-examples.png"
    write_picture(target, contact_sheet(pictures, columns=STILLS, labels=labels, size=(192, 192)))
    return [
        "## Examples",
        "",
        "Rows that disagree with a paper, beside their baselines: neighbouring frames of one edit.",
        "",
        f"![Examples](images/{target.name})",
        "",
    ]


def write_page() -> Path:
    """Write docs/results.md. Raises SystemExit when there is nothing to write."""
    from _speed_report import section as speed_section

    done, speed = lines(), speed_section()
    if not done and not speed:
        raise SystemExit(
            "nothing measured yet for the present weights and settings: python benchmarks/tables.py run"
        )
    text = tables_text(done) if done else ["# Results", ""]
    PAGE.write_text("\n".join([*text, *speed]).rstrip() + "\n")
    return PAGE


def tables_text(done: dict) -> list[str]:
    """The page but for its section on speed."""
    last = list(done.values())[-1]
    sections = dict.fromkeys(method.section for method in METHODS.values())
    absent = [
        m.title + f" ({m.section.split(':')[0]})"
        for n, m in METHODS.items()
        if not any(k[1] == n for k in done)
    ]
    text = [
        "# Results",
        "",
        "Written by `python benchmarks/tables.py report` from `benchmarks/results/tables.jsonl`; "
        "`python benchmarks/tables.py run` adds the lines that are missing.",
        "",
        f"Held-out scenes of sprite-world ({CLIPS} planned; each row says how many it has), {FRAMES} frames of "
        "128×128, each with four edits: style, object, background, colour and background. Embedded model, "
        f"{SAMPLING['steps']} steps of {SAMPLING['scheduler'].upper()}, guidance {GUIDANCE:g}, windows of "
        f"{SAMPLING['window']}, stride {SAMPLING['stride']}, {SAMPLING['window_weights']} weights, merged "
        f"{SAMPLING['merge']}s, seed 0; from the source's inversion unless a row says else; one noise for all frames "
        f"goes with the noised source at strength {STRENGTH:g}; tuning: {TUNING['steps']} steps at learning rate "
        f"{TUNING['lr']:g}. In brackets: 95% bootstrap intervals over clips, widened for few "
        "clips as Student's are. CLIP: sprite-world-clip; autoencoder: "
        "sprite-world's; flow: DIS. Text agreement is the share of (object, colour, background, style) that a "
        "classifier, trained on renders alone, sees as the prompt says, in hundredths. psnr is to the ideal edit, "
        "which the world can draw.",
        "",
        f"*{last['machine']}, {last['threads']} threads, torch {last['torch']}; newest line: commit {last['commit']}, "
        f"{last['date'][:10]}; median {np.median([r['seconds'] for r in done.values()]):.0f} s a line (four edits).*",
        "",
    ]
    for section in sections:
        rows = {name: m for name, m in METHODS.items() if m.section == section}
        text += section_table(section, rows, done)
    text += [*directions(done), *response(done), *examples(done), "## Missing", ""]
    text += [f"- {what}" for what in MISSING]
    if absent:
        text.append("- Not measured yet: " + "; ".join(absent))
    return [*text, ""]
