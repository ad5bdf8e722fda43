"""Calibration on the base model: the scale of each objective, and the initial prompt statistics."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ddpo.advantages import within_prompt_std
from ddpo.cost.plan import IMAGES_PER_PROMPT
from ddpo.evaluation import evaluation_set
from ddpo.prompts import spread
from ddpo.types import EvaluationSet, PromptStatistics, scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from config.base import RewardSettings, Settings

logger = logging.getLogger(__name__)

# Where z = 0 and z = 1 lie if a recipe does not say, in standard deviations within a prompt.
REFERENCE_DEVIATIONS = -3.0
IDEAL_DEVIATIONS = 3.0
NUM_LOOKED_AT = 16  # pictures of the calibration that `picture_problem` looks at
# Limits of `picture_problem`, from measured medians:
#   embedded model                            contrast 0.07 to 0.11, likeness 0.69
#   embedded model, taken for v-prediction    contrast 0.02,         likeness 0.6
#   embedded model, taken for "sample"        contrast 0.28,         likeness 0
#   decoded noise                                                    likeness 0.1
_FLAT = 0.04  # contrast: standard deviation over a picture in [0, 1]
_NOISE = 0.3  # likeness: correlation of neighbours at the size of the latents


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Measured once on the base model, fixed for the run.

    Attributes:
        scales: M standard deviations within a prompt, raw units.
        reference: M returns that count as z = 0, raw units.
        ideal: M returns that count as z = 1, raw units.
        slopes: M numbers, see `RewardGradients.slopes`; () if no gradients are followed.
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


def picture_problem(images: torch.Tensor, scale: int) -> str | None:
    """A sentence on the base model's pictures if most are flat or noise; None if they are fine.

    A model draws such pictures if it is taken for a model of another kind. Noise is detected in
    pictures reduced to the size of their latents, where neighbours hardly resemble each other.
    Pictures without neighbours at that size are not checked.

    Args:
        images: (n, 3, H, W) uint8.
        scale: pixels of a picture per latent, in height and width.
    """
    if min(images.shape[2:]) < 2 * scale:
        return None
    # Contrast within each picture.
    pictures = images.float().div(255)
    contrast = pictures.std(dim=(2, 3)).mean(dim=1).median().item()
    # Likeness of neighbours, vertical and horizontal, at the size of the latents.
    small = functional.avg_pool2d(pictures, scale)
    small = small - small.mean(dim=(2, 3), keepdim=True)
    pairs = (small[..., 1:, :] * small[..., :-1, :], small[..., 1:] * small[..., :-1])
    variance = small.square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    likeness = torch.stack([pair.mean(dim=(1, 2, 3)) / variance for pair in pairs]).mean(dim=0)
    if contrast < _FLAT:
        what = f"flat: their contrast is {contrast:.3f}"
    elif likeness.median() < _NOISE:
        what = f"noise: neighbouring places correlate by {likeness.median():.2f}"
    else:
        return None
    return (
        f"most of the base model's pictures are {what}. The model may be of another kind than the "
        "run assumes: check pretrained.prediction_type, pretrained.zero_snr and "
        "pretrained.timestep_spacing (docs/models.md). Or sample.num_steps is too small: raise it"
    )


def calibration_set(prompts: Sequence[str], max_prompts: int, run_seed: int) -> EvaluationSet:
    """Several images per prompt, for all prompts or for `max_prompts` evenly spaced ones."""
    chosen = spread(prompts, max_prompts)
    return evaluation_set("calibration", chosen, IMAGES_PER_PROMPT * len(chosen), run_seed)


def calibrate(
    rewards: torch.Tensor, prompts: Sequence[str], settings: RewardSettings
) -> Calibration:
    """Scales, reference and ideal points: from the recipe if it sets them, or else measured.

    An objective that does not vary is reported and gets scale 1.

    Args:
        rewards: (N, M) of the base model; NaN where a score is missing.
        prompts: N, each several times.
        settings: the recipe's points and scales; empty ones are measured.
    """
    mean = scored(prompts, rewards.double())[1].mean(dim=0)
    measured = within_prompt_std(rewards, prompts)
    for name, deviation in zip(settings.objectives, measured.tolist(), strict=True):
        if deviation == 0:
            logger.warning(
                "%s gives all of the base model's pictures of a prompt the same score; nothing is "
                "learnt from it until scores differ",
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

    They are empty if training samples differently from calibration, say with fewer denoising steps.
    The calibration's rewards would then be a wrong baseline.
    """
    if settings.evaluation_sample != settings.sample:
        return PromptStatistics()
    return PromptStatistics().add(prompts, rewards)
