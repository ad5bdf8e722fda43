"""PPO's clipped surrogate as DDPO uses it, and its diagnostics. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


def clip_range_from_nats(nats: float, latent_entries: int) -> float:
    """Clip range of the mean log-ratio that allows `nats` of the true log-ratio per step.

    DDPO's published 1e-4 at 4 x 64 x 64 latents is 1.64 nats. On smaller latents, the same number
    of nats is a wider clip range.

    >>> round(clip_range_from_nats(1.6384, 4 * 64 * 64), 6)
    0.0001
    """
    return nats / latent_entries


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surrogate:
    """A rule's losses and diagnostics for some pairs; every tensor is (pairs,).

    Attributes:
        loss: with gradient.
        log_ratio: of the policy being trained to the one that sampled.
        metrics: reported as means over pairs, under `update/<name>`.
    """

    loss: torch.Tensor
    log_ratio: torch.Tensor
    metrics: Mapping[str, torch.Tensor]

    @classmethod
    def of(
        cls, loss: torch.Tensor, log_ratio: torch.Tensor, is_clipped: torch.Tensor | None = None
    ) -> Surrogate:
        """A surrogate with the metrics that all rules have.

        Args:
            loss: with gradient.
            log_ratio: see above.
            is_clipped: True where the ratio lies outside the clip range; by default nowhere.
        """
        loss_value, log_ratio = loss.detach(), log_ratio.detach()
        clipped = torch.zeros_like(loss_value) if is_clipped is None else is_clipped
        metrics = {
            "loss": loss_value,
            "approx_kl": 0.5 * log_ratio.square(),  # averaged over the latent entries
            "clip_fraction": clipped.to(loss_value.dtype),
        }
        return cls(loss=loss, log_ratio=log_ratio, metrics=metrics)


def clipped_surrogate(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    clip_range: float,
) -> Surrogate:
    """PPO's pessimistic objective per (sample, step) pair: DDPO (Black et al. 2024), eq. 4 and 4.3.

    loss = max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) with rho = exp(log_prob - old_log_prob).

    Args:
        log_probs: (pairs,) under the policy being trained.
        old_log_probs: (pairs,) under the policy that sampled.
        advantages: (pairs,).
        clip_range: eps, for the ratio of densities averaged over the latent entries.

    Returns:
        A `Surrogate`; its `clip_fraction` is 1 where the ratio lies outside the clip range.

    >>> one = torch.ones(1)
    >>> clipped_surrogate(torch.log(1.5 * one), torch.log(one), one, clip_range=0.2).loss
    tensor([-1.2000])
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return Surrogate.of(
        torch.maximum(-advantages * ratio, -advantages * clipped),
        log_ratio=log_ratio,
        is_clipped=(ratio.detach() - 1).abs() > clip_range,
    )
