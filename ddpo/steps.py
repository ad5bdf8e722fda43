"""The denoising steps that are trained, and what a run reports about its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.settings.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddpo.ddim import Schedule

DISTILLED = ("lcm", "tcd")  # samplers of models that were distilled to be drawn with them
_SHOWN = 10  # timesteps of a longer schedule are left out in the middle


def trained_steps(schedule: Schedule, max_sensitivity: float) -> list[int]:
    """Indices of the steps that a policy gradient is taken on.

    A step without noise has no log-probability. Near the picture, x_t almost determines x_{t-1}.
    Such a step is several times as sensitive as the median step, and its noise drowns the gradients
    of the others. So the first step that is too sensitive and all later steps are not trained.

    Args:
        schedule: T steps.
        max_sensitivity: of the median (`train.max_sensitivity`); 0: all steps that have noise.

    Raises:
        UserError: if that leaves none, or there is only one step.
    """
    noisy = schedule.trainable_steps
    num_steps = len(schedule.timesteps)
    if num_steps == 1:
        raise UserError(
            "sample.num_steps=1 cannot be trained by a policy gradient: a single step ends in the "
            "picture, so there is no choice of noise to learn from; draw with 3 "
            "steps or more, or follow the gradients of rewards alone "
            "(train.update_rule=reward_gradient without black boxes, train.kl_coef=0)"
        )
    sensitivity = schedule.sensitivity
    limit = max_sensitivity * sensitivity[noisy].median() if noisy else 0
    sharp = [step for step in noisy if max_sensitivity and sensitivity[step] > limit]
    steps = [step for step in noisy if step < min(sharp, default=num_steps)]
    if not steps:
        raise UserError(
            f"none of the {num_steps} denoising steps of this model can be trained: the steps that "
            "train.max_sensitivity leaves have no noise; raise sample.num_steps, or use timesteps "
            "that begin at the first (pretrained.timestep_spacing=trailing)"
        )
    return steps


def check_spacing(schedule: Schedule, spacing: str) -> None:
    """Refuse a spacing of timesteps for a sampler that has its own.

    Args:
        schedule: of the pictures to learn from.
        spacing: `pretrained.timestep_spacing`; empty: not set.

    Raises:
        UserError: if it would have no effect.
    """
    if spacing and schedule.sampler in DISTILLED:
        raise UserError(
            f"pretrained.timestep_spacing={spacing} has no effect: this model is drawn with "
            f"{schedule.sampler}, which has timesteps of its own; leave it empty, or set "
            "sample.sampler=ddim or euler_a"
        )


def described(schedule: Schedule, trained: Sequence[int] | None) -> list[str]:
    """Sentences that a run prints about its steps when it starts.

    Args:
        schedule: of the pictures to learn from.
        trained: steps, see `trained_steps`; None where no policy gradient is taken.
    """
    times = [str(t) for t in schedule.timesteps.tolist()]
    num = len(times)
    if num > _SHOWN:
        times = [*times[:3], "...", *times[-2:]]
    steps = "1 step" if num == 1 else f"{num} steps"
    line = f"drawn by {schedule.sampler} in {steps}, at {', '.join(times)}"
    if trained is None:
        return [line]
    lines = [f"{line}; {len(trained)} of them trained, from {times[0]} on"]
    if num == 2:
        lines.append(
            "warning: with two steps a policy gradient learns from one choice of noise only, and "
            "degenerates (LaSRO, arXiv 2411.15247); draw with 3 steps or more, or follow the "
            "gradients of rewards"
        )
    return lines
