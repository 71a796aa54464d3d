"""`load`: a name, a directory or a Hub id -> VideoModel."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch

from .bundle import is_bundle
from .bundle_model import BundleModel
from .latent_model import LatentModel
from .pretrained import read_pretrained, read_tokenizer
from .video_model import VideoModel, quiet_transformers
from .weights import build_unet, find_weights, read_weights, variant_of

EMBEDDED = Path(__file__).parent / "embedded"
_UNET_CLASSES = ("VideoUNet", "UNet3DConditionModel", "UNet2DConditionModel")
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def embedded_names() -> list[str]:
    """Models that ship inside the package."""
    return sorted(p.parent.name for p in EMBEDDED.glob("*/model_index.json"))


def choose_device(device: str | torch.device) -> torch.device:
    """ "auto": cuda where there is one, else cpu. Raises: ValueError for a device this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        there = torch.empty(1, device=chosen)
        there.item()  # not possible on "meta" either
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device: expected 'auto' or a device of this machine, got {device!r}") from error
    return there.device  # with its number, as modules have it


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The network's dtype. "auto": fp16 on cuda; on a CPU bf16 where it has bf16 arithmetic, else fp32.

    Measured on 2 cores of a Zen 4 CPU (AVX-512 BF16): matrix products 430 GFLOP/s in bf16 against 195 in fp32, the
    whole sprite-size network 1.7 times as fast. Latents and steps stay fp32 whatever is chosen here.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.float16
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = any(getattr(torch.cpu, probe, bool)() for probe in probes)
        return torch.bfloat16 if device.type == "cpu" and fast else torch.float32
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    chosen = named.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in named.values():
        raise ValueError(f"dtype: expected 'auto' or one of {list(named)}, got {dtype!r}")
    return chosen


def load(
    name_or_path: str | os.PathLike,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    lora: str | os.PathLike | list | None = None,
) -> LatentModel:
    """Load a model.

    name_or_path: an embedded model's name ("sprite-world"); a directory in diffusers' component layout with a 2D
        UNet (inflated here: temporal layers added, per-frame norm statistics), a Tune-A-Video checkpoint, or what
        `VideoModel.save` wrote; or a Hub id "owner/name" of one of these. Pickled weights are read only as plain
        tensors. A directory that `export` wrote gives a BundleModel, everything else a VideoModel.
    device: "auto" (cuda if there is one) or a torch device.
    dtype: "auto" (see `choose_dtype`), a torch dtype or its name.
    lora: a LoRA file or several, added to the weights in full precision before they are cast; a weight is given
        as (path, weight).

    Raises: ValueError, one line: unknown name (listing what would work), missing parts, weights that do not fit.
    """
    root, name = _locate(name_or_path)
    if is_bundle(root):
        if lora:
            raise ValueError(f"lora: {root} is exported; add it to the model, and export that")
        return BundleModel(root, device, dtype)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    model = _read(root, name, torch.float32 if lora else dtype)
    for entry in [lora] if isinstance(lora, (str, os.PathLike, tuple)) else lora or ():
        path, weight = entry if isinstance(entry, tuple) else (entry, 1.0)
        model.load_lora(path, weight)
    return model.to(device, dtype)


def load_placed(
    model: LatentModel | str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> LatentModel:
    """`load`, or where there is a model already, a copy of it at this device and dtype, itself where it is there.

    None: for a loaded model as it is, else "auto". Raises: ValueError, as `load`.
    """
    if not isinstance(model, LatentModel):
        return load(model, device="auto" if device is None else device, dtype=dtype or "auto")
    place = choose_device(model.device if device is None else device)
    wanted = place, choose_dtype(dtype or model.dtype, place)
    return model if wanted == (model.device, model.dtype) else model.placed(*wanted)


def load_networks(
    model: LatentModel | str | os.PathLike, *, device: str | torch.device, dtype: str | torch.dtype
) -> VideoModel:
    """`load` for those who need the networks themselves, to tune or to export them. Raises: ValueError for a bundle."""
    bundle = model.path if isinstance(model, BundleModel) else None
    if not isinstance(model, LatentModel):
        root, _ = _locate(model)
        bundle = root if is_bundle(root) else None
    if bundle is not None:
        raise ValueError(
            f"model: {bundle} is an exported bundle, which has no networks to work on; expected the model that it was "
            "made from"
        )
    return model if isinstance(model, VideoModel) else load(model, device=device, dtype=dtype)


def _locate(name_or_path: str | os.PathLike) -> tuple[Path, str]:
    """The directory that holds the model, and what to call it."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        kind = type(name_or_path).__name__
        raise ValueError(f"model: expected a model, an embedded name, a directory or a Hub id, got {kind}")
    text = os.fspath(name_or_path)
    if text in embedded_names():
        return EMBEDDED / text, text
    path = Path(text).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith("."):
        from .hub import download

        return download(text), text
    names = ", ".join(embedded_names()) or "none"
    raise ValueError(
        f"model: {text!r} is not a directory; expected an embedded model ({names}), "
        "a model directory, or a Hub id like owner/name"
    )


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"model: expected {path.name} in {path.parent}, found none")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"model: {path} is not valid JSON") from error
    if not isinstance(found, dict):
        raise ValueError(f"model: expected a JSON object in {path}, got {type(found).__name__}")
    return found


def _read(root: Path, name: str, dtype: torch.dtype) -> VideoModel:
    absent = [part for part in _PARTS if not (root / part).is_dir()]
    if absent:
        raise ValueError(
            f"model: {root} lacks {', '.join(absent)}; expected the folders {', '.join(_PARTS)} of a diffusers model"
        )
    config = read_json(root / "unet" / "config.json")
    kind = config.get("_class_name", "UNet3DConditionModel")
    if kind not in _UNET_CLASSES:
        raise ValueError(f"model: unet of class {kind} in {root}; expected one of {', '.join(_UNET_CLASSES)}")
    path = find_weights(root / "unet", "diffusion_pytorch_model")
    unet = build_unet(config, read_weights(path), source=str(path), dtype=dtype)
    scheduler = read_json(root / "scheduler" / "scheduler_config.json")
    vae = _read_vae(root / "vae", dtype)
    text_encoder, tokenizer = _read_text(root)
    width = text_encoder.config.hidden_size
    if width != unet.config["cross_attention_dim"]:
        raise ValueError(
            f"model: text encoder of width {width} in {root}; the unet expects {unet.config['cross_attention_dim']}"
        )
    if vae.config.latent_channels != unet.out_channels:
        raise ValueError(
            f"model: autoencoder of {vae.config.latent_channels} channels in {root}; the unet makes {unet.out_channels}"
        )
    model = VideoModel(unet, vae, text_encoder, tokenizer, scheduler, name=name, path=root)
    if (root / "tuning.json").is_file():
        model.tuning = read_json(root / "tuning.json")
    return model


def _read_vae(folder: Path, dtype: torch.dtype):
    from diffusers import AutoencoderKL

    options = variant_of(find_weights(folder, "diffusion_pytorch_model"))
    options |= {"torch_dtype": dtype, "local_files_only": True, "low_cpu_mem_usage": False}
    try:
        return read_pretrained(AutoencoderKL, folder, **options)
    except ValueError as error:
        raise ValueError(f"model: cannot read the autoencoder in {folder}: {error}") from error


def _read_text(root: Path):
    from transformers import CLIPTextModel

    stem = "model" if any((root / "text_encoder").glob("model*.safetensors")) else "pytorch_model"
    options = variant_of(find_weights(root / "text_encoder", stem))
    options |= {"dtype": torch.float32, "local_files_only": True}
    try:
        with quiet_transformers():
            encoder = read_pretrained(CLIPTextModel, root / "text_encoder", **options)
        tokenizer = read_tokenizer(root / "tokenizer", encoder.config.vocab_size, local_files_only=True)
    except ValueError as error:
        raise ValueError(f"model: cannot read the text encoder in {root}: {error}") from error
    return encoder, tokenizer
