"""What the base model is worth: the scale of each objective, and the start of prompt statistics."""

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

# Where z = 0 and z = 1 lie when a recipe does not say: in standard deviations within a prompt.
REFERENCE_DEVIATIONS = -3.0
IDEAL_DEVIATIONS = 3.0
NUM_LOOKED_AT = 16  # pictures of the calibration
# When most are no pictures. Median contrast and likeness of the embedded model's are 0.07 to 0.11
# and 0.69; taken for v-prediction 0.02 and 0.6, for "sample" 0.28 and 0; of decoded noise 0.1.
_FLAT = 0.04  # standard deviation over a picture, of 1
_NOISE = 0.3  # correlation of neighbours at the size of the latents


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


def picture_problem(images: torch.Tensor, scale: int) -> str | None:
    """What is wrong with the base model's pictures where most are flat, or noise.

    A model that is taken for another kind draws such pictures. Noise shows in what is left of a
    picture at the size of its latents: neighbours there hardly resemble each other. Pictures that
    have none there are not looked at.

    Args:
        images: (n, 3, H, W) uint8.
        scale: pixels of a picture per latent, in height and width.
    """
    if min(images.shape[2:]) < 2 * scale:
        return None
    pictures = images.float().div(255)
    contrast = pictures.std(dim=(2, 3)).mean(dim=1).median().item()
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
        f"most of the base model's pictures are {what}. It may be another kind of model than it "
        "was taken for: see pretrained.prediction_type, pretrained.zero_snr and "
        "pretrained.timestep_spacing (docs/models.md), or sample.num_steps is too small"
    )


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
