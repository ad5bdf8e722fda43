"""Minibatches of an update as index tensors, made from numbers alone before any UNet pass.

An epoch of one agent is a table of samples, shuffled within blocks of `updates_per_epoch`:

    block 0:  sample 2  sample 0  sample 1       column j is minibatch j: one sample of every block,
    block 1:  sample 3  sample 5  sample 4       each with its randomly chosen denoising steps

Processes share the blocks, so that each holds an even part of every minibatch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from config.base import TrainSettings
    from ddpo.processes import Share


def steps_per_sample(settings: TrainSettings, num_steps: int) -> int:
    """How many of the `num_steps` trainable steps each sample is trained on; at least one."""
    return max(1, round(settings.timestep_fraction * num_steps))


def pairs_per_update(settings: TrainSettings, num_samples: int, num_steps: int) -> int:
    """(sample, step) pairs per agent in one optimiser step, in all processes.

    Args:
        settings: of the updates.
        num_samples: N.
        num_steps: how many steps can be trained.
    """
    return num_samples // settings.updates_per_epoch * steps_per_sample(settings, num_steps)


def draw_minibatches(
    share: Share, steps: Sequence[int], seeds: Sequence[int], settings: TrainSettings
) -> list[torch.Tensor]:
    """Draw the (sample, step) pairs of each optimiser step of an iteration.

    All samples of an agent are shuffled in every process, whatever its share. Each of
    `updates_per_epoch` consecutive samples goes to a different minibatch.

    Args:
        share: the samples of this process.
        steps: the trainable steps.
        seeds: K, one per agent.
        settings: epochs, updates per epoch, fraction of the steps.

    Returns:
        One tensor (K, pairs, 2) per optimiser step: (sample of this process, one of `steps`).
    """
    # This process's blocks.
    updates, first = settings.updates_per_epoch, share.samples.start
    blocks = slice(first // updates, share.samples.stop // updates)
    # Every epoch's table, its own part, and one minibatch per column.
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
    """One agent's epoch (blocks, updates, steps per sample, 2): shuffled samples, random steps."""
    # Samples: a random order within each block.
    updates = settings.updates_per_epoch
    order = torch.rand(samples // updates, updates, generator=generator).argsort(dim=1)
    order += torch.arange(0, samples, updates)[:, None]
    # Steps: for each sample, the first `count` of a random order.
    draws = torch.rand(*order.shape, len(steps), generator=generator)
    count = steps_per_sample(settings, len(steps))
    drawn = torch.tensor(steps)[draws.argsort(dim=-1)[..., :count]]
    return torch.stack([order[..., None].expand_as(drawn), drawn], dim=-1)


def passes(
    pairs: torch.Tensor, num_samples: int, pairs_per_pass: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Split a minibatch into UNet passes.

    Args:
        pairs: (K, pairs, 2) of one minibatch.
        num_samples: per agent in the rollout.
        pairs_per_pass: per agent, at most.

    Yields:
        Rows of the rollout and denoising steps of one pass, both (pairs,) and agent-major.
    """
    offset = torch.arange(len(pairs), device=pairs.device)[:, None] * num_samples
    for part in pairs.split(pairs_per_pass, dim=1):
        yield (part[..., 0] + offset).flatten(), part[..., 1].flatten()
