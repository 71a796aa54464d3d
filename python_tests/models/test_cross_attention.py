"""Attention to text by the CPU's kernel, which inference takes, against PyTorch's, which gradients take."""

import pytest
import torch

from vidsmooth_fast.models.blocks import CrossAttention, Pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize(("pixels", "tokens", "heads"), [(1, 1, 1), (35, 77, 3), (130, 5, 2)])
def test_the_kernel_and_pytorch_agree(rows, pixels, tokens, heads, dtype):
    torch.manual_seed(0)
    layer = CrossAttention(24, heads, 10).to(dtype)
    x, text = torch.randn(2 * 3, pixels, 24).to(dtype), torch.randn(rows, tokens, 10).to(dtype)
    expected = layer(x, Pass(3, text=(layer.project(text),)))
    assert expected.requires_grad
    with torch.inference_mode():
        got = layer(x, Pass(3, text=(layer.project(text),)))
    exact = layer.double()(x.double(), Pass(3, text=(layer.project(text.double()),)))
    bound = 2 * (expected - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
    assert got.dtype == dtype and (got - exact).abs().max() <= bound
