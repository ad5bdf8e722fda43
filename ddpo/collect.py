"""Sampling and scoring side by side: the next chunk is drawn while the last is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.types import Rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ddpo.agents.slots import Agents
    from ddpo.rewards.scorer import Scorer
    from ddpo.sampler import Sampler
    from ddpo.types import PromptBatch, RewardBatch


def collect(
    sampler: Sampler,
    scorer: Scorer,
    agents: Agents,
    prompts: PromptBatch,
    on_step: Callable[[], object] | None = None,
    wanted: Mapping[int, float] | None = None,
) -> tuple[Rollout, RewardBatch]:
    """Sample a batch chunk by chunk, scoring each chunk while the next is drawn.

    Args:
        sampler: draws the rollout.
        scorer: scores its images.
        agents: the policies.
        prompts: K * N rows.
        on_step: called after every denoising step.
        wanted: step -> weight, for steps whose gradients are taken on the way; see
            `Sampler.chunks`.

    Returns:
        The rollout and its rewards (K, N, M).

    Raises:
        RewardError: if a reward fails.
    """
    chunks, submissions = [], []
    for chunk in sampler.chunks(agents, prompts, on_step, wanted):
        submissions.append(scorer.submit(chunk.images, chunk.prompts.texts))
        chunks.append(chunk.offloaded() if sampler.settings.offload_rollouts else chunk)
    rewards = scorer.gather(submissions, prompts.num_agents)
    return Rollout.join(prompts, chunks), rewards
