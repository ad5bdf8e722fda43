"""The rule beside gradients of rewards: DDPO's, for the objectives that have none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ddpo.rewards import may_be_black_box
from ddpo.rules.ddpo import Ddpo

if TYPE_CHECKING:
    from config.base import Settings
    from ddpo.rules.rule import Cost


class RewardGradient(Ddpo):
    """DDPO's rule; what objectives with a gradient add is in `ddpo/reward_gradient.py`."""

    @staticmethod
    def cost(settings: Settings) -> Cost:
        """The last steps, and DDPO's pairs if an objective may be a black box."""
        is_hybrid = any(may_be_black_box(name, settings.rewards) for name in settings.rewards.names)
        return replace(
            Ddpo.cost(settings),
            learns_from_pairs=is_hybrid or settings.train.kl_coef > 0,
            last_steps=settings.train.gradient_steps,
        )
