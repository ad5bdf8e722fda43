"""Which denoising steps are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.settings.errors import UserError

if TYPE_CHECKING:
    from ddpo.ddim import Schedule


def trained_steps(schedule: Schedule, skip_last: int) -> list[int]:
    """Indices of the steps that have variance and are none of the last ones.

    Args:
        schedule: T steps.
        skip_last: how many steps at the end are left out (`train.skip_last_steps`).

    Raises:
        UserError: if that leaves none.
    """
    num_steps = len(schedule.timesteps)
    steps = [step for step in schedule.trainable_steps if step < num_steps - skip_last]
    if not steps:
        raise UserError(
            f"none of the {num_steps} denoising steps of this model can be trained: what "
            "train.skip_last_steps leaves has no noise; raise sample.num_steps"
        )
    return steps
