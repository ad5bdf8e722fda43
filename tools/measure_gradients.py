"""Measures the gap between rewards and the differentiable functions followed in their place.

    python -m tools.measure_gradients    # a minute; the embedded model's pictures and rewards

Rewards use 8-bit pictures, Pillow's resize and real files. The differentiable functions do not
round, and use torch's resize and the JPEG companion. Both are computed for pictures of the base
model. Their difference is given in units of the reward's spread within a prompt.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from unittest import mock

import torch

from ddpo.advantages import within_prompt_std
from ddpo.calibration import calibration_set
from ddpo.processes import Processes
from ddpo.rewards.gradients import fit
from ddpo.rewards.image_batch import ImageBatch
from ddpo.trainer import Trainer
from run.command_line import read_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddpo.rewards.gradients import Differentiable

NAMES = (
    "clip_alignment",
    "jpeg_compressibility",
    "jpeg_incompressibility",
    "colorfulness",
    "sharpness",
    "rms_contrast",
    "brightness",
)
_PROMPTS = 16


def main() -> None:
    """Print a table."""
    settings = read_settings(
        [
            f"--config.rewards.names={','.join(NAMES)}",
            "--config.train.update_rule=reward_gradient",
            "--config.train.updates_per_epoch=1",
            f"--config.evolution.num_agents={len(NAMES)}",
        ]
    )
    trainer = Trainer(settings, Processes.alone(), lambda *_: lambda: None)
    drawn = calibration_set(trainer.prompts.train, _PROMPTS, settings.seed)
    batch = trainer.evaluation_sampler.prompt_batch(drawn.prompts, drawn.seeds, 1)
    (rollout,) = trainer.evaluation_sampler.chunks(trainer.agents, batch)
    submissions = trainer.scorer.submit(rollout.images, drawn.prompts)
    judged = trainer.scorer.gather([submissions], 1).values[0]
    spreads = within_prompt_std(judged, drawn.prompts)
    sys.stdout.write("| Reward | Correlation | Mean difference / spread |\n| --- | --- | --- |\n")
    assert trainer.reward_gradients is not None
    for index, (name, function) in enumerate(trainer.reward_gradients.functions.items()):
        assert function is not None
        smooth = _without_rounding(function, rollout.images.clone(), drawn.prompts)
        slope, correlation = fit(smooth, judged[:, index])
        if name.startswith("jpeg"):
            smooth = judged[:, index].mean() + slope * (smooth - smooth.mean())
        error = (smooth - judged[:, index]).abs().mean() / spreads[index]
        sys.stdout.write(f"| `{name}` | {correlation:.5f} | {error:.4f} |\n")
    trainer.close()


def _without_rounding(
    function: Differentiable, images: torch.Tensor, prompts: Sequence[str]
) -> torch.Tensor:
    """Scores of the differentiable function, whose gradient is followed."""

    def passed(smooth: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return smooth

    with (
        torch.no_grad(),
        mock.patch("ddpo.rewards.image_batch.with_gradient_of", passed),
        mock.patch("ddpo.rewards.clip.with_gradient_of", passed),
    ):
        return function(ImageBatch(images, keep_graph=True), prompts)


if __name__ == "__main__":
    main()
