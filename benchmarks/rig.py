"""This project's parts around a random model, for benchmarks below the level of `mo_train.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from config import ddpo
from config.settings.parse import parse
from ddpo import speed
from ddpo.agents.slots import Agents
from ddpo.processes import Processes
from ddpo.rewards.colorfulness import colorfulness
from ddpo.rewards.gradients import RewardGradients
from ddpo.sampler import Sampler
from ddpo.seeding import Stream
from ddpo.trainer import make_reward_gradient_update, make_update
from ddpo.types import Rollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.base import Settings
    from ddpo.model.stable_diffusion import BaseModel
    from ddpo.rewards.image_batch import ImageBatch
    from ddpo.update import Update


def settings_with(speed: str = "layers", **changes: dict[str, Any]) -> Settings:
    """Default settings with sections changed: `settings_with(sample={"num_steps": 4})`.

    They are not checked against each other: a benchmark may train one agent with one reward.
    """
    default = parse(ddpo.get_config(), {})
    sections = {
        name: dataclasses.replace(getattr(default, name), **values)
        for name, values in changes.items()
    }
    return dataclasses.replace(default, speed=speed, **sections)


def one_rollout(
    images: int, steps: int, rows: int, guidance: float, train: dict[str, Any], **changes: Any
) -> Settings:
    """Settings for one rollout that is trained on repeatedly.

    Args:
        images: per agent.
        steps: denoising steps, all of them trained.
        rows: UNet rows per pass, at most.
        guidance: guidance scale.
        train: further keys of the section `train`.
        changes: further sections, as in `settings_with`.
    """
    return settings_with(
        sample={
            "num_steps": steps,
            "guidance_scale": guidance,
            "prompts_per_iteration": images,
            "images_per_prompt": 1,
            "rows_per_pass": rows,
        },
        train={
            "updates_per_epoch": 1,
            "rows_per_pass": rows,
            "max_sensitivity": 0.0,
            **train,
        },
        **changes,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rig:
    """Agents on one model, with their own sampler and updater.

    Attributes:
        settings: sizes of a rollout and of a pass.
        agents: K slots, or a baseline with the same methods.
        sampler: draws `sample.prompts_per_iteration` images per agent.
        updater: trains on them; with `update_rule=reward_gradient` towards colourful ones.
    """

    settings: Settings
    agents: Any
    sampler: Sampler
    updater: Update

    @classmethod
    def make(cls, model: BaseModel, settings: Settings, agents: Any | int) -> Rig:
        """Put the parts together; a number of agents makes that many stacked adapters."""
        if isinstance(agents, int):
            agents = Agents(model.unet, agents, settings.adapter, settings.train)
        speed.apply(settings.speed, model, agents if isinstance(agents, Agents) else None)
        sampler = Sampler(model, settings.training_sample)
        processes = Processes.alone(model.device)
        updater: Update
        if settings.train.update_rule == "reward_gradient":
            rewards = RewardGradients({"colorfulness": _colorfulness})
            updater = make_reward_gradient_update(
                sampler, rewards, settings, processes, is_hybrid=False
            )
        else:
            updater = make_update(sampler, settings, processes)
        return cls(settings=settings, agents=agents, sampler=sampler, updater=updater)

    def in_single_pass(self) -> Rig:
        """The same agents and model, with gradients taken while sampling."""
        train = dataclasses.replace(self.settings.train, single_pass=True)
        settings = dataclasses.replace(self.settings, train=train)
        updater = make_update(self.sampler, settings, Processes.alone(self.sampler.model.device))
        return dataclasses.replace(self, settings=settings, updater=updater)

    def sample(self) -> Rollout:
        """One rollout of all agents: denoising, decoding, and in a single pass also gradients."""
        count, num_agents = self.settings.sample.prompts_per_iteration, self.agents.num_agents
        texts = [chr(ord("a") + i % 26) for i in range(count)] * num_agents
        place = {"run_seed": 0, "generation": 0, "iteration": 0}
        seeds = [
            Stream.NOISE.seed(**place, agent=k, sample=i)
            for k in range(num_agents)
            for i in range(count)
        ]
        batch = self.sampler.prompt_batch(texts, seeds, num_agents)
        wanted = self.updater.wanted_gradients(count)
        return Rollout.join(batch, list(self.sampler.chunks(self.agents, batch, wanted=wanted)))

    def train(self, rollout: Rollout) -> None:
        """One update of all agents with fixed advantages and directions."""
        num_agents, count = rollout.prompts.num_agents, rollout.prompts.samples_per_agent
        advantages = torch.linspace(-1, 1, count).expand(num_agents, -1)
        directions = torch.ones(num_agents, count, 1)
        seeds = list(range(num_agents))
        self.updater.update(self.agents, rollout, advantages, seeds, directions=directions)

    def sample_and_train(self) -> None:
        """One iteration without rewards."""
        self.train(self.sample())


def _colorfulness(batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
    return colorfulness(batch.images, prompts)
