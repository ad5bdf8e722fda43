"""Returns of policies, estimated on fixed prompts and fixed noise: paired across policies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from config.settings.errors import StoppedError
from ddpo.processes import Processes
from ddpo.prompts import spread
from ddpo.rewards.scorer import RewardError
from ddpo.seeding import keyed_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ddpo.agents.slots import Agents, Policy
    from ddpo.rewards.guards import Guards
    from ddpo.rewards.scorer import Scorer
    from ddpo.sampler import Sampler

_MIN_IMAGES = 2  # below that a mean has no standard error

# Second word of the key of every evaluation seed. Training keys have the generation there, so no
# training image is ever an evaluation image.
_KEYS = {"calibration": 1_000_001, "selection": 1_000_002, "report": 1_000_003}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """N prompts and seeds that every policy is judged on.

    Attributes:
        prompts: one per image.
        seeds: one per image.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def make(
        cls, purpose: str, prompts: Sequence[str], num_images: int, run_seed: int
    ) -> EvaluationSet:
        """Cycle through the prompts, a new seed for each image.

        With fewer images than prompts, the prompts used are evenly spaced over the set.

        Args:
            purpose: "calibration", "selection" or "report"; sets of different purpose share no
                seed.
            prompts: the distinct prompts.
            num_images: N.
            run_seed: keys the seeds.
        """
        index, prompts = range(num_images), spread(prompts, num_images)
        return cls(
            prompts=tuple(prompts[i % len(prompts)] for i in index),
            seeds=tuple(keyed_seed(run_seed, _KEYS[purpose], i) for i in index),
        )

    def first(self, num_images: int) -> EvaluationSet:
        """The first prompts and seeds: those of the pictures that are shown."""
        return EvaluationSet(prompts=self.prompts[:num_images], seeds=self.seeds[:num_images])

    def to_json(self) -> dict[str, list[str] | list[int]]:
        """As the run's records store it."""
        return {"prompts": list(self.prompts), "seeds": list(self.seeds)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """One policy's rewards on an evaluation set.

    Attributes:
        rewards: (N, M) float32, one row per image; NaN where a score is missing. Returns are
            means over the images that have all scores.
        images: (n, 3, H, W) uint8, the first n images.
        features: (N, F) float32, what guards keep of each image (`ddpo/rewards/guards.py`).
    """

    rewards: torch.Tensor
    images: torch.Tensor
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @property
    def returns(self) -> torch.Tensor:
        """(M,) float64 mean reward."""
        return _present(self.rewards).mean(dim=0)

    @property
    def std_error(self) -> torch.Tensor:
        """(M,) float64 standard error of `returns`."""
        return standard_error(self.rewards)

    def gain_over(self, other: Evaluation) -> tuple[torch.Tensor, torch.Tensor]:
        """Paired difference of returns to `other` and its standard error, each (M,) float64."""
        difference = self.rewards.double() - other.rewards.double()
        return _present(difference).mean(dim=0), standard_error(difference)


def standard_error(rewards: torch.Tensor) -> torch.Tensor:
    """(M,) float64 standard error of the mean of rewards (N, M), over rows without NaN."""
    present = _present(rewards)
    return present.std(dim=0) / math.sqrt(len(present))


def _present(rewards: torch.Tensor) -> torch.Tensor:
    """The rows of rewards (N, M) that have all scores, float64."""
    return rewards[rewards.isfinite().all(dim=-1)].double()


def evaluate(
    policies: Sequence[Policy],
    evaluation_set: EvaluationSet,
    sampler: Sampler,
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
        processes: that share the work, each a part of the policies and of the samples.
        guards: measured on the images too.

    Returns:
        One `Evaluation` per policy; the same in every process.

    Raises:
        RewardError: if a reward fails, or leaves a policy without enough scores.
    """
    processes = processes or Processes.alone(agents.device)
    num_policies, prompts = len(policies), evaluation_set.prompts
    share = processes.share(num_policies, len(prompts))
    own = EvaluationSet(
        prompts=prompts[share.samples.start : share.samples.stop],
        seeds=evaluation_set.seeds[share.samples.start : share.samples.stop],
    )
    keep = min(max(keep_images - share.samples.start, 0), len(own.prompts))
    with processes.together(RewardError, StoppedError, torch.OutOfMemoryError):
        parts = []
        for group in _groups(policies[share.agents.start : share.agents.stop], agents):
            parts.append(_judge(group, own, sampler, scorer, agents, keep, on_step, guards))
            so_far = torch.cat([part[0] for part in parts])
            scorer.refuse_too_many_missing(so_far, num_policies * len(prompts))
    rewards = processes.join(torch.cat([part[0] for part in parts]), num_policies)
    scorer.refuse_too_many_missing(rewards)
    if (short := rewards.isfinite().all(dim=-1).sum(dim=1).min().item()) < _MIN_IMAGES:
        raise RewardError(f"a policy has only {short} scored images of {len(prompts)}")
    images = processes.join(torch.cat([part[1] for part in parts]), num_policies)
    if guards is None:
        return [Evaluation(rewards=r, images=i) for r, i in zip(rewards, images, strict=True)]
    features = processes.join(torch.cat([part[2] for part in parts]), num_policies)
    guards.refuse_too_many_missing(features)
    return [
        Evaluation(rewards=r, images=i, features=f)
        for r, i, f in zip(rewards, images, features, strict=True)
    ]


def _groups(policies: Sequence[Policy], agents: Agents) -> Iterator[Sequence[Policy]]:
    """As many policies at a time as there are slots."""
    for start in range(0, len(policies), agents.num_agents):
        yield policies[start : start + agents.num_agents]


def _judge(
    group: Sequence[Policy],
    on: EvaluationSet,
    sampler: Sampler,
    scorer: Scorer,
    agents: Agents,
    keep_images: int,
    on_step: Callable[[], object] | None,
    guards: Guards | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards (k, n, M) of k policies on n samples, the first images, uint8, and (k, n, F)."""
    k = len(group)
    features = torch.empty(k, 0, guards.num_features if guards else 0)
    no_images = torch.empty(k, 0, 3, 0, 0, dtype=torch.uint8)
    if not on.prompts:  # fewer samples than processes
        return torch.empty(k, 0, len(scorer.rewards)), no_images, features
    for slot, policy in enumerate(group):
        agents.load(slot, policy)
    batch = sampler.prompt_batch(on.prompts * k, on.seeds * k, k)
    kept: list[torch.Tensor] = []
    reward_futures, measured = [], []
    for chunk in sampler.chunks(agents, batch, on_step):
        reward_futures.append(scorer.submit(chunk.images, chunk.prompts.texts))
        if guards is not None:
            measured.append(guards.submit(chunk.images, chunk.prompts.texts))
        if sum(part.shape[1] for part in kept) < keep_images:
            kept.append(chunk.images.mul(255).round().byte().cpu().unflatten(0, (k, -1)))
    rewards = scorer.gather(reward_futures, k).values
    if guards is not None:
        features = guards.gather(measured, k)
    images = torch.cat(kept, dim=1)[:, :keep_images] if kept else no_images
    return rewards, images, features
