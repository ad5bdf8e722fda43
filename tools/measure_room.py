"""Measures whether the embedded model leaves reinforcement learning something to explore.

It trains one agent with plain DDPO and all weight on small files. How far does the reward move, in
standard deviations within a caption? Does the judge still find the subject?

    python -m tools.measure_room --iterations 20 --config sample.guidance_scale=3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from ddpo.advantages import within_prompt_std
from ddpo.calibration import initial_statistics
from ddpo.evaluation import evaluation_set
from ddpo.processes import Processes
from ddpo.trainer import Trainer
from run.command_line import read_settings
from tools.emoji_judge import subjects_found

IMAGES_PER_CAPTION = 4
DDPO = f"--config={Path(__file__).resolve().parents[1] / 'config' / 'ddpo.py'}"
RECIPE = ("sample.prompts_per_iteration=8", "sample.images_per_prompt=8")  # 64 per iteration
WEIGHTS = torch.tensor([[0.0, 1.0]])  # of clip_alignment and jpeg_compressibility


def main() -> None:
    """Train; print a line every five iterations, and all lines as one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--config", nargs="*", default=[], help="overrides, as KEY=VALUE")
    arguments = parser.parse_args()
    overrides = (*RECIPE, *arguments.config)
    settings = read_settings([DDPO, *(f"--config.{override}" for override in overrides)])
    trainer = Trainer(settings, Processes.alone(), lambda *_: lambda: None)
    prompts = trainer.prompts.train
    on = evaluation_set("report", prompts, IMAGES_PER_CAPTION * len(prompts), settings.seed)

    initial = trainer.agents.initial_policy()
    base = trainer.evaluate([initial], on)[0].rewards
    scales = within_prompt_std(base, on.prompts)
    statistics = initial_statistics(base, on.prompts, settings)
    trainer.load([dataclasses.replace(initial, statistics=statistics)], WEIGHTS)
    trainer.scales = scales
    lines = []
    for iteration in tqdm(range(arguments.iterations + 1)):
        if iteration > 0:
            batch = trainer.draw(0, iteration)
            trainer.update(batch, trainer.advantages(batch))
        if iteration % 5 == 0 or iteration == arguments.iterations:
            policy = trainer.agents.snapshot(0)
            result = trainer.evaluate([policy], on, len(on.prompts))[0]
            gains = ((result.rewards - base).mean(dim=0) / scales).tolist()
            lines.append(
                {
                    "iteration": iteration,
                    "gain_clip_alignment": gains[0],
                    "gain_jpeg_compressibility": gains[1],
                    "judge_finds_subject": subjects_found(result.images, on.prompts),
                }
            )
            tqdm.write(json.dumps(lines[-1]))
    sys.stdout.write(json.dumps({"scales": scales.tolist(), "curve": lines}) + "\n")
    trainer.close()


if __name__ == "__main__":
    main()
