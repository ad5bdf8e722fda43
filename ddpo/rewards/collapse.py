"""Agents that no longer vary what they draw, and so have nothing to learn from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddpo.types import RewardBatch, Rollout

logger = logging.getLogger(__name__)


class CollapseWatch:
    """Reports collapsed agents, each once per generation."""

    def __init__(self) -> None:
        self._reported: set[tuple[int, int]] = set()  # (generation, agent)

    def look(
        self,
        generation: int,
        rewards: RewardBatch,
        prompts: Sequence[str],
        rollout: Rollout,
        own: range,
    ) -> int:
        """Warn about agents whose rewards vary within no prompt.

        Args:
            generation: of the rollout.
            rewards: of all K agents.
            prompts: N, the same for every agent.
            rollout: of the agents and samples that this process has, to tell whether the images
                are identical or only their rewards.
            own: these agents.

        Returns:
            How many agents have collapsed.
        """
        is_collapsed = without_variance(rewards.values, prompts)
        images = rollout.images.unflatten(0, (len(own), -1))
        for agent in is_collapsed.nonzero().flatten().tolist():
            if (generation, agent) in self._reported:
                continue
            self._reported.add((generation, agent))
            what = "rewards do not vary"
            if agent in own:
                texts = rollout.prompts.texts[: images.shape[1]]
                if without_variance(images[[agent - own.start]], texts).all():
                    what = "images are identical"
            logger.warning(
                "agent %d has collapsed in generation %d: its %s within any prompt, so that it has "
                "nothing to learn from; a lower train.learning_rate may keep it from there",
                agent,
                generation,
                what,
            )
        return int(is_collapsed.sum())


def without_variance(values: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Which agents' samples differ within no prompt.

    All their advantages are zero: a policy gradient has nothing to compare.

    Args:
        values: (K, N, ...) of each sample: reward vectors, or images. NaN is a missing value.
        prompts: N; those that come once say nothing.

    Returns:
        (K,) True where every prompt's samples are all alike; False if no prompt comes twice.

    Example:
        >>> without_variance(torch.tensor([[[1.0], [1.0]], [[1.0], [2.0]]]), ["cat", "cat"])
        tensor([ True, False])
    """
    flat = values.flatten(2).nan_to_num(0.0)
    first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    if len(first) == len(prompts):
        return torch.zeros(len(values), dtype=torch.bool)
    same_as = torch.tensor([first[prompt] for prompt in prompts])
    return (flat == flat[:, same_as]).flatten(1).all(dim=1).cpu()
