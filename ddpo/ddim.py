"""A denoising step as a stochastic policy: mean, standard deviation and log-probability.

Pure functions of tensors. Denoising is the MDP of DDPO (Black et al. 2024, section 4.2): the state
is (prompt, t, x_t), the action x_{t-1}, and the policy the Gaussian of one step. That is a step of
DDIM (Song et al. 2021, eq. 12 and 16), or of a sampler for few steps. Such a sampler has other
timesteps and another standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from config.settings.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

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
        boundary: (2, T), see `step_mean`; None for all samplers but "lcm".
        first_std: standard deviation of the noise that the first step starts from.
        sampler: its name in `SAMPLERS`.
    """

    timesteps: torch.Tensor
    alpha_bar: torch.Tensor
    alpha_bar_prev: torch.Tensor
    sigma: torch.Tensor
    prediction_type: str
    boundary: torch.Tensor | None = None
    first_std: float = 1.0
    sampler: str = "ddim"

    @property
    def trainable_steps(self) -> list[int]:
        """Indices of the steps with variance; the others have no finite log-probability."""
        return self.sigma.gt(0).nonzero().flatten().tolist()

    @property
    def sensitivity(self) -> torch.Tensor:
        """(T,) how strongly each step's log-probability depends on the prediction: c / sigma."""
        boundary = None if self.boundary is None else self.boundary.unbind()
        given = self.alpha_bar, self.alpha_bar_prev, self.sigma, self.prediction_type
        return output_coefficient(*given, boundary) / self.sigma

    def mean(
        self, model_output: torch.Tensor, latents: torch.Tensor, steps: torch.Tensor | int
    ) -> torch.Tensor:
        """Mean of x_{t-1}, see `step_mean`, of one step for all rows, or of each row's own step."""

        def at(values: torch.Tensor) -> torch.Tensor:
            return values[steps] if isinstance(steps, int) else column(values, steps)

        boundary = None if self.boundary is None else tuple(at(c) for c in self.boundary.unbind())
        return step_mean(
            model_output,
            latents,
            at(self.alpha_bar),
            at(self.alpha_bar_prev),
            at(self.sigma),
            self.prediction_type,
            boundary,
        )

    def to(self, device: torch.device | str) -> Schedule:
        """The same schedule on `device`."""
        tensors = ("timesteps", "alpha_bar", "alpha_bar_prev", "sigma", "boundary")
        values = {name: getattr(self, name) for name in tensors}
        return replace(self, **{name: v.to(device) for name, v in values.items() if v is not None})


def column(values: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The values (T,) of these steps, broadcastable to latents (pairs, C, h, w)."""
    return values[steps].view(-1, 1, 1, 1)


def make_schedule(scheduler: Any, num_steps: int, eta: float) -> Schedule:
    """Read T steps off diffusers' scheduler.

    People draw with exported adapters by that scheduler, so every coefficient is taken from it.

    Args:
        scheduler: of one of the classes in `SAMPLERS`.
        num_steps: T.
        eta: for "ddim", 0 is deterministic and 1 gives DDPM's variance. For "tcd" this is gamma: at
            1 a step keeps none of the noise before it.

    Returns:
        A `Schedule` on the CPU.

    Raises:
        UserError: if the model lacks T distinct timesteps, or its first step has no signal and it
            predicts noise (`rescale_betas_zero_snr`: Lin et al. 2024, section 3.3), or the sampler
            has no eta to set.
    """
    sampler = name_of(scheduler)
    if sampler in _WITHOUT_ETA and eta != 1:
        raise UserError(
            f"sample.eta={eta:g} has no effect on sampler {sampler!r}, whose noise is fixed; set "
            "it to 1, or sample.sampler=ddim or tcd"
        )
    train_steps = scheduler.config.num_train_timesteps
    timesteps = _timesteps(scheduler, num_steps)
    if timesteps is None:
        near = sorted(range(1, train_steps), key=lambda n: abs(n - num_steps))
        fits = next((n for n in near if _timesteps(scheduler, n) is not None), None)
        raise UserError(
            f"num_steps={num_steps} does not fit the {train_steps} timesteps of the model's "
            f"scheduler ({_layout(scheduler)}), which cannot give {num_steps} distinct ones; set "
            f"sample.num_steps or evaluation.num_steps to {fits}, for example"
            if fits
            else f"{_layout(scheduler)} gives fractions of timesteps, and sampler {sampler!r} "
            "needs whole ones; set pretrained.timestep_spacing=trailing"
        )
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    if scheduler.config.prediction_type == "epsilon" and alpha_bar.min() <= _NO_SIGNAL:
        raise UserError(
            "the model's scheduler has no signal left at its first step (rescale_betas_zero_snr) "
            "but prediction_type 'epsilon', which cannot say what the picture is there; use the "
            "scheduler the model was trained with: pretrained.prediction_type=v_prediction, or "
            "pretrained.zero_snr=no"
        )
    return _STEPS[sampler](
        scheduler,
        eta,
        timesteps=timesteps,
        alpha_bar=alpha_bar,
        prediction_type=scheduler.config.prediction_type,
        sampler=sampler,
    )


def _timesteps(scheduler: Any, num_steps: int) -> torch.Tensor | None:
    """(T,) int64, descending; None unless they are T distinct ones of the table.

    "trailing" spacing gives one timestep too many, at -1, for 62 numbers of steps such as 61.
    """
    train_steps = scheduler.config.num_train_timesteps
    if num_steps > train_steps:
        return None
    try:
        scheduler.set_timesteps(num_steps)
    except ValueError:  # more than a consistency model was distilled for
        return None
    timesteps = scheduler.timesteps.long().cpu()
    is_whole = len(timesteps) == num_steps and bool((timesteps.diff() < 0).all())
    is_whole = is_whole and torch.equal(timesteps.double(), scheduler.timesteps.cpu().double())
    return timesteps if is_whole and timesteps[-1] >= 0 and timesteps[0] < train_steps else None


def _layout(scheduler: Any) -> str:
    """Where its timesteps lie, for messages."""
    config = scheduler.config
    if "original_inference_steps" in config:
        return f"distilled at {config.original_inference_steps} of them"
    return f"spacing {config.timestep_spacing!r}, offset {config.steps_offset}"


def _ddim(scheduler: Any, eta: float, *, alpha_bar: torch.Tensor, **same: Any) -> Schedule:
    """Song et al. 2021, with a previous timestep num_train_timesteps // T earlier.

    This holds for every spacing, as in `DDIMScheduler.step`. With "trailing" it may miss the next
    step's timestep by one, with "linspace" by more.
    """
    previous = same["timesteps"] - scheduler.config.num_train_timesteps // len(alpha_bar)
    alpha_bar_prev = torch.where(
        previous >= 0,
        scheduler.alphas_cumprod[previous.clamp(min=0)],
        scheduler.final_alpha_cumprod,
    )
    return Schedule(
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        sigma=step_std(alpha_bar, alpha_bar_prev, eta),
        **same,
    )


def _euler_ancestral(
    scheduler: Any, eta: float, *, alpha_bar: torch.Tensor, **same: Any
) -> Schedule:
    """Karras et al. 2022's Euler step with DDPM's noise: DDIM's at eta 1, to the next timestep.

    The last step arrives at the picture. The first step starts from noise of standard deviation 1
    with "leading" spacing and sqrt(1 - abar) with others (`EulerAncestralDiscreteScheduler`).
    """
    alpha_bar_prev = torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])
    is_leading = scheduler.config.timestep_spacing == "leading"
    return Schedule(
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        sigma=step_std(alpha_bar, alpha_bar_prev, eta),
        first_std=1.0 if is_leading else float((1 - alpha_bar[0].double()) ** 0.5),
        **same,
    )


def _lcm(scheduler: Any, eta: float, *, alpha_bar: torch.Tensor, **same: Any) -> Schedule:
    """A latent consistency model (Luo et al. 2023, algorithm 3): the picture, noised again."""
    del eta
    alpha_bar_prev = torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])
    boundary = scheduler.get_scalings_for_boundary_condition_discrete(same["timesteps"])
    return Schedule(
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        sigma=(1 - alpha_bar_prev).sqrt(),
        boundary=torch.stack(boundary),
        **same,
    )


def _tcd(scheduler: Any, eta: float, *, alpha_bar: torch.Tensor, **same: Any) -> Schedule:
    """Zheng et al. 2024: to the timestep s = (1 - gamma) t', and from there back to t' with noise.

    The standard deviation at t' is sqrt(1 - abar_t' / abar_s), and the mean is DDIM's for it.
    """
    previous = torch.cat([same["timesteps"][1:], same["timesteps"].new_zeros(1)])
    between = torch.floor((1 - eta) * previous).long()
    alpha_bar_prev, alpha_bar_between = (scheduler.alphas_cumprod[t] for t in (previous, between))
    return Schedule(
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        sigma=(1 - alpha_bar_prev / alpha_bar_between).sqrt(),
        **same,
    )


# Sampler -> its class in diffusers, which draws with an exported adapter.
SAMPLERS = {
    "ddim": "DDIMScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
_STEPS = {"ddim": _ddim, "euler_a": _euler_ancestral, "lcm": _lcm, "tcd": _tcd}
_WITHOUT_ETA = ("euler_a", "lcm")
_NO_SIGNAL = 2.0**-24  # EulerAncestralDiscreteScheduler has this in place of 0


def name_of(scheduler: Any) -> str:
    """The sampler that a scheduler of diffusers is."""
    return next(name for name, kind in SAMPLERS.items() if kind == type(scheduler).__name__)


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
    boundary: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Mean of x_{t-1}: Song et al. 2021, eq. 12.

    For a consistency model, sigma is all the noise in x_{t-1}: none of x_t's noise is kept. Its
    picture is c_out x_0 + c_skip x_t (Luo et al. 2023, section 4).

    Args:
        model_output: (rows, C, h, w) guided prediction of the UNet.
        latents: (rows, C, h, w), x_t.
        alpha_bar: broadcastable to rows, as are `alpha_bar_prev` and `sigma`.
        alpha_bar_prev: see `Schedule`.
        sigma: see `Schedule`.
        prediction_type: what the UNet predicts.
        boundary: c_skip and c_out of a consistency model; None for others.

    Returns:
        (rows, C, h, w).

    Raises:
        ValueError: for an unknown `prediction_type`.
    """
    x0, eps = denoise(model_output, latents, alpha_bar, prediction_type)
    if boundary is not None:
        c_skip, c_out = boundary
        return alpha_bar_prev**0.5 * (c_out * x0 + c_skip * latents)
    direction = (1 - alpha_bar_prev - sigma**2).clamp(min=0) ** 0.5
    return alpha_bar_prev**0.5 * x0 + direction * eps


def output_coefficient(
    alpha_bar: torch.Tensor,
    alpha_bar_prev: torch.Tensor,
    sigma: torch.Tensor,
    prediction_type: str = "epsilon",
    boundary: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """How strongly the mean of x_{t-1} depends on the prediction: |d mean / d output|.

    The mean is affine in the prediction, with the same factor for every latent entry.

    Args:
        alpha_bar: (T,), see `Schedule`, as are the others.
        alpha_bar_prev: (T,).
        sigma: (T,).
        prediction_type: what the UNet predicts.
        boundary: see `step_mean`.

    Returns:
        (T,).

    >>> quarter, half, third = torch.tensor([[0.25], [0.5], [1 / 3]])
    >>> output_coefficient(quarter, half, third**0.5)  # |sqrt(1/2 - 1/3) - sqrt(1/2 * 3/4 / (1/4))|
    tensor([0.8165])
    """
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    given = alpha_bar, alpha_bar_prev, sigma, prediction_type, boundary
    return step_mean(one, zero, *given).abs()


def gaussian_log_prob(
    action: torch.Tensor, mean: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Log-density of `action`, averaged (not summed) over the latent entries, in float32.

    The public DDPO implementation averages, too. With D entries, the ratio is then the true ratio
    to the power 1/D, and a clip range of eps allows eps * D nats.

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

    It is ||mean - other||^2 / (2 sigma^2 D) for D entries: one step of DPOK's bound on the
    divergence from the base model (Fan et al. 2023, section 4.2), in the units of
    `gaussian_log_prob`.

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
    """Undo part of the contrast that guidance adds (Lin et al. 2024, eq. 15 and 16).

    Args:
        guided: (rows, C, h, w).
        conditional: (rows, C, h, w); its standard deviation is the target.
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
