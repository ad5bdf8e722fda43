"""A model card's Python code, executed word for word, draws the pictures that were judged."""

from __future__ import annotations

import ast
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import save_file

from config.base import PretrainedSettings, SampleSettings
from ddpo.model.stable_diffusion import FrozenDiffusion
from front import Front, cards
from front import drawing_code as drawing_module
from front.cards import write_front_card
from front.drawing_code import drawing_code, is_on_hub, local_names, shared_name
from front.export import write_folder
from front.pictures.painter import Painter
from front.publish import model_record
from front.settings import settings_of
from tests.support.adapters import random_adapter
from tests.support.cases import few
from tests.support.original_layout import original_state_dict
from tests.support.pipelines import make_tiny_pipe, sd_scheduler

PLACE = '"path/to/this/folder"'


def code_of(folder):
    """The Python code of the card in a folder."""
    (code,) = re.findall(
        r"```python\n(.*?)```", ModelCard.load(folder / "README.md").text, re.DOTALL
    )
    return code


def execute(code, folder, place=PLACE):
    """The picture that the code draws where the base model lies, the adapter being in `folder`."""
    assert place in code
    variables = {}
    exec(compile(code.replace(place, repr(str(folder))), "card", "exec"), variables)
    return np.asarray(variables["image"]).astype(int)


def lora_file(pipe, path, ranks=(2,)):
    """A LoRA of kohya's make, at half strength, for UNet and text encoder."""
    state = {}
    generator = torch.Generator().manual_seed(0)
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for i, (name, layer) in enumerate(getattr(pipe, part).named_modules()):
            if name.endswith(("to_q", "to_out.0", "q_proj", "out_proj")):
                rank = ranks[i % len(ranks)]
                key = prefix + name.removeprefix("text_model.").replace(".", "_")
                down = torch.randn(rank, layer.in_features, generator=generator) / 2
                up = torch.randn(layer.out_features, rank, generator=generator) / 2
                state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                state[f"{key}.alpha"] = torch.tensor(rank / 2)
    save_file(state, path)


def judged_run(folder, finished_run, kind, changes):
    """A finished run as it were with the model in `folder` and these settings."""
    run = folder / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    config["settings"]["pretrained"]["model"] = str(folder / "model")
    for change in changes:
        section, name = change.split("=")[0].split(".")
        value = type(config["settings"][section][name])(change.split("=")[1])
        config["settings"][section][name] = value
    (run / "config.json").write_text(json.dumps(config))
    front = Front.load(run)
    random_adapter(0, kind=kind).save(front.policies[0].adapter)
    settings = settings_of(front)
    record = model_record(FrozenDiffusion.load(settings.pretrained), settings)
    data = json.loads((run / "front.json").read_text())
    (run / "front.json").write_text(json.dumps({**data, "model": record.to_json()}))
    return Front.load(run)


def sd1(folder):
    make_tiny_pipe().save_pretrained(folder / "model")
    return []


def with_a_negative_prompt(folder):
    sd1(folder)
    return ["sample.negative_prompt=c d", "sample.guidance_scale=4.0"]


def at_another_size(folder):
    """Given one side only, diffusers would take its own size for both."""
    sd1(folder)
    return ["pretrained.height=32"]


def with_a_lora(folder):
    sd1(folder)
    lora_file(make_tiny_pipe(), folder / "style.safetensors")
    return [f"pretrained.lora={folder / 'style.safetensors'}", "pretrained.lora_scale=0.75"]


def with_a_lora_that_diffusers_merges_otherwise(folder):
    sd1(folder)
    lora_file(make_tiny_pipe(), folder / "style.safetensors", ranks=(2, 1, 3))
    return [f"pretrained.lora={folder / 'style.safetensors'}", "pretrained.lora_scale=0.75"]


def thresholding(folder):
    pipe = make_tiny_pipe()
    pipe.scheduler = sd_scheduler(thresholding=True, sample_max_value=0.5)
    pipe.save_pretrained(folder / "model")
    return []


def lcm(folder):
    sd1(folder)
    return ["sample.sampler=lcm"]


def euler_ancestral(folder):
    sd1(folder)
    return ["sample.sampler=euler_a", "pretrained.timestep_spacing=trailing"]


def one_file(folder, **unet):
    pipe = make_tiny_pipe(**unet)
    pipe.save_pretrained(folder / "configuration")
    save_file(original_state_dict(pipe), folder / "model.safetensors")
    return [
        f"pretrained.model={folder / 'model.safetensors'}",
        f"pretrained.single_file_config={folder / 'configuration'}",
    ]


def one_file_that_reads_its_guidance(folder):
    return [*one_file(folder, time_cond_proj_dim=8), "sample.guidance_scale=8.5"]


def sdxl(folder):
    make_tiny_pipe("sdxl").save_pretrained(folder / "model")
    return ["sample.guidance_scale=3.0"]


def sdxl_at_another_size(folder):
    return [*sdxl(folder), "pretrained.width=24", "sample.negative_prompt=c"]


def v_prediction(folder):
    make_tiny_pipe("sd2").save_pretrained(folder / "model")
    return ["sample.guidance_scale=3.0"]


CASES = {
    sd1: "sd1",
    with_a_negative_prompt: "sd1",
    at_another_size: "sd1",
    with_a_lora: "sd1",
    with_a_lora_that_diffusers_merges_otherwise: "sd1",
    thresholding: "sd1",
    lcm: "sd1",
    euler_ancestral: "sd1",
    one_file: "sd1",
    one_file_that_reads_its_guidance: "sd1",
    v_prediction: "sd2",
    sdxl: "sdxl",
    sdxl_at_another_size: "sdxl",
}

BOTH_LAYOUTS = (sd1, sdxl_at_another_size)
CONTAINED = {at_another_size, sdxl}  # in sdxl_at_another_size


@pytest.mark.parametrize(
    "case", few(CASES, CASES.keys() - CONTAINED), ids=lambda case: case.__name__
)
def test_the_code_of_a_card_draws_the_picture_that_was_judged(
    tmp_path, monkeypatch, finished_run, case
):
    """The judge draws as training does. Only the model's location is changed in the code."""
    front = judged_run(tmp_path, finished_run, CASES[case], case(tmp_path))
    policy = front.policies[0]
    painter = Painter(front, device="cpu")
    drawings = [
        painter.draw(each, front.sample_prompts[:1], front.sample_seeds[:1])[0].permute(1, 2, 0)
        for each in (None, policy)
    ]
    base, judged = (np.asarray(drawing).astype(int) for drawing in drawings)
    assert np.abs(base - judged).max() > 20
    monkeypatch.chdir(tmp_path)  # where the names in the code are
    for layout in ("diffusers", "kohya") if case in BOTH_LAYOUTS else ("diffusers",):
        folder = tmp_path / layout
        folder.mkdir()
        write_folder(folder, front, policy, file_format=layout)
        drawn = execute(code_of(folder), folder)
        assert drawn.shape == judged.shape
        assert np.abs(drawn - judged).max() <= 1
        assert str(tmp_path) not in (folder / "README.md").read_text()


def test_the_code_of_a_whole_front_draws_its_middle_policy(tmp_path, monkeypatch, finished_run):
    front = judged_run(tmp_path, finished_run, "sd1", sd1(tmp_path))
    write_front_card(front.path, front)
    middle = front.policies[len(front.policies) // 2]
    expected = Painter(front, device="cpu").draw(
        middle, front.sample_prompts[:1], front.sample_seeds[:1]
    )
    monkeypatch.chdir(tmp_path)
    drawn = execute(code_of(front.path), front.path)
    assert np.abs(drawn - expected[0].permute(1, 2, 0).numpy()).max() <= 1


def altered(front, pretrained=(), sample=(), **fields):
    """A front with other settings, as a run would have written them."""
    settings = {
        **front.settings,
        "pretrained": {**front.settings["pretrained"], **dict(pretrained)},
        "sample": {**front.settings["sample"], **dict(sample)},
    }
    return replace(front, config=replace(front.config, settings=settings), **fields)


def flat(front, *, is_sdxl=False):
    return " ".join(drawing_code(front, "here", is_sdxl=is_sdxl).split())


def test_what_hubs_hold_is_loaded_by_repository_file_and_revision(finished_run):
    front = altered(
        Front.load(finished_run),
        pretrained={
            "model": "owner/name@v1",
            "variant": "fp16",
            "dtype": "bfloat16",
            "lora": "me/styles/a.safetensors@v2",
            "lora_scale": 0.5,
        },
    )
    code = flat(front)
    assert (
        'StableDiffusionPipeline.from_pretrained( "owner/name", revision="v1", variant="fp16", '
        "torch_dtype=torch.bfloat16, safety_checker=None, requires_safety_checker=False, )"
    ) in code
    assert 'load_lora_weights("me/styles", weight_name="a.safetensors", revision="v2")' in code
    assert 'fuse_lora(components=["unet", "text_encoder"], lora_scale=0.5)' in code
    assert local_names(front) == []
    record = replace(front.model, has_plain_lora=False)
    own = flat(replace(front, model=record))
    assert 'LoraFile.read(locate("me/styles", "a.safetensors", "v2")), 0.5)' in own


def test_what_is_on_the_machine_that_trained_is_named_without_its_place(finished_run):
    front = altered(
        Front.load(finished_run),
        pretrained={"model": "/home/me/sd.safetensors", "lora": "/home/me/style"},
        model=replace(Front.load(finished_run).model, config="sd15"),
    )
    code = flat(front)
    assert 'StableDiffusionPipeline.from_single_file( "sd.safetensors", config="sd15",' in code
    assert 'load_lora_weights("style")' in code
    assert local_names(front) == ["sd.safetensors", "sd15", "style"]
    assert "/home/me" not in code


@pytest.mark.parametrize(
    ("name", "shared", "has_repository"),
    [
        ("owner/name", "owner/name", True),
        ("owner/name/file.safetensors", "owner/name/file.safetensors", True),
        ("models/file.safetensors", "file.safetensors", False),
        ("/home/me/model", "model", False),
        ("../model", "model", False),
        ("emoji-sd", "ddpo/assets/emoji-sd", False),
    ],
)
def test_a_name_is_a_repositorys_or_a_path_of_which_the_end_is_shared(name, shared, has_repository):
    assert shared_name(name) == shared
    assert is_on_hub(name) == has_repository


def test_settings_that_later_programs_have_are_in_the_code(finished_run):
    code = flat(
        altered(
            Front.load(finished_run),
            pretrained={"clip_skip": 1, "vae": "me/vae", "dtype": "float16"},
            sample={"guidance_rescale": 0.7},
        )
    )
    assert "guidance_rescale=0.7, clip_skip=1, height=16, width=16" in code
    vae = 'pipe.vae = AutoencoderKL.from_pretrained("me/vae", torch_dtype=torch.float16)'
    assert vae in code
    assert "import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline" in code


@pytest.mark.parametrize("prompt", ['a "b" \\ c', "new\nline", "```", "d\u00e9j\u00e0 \U0001f600"])
def test_a_prompt_is_the_same_in_the_code(finished_run, prompt):
    code = drawing_code(
        replace(Front.load(finished_run), sample_prompts=(prompt,)), "here", is_sdxl=False
    )
    call = next(
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "pipe"
    )
    assert call.args[0].value == prompt
    assert "```" not in code


def test_of_a_run_that_did_not_note_its_model_the_code_says_what_can_be_known(finished_run):
    front = altered(Front.load(finished_run), model=None)
    code = flat(front)
    assert "height=" not in code
    assert "from_config(pipe.scheduler.config, clip_sample=False, thresholding=False)" in code
    assert "height=16, width=16" in flat(altered(front, pretrained={"height": 16}))
    xl = flat(front, is_sdxl=True)
    assert 'StableDiffusionXLPipeline.from_pretrained("model", add_watermarker=False)' in xl


def test_every_setting_that_changes_pictures_is_in_the_code():
    """A new setting needs a place in `drawing_code`, or here among the ones without effect."""
    code = Path(drawing_module.__file__).read_text() + Path(cards.__file__).read_text()
    without = {
        "prediction_type",  # these three are in `ModelRecord.schedule`
        "zero_snr",
        "timestep_spacing",
        "offload_text_encoders",
        "single_file_config",  # in `ModelRecord.config`
        "prompts_per_iteration",
        "images_per_prompt",
        "rows_per_pass",
        "offload_rollouts",
    }
    for section in (PretrainedSettings, SampleSettings):
        for field in fields(section):
            assert f'"{field.name}"' in code or field.name in without, field.name


def test_a_card_says_that_long_prompts_were_read_in_parts(tmp_path, finished_run):
    front = Front.load(finished_run)
    long = altered(
        front,
        pretrained={"prompt_parts": 3},
        sample_prompts=("word " * 80, *front.sample_prompts[1:]),
    )
    sentence = "read in parts of 75 tokens"
    for each, is_said in ((front, False), (long, True)):
        write_front_card(tmp_path, each)
        assert (sentence in (tmp_path / "README.md").read_text()) is is_said


def test_a_card_of_kohyas_layout_says_where_the_file_goes_and_how_it_was_measured(
    tmp_path, finished_run
):
    front = altered(
        Front.load(finished_run),
        pretrained={"lora": "me/style", "lora_scale": 0.8},
        sample={"negative_prompt": "c", "guidance_scale": 3.0},
    )
    schedule = {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    front = replace(front, model=replace(front.model, schedule=schedule))
    file = write_folder(tmp_path, front, front.policies[0], file_format="kohya")
    text = (tmp_path / "README.md").read_text()
    table = re.search(r"\n\|  \| ComfyUI.*?\n\n", text, re.DOTALL)[0].split("\n")
    assert len(table) == 2 + 2 + 7 + 1  # no line between its rows
    card = " ".join(text.split())
    assert f"| put `{file.name}` into | `models/loras` | `models/Lora` |" in card
    assert f"<lora:{file.stem}:1>" in card
    assert (
        "| sampler | `euler_ancestral` | Euler a | | scheduler | `sgm_uniform` | SGM Uniform"
        in card
    )
    assert "| steps | 4 | 4 | | CFG | 3 | 3 | | size | 16 x 16 | 16 x 16 |" in card
    assert "judged at strength 1 with diffusers' `DDIMScheduler` at eta 1.0" in card
    assert "The negative prompt was `c`" in card
    assert "LoRA `me/style` beside it, at strength 0.8" in card
    assert "predicts v, from pure noise on" in card
    assert "ModelSamplingDiscrete, with `v_prediction` and `zsnr`" in card
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["modelspec.prediction_type"] == "v"
        assert opened.metadata()["ss_zero_terminal_snr"] == "True"
    (tmp_path / "plain").mkdir()
    write_folder(tmp_path / "plain", front, front.policies[0])
    assert "ComfyUI" not in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_schedulers_that_a_card_names_have_the_steps_of_the_spacing(spacing):
    """ComfyUI's ddim_uniform, sgm_uniform and normal, restated; A1111's of those names are alike.

    They interpolate between timesteps where diffusers rounds, by one at most.
    """
    num = 10
    theirs = {
        "leading": np.arange(1, 1000, 1000 // num)[::-1],
        "trailing": np.linspace(999, 0, num + 1)[:-1],
        "linspace": np.linspace(999, 0, num),
    }
    scheduler = sd_scheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(num)
    assert len(theirs[spacing]) == num
    assert np.abs(scheduler.timesteps.numpy() - theirs[spacing]).max() <= 1


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_euler_ancestral_takes_the_steps_of_ddim(eta):
    """k-diffusion's step, restated in its variables x / sqrt(alpha_bar) and sigma (VE)."""
    scheduler = sd_scheduler()
    scheduler.set_timesteps(10)
    x, eps, noise = torch.randn(3, 4, dtype=torch.float64).unbind()
    for t, before in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        a, a_next = (scheduler.alphas_cumprod[i].double() for i in (t, before))
        sigma, sigma_next = ((1 / each - 1).sqrt() for each in (a, a_next))
        up = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt()
        down = (sigma_next**2 - up**2).sqrt()
        ours = scheduler.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
        theirs = (x / a.sqrt() + (down - sigma) * eps + up * noise) * a_next.sqrt()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
