"""Training the embedded model on a GPU: every stage, and a run that goes from there to a CPU; skipped without one."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from vidsmooth_fast.spriteworld.train import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")


def test_every_stage_trains_on_a_gpu_and_goes_on_anywhere(tmp_path):
    def run(stage, steps, device):
        main(
            [stage, "--out", str(tmp_path), "--tiny", "--workers", "1", "--steps", steps, "--device", device]
        )

    for stage in ("vae", "unet", "temporal", "decoder", "sharpen"):
        run(stage, "2", "cuda")
        run(stage, "3", "cpu")
        assert torch.load(tmp_path / f"{stage}.pt", weights_only=True, map_location="cpu")["step"] == 3
    main(["package", "--out", str(tmp_path), "--tiny"])
    assert (tmp_path / "sprite-world" / "model_index.json").is_file()
