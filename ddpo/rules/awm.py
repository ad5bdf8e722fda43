"""Policy gradient with the denoising error as the likelihood: AWM (Xue et al. 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.rules.clipped import Clipped
from ddpo.rules.forward_process import mean_square
from ddpo.rules.noised import Noised
from ddpo.rules.rule import Cost

if TYPE_CHECKING:
    import torch

    from config.base import Settings
    from ddpo.types import Rollout


class AdvantageWeightedMatching(Clipped, Noised):
    """The measure is -|eps_theta - eps|^2 / 2, averaged over the latent entries.

    Up to a constant, this is the log-density of the noise under a unit Gaussian around the
    prediction. It enters the same clipped surrogate as DDPO's measure, with the same clip range.
    """

    @staticmethod
    def cost(settings: Settings) -> Cost:  # noqa: ARG004
        """One row per pair; the noise of every step is kept."""
        return Cost(rows_per_pair=1, is_measured_again=True, latents_per_step=1)

    def explain(
        self,
        prediction: torch.Tensor,
        rollout: Rollout,  # noqa: ARG002
        rows: torch.Tensor,  # noqa: ARG002
        steps: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Log-densities (pairs,)."""
        return -0.5 * mean_square(prediction)
