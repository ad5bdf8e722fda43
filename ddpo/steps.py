"""Which denoising steps are trained, and where there is noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.errors import UserError

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
