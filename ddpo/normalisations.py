"""How rewards of several objectives become one number: one function and one table line per way.

This file does not import torch: settings are checked against the table before torch is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

EPS = 1e-6  # relative to a reward's size: a smaller spread counts as none
MAX_ADVANTAGE = 5.0  # advantages are clipped to +- this
_TINY = 2.0**-1022  # the smallest normal float64


class PerPrompt(Protocol):
    """Mean and standard deviation (N, M) of each sample's prompt."""

    def __call__(
        self, rewards: torch.Tensor, mix: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rewards (N, M). `mix` (L,) first turns stored vectors of L rewards into one number."""
        ...


def frozen(
    rewards: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor, per_prompt: PerPrompt
) -> torch.Tensor:
    """Centre per prompt and divide by the spread under the base model: weights keep their meaning.

    Args:
        rewards: (N, M) float64 of one agent, complete.
        weights: (M,) float64.
        scales: (M,) spread of each objective under the base model.
        per_prompt: gives the prompts' statistics.

    Returns:
        (N,) float64: the weighted sum of the centred and divided rewards.
    """
    centre, _ = per_prompt(rewards)
    return ((rewards - centre) / scales.double().to(rewards.device)) @ weights


def running(
    rewards: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor,  # noqa: ARG001
    per_prompt: PerPrompt,
) -> torch.Tensor:
    """Centre and divide by each objective's running spread within the prompt (GDPO).

    See `frozen` for the arguments.
    """
    centre, spread = per_prompt(rewards)
    return ((rewards - centre) / _floored(spread, rewards)) @ weights


def raw(
    rewards: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor,  # noqa: ARG001
    per_prompt: PerPrompt,
) -> torch.Tensor:
    """Weight the raw rewards first, w . r, then centre and divide per prompt; see `frozen`."""
    mixed = (rewards @ weights)[:, None]
    centre, spread = per_prompt(mixed, weights)
    return ((mixed - centre) / _floored(spread, mixed)) @ weights.new_ones(1)


def _floored(spread: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """The spread, raised a little so that it is never 0."""
    return (spread + EPS * rewards.abs().mean(dim=0)).clamp_min(_TINY)


NORMALISATIONS: dict[
    str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PerPrompt], torch.Tensor]
] = {
    "frozen": frozen,
    "per_prompt": running,
    "raw": raw,
}
