"""From reward vectors to advantages: normalise each objective, then weight.

A reward mixed raw, w . r, follows whichever objective has the larger spread (with aesthetic scores
of spread 0.5 and file sizes of spread 25 kB an even mix is all file size). So each objective is
centred per prompt and divided by its own scale first; A is then linear in w.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ddpo.normalisations import EPS, NORMALISATIONS
from ddpo.types import PromptStatistics, scored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.base import AdvantageSettings


def advantages(
    rewards: torch.Tensor,
    weights: torch.Tensor,
    prompts: Sequence[Sequence[str]],
    statistics: Sequence[PromptStatistics],
    scales: torch.Tensor,
    settings: AdvantageSettings,
    *,
    standardise: bool = True,
) -> tuple[torch.Tensor, list[PromptStatistics]]:
    """Advantages of all agents' samples, and the statistics with these rewards taken in.

    Per sample and objective k: A_k = (r_k - mean_k(prompt)) / s_k, then A = sum_k w_k A_k, divided
    by the standard deviation of A over the agent's samples (a scalar: it cannot turn the direction)
    where `standardise` asks for it, and clipped. A prompt seen fewer than `min_count` times is
    centred on the agent's whole batch. Where s_k comes from is `settings.normalisation`, see
    `ddpo/normalisations.py`.

    A sample with a missing score has advantage 0 and enters neither statistics nor means.

    Args:
        rewards: (K, N, M); NaN where a score is missing.
        weights: (K, M), rows sum to 1.
        prompts: K sequences of N prompts.
        statistics: one per agent.
        scales: (M,) standard deviation of each objective within a prompt under the base model.
        settings: normalisation, buffer size, minimum count, clipping.
        standardise: False keeps advantages in units of the scales, so that a gradient of rewards
            can be added to theirs.

    Returns:
        (K, N) float32 advantages; the K updated statistics.
    """
    updated = [
        stats.add(texts, values, settings.buffer_size)
        for stats, texts, values in zip(statistics, prompts, rewards, strict=True)
    ]
    out = torch.zeros(rewards.shape[:2], device=rewards.device)
    for row, values, w, texts, stats in zip(
        out, rewards.double(), weights, prompts, updated, strict=True
    ):
        kept, present = scored(texts, values)
        if kept:
            mixed = _one_agent(present, w, kept, stats, scales, settings)
            if standardise:
                mixed = mixed / (mixed.std(correction=0) + EPS)
            mixed = mixed.clamp(-settings.max_advantage, settings.max_advantage)
            row[values.isfinite().all(dim=-1)] = mixed.float()
    return out, updated


def _one_agent(
    values: torch.Tensor,
    weights: torch.Tensor,
    prompts: Sequence[str],
    statistics: PromptStatistics,
    scales: torch.Tensor,
    settings: AdvantageSettings,
) -> torch.Tensor:
    """Weighted sums (N,) of one agent's normalised rewards (N, M), see `advantages`."""

    def per_prompt(
        rewards: torch.Tensor, mix: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _per_prompt(rewards, prompts, statistics, settings.min_count, mix)

    normalise = NORMALISATIONS[settings.normalisation]
    return normalise(values, weights.double().to(values.device), scales, per_prompt)


def _per_prompt(
    values: torch.Tensor,
    prompts: Sequence[str],
    statistics: PromptStatistics,
    min_count: int,
    mix: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (N, M) for each sample: its prompt's, or the whole batch's.

    `mix` (M,) first turns the stored reward vectors into one scalar each.
    """
    batch_std = values.std(dim=0, correction=0)
    centre, spread = values.mean(dim=0).repeat(len(values), 1), batch_std.repeat(len(values), 1)
    for prompt in set(prompts):
        seen = statistics.rewards(prompt)
        if len(seen) < min_count:
            continue
        if mix is not None:
            seen = (seen @ mix.cpu())[:, None]
        where = [i for i, text in enumerate(prompts) if text == prompt]
        centre[where] = seen.mean(dim=0).to(values)
        spread[where] = seen.std(dim=0, correction=0).to(values)
    return centre, spread


def within_prompt_std(rewards: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Pooled standard deviation of each objective around its prompt's mean.

    Args:
        rewards: (N, M); vectors with a missing score (NaN) are left out.
        prompts: N prompts; those seen once carry no information.

    Returns:
        (M,) float64; 0 for an objective that varies by rounding only.
    """
    prompts, values = scored(prompts, rewards.double())
    squares, freedom = torch.zeros(values.shape[1], dtype=torch.float64), 0
    for prompt in sorted(set(prompts)):
        group = values[[i for i, text in enumerate(prompts) if text == prompt]]
        squares += (group - group.mean(dim=0)).square().sum(dim=0)
        freedom += len(group) - 1
    std = (squares / max(freedom, 1)).sqrt()
    return torch.where(std > EPS * values.abs().mean(dim=0), std, 0)
