"""The base model's scores, and whether rewards can be trusted: `mo_train.py --calibrate`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
from ddpo.rewards.audit import AUDITED, Audit, audit, spread_findings
from ddpo.rewards.guards import Guards
from ddpo.trainer import Trainer
from ddpo.types import Evaluation, scored
from run.audit_page import write_audit
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
    """Split the variance of rewards (N, M) of N prompts: within prompts, and between them.

    The variance of the prompts' sample means includes a part of the within-prompt variance: that
    variance over the number of pictures per prompt. It is subtracted (one-way analysis of
    variance).
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


def measure(
    settings: Settings, device: torch.device
) -> tuple[Spread, Calibration, Audit, str | None]:
    """Draw the base model's pictures of the calibration set and score them.

    Returns:
        The spread of their rewards, the calibration for a recipe, the audit of the rewards, and a
        problem of the pictures or None.

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
        num_kept = len(set(drawn.prompts)) + AUDITED
        measured = trainer.evaluate([initial], drawn, num_kept, use_guards=False)[0]
        problem = picture_problem(measured.images[:NUM_LOOKED_AT], trainer.scale)
        spread = reward_spread(measured.rewards, drawn.prompts)
        seen = _audit(trainer, measured, drawn.prompts, spread)
    finally:
        trainer.close()
        progress.close()
    calibration = calibrate(measured.rewards, drawn.prompts, settings.rewards)
    return spread, calibration, seen, problem


def _audit(trainer: Trainer, base: Evaluation, all_prompts: Sequence[str], spread: Spread) -> Audit:
    """Audit the rewards on the base model's first pictures.

    Raises:
        RewardError: if a reward or a guard fails.
    """
    settings, names = trainer.settings, trainer.settings.rewards.objectives
    num_prompts = len(set(all_prompts))  # no prompt comes twice before all came once
    pictures = base.images.float().div(255)
    images, redrawn = pictures[:-num_prompts], pictures[num_prompts:]
    prompts = all_prompts[: len(images)]
    guards = _guards(settings, trainer.processes.device)

    def score(pictures: torch.Tensor) -> torch.Tensor:
        return trainer.scorer.gather([trainer.scorer.submit(pictures, prompts)], 1).values[0]

    def seen_by_guards(pictures: torch.Tensor) -> Evaluation:
        features = guards.gather([guards.submit(pictures, prompts)], 1)[0]
        return Evaluation(rewards=torch.empty(len(pictures), 0), images=pictures, features=features)

    own = seen_by_guards(images)

    def guard(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        columns = guards.values(prompts, seen_by_guards(pictures), own).unbind(dim=1)
        return dict(zip(guards.names, columns, strict=True))

    try:
        seen = audit(
            names,
            images,
            redrawn,
            prompts,
            base.rewards,
            score,
            guard,
            trainer.reward_gradients,
            trainer.measure_slopes(base, all_prompts),
        )
    finally:
        guards.close()
    varied = spread_findings(names, spread.within, spread.between, spread.correlation)
    findings = (
        finding for name in names for finding in (*seen.findings, *varied) if finding.reward == name
    )
    return replace(seen, findings=tuple(findings))


def _guards(settings: Settings, device: torch.device) -> Guards:
    """Guards that look at single pictures: the run's, and those that ship with the project."""
    usual = ("base_similarity", "clip_alignment")
    names = dict.fromkeys((*settings.guards.names, *usual))
    chosen = [
        name for name in names if name not in {"diversity", "agreement", *settings.rewards.names}
    ]
    only = replace(settings.guards, names=tuple(chosen), max_drops=())
    guards = Guards.build(replace(settings, guards=only), device)
    assert guards is not None
    return guards


def calibration_report(settings: Settings, device: torch.device | None = None) -> str:
    """Mean and spread of every reward under the base model, an audit, and lines for a recipe.

    The audit is also written as a page with pictures, into `logdir`.

    Raises:
        UserError: see `measure`.
    """
    use_threads(settings.num_threads)
    with memory_advised():
        spread, calibration, seen, problem = measure(settings, device or own_device())
    names = settings.rewards.objectives
    warning = ["", f"warning: {problem}"] if problem else []
    audited = [f"audit: {finding.reward}: {finding.text}" for finding in seen.findings]
    try:
        page = f"audit of the rewards, with pictures: {write_audit(settings, seen)}"
    except OSError as error:
        page = f"the audit's page could not be written: {error}"
    lines = [*_table(names, spread), "", *(audited or ["audit: nothing was found"]), page, ""]
    return "\n".join([*lines, *_recipe_lines(calibration), *warning])


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
