"""The shared part of the rules on the forward process: noise a finished image and denoise it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.ddim import denoise, gaussian_kl
from ddpo.devices import pairs_of, to_device
from ddpo.rules.forward_process import add_noise
from ddpo.rules.rule import Rule, column
from ddpo.sampler import keyed_noise
from ddpo.seeding import Stream

if TYPE_CHECKING:
    import torch

    from ddpo.agents.slots import Agents
    from ddpo.types import Rollout


class Noised(Rule):
    """Measures the noise that the policy predicts in noised images, without guidance.

    Attributes:
        noise: (rows, T, C, h, w), added to the current rollout's images; it is kept where the
            rollout's latents are.
    """

    noise: torch.Tensor

    def begin(self, rollout: Rollout) -> torch.Tensor | None:
        """Draw the noise to add. Sampling used other noise, so it left no measures: None."""
        seeds = [Stream.ADDED_NOISE.seed(picture_seed=seed) for seed in rollout.prompts.seeds]
        shape = (len(rollout.timesteps), *rollout.latents.shape[2:])
        noise = keyed_noise(seeds, shape)
        self.noise = to_device(noise, rollout.latents.device, rollout.latents.dtype)
        return None

    def predict(
        self, agents: Agents, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Predicted minus added noise (pairs, C, h, w), at the timesteps of the steps."""
        schedule, prompts = rollout.schedule, rollout.prompts
        clean, noise = rollout.states(rows, -1), pairs_of(self.noise, rows, steps)
        alpha_bar = column(schedule.alpha_bar, steps)
        noisy = add_noise(clean, noise, alpha_bar)
        out = agents.predict(
            noisy, schedule.timesteps[steps], prompts.conditioning_of(rows), prompts.num_agents
        )
        _, predicted = denoise(out, noisy, alpha_bar, schedule.prediction_type)
        return predicted - noise

    def divergence(
        self,
        prediction: torch.Tensor,
        other: torch.Tensor,
        rollout: Rollout,  # noqa: ARG002
        steps: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """KL divergence (pairs,) between unit Gaussians around the predicted noise."""
        return gaussian_kl(prediction, other, prediction.new_ones(()))
