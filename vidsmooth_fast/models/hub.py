"""Fetching a model's files from the Hugging Face Hub: only the files that `load` reads."""

from __future__ import annotations

from pathlib import Path

from .weights import weight_names

_SMALL = ("model_index.json", "config.json", "scheduler_config.json")
_STEMS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
}


def wanted_files(available: list[str]) -> list[str]:
    """Of a repository's files, the ones a load needs: small ones, and the best weights of each component."""
    chosen = [f for f in available if f.count("/") <= 1 and f.split("/")[-1] in _SMALL]
    chosen += [f for f in available if f.startswith("tokenizer/")]
    for part, stems in _STEMS.items():
        candidates = [f"{part}/{name}" for stem in stems for name in weight_names(stem)]
        candidates.sort(key=lambda f: not f.endswith(".safetensors"))
        chosen += [f for f in candidates if f in available][:1]
    return chosen


def download(repo_id: str) -> Path:
    """Fetch (or find in the local cache) a model repository, and return its directory.

    Raises: ValueError, one line, when it does not exist, needs a login, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = wanted_files([f.rfilename for f in HfApi().model_info(repo_id, timeout=20).siblings])
        return Path(snapshot_download(repo_id, allow_patterns=files))
    except Exception as online:  # network, proxy, permission and absence all arrive as different classes
        try:
            return Path(snapshot_download(repo_id, local_files_only=True))
        except Exception:
            reason = (str(online).strip() or type(online).__name__).splitlines()[0]
            raise ValueError(
                f"model: {repo_id!r} is no local directory, is not in the local cache, and could not be fetched "
                f"from the Hub ({reason})"
            ) from online
