"""Files of tensors: whole, and readable by whom the user's umask lets read."""

import os

import torch

from vidsmooth_fast.sampling.tensor_files import read_tensors, write_tensors


def test_permissions_follow_the_umask(tmp_path):
    path = tmp_path / "a.safetensors"
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            write_tensors(path, {"x": torch.ones(2)}, {"said": "so"})
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == mode
    tensors, meta = read_tensors(path)
    assert torch.equal(tensors["x"], torch.ones(2)) and meta == {"said": "so"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
