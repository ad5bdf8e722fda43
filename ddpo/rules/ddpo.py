"""DDPO's rule: clipped policy gradient on the steps that were sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.ddim import gaussian_kl, gaussian_log_prob, step_mean
from ddpo.devices import DTYPES
from ddpo.rules.clipped import Clipped
from ddpo.rules.rule import Cost, column

if TYPE_CHECKING:
    import torch

    from config.base import Settings
    from ddpo.agents.slots import Agents
    from ddpo.types import Rollout


class Ddpo(Clipped):
    """The measure is the log-probability of a sampled step: DDPO (Black et al. 2024, 4.3).

    Half precision rounds differently in passes of another shape. The ratio would then differ from 1
    before the first update, as if the policy had moved. So in half precision the policy that
    sampled is measured again, in passes of the training shape.
    """

    @staticmethod
    def cost(settings: Settings) -> Cost:
        """Two rows per pair with guidance, one without."""
        return Cost(
            rows_per_pair=settings.sample.rows_per_sample,
            is_measured_again=DTYPES[settings.pretrained.dtype].itemsize == 2,
        )

    def begin(self, rollout: Rollout) -> torch.Tensor | None:
        """Log-probabilities (rows, T) from sampling; None in half precision."""
        is_half = next(self.sampler.model.unet.parameters()).dtype.itemsize == 2
        return None if is_half else rollout.log_probs

    def predict(
        self, agents: Agents, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Means of x_{t-1}."""
        return self.means(agents, rollout, rows, steps, rollout.states(rows, steps))

    def means(
        self,
        agents: Agents,
        rollout: Rollout,
        rows: torch.Tensor,
        steps: torch.Tensor,
        latents: torch.Tensor,
    ) -> torch.Tensor:
        """Means of x_{t-1}, given `latents` (pairs, C, h, w) as x_t; gradients reach `latents`."""
        schedule, prompts = rollout.schedule, rollout.prompts
        out = self.sampler.guided(
            agents,
            latents,
            schedule.timesteps[steps],
            prompts.conditioning_of(rows),
            prompts.num_agents,
        )
        return step_mean(
            out,
            latents,
            column(schedule.alpha_bar, steps),
            column(schedule.alpha_bar_prev, steps),
            column(schedule.sigma, steps),
            schedule.prediction_type,
        )

    def explain(
        self, prediction: torch.Tensor, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities (pairs,) of the sampled x_{t-1}."""
        sigma = column(rollout.schedule.sigma, steps)
        return gaussian_log_prob(rollout.states(rows, steps + 1), prediction, sigma)

    def divergence(
        self, prediction: torch.Tensor, other: torch.Tensor, rollout: Rollout, steps: torch.Tensor
    ) -> torch.Tensor:
        """KL divergence (pairs,) between the two policies' steps."""
        return gaussian_kl(prediction, other, column(rollout.schedule.sigma, steps))
