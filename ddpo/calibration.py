"""What the base model is worth: the scale of each objective, and the start of prompt statistics."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddpo.advantages import within_prompt_std
from ddpo.cost.plan import IMAGES_PER_PROMPT
from ddpo.evaluation import evaluation_set
from ddpo.prompts import spread
from ddpo.types import EvaluationSet, PromptStatistics, scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from config.base import RewardSettings, Settings

logger = logging.getLogger(__name__)

# Where z = 0 and z = 1 lie when a recipe does not say: in standard deviations within a prompt.
REFERENCE_DEVIATIONS = -3.0
IDEAL_DEVIATIONS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Measured once on the base model, fixed for the run.

    Attributes:
        scales: M standard deviations within a prompt, raw units.
        reference: M returns that count as z = 0.
        ideal: M returns that count as z = 1.
        slopes: M numbers, see `RewardGradients.slopes`; none where no gradient is followed.
    """

    scales: tuple[float, ...]
    reference: tuple[float, ...]
    ideal: tuple[float, ...]
    slopes: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the checkpoint stores it."""
        return {name: list(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`."""
        return cls(**{name: tuple(values) for name, values in data.items()})


def calibration_set(prompts: Sequence[str], max_prompts: int, run_seed: int) -> EvaluationSet:
    """Several images of each prompt, or of at most `max_prompts` evenly spaced ones."""
    chosen = spread(prompts, max_prompts)
    return evaluation_set("calibration", chosen, IMAGES_PER_PROMPT * len(chosen), run_seed)


def calibrate(
    rewards: torch.Tensor, prompts: Sequence[str], settings: RewardSettings
) -> Calibration:
    """Scales, reference and ideal points: the recipe's where it declares them.

    An objective that does not vary is reported and gets scale 1.

    Args:
        rewards: (N, M) of the base model; NaN where a score is missing.
        prompts: N, each several times.
        settings: the recipe's points and scales, empty to measure.
    """
    mean = scored(prompts, rewards.double())[1].mean(dim=0)
    measured = within_prompt_std(rewards, prompts)
    for name, deviation in zip(settings.objectives, measured.tolist(), strict=True):
        if deviation == 0:
            logger.warning(
                "%s gives all of the base model's pictures of a prompt the same score: until that "
                "changes nothing is learnt from it",
                name,
            )
    measured[measured == 0] = 1
    return Calibration(
        scales=settings.scales or tuple(measured.tolist()),
        reference=settings.reference or tuple((mean + REFERENCE_DEVIATIONS * measured).tolist()),
        ideal=settings.ideal or tuple((mean + IDEAL_DEVIATIONS * measured).tolist()),
    )


def initial_statistics(
    rewards: torch.Tensor, prompts: Sequence[str], settings: Settings
) -> PromptStatistics:
    """Prompt statistics that every agent starts with: the base model's rewards.

    Empty where training draws otherwise than calibration did, say with fewer denoising steps: those
    rewards would be the wrong baseline.
    """
    if settings.evaluation_sample != settings.sample:
        return PromptStatistics()
    return PromptStatistics().add(prompts, rewards, settings.advantage.buffer_size)
