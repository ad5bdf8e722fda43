"""The rule of `update_rule=reward_gradient`: DDPO's, for the objectives without a gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ddpo.rewards import may_be_black_box
from ddpo.rules.ddpo import Ddpo

if TYPE_CHECKING:
    from config.base import Settings
    from ddpo.rules.rule import Cost


class RewardGradient(Ddpo):
    """DDPO's rule; `ddpo/reward_gradient.py` learns the objectives with a gradient."""

    @staticmethod
    def cost(settings: Settings) -> Cost:
        """The last steps; also DDPO's pairs if an objective may be a black box."""
        is_hybrid = any(may_be_black_box(name, settings.rewards) for name in settings.rewards.names)
        return replace(
            Ddpo.cost(settings),
            learns_from_pairs=is_hybrid or settings.train.kl_coef > 0,
            last_steps=settings.train.gradient_steps,
        )
