"""LoRA files in the formats that are passed around, fused into the weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from python_tests.tiny import tiny_model
from vidsmooth_fast.models import load

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYERS = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_out.0", f"{BLOCK}.ff.net.0.proj"]
RANK = 2


def factors(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(up, down) per layer of the network."""
    g = torch.Generator().manual_seed(0)
    weights = dict(model.unet.named_parameters())
    shapes = {name: weights[f"{name}.weight"].shape for name in LAYERS}
    return {
        n: (torch.randn(o, RANK, generator=g), torch.randn(RANK, i, generator=g))
        for n, (o, i) in shapes.items()
    }


def peft_file(path, model, part="unet"):
    state = {}
    for name, (up, down) in factors(model).items():
        state[f"{part}.{name}.lora_A.weight"], state[f"{part}.{name}.lora_B.weight"] = down, up
    save_file(state, path)
    return 1.0


def diffusers_file(path, model):
    state = {}
    for name, (up, down) in factors(model).items():
        state[f"unet.{name}.lora.down.weight"], state[f"unet.{name}.lora.up.weight"] = down, up
    save_file(state, path)
    return 1.0


def kohya_file(path, model):
    """Underscored names and an alpha, which scales the update by alpha / rank."""
    state = {}
    for name, (up, down) in factors(model).items():
        key = "lora_unet_" + name.replace(".", "_")
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = down, up
        state[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(state, path)
    return 1.0 / RANK


@pytest.mark.parametrize("write", [peft_file, diffusers_file, kohya_file])
def test_every_format_adds_the_same_update(write, tmp_path):
    before, after = tiny_model(), tiny_model()
    scale = write(tmp_path / "style.safetensors", before)
    after.load_lora(tmp_path / "style.safetensors", 0.5)
    expected = {k: v.clone() for k, v in before.unet.state_dict().items()}
    for name, (up, down) in factors(before).items():
        expected[f"{name}.weight"] += 0.5 * scale * up @ down
    for name, value in after.unet.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


def test_pickled_lora_and_load_option(tmp_path):
    path = tmp_path / "model"
    model = tiny_model(path)
    diffusers_file(tmp_path / "a.safetensors", model)
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "a.safetensors"), tmp_path / "b.bin")
    once = load(path, dtype="float32", lora=[(tmp_path / "a.safetensors", 2.0)]).unet.state_dict()
    twice = load(
        path, dtype="float32", lora=[tmp_path / "a.safetensors", tmp_path / "b.bin"]
    ).unet.state_dict()
    for name in once:
        torch.testing.assert_close(once[name], twice[name], rtol=0, atol=1e-5)
    half = load(path, dtype="bfloat16", lora=tmp_path / "a.safetensors")
    exact = load(path, dtype="float32", lora=tmp_path / "a.safetensors").unet.state_dict()
    assert half.dtype == torch.bfloat16  # added before the cast: rounded once
    for name, value in half.unet.state_dict().items():
        assert torch.equal(value, exact[name].bfloat16())


@pytest.mark.parametrize("style", ["peft", "diffusers", "kohya"])
def test_text_encoder_updates(style, tmp_path):
    model = tiny_model()
    parameters = dict(model.text_encoder.named_parameters())
    own = next(n for n in parameters if n.endswith("q_proj.weight"))
    name = "text_encoder.text_model." + own.removeprefix("text_model.").removesuffix(".weight")
    if style == "kohya":
        name = name.replace("text_encoder.", "lora_te_").replace(".", "_")
    pair = {
        "peft": ("lora_A", "lora_B"),
        "diffusers": ("lora_linear_layer.down", "lora_linear_layer.up"),
        "kohya": ("lora_down", "lora_up"),
    }[style]
    up, down = torch.randn(16, RANK), torch.randn(RANK, 16)
    state = {f"{name}.{pair[0]}.weight": down, f"{name}.{pair[1]}.weight": up}
    if style == "kohya":
        state[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(state, tmp_path / "te.safetensors")
    before = parameters[own].detach().clone()
    model.load_lora(tmp_path / "te.safetensors")
    scale = 1 / RANK if style == "kohya" else 1
    torch.testing.assert_close(parameters[own].detach(), before + scale * up @ down)


def test_scale_from_peft_metadata(tmp_path):
    before, after = tiny_model(), tiny_model()
    peft_file(tmp_path / "a.safetensors", before)
    from safetensors.torch import load_file

    settings = {"unet.r": RANK, "unet.lora_alpha": 6, "unet.alpha_pattern": {LAYERS[0]: 1}}
    state = load_file(tmp_path / "a.safetensors")
    save_file(state, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    after.load_lora(tmp_path / "a.safetensors")
    for name, (up, down) in factors(before).items():
        alpha = 1 if name == LAYERS[0] else 6
        expected = before.unet.get_parameter(f"{name}.weight") + alpha / RANK * up @ down
        torch.testing.assert_close(after.unet.get_parameter(f"{name}.weight"), expected)
    settings["unet.use_dora"] = True
    save_file(state, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(ValueError, match="use_dora"):
        after.load_lora(tmp_path / "a.safetensors")


def test_what_does_not_fit_changes_nothing(tmp_path):
    model = tiny_model()
    before = {k: v.clone() for k, v in model.unet.state_dict().items()}

    def update(layer: str, d_in: int = 16) -> dict:
        a, b = f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight"
        return {a: torch.ones(2, d_in), b: torch.ones(16, 2)}

    good = update(LAYERS[0])
    cases = {
        "does not have": update("other.to_q"),
        "of shape": update(LAYERS[1], 99),
        "one half": {f"unet.{LAYERS[1]}.lora_A.weight": torch.ones(2, 16)},
        "not a plain": {f"unet.{LAYERS[1]}.hada_w1_a": torch.ones(2, 16)},
    }
    for message, extra in cases.items():
        save_file({**good, **extra}, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match=message) as error:
            model.load_lora(tmp_path / "bad.safetensors")
        assert "\n" not in str(error.value) and "bad.safetensors" in str(error.value)
    save_file({"something": torch.ones(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="no LoRA"):
        model.load_lora(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="expected a file"):
        model.load_lora(tmp_path / "absent.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in model.unet.state_dict().items())
