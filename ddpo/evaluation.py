"""Returns of policies, estimated on the same prompts and noise: paired across policies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from config.settings.errors import StoppedError
from ddpo.processes import Processes
from ddpo.prompts import spread
from ddpo.rewards.scorer import RewardError
from ddpo.seeding import Stream
from ddpo.types import Evaluation, EvaluationSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ddpo.agents.slots import Agents
    from ddpo.rewards.guards import Guards
    from ddpo.rewards.scorer import Scorer
    from ddpo.types import Policy, PromptBatch

_MIN_IMAGES = 2  # with fewer, a mean has no standard error


class Drawn(Protocol):
    """Pictures of some prompts, agent-major."""

    @property
    def prompts(self) -> PromptBatch:
        """What was drawn."""
        ...

    @property
    def images(self) -> torch.Tensor:
        """(rows, 3, H, W) in [0, 1]."""
        ...


class Drawing(Protocol):
    """A way of drawing: `Sampler`, or another."""

    def prompt_batch(
        self, texts: Sequence[str], seeds: Sequence[int], num_agents: int
    ) -> PromptBatch:
        """Encode prompts into a batch of agent-major rows."""
        ...

    def chunks(
        self, agents: Agents, prompts: PromptBatch, on_step: Callable[[], object] | None = None
    ) -> Iterator[Drawn]:
        """The pictures in chunks, each with some pictures of every agent."""
        ...


def evaluation_set(
    purpose: str,
    prompts: Sequence[str],
    num_images: int,
    run_seed: int,
    guards: Sequence[str] = (),
) -> EvaluationSet:
    """Cycle through the prompts, with a new seed for each image.

    With fewer images than prompts, evenly spaced prompts of the set are used. The guards
    `diversity` and `agreement` compare pictures of one prompt, so they get two of each.

    Args:
        purpose: "calibration", "selection" or "report"; sets of different purposes share no
            seed.
        prompts: the distinct prompts.
        num_images: N.
        run_seed: keys the seeds.
        guards: the guards to measure on it.
    """
    index = range(num_images)
    per_prompt = 2 if {"diversity", "agreement"} & set(guards) else 1
    prompts = spread(prompts, num_images // per_prompt)
    stream = Stream[purpose.upper()]
    return EvaluationSet(
        prompts=tuple(prompts[i % len(prompts)] for i in index),
        seeds=tuple(stream.seed(run_seed=run_seed, sample=i) for i in index),
    )


def evaluate(
    policies: Sequence[Policy],
    evaluation_set: EvaluationSet,
    sampler: Drawing,
    scorer: Scorer,
    agents: Agents,
    keep_images: int = 0,
    on_step: Callable[[], object] | None = None,
    processes: Processes | None = None,
    guards: Guards | None = None,
) -> list[Evaluation]:
    """Score policies on the same prompts and noise, as many at a time as there are agents.

    The agents' slots are overwritten.

    Args:
        policies: any number of them.
        evaluation_set: N prompts and seeds.
        sampler: draws the images.
        scorer: scores them.
        agents: slots to work in.
        keep_images: how many images per policy to return.
        on_step: called after every denoising step.
        processes: all processes that share the work; each has a part of the policies and samples.
        guards: also look at the images.

    Returns:
        One `Evaluation` per policy; the same in every process.

    Raises:
        RewardError: if a reward fails, or a policy has too few scores.
    """
    # This process's share.
    processes = processes or Processes.alone(agents.device)
    num_policies, prompts = len(policies), evaluation_set.prompts
    share = processes.share(num_policies, len(prompts))
    own = EvaluationSet(
        prompts=prompts[share.samples.start : share.samples.stop],
        seeds=evaluation_set.seeds[share.samples.start : share.samples.stop],
    )
    keep = min(max(keep_images - share.samples.start, 0), len(own.prompts))
    # As many policies at a time as there are slots.
    with processes.fail_together(RewardError, StoppedError, torch.OutOfMemoryError):
        parts = []
        for group in _groups(policies[share.agents.start : share.agents.stop], agents):
            parts.append(_judge(group, own, sampler, scorer, agents, keep, on_step, guards))
            so_far = torch.cat([part[0] for part in parts])
            scorer.refuse_too_many_missing(so_far, num_policies * len(prompts))
    # The results of all processes.
    rewards = processes.join(torch.cat([part[0] for part in parts]), num_policies)
    scorer.refuse_too_many_missing(rewards)
    if (short := rewards.isfinite().all(dim=-1).sum(dim=1).min().item()) < _MIN_IMAGES:
        raise RewardError(f"a policy has only {short} scored images of {len(prompts)}")
    images = processes.join(torch.cat([part[1] for part in parts]), num_policies)
    evaluations = [
        Evaluation(rewards=r, images=i, prompts=prompts)
        for r, i in zip(rewards, images, strict=True)
    ]
    if guards is None:
        return evaluations
    features = processes.join(torch.cat([part[2] for part in parts]), num_policies)
    guards.refuse_too_many_missing(features)
    return [replace(e, features=f) for e, f in zip(evaluations, features, strict=True)]


def _groups(policies: Sequence[Policy], agents: Agents) -> Iterator[Sequence[Policy]]:
    """Groups of as many policies as there are slots."""
    for start in range(0, len(policies), agents.num_agents):
        yield policies[start : start + agents.num_agents]


def _judge(
    group: Sequence[Policy],
    evaluation_set: EvaluationSet,
    sampler: Drawing,
    scorer: Scorer,
    agents: Agents,
    keep_images: int,
    on_step: Callable[[], object] | None,
    guards: Guards | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards (k, n, M), first images (uint8) and features (k, n, F) of k policies, n samples."""
    k = len(group)
    features = torch.empty(k, 0, guards.num_features if guards else 0)
    no_images = torch.empty(k, 0, 3, 0, 0, dtype=torch.uint8)
    if not evaluation_set.prompts:  # fewer samples than processes
        return torch.empty(k, 0, len(scorer.rewards)), no_images, features
    for slot, policy in enumerate(group):
        agents.load(slot, policy)
    prompts, seeds = evaluation_set.prompts * k, evaluation_set.seeds * k
    batch = sampler.prompt_batch(prompts, seeds, k)
    kept: list[torch.Tensor] = []
    reward_futures, pending = [], []
    for chunk in sampler.chunks(agents, batch, on_step):
        reward_futures.append(scorer.submit(chunk.images, chunk.prompts.texts))
        if guards is not None:
            pending.append(guards.submit(chunk.images, chunk.prompts.texts))
        if sum(part.shape[1] for part in kept) < keep_images:
            kept.append(chunk.images.mul(255).round().byte().cpu().unflatten(0, (k, -1)))
    rewards = scorer.gather(reward_futures, k).values
    if guards is not None:
        features = guards.gather(pending, k)
    images = torch.cat(kept, dim=1)[:, :keep_images] if kept else no_images
    return rewards, images, features
