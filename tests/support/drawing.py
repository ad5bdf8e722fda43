"""Pictures of a base model by this project's own sampler."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.rig import make_settings


def draw(
    pipe: Any, texts: list[str], seeds: list[int], pretrained: dict[str, Any], **sample: Any
) -> torch.Tensor:
    """Pictures (rows, 3, H, W) of a pipeline in four steps."""
    from ddpo.agents.slots import Agents
    from ddpo.model.stable_diffusion import FrozenDiffusion, reading_of
    from ddpo.sampler import Sampler
    from ddpo.types import Rollout

    settings = make_settings(pretrained=pretrained, sample={"num_steps": 4, **sample})
    model = FrozenDiffusion(pipe, reading=reading_of(settings.pretrained))
    agents = Agents(model.unet, 1, settings.adapter, settings.train)
    sampler = Sampler(model, settings.sample)
    batch = sampler.prompt_batch(texts, seeds, 1)
    return Rollout.join(batch, list(sampler.chunks(agents, batch))).images
