"""Shared fixtures: a random Stable Diffusion of the real classes, small enough for tests."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from config import base, schema
from config.parse import parse

if TYPE_CHECKING:
    from collections.abc import Callable

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


def make_settings(**changes: dict[str, Any]) -> schema.Settings:
    """Default settings with sections changed: make_settings(sample={"num_steps": 4})."""
    config = base.get_config()
    for section, values in changes.items():
        config[section].update(values)
    return parse(config, {})


@pytest.fixture(name="settings")
def _settings() -> Callable[..., schema.Settings]:
    return make_settings


def sd_scheduler(**changes: Any) -> Any:
    """A DDIMScheduler with Stable Diffusion 1.5's settings."""
    from diffusers import DDIMScheduler

    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**{**settings, **changes})


def make_tiny_pipe(**unet_changes: Any) -> Any:
    """A StableDiffusionPipeline with random weights: 16 px pictures, 4x8x8 latents."""
    from diffusers import (
        AutoencoderKL,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8
    )
    unet = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**{**unet, **unet_changes}).eval(),
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=16,
        ).eval(),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=8,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ).eval(),
        tokenizer=tokenizer,
        scheduler=sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(name="tiny_pipe")
def _tiny_pipe() -> Any:
    return make_tiny_pipe()


def draw_with_diffusers(pipe: Any, texts: Any, seeds: Any, **changes: Any) -> torch.Tensor:
    """Pictures (rows, 3, H, W) from diffusers' own sampling loop, one seed each."""
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "eta": 1.0, **changes}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(list(texts), generator=generators, output_type="pt", **settings).images


@dataclasses.dataclass
class Rig:
    """The parts of DDPO around a tiny model."""

    settings: schema.Settings
    model: Any
    agents: Any
    sampler: Any
    updater: Any

    def batch(self, num_agents: int, samples: int, first_agent: int = 0) -> Any:
        """A prompt batch whose seeds depend on (agent, sample) only."""
        from ddpo.seeding import keyed_seed

        texts = [LETTERS[i % 3] for _ in range(num_agents) for i in range(samples)]
        seeds = [
            keyed_seed(7, first_agent + k, i) for k in range(num_agents) for i in range(samples)
        ]
        return self.sampler.prompt_batch(texts, seeds, num_agents)

    def rollout(self, batch: Any) -> Any:
        from ddpo.types import Rollout

        return Rollout.join(batch, list(self.sampler.chunks(self.agents, batch)))

    def perturb(self) -> None:
        """Give every agent another, non-zero adapter."""
        generator = torch.Generator().manual_seed(1)
        for slot in range(self.agents.num_agents):
            policy = self.agents.snapshot(slot)
            noise = 0.05 * torch.randn(policy.adapter.shape, generator=generator)
            self.agents.load(slot, dataclasses.replace(policy, adapter=policy.adapter + noise))


def make_rig(num_agents: int = 3, pipe: Any = None, **changes: dict[str, Any]) -> Rig:
    """Model, agents, sampler and updater with settings changed by section."""
    from ddpo.agents import Agents
    from ddpo.pipeline import FrozenDiffusion
    from ddpo.sampler import Sampler
    from ddpo.update import Updater

    sample = {
        "num_steps": 4,
        "guidance_scale": 5.0,
        "prompts_per_iteration": 8,
        "rows_per_pass": 64,
        **changes.pop("sample", {}),
    }
    train = {
        "learning_rate": 1e-2,
        "updates_per_epoch": 2,
        "skip_last_steps": 0,
        "rows_per_pass": 64,
        **changes.pop("train", {}),
    }
    settings = make_settings(sample=sample, train=train, **changes)
    model = FrozenDiffusion(pipe or make_tiny_pipe())
    agents = Agents(model.unet, num_agents, settings.adapter, settings.train)
    sampler = Sampler(model, settings.sample)
    return Rig(settings, model, agents, sampler, Updater(sampler, settings.train))


@pytest.fixture(name="rig")
def _rig() -> Callable[..., Rig]:
    return make_rig
