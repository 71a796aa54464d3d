"""Dense optical flow between two frames: OpenCV's DIS, or RAFT where torchvision and its weights are at hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np

SMALLEST = 16
"""Pixels per side below which optical flow says nothing."""
FLOWS = ("auto", "dis", "raft")


class DisFlow:
    """Dense inverse search, medium preset, full resolution; about 16 ms for both ways at 256 x 256 on one core.

    Source: Kroeger et al. 2016, as implemented in OpenCV.
    """

    name = "DIS (OpenCV, medium)"
    smallest = SMALLEST

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, before, after) -> np.ndarray:
        """Where each pixel of `before` is in `after`, relative: (H, W, 2) float32, x then y, pixels."""
        return self._dis.calc(before.grey, after.grey, None)


class RaftFlow:
    """RAFT, large, with torchvision's weights; seconds a pair at 512 x 512 on a CPU.

    Source: Teed and Deng 2020, as implemented in torchvision. Raises: ValueError where it is not at hand.
    """

    name = "RAFT (torchvision, C_T_SKHT_V2)"
    smallest = 128

    def __init__(self, device: str = "cpu") -> None:
        import torch

        check_flow("raft")
        from torchvision.models.optical_flow import raft_large

        network = raft_large(weights=None)
        network.load_state_dict(torch.load(_raft_weights(), map_location="cpu", weights_only=True))
        self._network, self._device = network.eval().to(device), device

    def __call__(self, before, after) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        height, width = before.frame.shape[:2]
        pictures = torch.from_numpy(np.stack([before.frame, after.frame])).to(self._device)
        x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        x = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        with torch.inference_mode():
            flow = self._network(x[:1], x[1:])[-1][0, :, :height, :width]
        return np.ascontiguousarray(flow.permute(1, 2, 0).cpu().numpy())


def _raft_weights() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / "raft_large_C_T_SKHT_V2-ff5fadd5.pth"


def raft_missing() -> str | None:
    """What RAFT lacks on this machine, or None. Nothing is downloaded."""
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision"
    if not _raft_weights().is_file():
        return f"torchvision's weights at {_raft_weights()}"
    try:
        import torchvision.models.optical_flow  # noqa: F401
    except (ImportError, RuntimeError):  # built for another torch
        return "a torchvision that loads beside this torch"
    return None


def check_flow(name: str) -> None:
    """Raises: ValueError for an unknown name, or for "raft" where it is not at hand."""
    if name not in FLOWS:
        raise ValueError(f"flow: expected one of {', '.join(FLOWS)}, got {name!r}")
    if name == "raft" and (missing := raft_missing()):
        raise ValueError(f"flow: 'raft' needs {missing}; use 'dis'")


def make_flow(name: str, device: str = "cpu"):
    """The estimator called `name`; "auto" is RAFT where it is at hand, else DIS.

    Raises: ValueError for an unknown name, or for "raft" where it is not at hand.
    """
    check_flow(name)
    if name == "raft" or (name == "auto" and raft_missing() is None):
        return RaftFlow(device)
    return DisFlow()
