"""The network, and loading and saving of models. Heavy dependencies are imported by the module that uses them."""

from __future__ import annotations

import importlib

_WHERE = {
    "VideoUNet": "unet",
    "TextKV": "unet",
    "TimeEmbedding": "unet",
    "AttentionWindows": "blocks",
    "VideoModel": "video_model",
    "load": "loading",
}
__all__ = list(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
