"""PPO's clipped surrogate, for rules whose measure is a log-density."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ddpo.rules.loss import Surrogate, clip_range_from_nats, clipped_surrogate
from ddpo.rules.rule import Rule

if TYPE_CHECKING:
    import torch

    from config.base import Settings
    from ddpo.sampler import Sampler


class Clipped(Rule):
    """Compares two policies by the clipped ratio of their densities.

    Attributes:
        clip_range: eps of the ratio, from `train.clip_nats` and the size of the latents.
    """

    def __init__(self, sampler: Sampler, settings: Settings) -> None:
        super().__init__(sampler, settings)
        self.clip_range = clip_range_from_nats(
            settings.train.clip_nats, math.prod(sampler.model.latent_shape)
        )

    def compare(
        self, measured: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor
    ) -> Surrogate:
        """The clipped surrogate on the ratio of the two policies."""
        return clipped_surrogate(measured, old, advantages, self.clip_range)
