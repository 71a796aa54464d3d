"""What the studies share: a classifier kept between runs, and which weights a result belongs to."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from safetensors.torch import load_file, save_file

from vidsmooth_fast.models.loading import EMBEDDED
from vidsmooth_fast.spriteworld.classifier import Classifier, train_classifier

KEPT = Path(__file__).parents[1] / "out" / "judges"


def kept_classifier() -> Classifier:
    """The classifier of sprite-world's words, trained on renders alone: minutes, once for all studies."""
    path = KEPT / "classifier.safetensors"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        model = train_classifier()
        save_file(model.state_dict(), path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    model = Classifier()
    model.load_state_dict(load_file(path))
    return model.eval()


@cache
def weights() -> str:
    """A fingerprint of the embedded models, on which every figure depends."""
    digest = hashlib.sha256()
    for path in sorted(EMBEDDED.glob("**/*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
