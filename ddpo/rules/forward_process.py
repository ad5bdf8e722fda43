"""Learning on the forward process: add noise to a finished image and see how well it is denoised.

This needs only the clean latents x_0, no trajectory and no likelihood. Pure functions of tensors.
"Error" means the error of the predicted noise, eps_theta(x_t) - eps (Ho et al. 2020, eq. 14).
"""

from __future__ import annotations

import torch


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """x_t of the forward process: Ho et al. 2020, eq. 4.

    Args:
        clean: (rows, C, h, w), x_0.
        noise: (rows, C, h, w), standard normal.
        alpha_bar: broadcastable to rows.

    >>> add_noise(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(0.64))
    tensor(2.2000)
    """
    return alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise


def mean_square(error: torch.Tensor) -> torch.Tensor:
    """(rows,) mean over the latent entries of the squared error.

    >>> mean_square(torch.tensor([[1.0, 3.0]]))
    tensor([5.])
    """
    return error.square().flatten(1).mean(dim=1)


def negative_aware_loss(
    error: torch.Tensor, old_error: torch.Tensor, optimality: torch.Tensor, strength: float
) -> torch.Tensor:
    """DiffusionNFT (Zheng et al. 2025, eq. 5) with predicted noise in place of velocity.

    Two implicit policies lie on either side of the one that sampled. The first should denoise good
    images, the second bad ones:

        eps+ = eps_old + beta (eps_theta - eps_old),  eps- = eps_old - beta (eps_theta - eps_old)
        loss = r |eps+ - eps|^2 + (1 - r) |eps- - eps|^2

    Args:
        error: (rows, C, h, w), eps_theta - eps of the policy being trained.
        old_error: (rows, C, h, w) of the policy that sampled; no gradient flows into it.
        optimality: (rows,), r in [0, 1]; at 1/2 the policy that sampled gets no gradient.
        strength: beta > 0; a smaller one demands larger steps.

    Returns:
        (rows,) losses, averaged over the latent entries.

    >>> one = torch.ones(1, 1)
    >>> negative_aware_loss(2 * one, one, torch.tensor([0.75]), strength=1.0)
    tensor([3.])
    """
    old = old_error.detach()
    shift = strength * (error - old)
    return optimality * mean_square(old + shift) + (1 - optimality) * mean_square(old - shift)


def optimality(advantages: torch.Tensor, max_advantage: float) -> torch.Tensor:
    """Turn advantages into DiffusionNFT's r: 1/2 at 0, and 0 or 1 from -+ `max_advantage` on.

    >>> optimality(torch.tensor([-5.0, 0.0, 2.5]), max_advantage=5.0)
    tensor([0.0000, 0.5000, 0.7500])
    """
    return 0.5 + 0.5 * (advantages / max_advantage).clamp(-1, 1)
