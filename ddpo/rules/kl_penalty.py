"""A penalty on the distance from the base model, around any rule: DPOK (Fan et al. 2023, 4.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ddpo.agents.slots import Agents
    from ddpo.rules.loss import Surrogate
    from ddpo.rules.rule import Rule
    from ddpo.types import Rollout


class KlPenalty:
    """Adds `coef` times the KL divergence from the base model's Gaussian to a rule's losses.

    Every pass with gradient needs a second one without gradient, with the adapters off.

    Args:
        rule: the rule that is wrapped.
        coef: `train.kl_coef`, above 0.
    """

    def __init__(self, rule: Rule, coef: float) -> None:
        self.rule = rule
        self.coef = coef
        self.rows_per_pair = rule.rows_per_pair
        self.begin = rule.begin
        self.measure = rule.measure

    def surrogate(
        self,
        agents: Agents,
        rollout: Rollout,
        rows: torch.Tensor,
        steps: torch.Tensor,
        old: torch.Tensor,
        advantages: torch.Tensor,
    ) -> Surrogate:
        """The rule's surrogate with the penalty; see `UpdateRule.surrogate`."""
        # The base model comes first: gradient checkpointing repeats the latest pass.
        with torch.no_grad(), agents.base_model():
            base = self.rule.predict(agents, rollout, rows, steps)
        prediction = self.rule.predict(agents, rollout, rows, steps)
        measured = self.rule.explain(prediction, rollout, rows, steps)
        surrogate = self.rule.compare(measured, old, advantages)
        kl = self.rule.divergence(prediction, base, rollout, steps)
        metrics = {**surrogate.metrics, "kl_to_base": kl.detach()}
        return replace(surrogate, loss=surrogate.loss + self.coef * kl, metrics=metrics)
