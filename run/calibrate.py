"""What the base model scores, and the recipe lines that follow: `mo_train.py --calibrate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ddpo.advantages import within_prompt_std
from ddpo.calibration import (
    NUM_LOOKED_AT,
    Calibration,
    calibrate,
    calibration_set,
    picture_problem,
)
from ddpo.processes import Processes, own_device, use_threads
from ddpo.trainer import Trainer
from ddpo.types import scored
from run.failures import memory_advised
from run.progress import Progress, route_logs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from config.base import Settings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spread:
    """How the base model's rewards vary; each field is (M,) float64, raw units.

    Attributes:
        mean: over all pictures.
        std_error: of the mean, from the means of the prompts.
        within: standard deviation around the prompt's mean.
        between: standard deviation of the prompts' true means.
        correlation: (M, M) of two objectives within a prompt.
    """

    mean: torch.Tensor
    std_error: torch.Tensor
    within: torch.Tensor
    between: torch.Tensor
    correlation: torch.Tensor


def reward_spread(rewards: torch.Tensor, prompts: Sequence[str]) -> Spread:
    """Split the variance of rewards (N, M) of N prompts into that within and that between prompts.

    The variance of the prompts' sample means holds the within-prompt variance over the number of
    pictures of each, which is taken off (one-way analysis of variance).
    """
    prompts, values = scored(prompts, rewards.double())
    groups = [
        values[[i for i, text in enumerate(prompts) if text == prompt]]
        for prompt in dict.fromkeys(prompts)
    ]
    means = torch.stack([group.mean(dim=0) for group in groups])
    residuals = torch.cat([group - group.mean(dim=0) for group in groups])
    within = within_prompt_std(values, prompts)
    pictures = len(values) / len(groups)
    variance = means.var(dim=0) if len(groups) > 1 else torch.zeros_like(within)
    norms = residuals.norm(dim=0).clamp(min=1e-12)
    return Spread(
        mean=values.mean(dim=0),
        std_error=(variance / len(groups)).sqrt(),
        within=within,
        between=(variance - within.square() / pictures).clamp(min=0).sqrt(),
        correlation=(residuals.T @ residuals) / (norms[:, None] * norms),
    )


def measure(settings: Settings, device: torch.device) -> tuple[Spread, Calibration, str | None]:
    """Draw the base model's pictures of the calibration set and score them.

    Returns:
        How their rewards vary, what follows for a recipe, and what is wrong with the pictures.

    Raises:
        UserError: if the model or a reward cannot be loaded, or a reward fails.
    """
    route_logs()
    progress = Progress(num_generations=1)
    trainer = Trainer(settings, Processes.alone(device), progress.steps)
    try:
        drawn = calibration_set(
            trainer.prompts.train, settings.evaluation.calibration_prompts, settings.seed
        )
        initial = trainer.agents.initial_policy()
        measured = trainer.evaluate([initial], drawn, NUM_LOOKED_AT, use_guards=False)[0]
        problem = picture_problem(measured.images, trainer.scale)
    finally:
        trainer.close()
        progress.close()
    rewards = measured.rewards
    calibration = calibrate(rewards, drawn.prompts, settings.rewards)
    return reward_spread(rewards, drawn.prompts), calibration, problem


def calibration_report(settings: Settings, device: torch.device | None = None) -> str:
    """Mean and spread of every reward under the base model, and lines for a recipe, as text.

    Raises:
        UserError: see `measure`.
    """
    use_threads(settings.num_threads)
    with memory_advised():
        spread, calibration, problem = measure(settings, device or own_device())
    names = settings.rewards.objectives
    warning = ["", f"warning: {problem}"] if problem else []
    return "\n".join([*_table(names, spread), "", *_recipe_lines(calibration), *warning])


def _table(names: Sequence[str], spread: Spread) -> Iterator[str]:
    yield f"{'objective':24} {'mean':>10} {'+-':>8} {'within a prompt':>16} {'between prompts':>16}"
    rows = zip(names, spread.mean, spread.std_error, spread.within, spread.between, strict=True)
    for name, mean, error, within, between in rows:
        yield f"{name:24} {mean:10.4g} {error:8.2g} {within:16.3g} {between:16.3g}"
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            value = spread.correlation[i, j].item()
            yield f"correlation of {second} and {first} within a prompt: {value:+.2f}"


def _recipe_lines(calibration: Calibration) -> Iterator[str]:
    """Settings to paste into a recipe, rounded to a hundredth of the scale."""
    yield "# z = 0 and 1: the base model's mean -+ 3 standard deviations within a prompt"
    scales = calibration.scales
    for key in ("reference", "ideal", "scales"):
        numbers = zip(getattr(calibration, key), scales, strict=True)
        rounded = [_rounded(value, scale / 100) for value, scale in numbers]
        yield f"config.rewards.{key} = ({', '.join(rounded)})"


def _rounded(value: float, step: float) -> str:
    """The number with as many decimals as the step has meaning."""
    decimals = max(0, -math.floor(math.log10(step)))
    return f"{value:.{decimals}f}"
