"""Measures adapters as a run has measured its front."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ddpo import speed
from ddpo.agents.adapter import Adapter, policy_of
from ddpo.agents.slots import Agents
from ddpo.evaluation import evaluate, evaluation_set
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.prompts import split_prompts
from ddpo.rewards.guards import Guards
from ddpo.rewards.scorer import Scorer
from ddpo.sampler import Sampler
from front.errors import FrontError
from front.member import GuardValue
from front.settings import device_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.base import Settings
    from ddpo.types import Evaluation, EvaluationSet
    from front.front import Front


class Judge:
    """Measures policies and blends as the run measured its front: on the report set.

    Args:
        front: of the run.
        model: where its base model is now; empty where it was.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.

    Raises:
        UserError: if the settings, the model, a reward or the prompts cannot be used.
    """

    def __init__(
        self, front: Front, model: str = "", device: str = "", rows_per_pass: int = 0
    ) -> None:
        settings = settings_of(front, model, rows_per_pass, with_rewards=True)
        where = device_of(device)
        self.report_set = _report_set(settings, front)
        self._num_kept = len(front.sample_prompts)
        diffusion = FrozenDiffusion.load(settings.pretrained, where)
        self._scorer = Scorer.build(settings.rewards, where)
        self._guards = Guards.build(settings, where)
        rank = 2 * settings.policy_adapter.rank  # room for a blend of two
        adapter = dataclasses.replace(settings.adapter, rank=rank, alpha=float(rank))
        # As many at a time as in the run, unless a pass is to have fewer rows than that.
        per_agent = settings.sample.rows_per_sample
        num_agents = min(
            settings.evolution.num_agents, max(1, settings.sample.rows_per_pass // per_agent)
        )
        self._agents = Agents(diffusion.unet, num_agents, adapter, settings.train)
        speed.apply(settings.speed, diffusion, self._agents)
        self._sampler = Sampler(diffusion, settings.evaluation_sample)

    def measure(
        self, adapters: Sequence[Adapter], on_group: Callable[[int], object]
    ) -> list[Evaluation]:
        """Evaluate adapters on the report set.

        Args:
            adapters: of rank at most twice the run's.
            on_group: called with the number of adapters done, several at a time.

        Raises:
            UserError: if an adapter does not fit, or a reward fails.
        """
        out: list[Evaluation] = []
        size = self._agents.num_agents
        for start in range(0, len(adapters), size):
            group = [policy_of(self._agents, each) for each in adapters[start : start + size]]
            out += evaluate(
                group,
                self.report_set,
                self._sampler,
                self._scorer,
                self._agents,
                self._num_kept,
                guards=self._guards,
            )
            on_group(len(group))
        return out

    def guard_values(self, policy: Evaluation, base: Evaluation) -> dict[str, GuardValue]:
        """What the run's guards say of one evaluation beside the base model's."""
        if self._guards is None:
            return {}
        reading = self._guards.read(self.report_set, policy, base)
        return {name: GuardValue(**values) for name, values in reading.to_json().items()}

    def close(self) -> None:
        """Stop the reward threads."""
        self._scorer.close()
        if self._guards is not None:
            self._guards.close()


def _report_set(settings: Settings, front: Front) -> EvaluationSet:
    """What the front was measured on.

    Raises:
        FrontError: if its prompts cannot be read, or are others now.
    """
    try:
        prompts = split_prompts(settings.prompts).report
    except ValueError as error:
        raise FrontError(f"the report set cannot be drawn again: {error}") from error
    num_images = settings.evaluation.report_images
    guards = settings.guards.names
    report_set = evaluation_set("report", prompts, num_images, settings.seed, guards)
    first = report_set.first(len(front.sample_prompts))
    if (first.prompts, first.seeds) != (front.sample_prompts, front.sample_seeds):
        raise FrontError(
            f"the report set is not that of the run: prompts.report={settings.prompts.report!r} "
            "holds other prompts now; restore it first"
        )
    return report_set
