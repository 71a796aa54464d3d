"""The command line: the Python API's verbs, one line per error."""

from __future__ import annotations

import functools
import sys
import warnings
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="vidsmooth-fast",
    help="Long, smooth videos from diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which would take "[16]" at the end of a help text for markup
)


def one_line_errors(command):
    """Errors that a user can act on take one line on standard error; Ctrl-C leaves nothing broken."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            message, code = "interrupted", 130
        except (ValueError, OSError, MemoryError, FloatingPointError) as error:
            message, code = " ".join(str(error).split()) or type(error).__name__, 1
        print(f"vidsmooth-fast: {message}", file=sys.stderr)
        sys.exit(code)

    return run


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"vidsmooth-fast: warning: {' '.join(str(message).split())}", file=sys.stderr)


class Merge(str, Enum):
    latent = "latent"
    attention = "attention"


class Target(str, Enum):
    clean = "clean"
    source = "source"
    published = "published"
    simple = "simple"


class Speed(str, Enum):
    exact = "exact"
    balanced = "balanced"
    fast = "fast"


Model = Annotated[str, typer.Argument(help='An embedded name ("sprite-world"), a directory, or a Hub id.')]
Window = Annotated[int, typer.Option(help="Frames that go through the network together.")]
Stride = Annotated[int, typer.Option(help="Frames between the starts of windows.")]
Steps = Annotated[int, typer.Option(help="Network evaluations per window.")]
Seed = Annotated[int, typer.Option(help="Of every random number.")]
Height = Annotated[int | None, typer.Option(help="Pixels; the model's own size by default.")]
Width = Annotated[int | None, typer.Option(help="Pixels; the model's own size by default.")]
Device = Annotated[str, typer.Option(help='"cpu", "cuda", "cuda:1", ...')]
Dtype = Annotated[str, typer.Option(help='"float32", "bfloat16", "float16".')]
Point = Annotated[
    tuple[float, float] | None,
    typer.Option(help="X Y on the object in the first frame, in pixels of the size tuned on."),
]
Box = Annotated[
    tuple[float, float, float, float] | None,
    typer.Option(help="LEFT TOP RIGHT BOTTOM around the object in the first frame."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no estimates.")]


@app.command()
@one_line_errors
def sample(
    model: Model,
    prompt: Annotated[
        list[str], typer.Argument(help="What the video shows. Several are spread over its length.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".mp4, .webm, .gif, .webp, or a folder for PNGs.")
    ],
    frames: Annotated[
        int | None,
        typer.Option(
            help="Length of the video; a shorter source goes on back and forth. [that of --latents or "
            "--source; else 256]"
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="A clip to edit: a video file or a folder of images.")
    ] = None,
    source_prompt: Annotated[str, typer.Option(help="What the source shows; may be empty.")] = "",
    strength: Annotated[
        float, typer.Option(help="1: from the source's inversion; less: from the noised source.")
    ] = 1.0,
    speed: Annotated[
        Speed,
        typer.Option(help="What steps, scheduler, guided steps and reuse are by default; docs/speed.md."),
    ] = Speed.exact,
    steps: Annotated[
        int | None, typer.Option(help="Network evaluations per window. [50; or as --speed]")
    ] = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 7.5,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="First and last fraction of the steps that are guided. [0 1; or as --speed]"),
    ] = None,
    reuse: Annotated[
        int | None,
        typer.Option(help="Compute the deep blocks at every so many steps only. [1; or as --speed]"),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to steer away from.")] = "",
    window: Window = 16,
    stride: Stride = 8,
    window_weights: Annotated[str, typer.Option(help="flat, pyramid or hann.")] = "hann",
    loop: Annotated[bool, typer.Option("--loop", help="The last frame is followed by the first.")] = False,
    merge: Annotated[
        Merge, typer.Option(help="Where windows overlap: latents, or temporal attention only.")
    ] = Merge.latent,
    smooth: Annotated[
        float, typer.Option(help="Strength of the noise constraint between frames, 0..0.5.")
    ] = 0.0,
    smooth_target: Annotated[
        Target | None, typer.Option(help="What --smooth makes smooth; see docs/smoothing.md. [clean]")
    ] = None,
    blend: Annotated[
        float, typer.Option(help="Weight of neighbouring frames in the source's inversion, 0..1.")
    ] = 0.0,
    init: Annotated[str | None, typer.Option(help="inversion, freenoise, independent or shared.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="ddim, dpmpp_2m, euler, ddpm, lcm or flow. [ddim; or as --speed]")
    ] = None,
    eta: Annotated[float, typer.Option(help="Noise of DDIM, 0..1.")] = 0.0,
    latents: Annotated[
        Path | None, typer.Option(help="Start from what `invert` has written, instead of init.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="A ControlNet, its directory or Hub id; may be repeated. See docs/controls.md."),
    ] = None,
    control_maps: Annotated[
        list[str] | None,
        typer.Option(help="What each --control follows: a video, a folder of pictures, or canny. [canny]"),
    ] = None,
    control_scale: Annotated[list[float] | None, typer.Option(help="Weight of each --control. [1]")] = None,
    height: Height = None,
    width: Width = None,
    seed: Seed = 0,
    decoder: Annotated[
        str, typer.Option(help="full, linear (a preview), or a directory with an AutoencoderTiny.")
    ] = "full",
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_batch: Annotated[
        int | None, typer.Option(help="Windows x branches in one call. [sized to memory, on a CPU at most 2]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Keep the state here after each step, and go on from it.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Sample a long video from a prompt, or edit a source clip."""
    from vidsmooth_fast import DeepReuse, InversionBlend, NoiseConstraint, Video, fast_sample
    from vidsmooth_fast.conditioning.controls import controls_of
    from vidsmooth_fast.sampling.inversion import Inversion

    if smooth_target and not smooth:
        raise ValueError("--smooth-target: expected a strength beside it, such as --smooth 0.25")
    target = smooth_target.value if smooth_target else "clean"
    clip = Video.open(source) if source else None
    start = Inversion.open(latents) if latents else None
    if frames is None:
        frames = start.latents.shape[2] if start else len(clip) if clip else 256
    fast_sample(
        model,
        prompt[0] if len(prompt) == 1 else prompt,
        frames,
        source=clip,
        source_prompt=source_prompt,
        strength=strength,
        speed=speed.value,
        steps=steps,
        guidance=guidance,
        guidance_interval=guidance_interval,
        reuse=DeepReuse(reuse) if reuse is not None else None,
        negative_prompt=negative_prompt,
        window=window,
        stride=stride,
        window_weights=window_weights,
        loop=loop,
        merge=merge.value,
        smooth=NoiseConstraint(smooth, target) if smooth else None,
        blend=InversionBlend(blend) if blend else None,
        init=init,
        scheduler=scheduler,
        eta=eta,
        height=height,
        width=width,
        seed=seed,
        latents=start,
        decoder=decoder,
        controls=controls_of(control or [], control_maps or [], control_scale or []),
        device=device,
        dtype=dtype,
        max_batch="auto" if max_batch is None else max_batch,
        progress=not quiet,
        resume=resume,
        output=output,
    )
    typer.echo(output)


@app.command()
@one_line_errors
def invert(
    model: Model,
    video: Annotated[Path, typer.Argument(help="A video file or a folder of images.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A safetensors file: latents, clean, timesteps.")
    ],
    prompt: Annotated[str, typer.Option(help="What the video shows; may be empty.")] = "",
    steps: Steps = 50,
    frames: Annotated[int | None, typer.Option(help="How many; all by default.")] = None,
    window: Window = 16,
    stride: Stride = 8,
    blend: Annotated[float, typer.Option(help="Weight of neighbouring frames, 0..1.")] = 0.0,
    scheduler: Annotated[str, typer.Option(help="The schedule on which sampling will come back.")] = "ddim",
    height: Height = None,
    width: Width = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Invert a video: the noise from which sampling returns to it."""
    from vidsmooth_fast import InversionBlend
    from vidsmooth_fast import invert as invert_video

    invert_video(
        model,
        video,
        prompt,
        steps=steps,
        blend=InversionBlend(blend) if blend else None,
        frames=frames,
        window=window,
        stride=stride,
        scheduler=scheduler,
        height=height,
        width=width,
        device=device,
        dtype=dtype,
        progress=not quiet,
        output=output,
    )
    typer.echo(output)


@app.command()
@one_line_errors
def evaluate(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Videos, folders, globs, or a LOVEU-TGVE style table (.csv) of clips and edit prompts."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the videos should show.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="The clip that was edited, or a folder with one of each video's name.")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Where the edited videos of a table are.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="Only this one; may be repeated. See --list.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="As sampled; by default what the file says.")] = None,
    stride: Annotated[int | None, typer.Option(help="As sampled; by default what the file says.")] = None,
    loop: Annotated[bool | None, typer.Option(help="As sampled; by default what the file says.")] = None,
    clip: Annotated[
        str, typer.Option(help="A transformers CLIP: embedded name, directory or Hub id.")
    ] = "sprite-world-clip",
    autoencoder: Annotated[
        str, typer.Option(help="Of the VL score: embedded name, directory or Hub id.")
    ] = "sprite-world",
    flow: Annotated[
        str, typer.Option(help="dis, raft, or auto: raft where its weights are at hand.")
    ] = "auto",
    json: Annotated[Path | None, typer.Option(help="Write everything here, per frame too.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one row per video here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the videos and plots here.")] = None,
    device: Device = "auto",
    show_list: Annotated[bool, typer.Option("--list", help="List the metrics and stop.")] = False,
    quiet: Quiet = False,
) -> None:
    """Judge videos: text agreement, consistency, flicker, warping error, seams; see docs/metrics.md."""
    from vidsmooth_fast.metrics.registry import listing

    if show_list:
        typer.echo(listing())
        return
    from vidsmooth_fast.metrics.command import evaluate_files

    table, failures = evaluate_files(
        inputs or [],
        prompt=prompt,
        source=source,
        videos=videos,
        outputs={"json": json, "csv": csv, "html": html},
        metrics=metric,
        window=window,
        stride=stride,
        loop=loop,
        clip=clip,
        autoencoder=autoencoder,
        flow=flow,
        device=device,
        progress=not quiet,
    )
    if table:
        typer.echo(table)
    for name, reason in failures:
        print(f"vidsmooth-fast: {name}: {reason}", file=sys.stderr)
    if failures:
        sys.exit(1)


@app.command()
@one_line_errors
def tune(
    model: Model,
    video: Annotated[
        Path, typer.Argument(help="The clip to learn from: a video file or a folder of images.")
    ],
    prompt: Annotated[str, typer.Argument(help='What it shows; "" with --pair.')],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the tuned model.")],
    loss: Annotated[
        str | None,
        typer.Option(help='plain, smooth, inr, foreground, ... or terms: "plain=1,inr-forward=0.5". [inr]'),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of the optimiser. [500; with --pair 1000]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [3e-5; with --pair 1e-5]")] = None,
    frames: Annotated[int | None, typer.Option(help="Used of the clip. [24; with --pair 30]")] = None,
    trainable: Annotated[
        list[str] | None,
        typer.Option(
            help="tune-a-video, temporal, all, a LoRA rank, or patterns. [tune-a-video; with --pair all]"
        ),
    ] = None,
    timesteps: Annotated[
        tuple[int, int] | None, typer.Option(help="First and last + 1. [0 1000; with --pair 0 500]")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(help='An edited frame, "FRAME:PICTURE:PROMPT": tune on a combined dataset.'),
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Single frames, no temporal layers.")] = False,
    sam: Annotated[
        Path | None, typer.Option(help="Segment Anything's checkpoint, for the masks of loss foreground.")
    ] = None,
    point: Point = None,
    box: Box = None,
    batch_size: Annotated[int, typer.Option(help="Timesteps, or pictures, in each step.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "auto",
    validate: Annotated[
        list[str] | None, typer.Option(help="A prompt to sample on the way; may be given several times.")
    ] = None,
    validate_every: Annotated[int, typer.Option(help="Steps between samplings.")] = 100,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    resume: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints, curves and samples. [OUTPUT.run]")
    ] = None,
    height: Height = None,
    width: Width = None,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Tune a model on one captioned clip, so that it samples the clip's motion under other prompts."""
    from vidsmooth_fast.training.command import tune_from_command

    tune_from_command(
        model,
        video,
        prompt,
        {
            "loss": loss,
            "steps": steps,
            "lr": lr,
            "frames": frames,
            "trainable": trainable,
            "timesteps": timesteps,
            "batch_size": batch_size,
            "precision": precision,
            "validation_prompts": validate or (),
            "validation_every": validate_every,
            "checkpoint_every": checkpoint_every,
            "pictures": pictures,
            "seed": seed,
            "device": device,
            "progress": not quiet,
            "resume": resume,
            "output": output,
        },
        size=(height, width),
        pairs=pair or (),
        masks={"checkpoint": sam, "point": point, "box": box},
    )
    typer.echo(output)


@app.command()
@one_line_errors
def consistency(
    video: Annotated[Path, typer.Argument(help="The clip: a video file or a folder of images.")],
    prompt: Annotated[str, typer.Option(help="What the result shall show.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what every stage makes.")],
    model: Annotated[str, typer.Option(help="An embedded name, a directory, or a Hub id.")] = "sprite-world",
    frames: Annotated[int | None, typer.Option(help="Of the clip; all by default.")] = None,
    strength: Annotated[float, typer.Option(help="Share of the schedule taken from the noised clip.")] = 0.75,
    steps: Annotated[int, typer.Option(help="Of DDPM, in the first two stages.")] = 1000,
    step: Annotated[int, typer.Option(help="The reverse step at which backgrounds are fused.")] = 5,
    n: Annotated[int, typer.Option(help="Backgrounds in one average.")] = 5,
    mode: Annotated[str, typer.Option(help="corrected, or paper: its equation to the letter.")] = "corrected",
    sam: Annotated[Path | None, typer.Option(help="Segment Anything's checkpoint; GrabCut without.")] = None,
    point: Point = None,
    box: Box = None,
    tuning_steps: Annotated[int, typer.Option(help="Of the optimiser.")] = 250,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-6,
    sampling_steps: Annotated[int, typer.Option(help="Of the last stage.")] = 50,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 7.5,
    window: Window = 16,
    stride: Stride = 8,
    height: Height = None,
    width: Width = None,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Consistency tuning: sample, fuse backgrounds, tune, and denoise in windows; every stage is kept."""
    from vidsmooth_fast.models.loading import load_networks
    from vidsmooth_fast.training.consistency import consistency as run

    loaded = load_networks(model, device=device, dtype="float32")
    default = loaded.default_size
    size = (default[0] if height is None else height, default[1] if width is None else width)
    run(
        loaded,
        video,
        prompt,
        output,
        frames=frames,
        size=size,
        strength=strength,
        steps=steps,
        step=step,
        n=n,
        mode=mode,
        sam=sam,
        point=point,
        box=box,
        tuning_steps=tuning_steps,
        lr=lr,
        sampling_steps=sampling_steps,
        guidance=guidance,
        window=window,
        stride=stride,
        seed=seed,
        progress=not quiet,
    )
    typer.echo(output)


@app.command()
@one_line_errors
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is made.")] = Path("out"),
    frames: Annotated[
        int | None, typer.Option(help="Length of the video, 256; of each in the gallery, 64.")
    ] = None,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="A page of videos of 12 prompts instead.")
    ] = False,
    tuned: Annotated[
        bool, typer.Option("--tune", help="A panel more, by a model tuned on the clip first.")
    ] = False,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Edit a clip of the embedded world, with and without smoothing, side by side: demo.mp4 and demo.png."""
    from vidsmooth_fast.spriteworld.demo import run_demo
    from vidsmooth_fast.spriteworld.gallery import run_gallery

    if gallery and tuned:
        raise ValueError("--gallery and --tune: expected one of them")
    run, length = (run_gallery, 64) if gallery else (partial(run_demo, tuned=tuned), 256)
    length = length if frames is None else frames
    typer.echo(run(output, frames=length, seed=seed, progress=not quiet))


@app.command()
@one_line_errors
def bench(
    models: Annotated[
        list[str], typer.Argument(help="Models and exported bundles, to be timed side by side.")
    ],
    prompt: Annotated[str, typer.Option(help="Of the video that each samples.")] = "",
    frames: Annotated[int, typer.Option(help="Length of the video.")] = 64,
    steps: Annotated[int, typer.Option(help="Network evaluations per window.")] = 10,
    window: Window = 16,
    stride: Stride = 8,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 7.5,
    height: Height = None,
    width: Width = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    rounds: Annotated[int, typer.Option(help="Of network calls, one per model each.")] = 5,
    quiet: Quiet = False,
) -> None:
    """Seconds per network call, per step and per video, side by side."""
    from vidsmooth_fast.sampling.bench import bench as run
    from vidsmooth_fast.sampling.bench import table

    timings = run(
        models,
        prompt=prompt,
        frames=frames,
        steps=steps,
        window=window,
        stride=stride,
        guidance=guidance,
        height=height,
        width=width,
        seed=seed,
        device=device,
        dtype=dtype,
        rounds=rounds,
        say=(lambda text: None) if quiet else partial(print, file=sys.stderr),
    )
    typer.echo(table(timings))


@app.command()
@one_line_errors
def export(
    model: Model,
    path: Annotated[Path, typer.Argument(help="Directory for the bundle; an earlier bundle is replaced.")],
    format: Annotated[str, typer.Option(help="onnx, aoti or tensorrt.")] = "onnx",
    dtype: Annotated[str, typer.Option(help="float32, float16, or with aoti bfloat16.")] = "float32",
    frames: Annotated[tuple[int, int], typer.Option(help="Least and most in a window.")] = (1, 64),
    height: Annotated[
        tuple[int, int] | None, typer.Option(help="Least and most pixels. [all that the network takes]")
    ] = None,
    width: Annotated[
        tuple[int, int] | None, typer.Option(help="Least and most pixels. [all that the network takes]")
    ] = None,
    batch: Annotated[tuple[int, int], typer.Option(help="Least and most windows x branches in one call.")] = (
        1,
        64,
    ),
    controls: Annotated[bool, typer.Option("--controls", help="With inputs for a ControlNet.")] = False,
    opset: Annotated[int | None, typer.Option(help="Of onnx: 23, or 21 for older runtimes. [23]")] = None,
    device: Annotated[str | None, typer.Option(help="Of aoti: cpu or cuda. [cpu]")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Of tensorrt: a file. [in the user's cache folder]")
    ] = None,
) -> None:
    """Write a model as a bundle that `sample`, `invert` and `bench` take in its place; see docs/export.md."""
    from vidsmooth_fast.export import export as run

    options = {"opset": opset, "device": device, "timing_cache": timing_cache and str(timing_cache)}
    given = {name: value for name, value in options.items() if value is not None}
    run(
        model,
        path,
        format=format,
        dtype=dtype,
        frames=frames,
        height=height,
        width=width,
        batch=batch,
        controls=controls,
        **given,
    )
    typer.echo(path)


@app.command()
@one_line_errors
def info(
    bundle: Annotated[Path | None, typer.Argument(help="An exported bundle, to be described.")] = None,
) -> None:
    """What is installed: versions, devices, the backends of every operator. Or what a bundle holds."""
    from vidsmooth_fast.info import describe, report

    typer.echo(report() if bundle is None else describe(bundle))


def main() -> None:
    """Run the command line."""
    app()
