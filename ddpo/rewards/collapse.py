"""Detection of collapsed agents: their pictures no longer vary, so they cannot learn."""

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
            rollout: of this process's agents and samples; it shows whether the images are
                identical or only their rewards.
            own: this process's agents.

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
                "agent %d has collapsed in generation %d: its %s within any prompt, so it has "
                "nothing to learn from; a lower train.learning_rate may prevent this",
                agent,
                generation,
                what,
            )
        return int(is_collapsed.sum())


def without_variance(values: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Which agents have identical samples within every prompt.

    All their advantages are zero: a policy gradient has nothing to compare.

    Args:
        values: (K, N, ...), reward vectors or images of each sample; NaN is a missing value.
        prompts: N; a prompt that occurs once has nothing to compare.

    Returns:
        (K,) True where all samples of every prompt are equal; False if no prompt occurs twice.

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
