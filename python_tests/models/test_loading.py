"""Loading every kind of directory, saving, and what happens when something is wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from python_tests.tiny import tiny_model, tiny_tokenizer
from vidsmooth_fast.models import hub, load
from vidsmooth_fast.models import loading as loading_module
from vidsmooth_fast.models.weights import is_temporal, weight_names

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A model saved by `VideoModel.save`."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(path, prediction_type="v_prediction")
    return path


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@torch.inference_mode()
def predict(model) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 3, 8, 8, generator=g)
    return model.unet(x, 40, model.encode_text(["a red car"]))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_round_trip_is_the_identity(saved):
    original = tiny_model(prediction_type="v_prediction")
    again = load(saved, dtype="float32", device="cpu")
    assert again.name == "tiny" and again.path == saved and again.prediction_type == "v_prediction"
    assert again.unet.config == original.unet.config
    assert again.scheduler_config == original.scheduler_config
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(again, part).state_dict(), getattr(original, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.equal(predict(again), predict(original))
    files = {p.suffix for p in saved.rglob("*") if p.is_file()}
    assert files <= {".json", ".safetensors", ".txt", ".jinja"}


def test_saved_files_can_be_read_by_their_own_libraries(saved):
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    AutoencoderKL.from_pretrained(saved / "vae", local_files_only=True)
    CLIPTextModel.from_pretrained(saved / "text_encoder", local_files_only=True)
    assert CLIPTokenizer.from_pretrained(saved / "tokenizer", local_files_only=True).model_max_length == 16


def test_save_replaces_a_model_but_nothing_else(tmp_path):
    model = tiny_model()
    target = model.save(tmp_path / "m")
    model.unet.attn1_frames = "first"
    model.save(target)
    assert load(target, dtype="float32").unet.attn1_frames == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]  # nothing temporary stays
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="directory"):
        model.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "photo.png").exists()


def test_a_failed_save_leaves_the_earlier_model(tmp_path, monkeypatch):
    model = tiny_model()
    target = model.save(tmp_path / "m")
    monkeypatch.setattr(
        type(model.vae), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        model.save(target)
    monkeypatch.undo()
    load(target)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_interrupted_replacement_puts_the_earlier_model_back(tmp_path, monkeypatch):
    model = tiny_model()
    target = model.save(tmp_path / "m")

    rename = os.rename

    def interrupted(source, destination):
        if Path(source).name == "new":
            monkeypatch.undo()
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save(target)
    load(target)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_saved_files_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        target = tiny_model().save(tmp_path / "m")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in target.rglob("*") if p.is_file()} == {0o644}


def make_2d(directory: Path, *, variant: str = "", dtype=torch.float32) -> dict:
    """Turn a saved model into a diffusers directory with a 2D UNet; returns its weights."""
    torch.manual_seed(5)
    flat = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    ).to(dtype)  # fmt: skip
    shutil.rmtree(directory / "unet")
    flat.save_pretrained(directory / "unet", variant=variant or None)
    return flat.state_dict()


def test_a_diffusers_directory_is_inflated(copy):
    flat = make_2d(copy)
    model = load(copy, dtype="float32")
    state = model.unet.state_dict()
    assert all(torch.equal(state[k], v) for k, v in flat.items())
    added = [k for k in state if k not in flat]
    assert added and all(is_temporal(k) for k in added)
    assert all(not state[k].any() for k in added if "to_out" in k)
    assert model.unet.norm_over_frames is False
    again = load(copy, dtype="float32").unet.state_dict()  # fresh layers start the same way every time
    assert all(torch.equal(state[k], again[k]) for k in state)


def test_half_precision_variants(copy):
    make_2d(copy, variant="fp16", dtype=torch.float16)
    for part, stem in (("vae", WEIGHTS), ("text_encoder", "model")):
        state = load_file(copy / part / f"{stem}.safetensors")
        (copy / part / f"{stem}.safetensors").unlink()
        half = {k: v.half() for k, v in state.items()}
        save_file(half, copy / part / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
    model = load(copy, dtype="float32")
    assert model.dtype == model.vae.dtype == torch.float32
    assert predict(model).isfinite().all()


def make_tune_a_video(directory: Path) -> None:
    """The layout that Tune-A-Video writes: 3D block names, pickled weights."""
    config = json.loads((directory / "unet" / "config.json").read_text())
    for key in ("norm_over_frames", "attn1_frames", "transformer_layers_per_block"):
        del config[key]
    config.update(_class_name="UNet3DConditionModel", _diffusers_version="0.11.1", attention_head_dim=4)
    config.update(
        class_embed_type=None, num_class_embeds=None, only_cross_attention=False, dual_cross_attention=False
    )
    (directory / "unet" / "config.json").write_text(json.dumps(config))
    path = directory / "unet" / f"{WEIGHTS}.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    index = {"_class_name": "TuneAVideoPipeline", "unet": ["tuneavideo.models.unet", "UNet3DConditionModel"]}
    (directory / "model_index.json").write_text(json.dumps(index))


def test_a_tune_a_video_checkpoint(copy, saved):
    make_tune_a_video(copy)
    model = load(copy, dtype="float32")
    assert model.unet.norm_over_frames and model.unet.attn1_frames == "first-previous"
    assert torch.equal(predict(model), predict(load(saved, dtype="float32")))


class Malicious:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_malicious_pickle_is_refused(copy, capsys):
    make_tune_a_video(copy)
    with open(copy / "unet" / f"{WEIGHTS}.bin", "wb") as file:
        pickle.dump({"conv_in.weight": Malicious()}, file)
    with pytest.raises(ValueError, match="refused|not a readable") as error:
        load(copy)
    assert f"{WEIGHTS}.bin" in one_line(error)
    torch.save({"conv_in.weight": Malicious()}, copy / "unet" / f"{WEIGHTS}.bin")
    with pytest.raises(ValueError, match="refused"):
        load(copy)
    assert "never be printed" not in capsys.readouterr().out


def change_weights(directory: Path, change) -> None:
    path = directory / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("mid_block.resnets.0.conv1.weight"),
            "missing weights mid_block.resnets.0.conv1.weight",
        ),
        (
            lambda s: s.pop("mid_block.attentions.0.transformer_blocks.0.attn_temp.to_q.weight"),
            "missing .*attn_temp",
        ),
        (
            lambda s: s.update({"class_embedding.weight": torch.zeros(2)}),
            "unknown weights class_embedding.weight",
        ),
        (
            lambda s: s.update({"conv_in.bias": torch.zeros(9)}),
            r"conv_in.bias expected shape \(16,\), got \(9,\)",
        ),
        (lambda s: [s.pop(k) for k in list(s)[:5]], "and 2 more"),
    ],
)
def test_weights_that_do_not_fit(copy, change, message):
    change_weights(copy, change)
    with pytest.raises(ValueError, match=message) as error:
        load(copy)
    one_line(error)


def test_broken_directories(copy, tmp_path):
    def broken(message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            load(copy)
        one_line(error)

    edit_json(copy / "text_encoder" / "config.json", hidden_size=32)
    broken("text encoder")
    (copy / "unet" / f"{WEIGHTS}.safetensors").write_bytes(b"not weights")
    broken("safetensors")
    (copy / "unet" / f"{WEIGHTS}.safetensors").unlink()
    broken("expected weights named")
    edit_json(copy / "unet" / "config.json", class_embed_type="projection")
    (copy / "unet" / f"{WEIGHTS}.bin").write_bytes(b"")
    broken("not a readable weights file")
    (copy / "unet" / "config.json").write_text("{")
    broken("not valid JSON")
    edit_json(copy / "scheduler" / "scheduler_config.json", prediction_type="noise")
    shutil.rmtree(copy / "vae")
    broken("lacks vae")


def test_parts_that_are_not_whole(copy):
    """transformers and diffusers would fill in random weights, or make a tokenizer that knows nothing."""

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            load(copy)
        one_line(error)

    def without(path: Path, part: str) -> bytes:
        whole = path.read_bytes()
        kept = {name: tensor for name, tensor in load_file(path).items() if part not in name}
        save_file(kept, path, metadata={"format": "pt"})
        return whole

    encoder, vae = (
        copy / "text_encoder" / "model.safetensors",
        copy / "vae" / f"{WEIGHTS}.safetensors",
    )
    whole = without(encoder, "layers.0.mlp.fc1")
    refused("text encoder .* missing weights .*mlp.fc1.bias, .*mlp.fc1.weight")
    encoder.write_bytes(whole[: len(whole) // 2])
    refused("cannot read the text encoder")
    encoder.write_bytes(whole)
    whole = without(vae, "decoder.mid_block")
    refused(r"autoencoder .* missing weights decoder\.mid_block.* and \d+ more")
    vae.write_bytes(whole)
    load(copy)
    edit_json(copy / "text_encoder" / "config.json", vocab_size=100)
    refused("cannot read the text encoder")
    shutil.rmtree(copy / "tokenizer")
    (copy / "tokenizer").mkdir()
    edit_json(copy / "text_encoder" / "config.json", vocab_size=len(tiny_tokenizer()))
    refused("expected tokenizer.json, or vocab.json and merges.txt")
    (copy / "unet" / "config.json").write_text("[]")
    refused("expected a JSON object in .*config.json, got list")


def test_unknown_prediction_type(copy):
    edit_json(copy / "scheduler" / "scheduler_config.json", prediction_type="noise")
    with pytest.raises(ValueError, match="prediction_type"):
        load(copy)
    edit_json(copy / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    assert load(copy).prediction_type == "flow"


def test_unknown_names_say_what_would_work(tmp_path):
    with pytest.raises(ValueError, match="embedded model .* directory, or a Hub id"):
        load("no-such-model")
    with pytest.raises(ValueError, match="lacks unet, vae"):
        load(tmp_path)
    with pytest.raises(ValueError, match="device"):
        load(tmp_path, device="abacus")
    with pytest.raises(ValueError, match="device: expected .* got 'meta'"):
        load(tmp_path, device="meta")
    with pytest.raises(ValueError, match="dtype"):
        load(tmp_path, dtype="int8")


def test_dtype_follows_the_processor(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert loading_module.choose_dtype("auto", cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert loading_module.choose_dtype("auto", cpu) == torch.bfloat16
    assert loading_module.choose_dtype("float16", cpu) == torch.float16


def test_the_hub_is_asked_only_for_what_is_needed(monkeypatch, saved):
    files = [
        "README.md", "model_index.json", "v1-5-pruned.ckpt", "safety_checker/model.safetensors",
        "unet/config.json", f"unet/{WEIGHTS}.bin", f"unet/{WEIGHTS}.fp16.safetensors", f"unet/{WEIGHTS}.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/config.json", f"vae/{WEIGHTS}.bin", f"vae/{WEIGHTS}.fp16.bin",
        "text_encoder/config.json", "text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json",
    ]  # fmt: skip
    assert sorted(hub.wanted_files(files)) == sorted([
        "model_index.json", "unet/config.json", f"unet/{WEIGHTS}.safetensors", "vae/config.json", f"vae/{WEIGHTS}.bin",
        "text_encoder/config.json", "text_encoder/model.fp16.safetensors", "tokenizer/vocab.json",
        "tokenizer/merges.txt", "scheduler/scheduler_config.json",
    ])  # fmt: skip
    assert weight_names("m")[0] == "m.safetensors"

    import huggingface_hub

    class Api:
        def model_info(self, repo_id, timeout):
            return type("Info", (), {"siblings": [type("File", (), {"rfilename": f}) for f in files]})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **_: str(saved))
    model = load("someone/a-model", dtype="float32")
    assert model.name == "someone/a-model" and model.path == saved


def test_no_network_is_one_clear_line(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ValueError, match="'someone/a-model'.*could not be fetched.*no route to host"
    ) as error:
        load("someone/a-model")
    one_line(error)


def test_a_latent_round_trip_uses_the_loaded_autoencoder(saved):
    model = load(saved, dtype="float32")
    frames = [np.full((16, 16, 3), 40 * i, dtype=np.uint8) for i in range(3)]
    assert torch.equal(model.encode_video(frames), tiny_model().encode_video(frames))


def test_a_model_that_is_there_is_not_copied():
    """Modules always say a device's number, people seldom do."""
    from vidsmooth_fast.models.loading import load_placed

    model = tiny_model()
    assert load_placed(model, "cpu:0") is model and load_placed(model, "cpu", "float32") is model
    assert load_placed(model, dtype="bfloat16") is not model
