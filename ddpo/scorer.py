"""Scores images off the main thread, so that the next chunk is sampled meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from config.errors import UserError
from ddpo.rewards import REWARDS
from ddpo.types import RewardBatch, Rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from config.schema import RewardSettings
    from ddpo.agents import Agents
    from ddpo.rewards import Reward
    from ddpo.sampler import Sampler
    from ddpo.types import PromptBatch


class RewardError(UserError):
    """A reward raised, or returned something that is not one finite score per image."""


class Scorer:
    """Applies the objectives' rewards to batches of images in worker threads.

    Args:
        rewards: objective name -> reward, in the order of the objectives.
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.rewards = dict(rewards)
        self._pool = ThreadPoolExecutor(max_workers=len(self.rewards), thread_name_prefix="reward")

    @classmethod
    def build(cls, settings: RewardSettings, device: torch.device) -> Scorer:
        """Build the rewards named in the settings.

        Raises:
            RewardError: naming the one whose weights cannot be loaded.
        """
        rewards = {}
        for name in settings.names:
            try:
                rewards[name] = REWARDS[name].build(settings, device)
            except (OSError, ValueError) as error:
                raise RewardError(f"reward {name!r} cannot be loaded: {error}") from error
        return cls(rewards)

    def submit(self, images: torch.Tensor, prompts: Sequence[str]) -> list[Future[torch.Tensor]]:
        """Start scoring images (rows, 3, H, W); one future of (rows,) per objective."""
        return [
            self._pool.submit(_score, name, reward, images, prompts)
            for name, reward in self.rewards.items()
        ]

    def gather(
        self, reward_futures: Sequence[Sequence[Future[torch.Tensor]]], num_agents: int
    ) -> RewardBatch:
        """Wait for the chunks submitted and put their scores together as (K, N, M).

        Raises:
            RewardError: if a reward fails.
        """
        chunks = [
            torch.stack([future.result() for future in futures], dim=-1)
            for futures in reward_futures
        ]
        values = torch.cat([chunk.unflatten(0, (num_agents, -1)) for chunk in chunks], dim=1)
        return RewardBatch(objectives=tuple(self.rewards), values=values)

    def close(self) -> None:
        """Stop the worker threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _score(name: str, reward: Reward, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Call one reward and check its answer.

    Raises:
        RewardError: naming the reward, what was expected and what came.
    """
    try:
        scores = reward(images, prompts)
    except Exception as error:
        raise RewardError(f"reward {name!r} failed on {len(images)} images: {error!r}") from error
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (len(images),):
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise RewardError(f"reward {name!r}: expected a tensor ({len(images)},), got {got}")
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise RewardError(f"reward {name!r}: {bad} of {len(images)} scores are not finite")
    return scores.detach().float().cpu()


def collect(
    sampler: Sampler,
    scorer: Scorer,
    agents: Agents,
    prompts: PromptBatch,
    on_step: Callable[[], object] | None = None,
) -> tuple[Rollout, RewardBatch]:
    """Sample a batch chunk by chunk, scoring each chunk while the next is drawn.

    Args:
        sampler: draws the rollout.
        scorer: scores its images.
        agents: the policies.
        prompts: K * N rows.
        on_step: called after every denoising step.

    Returns:
        The rollout and its rewards (K, N, M).

    Raises:
        RewardError: if a reward fails.
    """
    chunks, reward_futures = [], []
    for chunk in sampler.chunks(agents, prompts, on_step):
        chunks.append(chunk)
        reward_futures.append(scorer.submit(chunk.images, chunk.prompts.texts))
    rewards = scorer.gather(reward_futures, prompts.num_agents)
    return Rollout.join(prompts, chunks), rewards
