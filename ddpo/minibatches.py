"""Minibatches of an update, as index tensors: made from numbers alone, before any UNet pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from config.base import TrainSettings
    from ddpo.processes import Share


def steps_per_sample(settings: TrainSettings, num_steps: int) -> int:
    """How many of the steps that can be trained each sample is trained on, at least one."""
    return max(1, round(settings.timestep_fraction * num_steps))


def pairs_per_update(settings: TrainSettings, num_samples: int, num_steps: int) -> int:
    """(sample, step) pairs of an agent in one optimiser step, in all processes.

    Args:
        settings: of the updates.
        num_samples: N.
        num_steps: that can be trained.
    """
    return num_samples // settings.updates_per_epoch * steps_per_sample(settings, num_steps)


def draw_minibatches(
    share: Share, steps: Sequence[int], seeds: Sequence[int], settings: TrainSettings
) -> list[torch.Tensor]:
    """Which pairs each optimiser step of an iteration is taken on.

    All samples of an agent are shuffled, whatever share of them is here. Of every
    `updates_per_epoch` consecutive samples each goes to another minibatch: so an even share of the
    samples holds an even share of every minibatch.

    Args:
        share: which samples are here.
        steps: that can be trained.
        seeds: K, a seed for each agent.
        settings: epochs, updates per epoch, share of the steps.

    Returns:
        A tensor (K, pairs, 2) for each optimiser step: (sample of this process, one of `steps`).
    """
    updates, first = settings.updates_per_epoch, share.samples.start
    blocks = slice(first // updates, share.samples.stop // updates)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    minibatches: list[torch.Tensor] = []
    for _ in range(settings.num_inner_epochs):
        epoch = torch.stack(
            [_shuffled_pairs(share.num_samples, steps, settings, each) for each in generators]
        )
        own = epoch[:, blocks] - torch.tensor([first, 0])
        minibatches += [part.flatten(1, 2) for part in own.unbind(dim=2)]
    return minibatches


def _shuffled_pairs(
    samples: int, steps: Sequence[int], settings: TrainSettings, generator: torch.Generator
) -> torch.Tensor:
    """(blocks, updates, steps per sample, 2): samples shuffled in blocks, and random steps."""
    updates = settings.updates_per_epoch
    order = torch.rand(samples // updates, updates, generator=generator).argsort(dim=1)
    order += torch.arange(0, samples, updates)[:, None]
    draws = torch.rand(*order.shape, len(steps), generator=generator)
    count = steps_per_sample(settings, len(steps))
    drawn = torch.tensor(steps)[draws.argsort(dim=-1)[..., :count]]
    return torch.stack([order[..., None].expand_as(drawn), drawn], dim=-1)


def passes(
    pairs: torch.Tensor, num_samples: int, pairs_per_pass: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Agent-major rollout rows and steps, as many at a time as one UNet pass may carry.

    Args:
        pairs: (K, pairs, 2) of one minibatch.
        num_samples: of each agent in the rollout.
        pairs_per_pass: of each agent.
    """
    offset = torch.arange(len(pairs), device=pairs.device)[:, None] * num_samples
    for part in pairs.split(pairs_per_pass, dim=1):
        yield (part[..., 0] + offset).flatten(), part[..., 1].flatten()
