"""Base models of the three families: loaded as users load them, drawing as diffusers draws."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from config.settings.errors import UserError
from ddpo import devices, speed
from ddpo.agents.slots import Agents
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.sampler import Sampler
from ddpo.types import Rollout
from tests.support.cases import few
from tests.support.pipelines import (
    KINDS,
    TWO_KINDS,
    draw_with_diffusers,
    load_plain,
    make_tiny_pipe,
    sd_scheduler,
)
from tests.support.rig import make_rig, make_settings

TEXTS, SEEDS = ["a b", "c", "d e f"], [3, 4, 5]


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory):
    """kind -> folder of a saved pipeline."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        make_tiny_pipe(kind).save_pretrained(root / kind)
    return {kind: str(root / kind) for kind in KINDS}


def draw(pretrained, how="layers", **sample):
    """Pictures of the base model by this project's own sampler."""
    settings = make_settings(
        pretrained=pretrained, sample={"num_steps": 4, "guidance_scale": 5.0, **sample}
    )
    model = FrozenDiffusion.load(settings.pretrained)
    agents = Agents(model.unet, 1, settings.adapter, settings.train)
    speed.apply(how, model, agents)
    sampler = Sampler(model, settings.sample)
    batch = sampler.prompt_batch(TEXTS, SEEDS, 1)
    return Rollout.join(batch, list(sampler.chunks(agents, batch))).images


SAMPLES = {"": {}, "negative": {"negative_prompt": "b"}, "plain": {"guidance_scale": 1.0}}


@pytest.mark.parametrize(
    ("name", "kind"),
    few(
        product(SAMPLES, KINDS),
        [("", "sd1"), ("", "sd2"), ("", "sdxl"), ("negative", "sdxl"), ("plain", "sd1")],
    ),
)
@pytest.mark.usefixtures("rounded_as_diffusers")
def test_pictures_are_bitwise_those_of_plain_diffusers(folders, kind, name):
    sample = SAMPLES[name]
    expected = draw_with_diffusers(load_plain(folders[kind]), TEXTS, SEEDS, **sample)
    for how in ("off", "layers"):
        assert torch.equal(draw({"model": folders[kind]}, how, **sample), expected)


@pytest.mark.usefixtures("rounded_as_diffusers")
@pytest.mark.parametrize("kind", few(KINDS, TWO_KINDS))
def test_sizes_other_than_the_models_own_draw_as_in_diffusers(folders, kind):
    changes = {"height": 24, "width": 32}
    expected = draw_with_diffusers(load_plain(folders[kind]), TEXTS, SEEDS, **changes)
    images = draw({"model": folders[kind], **changes})
    assert images.shape == (3, 3, 24, 32)
    assert torch.equal(images, expected)


@pytest.mark.parametrize("kind", few(KINDS, TWO_KINDS))
def test_agents_drawing_together_draw_what_each_draws_alone(kind):
    together = make_rig(2, make_tiny_pipe(kind))
    together.perturb()
    rollout = together.rollout(together.batch(2, 2))
    for k in range(2):
        alone = make_rig(1, make_tiny_pipe(kind))
        alone.agents.load(0, together.agents.snapshot(k))
        images = alone.rollout(alone.batch(1, 2, first_agent=k)).images
        torch.testing.assert_close(images, rollout.images[2 * k :][:2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_is_one_before_the_first_update(kind):
    rig = make_rig(2, make_tiny_pipe(kind))
    rig.perturb()
    rollout = rig.rollout(rig.batch(2, 4))
    stats = rig.updater.update(rig.agents, rollout, torch.randn(2, 4), [1, 2])
    assert stats.ratio_error.nan_to_num(0).max() < 1e-5
    assert stats.grad_norm.min() > 0


def test_an_empty_negative_prompt_of_sdxl_is_zeros_only_where_its_configuration_says_so():
    for is_forced in (True, False):
        pipe = make_tiny_pipe("sdxl")
        pipe.register_to_config(force_zeros_for_empty_prompt=is_forced)
        model = FrozenDiffusion(pipe)
        negative = model.encode_negative("")
        _, text, _, pooled = pipe.encode_prompt("a", device="cpu", num_images_per_prompt=1)
        assert torch.equal(negative.text, text)
        assert torch.equal(negative.pooled, pooled)
        assert bool(negative.text.any()) is not is_forced
        assert negative.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]]
        assert model.encode_negative("b").text.any()


def test_the_vae_of_sdxl_runs_in_float32_and_that_of_others_in_the_models_dtype(folders):
    for dtype in ("float16", "bfloat16", "float32"):
        for kind in KINDS:
            settings = make_settings(pretrained={"model": folders[kind], "dtype": dtype})
            model = FrozenDiffusion.load(settings.pretrained)
            expected = "float32" if kind == "sdxl" else dtype
            assert str(model.pipe.vae.dtype) == f"torch.{expected}"
            assert str(model.unet.dtype) == f"torch.{dtype}"
            assert str(model.pipe.text_encoder.dtype) == f"torch.{dtype}"
            assert model.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_the_model_cannot_draw_is_refused_with_the_nearest_ones(folders, kind):
    with pytest.raises(UserError, match=r"height=18 must be a multiple of 4.*try 16 or 20"):
        draw({"model": folders[kind], "height": 18})


@pytest.mark.usefixtures("rounded_as_diffusers")
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_large_picture_is_decoded_alone_as_by_diffusers_sliced_vae(folders, kind, monkeypatch):
    monkeypatch.setattr(devices, "LARGE_PICTURE", 32 * 16)
    plain = load_plain(folders[kind])
    plain.vae.enable_slicing()
    expected = draw_with_diffusers(plain, TEXTS, SEEDS, height=32, width=16)
    assert torch.equal(draw({"model": folders[kind], "height": 32}), expected)
    for height, is_alone in ((32, True), (16, False)):
        pretrained = make_settings(pretrained={"model": folders[kind], "height": height}).pretrained
        assert FrozenDiffusion.load(pretrained).pipe.vae.use_slicing is is_alone


def test_tf32_is_float32_with_shorter_products(folders):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    for dtype in ("tf32", "float32"):
        settings = make_settings(pretrained={"model": folders["sd1"], "dtype": dtype})
        model = FrozenDiffusion.load(settings.pretrained)
        assert {network.dtype for network in model.networks} == {torch.float32}
        assert [each.allow_tf32 for each in flags] == [dtype == "tf32"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_text_encoders_are_not_asked_again(kind, monkeypatch):
    pipe = make_tiny_pipe(kind)
    model = FrozenDiffusion(pipe)
    before = model.encode_prompts(["a", "b", "a"])
    model.offload_text_encoders(["a", "b", ""])
    monkeypatch.setattr(pipe, "tokenizer", None)  # whoever asks for it fails
    after = model.encode_prompts(["a", "b", "a"])
    assert torch.equal(before.text, after.text)
    assert len(model.encode_negative("")) == 1
    with pytest.raises(AttributeError):
        model.encode_prompts(["c"])


def test_models_that_are_no_chain_of_ddim_steps_are_refused():
    from diffusers import (
        DDPMScheduler,
        EDMEulerScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    wrong = {
        "EDMEulerScheduler has no DDIM": EDMEulerScheduler(),
        "FlowMatchEulerDiscreteScheduler has no DDIM": FlowMatchEulerDiscreteScheduler(),
        "prediction_type 'flow_prediction'": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True
        ),
        "sigmoid is not implemented": DDPMScheduler(beta_schedule="sigmoid"),
    }
    for words, scheduler in wrong.items():
        pipe = make_tiny_pipe()
        pipe.scheduler = scheduler
        with pytest.raises(UserError, match="cannot be sampled by DDIM") as error:
            FrozenDiffusion(pipe)
        assert words in str(error.value)
    with pytest.raises(UserError, match="draws from a picture"):
        FrozenDiffusion(make_tiny_pipe(in_channels=9))
    pipe = make_tiny_pipe("sdxl")
    pipe.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    with pytest.raises(UserError, match="shifts its latents"):
        FrozenDiffusion(pipe)


@pytest.mark.usefixtures("rounded_as_diffusers")
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_model_with_zero_terminal_snr_is_drawn_with_and_trained(eta):
    def pipe():
        made = make_tiny_pipe("sd2")
        made.scheduler = sd_scheduler(
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
        )
        return made

    rig = make_rig(1, pipe(), sample={"eta": eta})
    batch = rig.batch(1, 4)
    rollout = rig.rollout(batch)
    assert rollout.images.isfinite().all()
    if eta < 1:  # at eta = 1 diffusers may take the root of -1e-8 in the first step
        drawn = draw_with_diffusers(pipe(), batch.texts, batch.seeds, eta=eta)
        assert torch.equal(rollout.images, drawn)
    stats = rig.updater.update(rig.agents, rollout, torch.tensor([[1.0, -1.0, 0.5, -0.5]]), [1])
    assert stats.excluded_steps == 0
    assert stats.ratio_error.max() < 1e-5
    assert rig.agents.snapshot(0).adapter.isfinite().all()
