"""DDIM as a stochastic policy: step mean, standard deviation and Gaussian log-probability.

Pure functions of tensors. Denoising is the MDP of DDPO (Black et al. 2024, section 4.2): the state
is (prompt, t, x_t), the action x_{t-1}, and the policy the Gaussian of one DDIM step
(Song et al. 2021, eq. 12 and 16).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from config.settings.errors import UserError

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """Coefficients of T denoising steps, prepared once on the device.

    Attributes:
        timesteps: (T,) int64, descending.
        alpha_bar: (T,) cumulative alpha at each step's x_t.
        alpha_bar_prev: (T,) cumulative alpha at each step's x_{t-1}.
        sigma: (T,) standard deviation of x_{t-1}.
        prediction_type: "epsilon", "v_prediction" or "sample".
    """

    timesteps: torch.Tensor
    alpha_bar: torch.Tensor
    alpha_bar_prev: torch.Tensor
    sigma: torch.Tensor
    prediction_type: str

    @property
    def trainable_steps(self) -> list[int]:
        """Indices of the steps with variance; the others have no finite log-probability."""
        return self.sigma.gt(0).nonzero().flatten().tolist()

    def to(self, device: torch.device | str) -> Schedule:
        """The same schedule on `device`."""
        return Schedule(
            timesteps=self.timesteps.to(device),
            alpha_bar=self.alpha_bar.to(device),
            alpha_bar_prev=self.alpha_bar_prev.to(device),
            sigma=self.sigma.to(device),
            prediction_type=self.prediction_type,
        )


def make_schedule(scheduler: DDIMScheduler, num_steps: int, eta: float) -> Schedule:
    """Read T steps off diffusers' scheduler.

    A step's previous timestep is num_train_timesteps // T earlier whatever the spacing, as in
    `DDIMScheduler.step`: with "trailing" it may miss the next step's timestep by one, with
    "linspace" by more. An exported adapter is drawn with by that scheduler, so it is followed.

    Args:
        scheduler: a DDIMScheduler; its spacing, offset and final alpha are kept.
        num_steps: T.
        eta: 0 is deterministic DDIM, 1 the variance of DDPM.

    Returns:
        A `Schedule` on the CPU.

    Raises:
        UserError: if the model has not T distinct timesteps, or its first step has no signal and it
            predicts noise (`rescale_betas_zero_snr`: Lin et al. 2024, section 3.3).
    """
    train_steps = scheduler.config.num_train_timesteps
    timesteps = _timesteps(scheduler, num_steps)
    if timesteps is None:
        near = sorted(range(1, train_steps), key=lambda n: abs(n - num_steps))
        fits = next((n for n in near if _timesteps(scheduler, n) is not None), None)
        raise UserError(
            f"num_steps={num_steps} does not fit the {train_steps} timesteps of the model's "
            f"scheduler (spacing {scheduler.config.timestep_spacing!r}, offset "
            f"{scheduler.config.steps_offset}): they are not {num_steps} distinct ones; set "
            f"sample.num_steps or evaluation.num_steps to {fits}, say"
        )
    previous = timesteps - train_steps // num_steps
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    alpha_bar_prev = torch.where(
        previous >= 0,
        scheduler.alphas_cumprod[previous.clamp(min=0)],
        scheduler.final_alpha_cumprod,
    )
    if scheduler.config.prediction_type == "epsilon" and not alpha_bar.all():
        raise UserError(
            "the model's scheduler has no signal left at its first step (rescale_betas_zero_snr) "
            "but prediction_type 'epsilon', which cannot say what the picture is there; use the "
            "scheduler the model was trained with: pretrained.prediction_type=v_prediction, or "
            "pretrained.zero_snr=no"
        )
    return Schedule(
        timesteps=timesteps,
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        sigma=step_std(alpha_bar, alpha_bar_prev, eta),
        prediction_type=scheduler.config.prediction_type,
    )


def _timesteps(scheduler: DDIMScheduler, num_steps: int) -> torch.Tensor | None:
    """(T,) int64, descending; None unless they are T distinct ones of the table.

    With "trailing" spacing 61 and 61 other numbers below 1000 give one timestep too many, at -1.
    """
    train_steps = scheduler.config.num_train_timesteps
    if num_steps > train_steps:
        return None
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps.long().cpu()
    is_whole = len(timesteps) == num_steps and bool((timesteps.diff() < 0).all())
    return timesteps if is_whole and timesteps[-1] >= 0 and timesteps[0] < train_steps else None


def step_std(alpha_bar: torch.Tensor, alpha_bar_prev: torch.Tensor, eta: float) -> torch.Tensor:
    """Standard deviation of x_{t-1} given x_t: Song et al. 2021, eq. 16.

    >>> step_std(torch.tensor(0.25), torch.tensor(0.5), eta=1.0)  # sqrt(0.5/0.75 * (1 - 0.25/0.5))
    tensor(0.5774)
    """
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    return eta * variance.clamp(min=0).sqrt()


def denoise(
    model_output: torch.Tensor,
    latents: torch.Tensor,
    alpha_bar: torch.Tensor,
    prediction_type: str = "epsilon",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean latents and the noise that a prediction implies (Salimans and Ho 2022, app. D).

    Args:
        model_output: (rows, C, h, w) prediction of the UNet.
        latents: (rows, C, h, w), x_t.
        alpha_bar: broadcastable to rows.
        prediction_type: what the UNet predicts.

    Returns:
        x_0 and eps, (rows, C, h, w) each.

    Raises:
        ValueError: for an unknown `prediction_type`.
    """
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if prediction_type == "epsilon":
        return (latents - noise * model_output) / signal, model_output
    if prediction_type == "v_prediction":
        return (
            signal * latents - noise * model_output,
            signal * model_output + noise * latents,
        )
    if prediction_type == "sample":
        return model_output, (latents - signal * model_output) / noise
    raise ValueError(
        f"prediction_type={prediction_type!r} is not known; "
        "use 'epsilon', 'v_prediction' or 'sample'"
    )


def step_mean(
    model_output: torch.Tensor,
    latents: torch.Tensor,
    alpha_bar: torch.Tensor,
    alpha_bar_prev: torch.Tensor,
    sigma: torch.Tensor,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    """Mean of x_{t-1}: Song et al. 2021, eq. 12.

    Args:
        model_output: (rows, C, h, w) guided prediction of the UNet.
        latents: (rows, C, h, w), x_t.
        alpha_bar: broadcastable to rows, as are `alpha_bar_prev` and `sigma`.
        alpha_bar_prev: see `Schedule`.
        sigma: see `Schedule`.
        prediction_type: what the UNet predicts.

    Returns:
        (rows, C, h, w).

    Raises:
        ValueError: for an unknown `prediction_type`.
    """
    x0, eps = denoise(model_output, latents, alpha_bar, prediction_type)
    direction = (1 - alpha_bar_prev - sigma**2).clamp(min=0) ** 0.5
    return alpha_bar_prev**0.5 * x0 + direction * eps


def output_coefficient(
    alpha_bar: torch.Tensor,
    alpha_bar_prev: torch.Tensor,
    sigma: torch.Tensor,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    """How strongly the mean of x_{t-1} depends on the prediction: |d mean / d output|.

    The mean is affine in the prediction, with the same factor for every latent entry.

    Args:
        alpha_bar: (T,), see `Schedule`, as are the others.
        alpha_bar_prev: (T,).
        sigma: (T,).
        prediction_type: what the UNet predicts.

    Returns:
        (T,).

    >>> quarter, half, third = torch.tensor([[0.25], [0.5], [1 / 3]])
    >>> output_coefficient(quarter, half, third**0.5)  # |sqrt(1/2 - 1/3) - sqrt(1/2 * 3/4 / (1/4))|
    tensor([0.8165])
    """
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    return step_mean(one, zero, alpha_bar, alpha_bar_prev, sigma, prediction_type).abs()


def gaussian_log_prob(
    action: torch.Tensor, mean: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Log-density of `action`, averaged (not summed) over the latent entries, in float32.

    The mean is the definition of the public DDPO implementation: for D entries its ratio is the
    true ratio to the power 1/D, so a clip range of eps is a gate of eps * D nats.

    Args:
        action: (rows, C, h, w), x_{t-1} as sampled; no gradient flows into it.
        mean: (rows, C, h, w).
        sigma: broadcastable to rows; must be positive.

    Returns:
        (rows,) float32 (float64 if the inputs are).
    """
    error = (action.detach() - mean) / sigma
    log_prob = -0.5 * error**2 - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
    return log_prob.mean(dim=tuple(range(1, log_prob.ndim)))


def gaussian_kl(mean: torch.Tensor, other: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """KL divergence of two Gaussians of the same standard deviation, averaged over latent entries.

    ||mean - other||^2 / (2 sigma^2 D) for D entries: DPOK's bound on the divergence from the base
    model, one step of it (Fan et al. 2023, section 4.2), in the units of `gaussian_log_prob`.

    Args:
        mean: (rows, C, h, w).
        other: (rows, C, h, w).
        sigma: broadcastable to rows; must be positive.

    Returns:
        (rows,) float32 (float64 if the inputs are).

    >>> one = torch.ones(1, 1, 1, 1)
    >>> gaussian_kl(3 * one, one, 2 * one)  # (3 - 1)^2 / (2 * 2^2)
    tensor([0.5000])
    """
    divergence = 0.5 * ((mean - other) / sigma) ** 2
    return divergence.mean(dim=tuple(range(1, divergence.ndim)))


def guide(unconditional: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): the policy is the guided prediction."""
    return unconditional + scale * (conditional - unconditional)


def rescale_guidance(
    guided: torch.Tensor, conditional: torch.Tensor, amount: float
) -> torch.Tensor:
    """Take back a part of the contrast that guidance adds (Lin et al. 2024, eq. 15 and 16).

    Args:
        guided: (rows, C, h, w).
        conditional: (rows, C, h, w), whose standard deviation is the one to come back to.
        amount: 0 is none, 1 all of it.

    Returns:
        (rows, C, h, w).

    >>> wide, narrow = torch.tensor([[[[-4.0, 4.0]]]]), torch.tensor([[[[-2.0, 2.0]]]])
    >>> rescale_guidance(wide, narrow, 0.5)  # halfway from 4 to 4 * (2 / 4)
    tensor([[[[-3.,  3.]]]])
    """
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return amount * (guided * ratio) + (1 - amount) * guided
