"""Broken folders and files of base models: each works or is refused by name, by a dry run too."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from config.settings.errors import UserError
from ddpo.model.loading import find_model, load_pipeline
from run.dry_run import dry_run
from tests.support.original_layout import in_sgm_names, original_state_dict
from tests.support.pipelines import draw_with_diffusers, load_plain, make_tiny_pipe
from tests.support.rig import make_settings

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438167540\n"
PAGE = b"<!DOCTYPE html><html><body>Log in</body></html>"


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory):
    """kind -> folder of a saved pipeline."""
    root = tmp_path_factory.mktemp("whole")
    for kind in ("sd1", "sdxl"):
        make_tiny_pipe(kind).save_pretrained(root / kind)
    return {kind: root / kind for kind in ("sd1", "sdxl")}


@pytest.fixture(name="folder")
def _folder(tmp_path, whole):
    """A copy of SDXL's folder, to break."""
    return shutil.copytree(whole["sdxl"], tmp_path / "model")


def settings_of(model, **pretrained):
    return make_settings(pretrained={"model": str(model), **pretrained})


def refusal(model, **pretrained):
    """The message about a model; a dry run gives the same one."""
    settings = settings_of(model, **pretrained)
    with pytest.raises(UserError) as error:
        load_pipeline(settings.pretrained)
    with pytest.raises(UserError) as dry:
        dry_run(settings)
    assert str(dry.value) == str(error.value)
    return str(error.value).splitlines()[0]


def with_index(folder, **parts):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def test_a_tokenizer_without_its_vocabulary_is_refused(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert "its tokenizer lacks vocab.json and merges.txt" in refusal(folder)
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    assert "its tokenizer lacks merges.txt, its vocabulary" in refusal(folder)
    (folder / "tokenizer" / "merges.txt").write_text("")
    assert "tokenizer/merges.txt: it is empty" in refusal(folder)
    shutil.rmtree(folder / "tokenizer_2")
    (folder / "tokenizer_2").mkdir()
    assert "; its tokenizer_2 lacks vocab.json" in refusal(folder)
    shutil.rmtree(folder / "tokenizer_2")
    assert "it has no folder 'tokenizer_2'" in refusal(folder)


@pytest.mark.parametrize("lost", ["vocab", "merges"])
def test_a_tokenizer_that_does_not_know_its_words_is_refused(tmp_path, lost):
    """Files that are there but hold nothing: "cat" and "dog" would be the same, or letters."""
    folder = shutil.copytree(resolved_emoji(), tmp_path / "model")
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    if lost == "vocab":
        content["model"]["vocab"] = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    content["model"]["merges"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"its tokenizer has .* tokens and does not know its wo"):
        load_pipeline(settings_of(folder).pretrained)


def resolved_emoji():
    from ddpo.assets import resolve_model

    return resolve_model("emoji-sd")


def test_a_tokenizer_of_another_model_is_refused(folder):
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 40}))
    weights = folder / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    name = next(name for name in state if "token_embedding" in name)
    save_file({**state, name: state[name][:40].clone()}, weights, {"format": "pt"})
    with pytest.raises(UserError, match="tokenizer has 54 tokens, its text_encoder 40"):
        load_pipeline(settings_of(folder).pretrained)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "unet", "vae", "tokenizer"])
def test_a_part_that_is_null_or_gone_is_refused_by_name(folder, part):
    shutil.rmtree(folder / part)
    assert f"it has no folder {part!r}" in refusal(folder)
    with_index(folder, **{part: [None, None]})
    assert f"model_index.json names no {part}" in refusal(folder)


def test_what_is_never_used_may_be_missing(folder, whole):
    with_index(
        folder,
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
    )
    sd1 = shutil.copytree(whole["sd1"], folder.parent / "sd1")
    with_index(
        sd1,
        feature_extractor=["transformers", "CLIPImageProcessor"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    for model, kind in ((folder, "sdxl"), (sd1, "sd1")):
        ours = load_pipeline(settings_of(model).pretrained)
        theirs = load_plain(whole[kind])
        pictures = [draw_with_diffusers(pipe, ["a"], [3]) for pipe in (ours, theirs)]
        assert torch.equal(*pictures)


def test_a_vae_of_another_class_is_refused_or_replaced(folder, whole):
    shutil.rmtree(folder / "vae")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(folder / "vae")
    with_index(folder, vae=["diffusers", "AutoencoderTiny"])
    message = refusal(folder)
    assert "its vae is of class AutoencoderTiny, where AutoencoderKL is needed" in message
    assert "give one as pretrained.vae" in message
    pipe = load_pipeline(settings_of(folder, vae=str(whole["sdxl"])).pretrained)
    assert type(pipe.vae) is AutoencoderKL
    report = dry_run(settings_of(folder, vae=str(whole["sdxl"])))
    assert f"VAE {sum(p.numel() for p in pipe.vae.parameters()):,}, text" in report


def test_files_of_half_precision_alone_point_to_their_variant(folder, whole):
    for path in list(folder.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    message = refusal(folder)
    assert "unet has no weights diffusion_pytorch_model.safetensors, but " in message
    assert "set pretrained.variant=fp16" in message
    assert "text_encoder_2 has no weights model.safetensors, but model.fp16.safetensors" in message
    ours = load_pipeline(settings_of(folder, variant="fp16").pretrained)
    theirs = load_plain(whole["sdxl"]).unet.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.unet.state_dict().items())


def test_a_hub_model_of_half_precision_alone_points_to_its_variant(monkeypatch):
    def answer(*_, **__):
        raise OSError("no file named model.safetensors, but model.fp16.safetensors")

    monkeypatch.setattr("ddpo.model.loading.snapshot_download", answer)
    with pytest.raises(UserError, match=r"fp16 files only; set pretrained\.variant=fp16"):
        load_pipeline(settings_of("a/b").pretrained)


def test_weights_in_several_files_are_checked_one_by_one(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    weights.unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, kept in shards.items():
        save_file({name: state[name] for name in kept}, folder / "unet" / shard, {"format": "pt"})
    listing = {name: shard for shard, kept in shards.items() for name in kept}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": listing})
    )
    ours = load_pipeline(settings_of(folder).pretrained).unet.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in state.items())
    (folder / "unet" / "b.safetensors").unlink()
    assert "unet/b.safetensors: there is no such file" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "it is a Git LFS pointer, not the file itself: run `git lfs pull` there"),
        (PAGE, "it is a web page, perhaps a login form or an error"),
        (b"\n\n" + PAGE, "it does not begin with a safetensors header"),
        (b'{"error": "Repository not found"}', "it is JSON, perhaps an error message"),
        (b"", "it is empty: download it again"),
        (b"PK\x03\x04" + bytes(50), "it is a pickle under another name"),
        (b"GGUF" + bytes(50), "it is a GGUF file"),
        (b"\xff" * 100, "it does not begin with a safetensors header"),
        ((9).to_bytes(8, "little") + b'{"a": 12}', "its header is damaged"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, folder, content, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert words in refusal(path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    message = refusal(folder)
    assert "unet/diffusion_pytorch_model.safetensors: it" in message
    assert words in message
    with pytest.raises(UserError, match=r"pretrained\.vae=.* could not be loaded") as error:
        load_pipeline(settings_of("emoji-sd", vae=str(path)).pretrained)
    assert words in str(error.value)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_half_downloads_are_named(tmp_path, folder, share):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    kept = content[: int(share * len(content))]
    weights.write_bytes(kept)
    message = refusal(folder)
    assert f"it is the first {len(kept):,} " in message
    assert "half a download: download it again" in message
    shutil.copy(weights, tmp_path / "part.safetensors")
    assert "half a download" in refusal(tmp_path / "part.safetensors")


def test_text_files_that_are_something_else_are_named(folder):
    (folder / "vae" / "config.json").write_bytes(PAGE)
    (folder / "scheduler" / "scheduler_config.json").write_bytes(b"")
    (folder / "tokenizer" / "tokenizer.json").write_bytes(LFS)
    (folder / "unet" / "config.json").write_bytes(b'{"a":')
    message = refusal(folder)
    for words in (
        "vae/config.json: it is a web page",
        "scheduler/scheduler_config.json: it is empty",
        "tokenizer/tokenizer.json: it is a Git LFS pointer",
        "unet/config.json: it is damaged",
    ):
        assert words in message
    (folder / "model_index.json").write_bytes(PAGE)
    assert "model_index.json: it is a web page" in refusal(folder)


def test_folders_that_are_no_pipeline_are_named(tmp_path, folder):
    assert "it holds a UNet2DConditionModel alone; give a folder" in refusal(folder / "unet")
    assert "it holds a CLIPTextModel alone" in refusal(folder / "text_encoder")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "it has no model_index.json, it is empty" in refusal(empty)
    (empty / "a.safetensors").touch()
    assert "give one of its checkpoints: a.safetensors" in refusal(empty)
    (empty / "adapter_config.json").write_text("{}")
    assert "it is the folder of a LoRA; give it as pretrained.lora" in refusal(empty)


@pytest.mark.parametrize(
    "path", ["/nowhere/model", "./nowhere", "../no/such/model", "no-such", "~"]
)
def test_a_path_that_is_gone_is_no_such_folder(path, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    assert "could not be loaded: there is no such folder" in refusal(path)


def test_the_folder_of_a_checkpoints_configuration_is_checked_too(tmp_path, folder):
    path = tmp_path / "model.safetensors"
    save_file(original_state_dict(make_tiny_pipe("sdxl")), path)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()  # which the checkpoint brings
    load_pipeline(settings_of(path, single_file_config=str(folder)).pretrained)
    (folder / "tokenizer_2" / "tokenizer.json").unlink()
    message = refusal(path, single_file_config=str(folder))
    assert f"pretrained.single_file_config={str(folder)!r}: its tokenizer_2 lacks" in message
    message = refusal(path, single_file_config="/nowhere")
    assert "pretrained.single_file_config='/nowhere': there is no such folder" in message


def test_a_lora_that_is_gone_or_broken_is_named(tmp_path, whole):
    (tmp_path / "style.safetensors").write_bytes(LFS)
    for lora, words in (
        ("/nowhere", "there is no such folder"),
        ("/nowhere/style.safetensors", "there is no such file"),
        (str(tmp_path / "style.safetensors"), "it is a Git LFS pointer"),
    ):
        with pytest.raises(UserError, match=r"pretrained\.lora=.* could not be merged") as error:
            load_pipeline(settings_of(whole["sd1"], lora=lora).pretrained)
        assert words in str(error.value)


def test_checkpoints_that_lack_a_part_say_which(tmp_path, whole):
    path, state = tmp_path / "model.safetensors", original_state_dict(make_tiny_pipe("sdxl"))
    config = {"single_file_config": str(whole["sdxl"])}

    def of(*prefixes, cut=0):
        save_file({n[cut:]: v for n, v in state.items() if n.startswith(prefixes)}, path)
        return refusal(path, **config)

    unet, text = "model.diffusion_model.", "conditioner."
    no_vae = "it has no VAE; give one as pretrained.vae: file, folder or hub id"
    assert no_vae in of(unet, text)
    assert "perhaps a UNet alone; give a folder or a checkpoint with UNet, VAE and text" in of(
        unet, "first_stage"
    )
    alone = of(unet)
    assert "perhaps a UNet alone" in alone
    assert no_vae in alone
    assert "it is a UNet alone" in of(unet, cut=len(unet))
    assert "it is a VAE; give it as pretrained.vae" in of("first_stage_model.")
    assert "it is a VAE" in of("first_stage_model.", cut=len("first_stage_model."))
    save_file(make_tiny_pipe("sdxl").unet.state_dict(), path)
    assert "it is a UNet alone" in refusal(path, **config)
    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.ones(2, 2)}, path)
    assert "it is a LoRA; give it as pretrained.lora" in refusal(path, **config)
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}, path)
    assert "no weights under model.diffusion_model, as Stable Diffusion has" in refusal(
        path, **config
    )


def test_a_checkpoint_without_vae_takes_the_one_that_is_given(tmp_path, whole):
    pipe = make_tiny_pipe("sdxl")
    state = {n: v for n, v in original_state_dict(pipe).items() if not n.startswith("first_stage")}
    save_file(state, tmp_path / "model.safetensors")
    config = {"single_file_config": str(whole["sdxl"])}
    for vae in (whole["sdxl"], whole["sdxl"] / "vae"):
        settings = settings_of(tmp_path / "model.safetensors", vae=str(vae), **config)
        ours = load_pipeline(settings.pretrained)
        theirs = pipe.vae.state_dict()
        assert all(torch.equal(v, theirs[n]) for n, v in ours.vae.state_dict().items())


def test_sgm_names_of_stable_diffusion_2_are_read(tmp_path):
    """SD-Turbo's file has its text encoder under `conditioner.embedders.0.model.`."""
    pipe = make_tiny_pipe("sd2")
    pipe.save_pretrained(tmp_path / "folder")
    state = in_sgm_names(original_state_dict(pipe))
    save_file(state, tmp_path / "model.safetensors")
    config = str(tmp_path / "folder")
    ours = load_pipeline(
        settings_of(tmp_path / "model.safetensors", single_file_config=config).pretrained
    )
    theirs = pipe.text_encoder.state_dict()
    assert all(torch.equal(v, theirs[n]) for n, v in ours.text_encoder.state_dict().items())


@pytest.mark.parametrize(
    "layout", ["original", "checkpoint", "bare", "diffusers", "folder", "whole"]
)
def test_another_vae_is_taken_from_a_file_or_a_folder(tmp_path, whole, layout):
    torch.manual_seed(5)
    other = make_tiny_pipe("sd1")
    for parameter in other.vae.parameters():
        parameter.data += 0.1
    prefix = "first_stage_model."
    state = {n: v for n, v in original_state_dict(other).items() if n.startswith(prefix)}
    path = tmp_path / "vae.safetensors"
    if layout == "original":
        save_file(state, path)
    elif layout == "checkpoint":
        save_file(original_state_dict(other), path)
    elif layout == "bare":
        save_file({name.removeprefix(prefix): value for name, value in state.items()}, path)
    elif layout == "diffusers":
        save_file(other.vae.state_dict(), path)
    elif layout == "folder":
        other.vae.save_pretrained(path := tmp_path / "vae")
    else:
        other.save_pretrained(path := tmp_path / "model")
    pipe = load_pipeline(settings_of(whole["sd1"], vae=str(path)).pretrained)
    ours, theirs = pipe.vae.state_dict(), other.vae.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert pipe.vae.config.scaling_factor == other.vae.config.scaling_factor


def test_a_vae_that_does_not_fit_is_refused(tmp_path, whole):
    def refused(words, vae, model=whole["sd1"]):
        with pytest.raises(UserError, match=r"pretrained\.vae=.* could not be loaded") as error:
            load_pipeline(settings_of(model, vae=str(vae)).pretrained)
        assert words in str(error.value)
        assert "AutoencoderKL" in str(error.value)

    refused("scaling factor is 0.13025, the base model's 0.18215", whole["sdxl"])
    refused("there is no such folder", "/nowhere")
    refused("there is no such file", "/nowhere.safetensors")
    refused("can run code when read", "/nowhere.ckpt")
    AutoencoderTiny().save_pretrained(tmp_path / "tiny")
    refused("it is of class AutoencoderTiny", tmp_path / "tiny")
    refused("`hf download a/b --local-dir", "a/b")


def test_one_checkpoint_of_a_hub_is_asked_for_by_repository_file_and_revision(
    monkeypatch, tmp_path, whole
):
    asked = []

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        return str(tmp_path / "model.safetensors")

    save_file(original_state_dict(make_tiny_pipe("sdxl")), tmp_path / "model.safetensors")
    monkeypatch.setattr("ddpo.model.loading.hf_hub_download", download)
    for model in ("a/b/c.safetensors", "a/b/c/d.safetensors@v1"):
        find_model(settings_of(model, single_file_config=str(whole["sdxl"])).pretrained)
    assert asked == [("a/b", "c.safetensors", None), ("a/b", "c/d.safetensors", "v1")]
    load_pipeline(settings_of(whole["sdxl"], vae="c/d/vae.safetensors@v2").pretrained)
    assert asked[2:] == [("c/d", "vae.safetensors", "v2")]
