"""What an optimiser step minimises: the update rules.

A rule is a chain of functions of (sample, denoising step) pairs. `predict` is the UNet pass,
`measure` says how well that prediction explains the pair, and `surrogate` turns the measures of the
policy being trained and of the policy that sampled, with the advantages, into losses. To add a
rule, write it and its line in `UPDATE_RULES`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch

from ddpo.ddim import denoise, gaussian_kl, gaussian_log_prob, step_mean
from ddpo.devices import pairs_of, to_device
from ddpo.rules.forward_process import add_noise, mean_square, negative_aware_loss, optimality
from ddpo.rules.loss import Surrogate, clip_range_from_nats, clipped_surrogate
from ddpo.sampler import keyed_noise
from ddpo.seeding import keyed_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.settings.schema import Settings
    from ddpo.agents.slots import Agents
    from ddpo.sampler import Sampler
    from ddpo.types import Rollout

_NOISE_KEY = 1  # keys the noise that is added to an image apart from that it was drawn with


class UpdateRule(Protocol):
    """A way to learn from a rollout.

    Attributes:
        rows_per_pair: UNet rows that one pair costs.
        clip_range: on the ratio of the two policies; infinite where nothing is clipped.
    """

    rows_per_pair: int
    clip_range: float

    def begin(self, rollout: Rollout) -> torch.Tensor | None:
        """Take up a new rollout; what is drawn for it serves the other methods until the next.

        Returns:
            (rows, T) measures under the policy that sampled; None if sampling has not left them.
        """
        ...

    def predict(
        self, agents: Agents, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Mean (pairs, C, h, w) of the policy's Gaussian for these rows and steps.

        Up to a shift that is the same for every policy, such as the noise that was added.
        """
        ...

    def measure(
        self, prediction: torch.Tensor, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Measures (pairs, ...) of what was predicted for these rows and steps."""
        ...

    def divergence(
        self,
        prediction: torch.Tensor,
        other: torch.Tensor,
        rollout: Rollout,
        steps: torch.Tensor,
    ) -> torch.Tensor:
        """KL divergence (pairs,) of the two predictions' Gaussians, averaged over the entries."""
        ...

    def surrogate(
        self, measured: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor
    ) -> Surrogate:
        """Losses (pairs,) from both policies' measures (pairs, ...) and the advantages (pairs,)."""
        ...


class _Rule:
    """What every rule keeps.

    Args:
        sampler: the rollouts' own.
        settings: of the run.
    """

    def __init__(self, sampler: Sampler, settings: Settings) -> None:
        self.sampler = sampler
        self.settings = settings


class _Clipped(_Rule):
    """PPO's clipped surrogate, for rules whose measure is a log-density."""

    def __init__(self, sampler: Sampler, settings: Settings) -> None:
        super().__init__(sampler, settings)
        self.clip_range = clip_range_from_nats(
            settings.train.clip_nats, math.prod(sampler.model.latent_shape)
        )

    def surrogate(
        self, measured: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor
    ) -> Surrogate:
        """The clipped surrogate on the ratio of the two policies."""
        return clipped_surrogate(measured, old, advantages, self.clip_range)


class Ddpo(_Clipped):
    """Clipped policy gradient on the steps that were sampled: DDPO (Black et al. 2024, 4.3).

    The measure is the step's log-probability.
    """

    def __init__(self, sampler: Sampler, settings: Settings) -> None:
        super().__init__(sampler, settings)
        self.rows_per_pair = sampler.rows_per_sample

    def begin(self, rollout: Rollout) -> torch.Tensor | None:
        """(rows, T) log-probabilities of sampling."""
        return rollout.log_probs

    def predict(
        self, agents: Agents, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Means of x_{t-1}."""
        schedule, prompts = rollout.schedule, rollout.prompts
        latents = rollout.states(rows, steps)
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
            _column(schedule.alpha_bar, steps),
            _column(schedule.alpha_bar_prev, steps),
            _column(schedule.sigma, steps),
            schedule.prediction_type,
        )

    def measure(
        self, prediction: torch.Tensor, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities (pairs,) of the sampled x_{t-1}."""
        sigma = _column(rollout.schedule.sigma, steps)
        return gaussian_log_prob(rollout.states(rows, steps + 1), prediction, sigma)

    def divergence(
        self,
        prediction: torch.Tensor,
        other: torch.Tensor,
        rollout: Rollout,
        steps: torch.Tensor,
    ) -> torch.Tensor:
        """Between the two policies' steps."""
        return gaussian_kl(prediction, other, _column(rollout.schedule.sigma, steps))


class _ForwardProcess(_Rule):
    """The noise that the policy predicts in noised images, without guidance."""

    rows_per_pair = 1

    def begin(self, rollout: Rollout) -> torch.Tensor | None:
        """Draw the noise to add, kept where the rollout's latents are.

        Sampling saw other noise, so it has left no measures.
        """
        seeds = [keyed_seed(seed, _NOISE_KEY) for seed in rollout.prompts.seeds]
        shape = (len(rollout.timesteps), *rollout.latents.shape[2:])
        noise = keyed_noise(seeds, shape)
        self._noise = to_device(noise, rollout.latents.device, rollout.latents.dtype)
        return None

    def predict(
        self, agents: Agents, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Predicted minus added noise, at the timesteps of the steps."""
        schedule, prompts = rollout.schedule, rollout.prompts
        clean, noise = rollout.states(rows, -1), pairs_of(self._noise, rows, steps)
        alpha_bar = _column(schedule.alpha_bar, steps)
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
        """Between unit Gaussians around the predicted noise."""
        return gaussian_kl(prediction, other, prediction.new_ones(()))


class DiffusionNft(_ForwardProcess):
    """Negative-aware fine-tuning on the forward process: DiffusionNFT (Zheng et al. 2025).

    The measure is the error of the predicted noise. Advantages become optimality by
    `advantage.max_advantage`, and `train.nft_strength` is the paper's beta.
    """

    clip_range = math.inf

    def measure(
        self,
        prediction: torch.Tensor,
        rollout: Rollout,  # noqa: ARG002
        rows: torch.Tensor,  # noqa: ARG002
        steps: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """The errors themselves, (pairs, C, h, w)."""
        return prediction

    def surrogate(
        self, measured: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor
    ) -> Surrogate:
        """The loss of the two implicit policies; nothing is clipped."""
        r = optimality(advantages, self.settings.advantage.max_advantage)
        return Surrogate(
            loss=negative_aware_loss(measured, old, r, self.settings.train.nft_strength),
            log_ratio=0.5 * (mean_square(old) - mean_square(measured.detach())),
            is_clipped=torch.zeros_like(advantages, dtype=torch.bool),
        )


class AdvantageWeightedMatching(_Clipped, _ForwardProcess):
    """Policy gradient with the denoising error as the likelihood: AWM (Xue et al. 2025).

    The measure is -|eps_theta - eps|^2 / 2, averaged over the latent entries: the log-density that
    a unit Gaussian around the prediction gives to the noise, up to a constant. It enters the same
    clipped surrogate, behind the same gate, as DDPO's.
    """

    def measure(
        self,
        prediction: torch.Tensor,
        rollout: Rollout,  # noqa: ARG002
        rows: torch.Tensor,  # noqa: ARG002
        steps: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Log-densities (pairs,)."""
        return -0.5 * mean_square(prediction)


def _column(values: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The values (T,) of these steps, broadcastable to latents (pairs, C, h, w)."""
    return values[steps].view(-1, 1, 1, 1)


UPDATE_RULES: dict[str, Callable[[Sampler, Settings], UpdateRule]] = {
    "ddpo": Ddpo,
    "diffusion_nft": DiffusionNft,
    "awm": AdvantageWeightedMatching,
}
