"""From reward vectors to advantages: normalise each objective, then weight.

    A = sum_k w_k (r_k - mean_k(prompt)) / s_k

A sum of raw rewards, w . r, would follow the objective with the larger spread. With aesthetic
scores of spread 0.5 and file sizes of spread 25 kB, an even mix would be all file size. So each
objective is first centred per prompt and divided by its own scale. A is then linear in w.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ddpo.normalisations import EPS, MAX_ADVANTAGE, NORMALISATIONS
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
    """Advantages of all agents' samples, and the statistics with these rewards added.

    For each sample, A_k = (r_k - mean_k(prompt)) / s_k and A = sum_k w_k A_k. With `standardise`, A
    is divided by its standard deviation over the agent's samples. One number divides them all, so
    the mix of objectives stays the same. Then A is clipped. A prompt seen fewer than `min_count`
    times is centred on the agent's whole batch. `settings.normalisation` chooses the s_k, see
    `ddpo/normalisations.py`.

    A sample with a missing score has advantage 0. It enters neither statistics nor means.

    Args:
        rewards: (K, N, M); NaN where a score is missing.
        weights: (K, M), rows sum to 1.
        prompts: K sequences of N prompts.
        statistics: one per agent.
        scales: (M,) standard deviation of each objective within a prompt under the base model.
        settings: normalisation and minimum count.
        standardise: False keeps advantages in units of the scales, so that their policy gradient
            and a gradient of rewards can be added.

    Returns:
        (K, N) float32 advantages; the K updated statistics.
    """
    updated = [
        stats.add(texts, values)
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
            mixed = mixed.clamp(-MAX_ADVANTAGE, MAX_ADVANTAGE)
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
    """Mean and standard deviation (N, M) for each sample: of its prompt, or of the whole batch.

    `mix` (M,), if given, first turns each stored reward vector into one scalar.
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
        prompts: N prompts; a prompt that occurs once carries no information.

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
