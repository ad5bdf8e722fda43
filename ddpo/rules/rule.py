"""The interface of an update rule: losses of (sample, denoising step) pairs.

Given the rollout, the loss of a pair does not depend on other pairs. So a UNet pass may carry any
number of pairs, and no result depends on that number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from config.base import Settings
    from ddpo.agents.slots import Agents
    from ddpo.rules.loss import Surrogate
    from ddpo.sampler import Sampler
    from ddpo.types import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a rule, for the dry run.

    Attributes:
        rows_per_pair: UNet rows of one pair.
        is_measured_again: whether the policy that sampled is measured on all pairs, without
            gradient, before the first update.
        latents_per_step: tensors of the size of a latent that are kept for every step of a rollout.
        learns_from_pairs: whether single (sample, step) pairs are trained.
        last_steps: last steps of every sample through which gradients of rewards flow, after the
            VAE's decoder; 0 if there are none.
    """

    rows_per_pair: int
    is_measured_again: bool
    latents_per_step: int = 0
    learns_from_pairs: bool = True
    last_steps: int = 0


class UpdateRule(Protocol):
    """The interface that `ddpo.update` uses.

    Attributes:
        rows_per_pair: UNet rows of one pair.
    """

    rows_per_pair: int

    def begin(self, rollout: Rollout) -> torch.Tensor | None:
        """Start a new rollout. Noise drawn here serves the other methods until the next rollout.

        Returns:
            (rows, T) measures under the policy that sampled; None if sampling left none.
        """
        ...

    def measure(
        self, agents: Agents, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """How well the policy explains these rows and steps: measures (pairs, ...)."""
        ...

    def surrogate(
        self,
        agents: Agents,
        rollout: Rollout,
        rows: torch.Tensor,
        steps: torch.Tensor,
        old: torch.Tensor,
        advantages: torch.Tensor,
    ) -> Surrogate:
        """Losses (pairs,) of the policy.

        Args:
            agents: the policies, after some updates.
            rollout: the one that was drawn.
            rows: (pairs,) of the rollout, agent-major.
            steps: (pairs,) denoising steps.
            old: (pairs, ...) measures under the policy that sampled.
            advantages: (pairs,).
        """
        ...


class Rule(ABC):
    """A rule whose policy is a Gaussian around a prediction of the UNet.

    Args:
        sampler: the rollouts' own.
        settings: of the run.
    """

    rows_per_pair: int

    def __init__(self, sampler: Sampler, settings: Settings) -> None:
        self.sampler = sampler
        self.settings = settings
        counted = settings.in_single_rows if sampler.embeds_guidance else settings
        self.rows_per_pair = self.cost(counted).rows_per_pair

    @staticmethod
    @abstractmethod
    def cost(settings: Settings) -> Cost:
        """What the rule costs with these settings."""

    @abstractmethod
    def begin(self, rollout: Rollout) -> torch.Tensor | None:
        """See `UpdateRule.begin`."""

    @abstractmethod
    def predict(
        self, agents: Agents, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Mean (pairs, C, h, w) of the policy's Gaussian: one UNet pass.

        It may be shifted by an amount that is the same for every policy, such as the added noise.
        """

    @abstractmethod
    def explain(
        self, prediction: torch.Tensor, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Measures (pairs, ...): how well a prediction explains what was sampled."""

    @abstractmethod
    def compare(
        self, measured: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor
    ) -> Surrogate:
        """Losses (pairs,) from both policies' measures (pairs, ...) and the advantages (pairs,)."""

    @abstractmethod
    def divergence(
        self, prediction: torch.Tensor, other: torch.Tensor, rollout: Rollout, steps: torch.Tensor
    ) -> torch.Tensor:
        """KL divergence (pairs,) of two predictions' Gaussians, averaged over latent entries."""

    def measure(
        self, agents: Agents, rollout: Rollout, rows: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """See `UpdateRule.measure`."""
        return self.explain(self.predict(agents, rollout, rows, steps), rollout, rows, steps)

    def surrogate(
        self,
        agents: Agents,
        rollout: Rollout,
        rows: torch.Tensor,
        steps: torch.Tensor,
        old: torch.Tensor,
        advantages: torch.Tensor,
    ) -> Surrogate:
        """See `UpdateRule.surrogate`."""
        return self.compare(self.measure(agents, rollout, rows, steps), old, advantages)
