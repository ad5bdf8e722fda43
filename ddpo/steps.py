"""Which denoising steps are trained, how much each counts, and where there is noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from config.settings.errors import UserError
from ddpo.ddim import output_coefficient

if TYPE_CHECKING:
    from ddpo.ddim import Schedule


def trained_steps(schedule: Schedule, skip_last: int) -> list[int]:
    """Indices of the steps that have variance and are none of the last ones.

    Args:
        schedule: T steps.
        skip_last: how many steps at the end are left out (`train.skip_last_steps`).
    """
    last = len(schedule.timesteps) - skip_last
    return [step for step in schedule.trainable_steps if step < last]


def step_weights(schedule: Schedule, skip_last: int, weighting: str) -> torch.Tensor:
    """What the losses of each step's pairs are multiplied with (`train.step_weighting`).

    The gradient of a step's log-probability with respect to the prediction is z c_t / sigma_t per
    entry, z being the noise drawn and c_t = |d mean / d output|. "sensitivity" weighs a step by
    sigma_t / c_t, which makes it z at every step: none drowns the others. TempFlow-GRPO (He et al.
    2025, arXiv 2508.04324) weighs by the noise level to the same end.

    Args:
        schedule: T steps, with noise in all that may be trained.
        skip_last: as in `trained_steps`.
        weighting: "equal" or "sensitivity".

    Returns:
        (T,), of mean 1 over the trained steps and 0 elsewhere.
    """
    weights, steps = torch.zeros_like(schedule.sigma), trained_steps(schedule, skip_last)
    weights[steps] = 1
    if weighting == "sensitivity":
        c = output_coefficient(
            schedule.alpha_bar, schedule.alpha_bar_prev, schedule.sigma, schedule.prediction_type
        )
        weights[steps] = schedule.sigma[steps] / c[steps]
    return weights / weights[steps].mean()


def noise_windows(schedule: Schedule, skip_last: int, num_noisy: int) -> list[Schedule]:
    """The schedule with noise in a window of steps only, one schedule for each place of it.

    The other steps follow the probability-flow ODE, so that what a sample is worth is owed to the
    few noisy steps, and these alone are trained: MixGRPO (Li et al. 2025, arXiv 2507.21802).

    Args:
        schedule: T steps.
        skip_last: as in `trained_steps`; a window holds trained steps only.
        num_noisy: length of the window (`sample.noisy_steps`); 0 for noise in all steps.

    Returns:
        At least one; the schedule itself if `num_noisy` is 0.

    Raises:
        UserError: if there are not so many trained steps in a row.
    """
    if num_noisy == 0:
        return [schedule]
    steps = trained_steps(schedule, skip_last)
    places = [range(step, step + num_noisy) for step in steps]
    windows = [schedule.noisy_within(place) for place in places if set(place) <= set(steps)]
    if not windows:
        raise UserError(
            f"sample.noisy_steps={num_noisy} is more than the {len(steps)} denoising steps of this "
            "model that can be trained; lower it"
        )
    return windows
