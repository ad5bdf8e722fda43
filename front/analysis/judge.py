"""Measures adapters in the way that a run measured its front."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch

from ddpo import speed
from ddpo.agents.adapter import Adapter, policy_of
from ddpo.agents.slots import Agents
from ddpo.evaluation import evaluate, evaluation_set
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.prompts import split_prompts
from ddpo.rewards.guards import Guards
from ddpo.rewards.scorer import Scorer
from ddpo.sampler import Sampler
from ddpo.types import Evaluation
from front.analysis.samplers import PredictionSampler, SetupSampler
from front.errors import FrontError
from front.member import GuardValue
from front.settings import device_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from config.base import Settings
    from ddpo.evaluation import Drawing
    from ddpo.types import EvaluationSet
    from front.front import Front
    from front.setups import Setup


class Judge:
    """Measures policies and blends as the run measured its front: on the report set.

    Args:
        front: of the run.
        model: where its base model is now; empty where it was.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.
        num_images: how many images of the report set, from the first; 0 for all.

    Raises:
        UserError: if the settings, the model, a reward or the prompts cannot be used.
    """

    def __init__(
        self,
        front: Front,
        model: str = "",
        device: str = "",
        rows_per_pass: int = 0,
        num_images: int = 0,
    ) -> None:
        settings = settings_of(front, model, rows_per_pass, with_rewards=True)
        where = device_of(device)
        report_set = _report_set(settings, front)
        self.report_set = report_set.first(num_images or None)
        self.is_whole = self.report_set == report_set
        self._num_kept = len(front.sample_prompts)
        self.model = diffusion = FrozenDiffusion.load(settings.pretrained, where)
        self._scorer = Scorer.build(settings.rewards, where)
        self._guards = Guards.build(settings, where)
        rank = 2 * settings.policy_adapter.rank  # room for a blend of two
        adapter = dataclasses.replace(settings.adapter, rank=rank, alpha=float(rank))
        self._settings = settings.evaluation_sample
        self._sampler = Sampler(diffusion, self._settings)
        # As many at a time as in the run, unless a pass is to have fewer rows than that.
        per_agent = self._sampler.rows_per_sample
        self._group = min(
            settings.evolution.num_agents, max(1, settings.sample.rows_per_pass // per_agent)
        )
        num_slots = max(self._group, 2)  # for the parts of a blend
        self._agents = Agents(diffusion.unet, num_slots, adapter, settings.train)
        speed.apply(settings.speed, diffusion, self._agents)

    def drawing(self, setup: Setup) -> SetupSampler:
        """Draws under a setup, for `measure`.

        Raises:
            UserError: if the setup does not fit the model.
        """
        return SetupSampler(self.model, self._settings, setup)

    def measure(
        self,
        adapters: Sequence[Adapter],
        on_group: Callable[[int], object],
        drawing: Drawing | None = None,
    ) -> list[Evaluation]:
        """Evaluate adapters on the report set.

        Args:
            adapters: of rank at most twice the run's.
            on_group: called with the number of adapters done, several at a time.
            drawing: how to draw; by default as the run did.

        Raises:
            UserError: if an adapter does not fit, or a reward fails.
        """
        out: list[Evaluation] = []
        size = self._group
        for start in range(0, len(adapters), size):
            group = [policy_of(self._agents, each) for each in adapters[start : start + size]]
            out += evaluate(
                group,
                self.report_set,
                drawing or self._sampler,
                self._scorer,
                self._agents,
                self._num_kept,
                guards=None if drawing else self._guards,
            )
            on_group(len(group))
        return out

    def measure_predictions(
        self, blends: Sequence[Sequence[tuple[Adapter, float]]], on_group: Callable[[int], object]
    ) -> list[Evaluation]:
        """Evaluate blends that are mixed in every step; see `PredictionSampler`.

        Args:
            blends: two parts each, with their coefficients.
            on_group: called with the number of blends done, several at a time.

        Raises:
            UserError: if an adapter does not fit, or a reward fails.
        """
        out: list[Evaluation] = []
        size = self._agents.num_agents // 2
        prompts, seeds = self.report_set.prompts, self.report_set.seeds
        for start in range(0, len(blends), size):
            group = blends[start : start + size]
            for slot, (adapter, _) in enumerate(part for blend in group for part in blend):
                self._agents.load(slot, policy_of(self._agents, adapter))
            coefficients = torch.tensor([[share for _, share in blend] for blend in group])
            sampler = PredictionSampler(self.model, self._settings, coefficients)
            num = len(group)
            batch = sampler.prompt_batch(prompts * num, seeds * num, num)
            scores = [
                self._scorer.submit(chunk.images, chunk.prompts.texts)
                for chunk in sampler.chunks(self._agents, batch)
            ]
            rewards = self._scorer.gather(scores, num).values
            self._scorer.refuse_too_many_missing(rewards)
            no_images = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
            out += [Evaluation(rewards=r, images=no_images, prompts=prompts) for r in rewards]
            on_group(num)
        return out

    def guard_values(self, policy: Evaluation, base: Evaluation) -> dict[str, GuardValue]:
        """The values of the run's guards for an evaluation, beside the base model's."""
        if self._guards is None:
            return {}
        reading = self._guards.read(self.report_set, policy, base)
        return {name: GuardValue(**values) for name, values in reading.to_json().items()}

    def close(self) -> None:
        """Stop the reward threads."""
        self._scorer.close()
        if self._guards is not None:
            self._guards.close()


def check_same(front: Front, evaluations: Mapping[str, Evaluation]) -> None:
    """Refuse a comparison with policies that were measured differently.

    Args:
        front: as published.
        evaluations: of some of its policies now, among others.

    Raises:
        FrontError: if a policy's return is off by more than its standard error.
    """
    for policy in (each for each in front.policies if each.id in evaluations):
        now, then = evaluations[policy.id].returns.numpy(), policy.report_returns
        room = policy.report_std_error + 1e-3 * np.abs(then)
        for name, a, b, off in zip(front.names, now, then, np.abs(now - then) > room, strict=True):
            if off:
                raise FrontError(
                    f"{policy.id} has {name}={a:.4g} now and had {b:.4g} when the run measured it: "
                    "its prompts, the reward or the base model have changed since. Nothing was "
                    "published; restore them first"
                )


def _report_set(settings: Settings, front: Front) -> EvaluationSet:
    """The prompts and seeds that the front was measured on.

    Raises:
        FrontError: if its prompts cannot be read, or have changed.
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
            f"the report set has changed since the run: prompts.report={settings.prompts.report!r} "
            "holds other prompts now; restore it first"
        )
    return report_set
