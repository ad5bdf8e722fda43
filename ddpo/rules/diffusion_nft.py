"""Negative-aware fine-tuning on the forward process: DiffusionNFT (Zheng et al. 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.normalisations import MAX_ADVANTAGE
from ddpo.rules.forward_process import mean_square, negative_aware_loss, optimality
from ddpo.rules.loss import Surrogate
from ddpo.rules.noised import Noised
from ddpo.rules.rule import Cost

if TYPE_CHECKING:
    import torch

    from config.base import Settings
    from ddpo.types import Rollout

STRENGTH = 1.0  # the paper's beta; a smaller one demands larger steps


class DiffusionNft(Noised):
    """The measure is the error of the predicted noise, (pairs, C, h, w).

    `MAX_ADVANTAGE` scales advantages to an optimality in [0, 1]. Nothing is clipped.
    """

    @staticmethod
    def cost(settings: Settings) -> Cost:  # noqa: ARG004
        """One row per pair; the noise and the old policy's prediction of every step are kept."""
        return Cost(rows_per_pair=1, is_measured_again=True, latents_per_step=2)

    def explain(
        self,
        prediction: torch.Tensor,
        rollout: Rollout,  # noqa: ARG002
        rows: torch.Tensor,  # noqa: ARG002
        steps: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """The errors themselves."""
        return prediction

    def compare(
        self, measured: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor
    ) -> Surrogate:
        """The loss of the two implicit policies."""
        r = optimality(advantages, MAX_ADVANTAGE)
        return Surrogate.of(
            negative_aware_loss(measured, old, r, STRENGTH),
            log_ratio=0.5 * (mean_square(old) - mean_square(measured.detach())),
        )
