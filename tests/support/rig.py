"""The parts of DDPO around a tiny model, and settings for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from config import base, ddpo
from config.settings.parse import parse
from tests.support.pipelines import LETTERS, make_tiny_pipe


def make_settings(speed: str = "layers", **changes: dict[str, Any]) -> base.Settings:
    """Default settings with sections changed: make_settings(sample={"num_steps": 4})."""
    config = ddpo.get_config()
    # The same steps for training and evaluation, and a plain start, unless a test changes them.
    config.sample.num_steps = 10
    config.evaluation.num_steps = 0
    config.evolution.start = "even_weights"
    config.evolution.warmup_generations = config.evolution.evolutionary_generations = 3
    config.speed = speed
    for section, values in changes.items():
        config[section].update(values)
    return parse(config, {})


@dataclasses.dataclass
class Rig:
    """The parts of DDPO around a tiny model."""

    settings: base.Settings
    model: Any
    agents: Any
    sampler: Any
    updater: Any

    def batch(self, num_agents: int, samples: int, first_agent: int = 0) -> Any:
        """A prompt batch whose seeds depend only on (agent, sample)."""
        from ddpo.seeding import Stream

        texts = [LETTERS[i % 3] for _ in range(num_agents) for i in range(samples)]
        place = {"run_seed": 7, "generation": 0, "iteration": 0}
        seeds = [
            Stream.NOISE.seed(**place, agent=first_agent + k, sample=i)
            for k in range(num_agents)
            for i in range(samples)
        ]
        return self.sampler.prompt_batch(texts, seeds, num_agents)

    def rollout(self, batch: Any) -> Any:
        from ddpo.types import Rollout

        return Rollout.join(batch, list(self.sampler.chunks(self.agents, batch)))

    def perturb(self) -> None:
        """Give every agent a different, non-zero adapter."""
        generator = torch.Generator().manual_seed(1)
        for slot in range(self.agents.num_agents):
            policy = self.agents.snapshot(slot)
            noise = 0.05 * torch.randn(policy.adapter.shape, generator=generator)
            self.agents.load(slot, dataclasses.replace(policy, adapter=policy.adapter + noise))


def make_rig(num_agents: int = 3, pipe: Any = None, device: str = "cpu", **changes: Any) -> Rig:
    """Model, agents, sampler and updater with settings changed by section, or another `speed`."""
    from ddpo import speed
    from ddpo.agents.conditioned import make_agents
    from ddpo.model.stable_diffusion import FrozenDiffusion
    from ddpo.processes import Processes
    from ddpo.sampler import Sampler
    from ddpo.trainer import make_update

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
    model = FrozenDiffusion(pipe or make_tiny_pipe(), device)
    agents = make_agents(model.unet, num_agents, settings, Processes.alone())
    speed.apply(settings.speed, model, agents)
    sampler = Sampler(model, settings.sample)
    return Rig(settings, model, agents, sampler, make_update(sampler, settings, Processes.alone()))


def random_advantages(num_agents, samples, seed=0):
    return torch.randn(num_agents, samples, generator=torch.Generator().manual_seed(seed))
