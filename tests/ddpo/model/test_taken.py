"""The kind of a model: tensors, metadata, neighbouring files, names and settings decide."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from config.settings.errors import UserError
from ddpo.cost.footprint import load_architecture
from ddpo.ddim import make_schedule, name_of
from ddpo.model.loading import configuration_source, find_model
from ddpo.model.stable_diffusion import FrozenDiffusion, scheduler_of
from run.dry_run import dry_run
from tests.support.original_layout import original_state_dict
from tests.support.pipelines import make_tiny_pipe, sd_scheduler
from tests.support.rig import make_settings

EMPTY = torch.zeros(0)
V, EPSILON = "v_prediction", "epsilon"
LEADING, TRAILING = [751, 501, 251, 1], [999, 749, 499, 249]
DISTILLED = [999, 759, 499, 259]  # of 50 timesteps
CROSS = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
SPREAD = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module", name="sdxl")
def _sdxl(tmp_path_factory):
    """A folder, and the tensors of the same model in its authors' layout."""
    pipe, folder = make_tiny_pipe("sdxl"), tmp_path_factory.mktemp("sdxl")
    pipe.save_pretrained(folder)
    return str(folder), original_state_dict(pipe)


def scheduler_of_run(path, config, **pretrained):
    settings = make_settings(
        pretrained={"model": str(path), "single_file_config": config, **pretrained}
    )
    return FrozenDiffusion.load(settings.pretrained).scheduler()


def found_scheduler(path, config, **pretrained):
    """The same without loading the weights, of a configuration like Stable Diffusion 1.5's."""
    pretrained = {"model": str(path), "single_file_config": config, **pretrained}
    found = find_model(make_settings(pretrained=pretrained).pretrained)
    channels = {"in_channels": 4}
    return scheduler_of(found.settled(sd_scheduler().config), channels, {})


def timesteps(scheduler):
    return make_schedule(scheduler, 4, 1.0).timesteps.tolist()


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction", "is_zero", "steps"),
    [
        ([], {}, EPSILON, False, LEADING),
        (["v_pred"], {}, V, False, LEADING),
        (["v_pred", "ztsnr"], {}, V, True, TRAILING),
        ([], {"modelspec.prediction_type": "v"}, V, False, LEADING),
        ([], {"modelspec.prediction_type": "epsilon"}, EPSILON, False, LEADING),
        ([], {"modelspec.predict_key": "v"}, V, False, LEADING),
        ([], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, V, False, LEADING),
        ([], {"ss_v_parameterization": "true"}, V, False, LEADING),
        ([], {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, V, True, TRAILING),
        (["v_pred"], {"modelspec.prediction_type": "epsilon"}, V, False, LEADING),
    ],
)
def test_what_marks_a_file_decides(
    tmp_path, sdxl, tensors, metadata, prediction, is_zero, steps, caplog
):
    folder, state = sdxl
    path = tmp_path / "model.safetensors"
    save_file({**state, **dict.fromkeys(tensors, EMPTY)}, path, metadata)
    with caplog.at_level(logging.INFO):
        scheduler = scheduler_of_run(path, folder)
    assert scheduler.config.prediction_type == prediction
    assert scheduler.config.rescale_betas_zero_snr is is_zero
    assert timesteps(scheduler) == steps
    assert (scheduler.alphas_cumprod[-1] == 0).item() is is_zero
    (line,) = [each for each in caplog.messages if "taken for" in each]
    assert f"model.safetensors is taken for SDXL: {prediction}" in line
    assert line.endswith(", 16 x 16 pixels")
    for mark in [f"its tensor {name}" for name in tensors] or [f"its {name}" for name in metadata]:
        assert mark in line or (tensors and metadata)


def test_what_is_printed_names_who_said_it(tmp_path, sdxl, caplog):
    folder, state = sdxl
    path = tmp_path / "model.safetensors"
    save_file({**state, "v_pred": EMPTY, "ztsnr": EMPTY}, path)
    expected = (
        f"{path} is taken for SDXL: v_prediction (its tensor v_pred), zero terminal SNR (its "
        "tensor ztsnr), trailing timesteps (zero terminal SNR), 16 x 16 pixels"
    )
    with caplog.at_level(logging.INFO):
        scheduler_of_run(path, folder)
    assert expected in caplog.messages
    pretrained = {"model": str(path), "single_file_config": folder}
    assert f"  {expected}\n" in dry_run(make_settings(pretrained=pretrained))


def test_settings_outrank_what_marks_a_file(tmp_path, sdxl):
    folder, state = sdxl
    path = tmp_path / "model.safetensors"
    save_file({**state, "v_pred": EMPTY, "ztsnr": EMPTY}, path)
    said = {"prediction_type": "sample", "zero_snr": "no", "timestep_spacing": "linspace"}
    scheduler = scheduler_of_run(path, folder, **said)
    assert scheduler.config.prediction_type == "sample"
    assert scheduler.alphas_cumprod[-1] > 0
    assert timesteps(scheduler) == [999, 666, 333, 0]


def test_settings_say_what_a_folder_is(sdxl):
    scheduler = scheduler_of_run(sdxl[0], "", prediction_type=V, zero_snr="yes")
    assert scheduler.config.prediction_type == V
    assert scheduler.alphas_cumprod[-1] == 0
    assert timesteps(scheduler) == TRAILING
    with pytest.raises(UserError, match=r"zero_snr=yes does not go with .*epsilon"):
        make_settings(pretrained={"prediction_type": EPSILON, "zero_snr": "yes"})


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ('model:\n  params:\n    parameterization: "v"\n', V),
        ("model:\n  params:\n    parameterization: eps\n", EPSILON),
        ("target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n", V),
        ("target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling\n", EPSILON),
        ("model: {}\n", EPSILON),
    ],
)
def test_a_configuration_beside_a_file_is_read(tmp_path, sdxl, text, prediction):
    save_file(sdxl[1], tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text(text)
    scheduler = found_scheduler(tmp_path / "model.safetensors", sdxl[0])
    assert scheduler.config.prediction_type == prediction


@pytest.mark.parametrize(
    "name",
    [
        "sd_xl_turbo_1.0_fp16",
        "sdxl_lightning_4step",
        "DreamShaperXL_Lightning",
        "Hyper-SDXL-1step-merge",
        "hyperSDXL",
        "realisticVisionV60B1_v51HyperVAE",
        "Juggernaut_X_Hyper",
        "dmd2_sdxl_4step",
    ],
)
def test_models_for_few_steps_get_trailing_timesteps_by_their_names(tmp_path, sdxl, name):
    path = tmp_path / f"{name}.safetensors"
    save_file(sdxl[1], path)
    assert timesteps(found_scheduler(path, sdxl[0])) == TRAILING
    assert timesteps(found_scheduler(path, sdxl[0], timestep_spacing="leading")) == LEADING


def test_a_spacing_that_a_distilled_model_ignores_is_refused(tmp_path, sdxl):
    path = tmp_path / "my_LCM.safetensors"
    save_file(sdxl[1], path)
    pretrained = {"model": str(path), "single_file_config": sdxl[0], "timestep_spacing": "leading"}
    with pytest.raises(UserError, match="this model is drawn with lcm, which has timesteps of its"):
        dry_run(make_settings(pretrained=pretrained))


def test_what_the_settings_say_counts_where_the_folder_says_nothing(tmp_path):
    """Stable Diffusion 1.5's own file has no `timestep_spacing`."""
    make_tiny_pipe().save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    values = json.loads(file.read_text())
    for name in ("timestep_spacing", "rescale_betas_zero_snr", "prediction_type"):
        del values[name]
    file.write_text(json.dumps({**values, "_class_name": "PNDMScheduler"}))
    said = {"timestep_spacing": "trailing", "prediction_type": V, "zero_snr": "yes"}
    scheduler = scheduler_of_run(tmp_path, "", **said)
    assert timesteps(scheduler) == TRAILING
    assert scheduler.config.prediction_type == V
    assert scheduler.config.rescale_betas_zero_snr


@pytest.mark.parametrize("name", ["my_LCM_v2", "LCM_Dreamshaper_v7_4k", "sdxl-tcd"])
def test_models_distilled_for_a_sampler_get_it_by_their_names(tmp_path, sdxl, name, caplog):
    path = tmp_path / f"{name}.safetensors"
    save_file(sdxl[1], path)
    sampler = "tcd" if "tcd" in name else "lcm"
    caplog.set_level(logging.INFO)
    scheduler = scheduler_of_run(path, sdxl[0])
    assert name_of(scheduler) == sampler
    assert timesteps(scheduler) == DISTILLED
    assert f"{sampler.upper()}'s timesteps (" in caplog.text
    assert "in the name of pretrained.model)" in caplog.text


@pytest.mark.parametrize(
    ("lora", "steps"),
    [
        ("ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors", TRAILING),
        ("ByteDance/Hyper-SD/Hyper-SDXL-8steps-lora.safetensors", TRAILING),
        ("latent-consistency/lcm-lora-sdxl@main", DISTILLED),
        ("h1t/TCD-SDXL-LoRA", DISTILLED),
        ("/models/turbo/pixels/style.safetensors", LEADING),
        ("someone/calcmap", LEADING),
        ("someone/hyperrealism_v3", LEADING),
        ("someone/HyperRealistic", LEADING),
    ],
)
def test_a_lora_for_few_steps_brings_trailing_timesteps(sdxl, lora, steps):
    assert timesteps(found_scheduler(sdxl[0], "", lora=lora)) == steps


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ChenkinNoob-XL-v0.2-Rectified-Flow", "says rectified flow, which DDIM cannot sample"),
        ("nyaflow-xl-alpha", "set pretrained.prediction_type=epsilon or v_prediction"),
        ("noob_rf", "rectified flow"),
        ("NoobAI-XL-Vpred-v1.0", "pretrained.prediction_type=v_prediction and pretrained.zero_snr"),
        ("model-v-prediction", "says v-prediction, and nothing in the file does"),
    ],
)
def test_a_name_that_the_file_does_not_confirm_is_refused(tmp_path, sdxl, name, words):
    path = tmp_path / f"{name}.safetensors"
    save_file(sdxl[1], path)
    with pytest.raises(UserError) as error:
        found_scheduler(path, sdxl[0])
    assert words in str(error.value)
    with pytest.raises(UserError, match=r"pretrained\.model=.* says "):
        dry_run(make_settings(pretrained={"model": str(path), "single_file_config": sdxl[0]}))
    assert found_scheduler(path, sdxl[0], prediction_type=V).config.prediction_type == V
    save_file({**sdxl[1], "v_pred": EMPTY}, path)
    assert found_scheduler(path, sdxl[0]).config.prediction_type == V


@pytest.mark.parametrize("name", ["flowers", "wolfram", "perfect", "sunflower-xl", "overflow"])
def test_a_name_that_only_contains_such_letters_says_nothing(tmp_path, sdxl, name):
    save_file(sdxl[1], tmp_path / f"{name}.safetensors")
    scheduler = found_scheduler(tmp_path / f"{name}.safetensors", sdxl[0])
    assert scheduler.config.prediction_type == EPSILON


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        (["edm_mean", "edm_std"], {}, "it is an EDM model (its tensor edm_mean)"),
        (["edm_vpred.sigma_max"], {}, "it is an EDM model"),
        ([], {"modelspec.prediction_type": "flow"}, "says 'flow', and DDIM samples epsilon and"),
        ([], {"modelspec.title": "My Rectified Flow"}, "says rectified flow"),
    ],
)
def test_what_ddim_cannot_sample_is_refused(tmp_path, sdxl, tensors, metadata, words):
    path = tmp_path / "model.safetensors"
    save_file({**sdxl[1], **{name: torch.ones(1) for name in tensors}}, path, metadata)
    with pytest.raises(UserError) as error:
        found_scheduler(path, sdxl[0])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("spread", "prediction", "published"),
    [(0.12, V, "stable-diffusion-2-1"), (0.05, EPSILON, "stable-diffusion-2-1-base")],
)
def test_the_two_kinds_of_stable_diffusion_2_are_told_apart(
    tmp_path, spread, prediction, published
):
    """320 biases of this spread: ComfyUI distinguishes SD 2.1-768 from SD 2-base by it."""
    path = tmp_path / "model.safetensors"
    biases = spread * torch.tensor([1.0, -1.0]).repeat(160)
    state = {CROSS: torch.ones(1, 1024), FIRST: torch.ones(1, 4, 3, 3), SPREAD: biases}
    state |= {name: torch.ones(1) for name in ("first_stage_model.a", "cond_stage_model.a")}
    save_file(state, path)
    settings = make_settings(pretrained={"model": str(path)}).pretrained
    assert configuration_source(settings) == f"sd2-community/{published}"
    assert find_model(settings).claims.values == {"prediction_type": prediction}
    other = {V: EPSILON, EPSILON: V}[prediction]
    settings = make_settings(
        pretrained={"model": str(path), "single_file_config": "a/b"}
    ).pretrained
    with pytest.raises(ValueError, match=f"look like {prediction}, and .* says {other}"):
        find_model(settings).settled({"prediction_type": other})
    settings = make_settings(
        pretrained={"model": str(path), "single_file_config": "a/b", "prediction_type": other}
    ).pretrained
    assert find_model(settings).settled({"prediction_type": other})["prediction_type"] == other
    size = load_architecture(f"sd2-community/{published}")["unet"]["sample_size"] * 8
    assert size == {V: 768, EPSILON: 512}[prediction]


def test_a_dry_run_refuses_steps_that_the_schedule_does_not_have(sdxl):
    pretrained = {"model": sdxl[0], "timestep_spacing": "trailing"}
    with pytest.raises(UserError, match=r"num_steps=61 does not fit .* to 60, for example"):
        dry_run(make_settings(pretrained=pretrained, sample={"num_steps": 61}))
