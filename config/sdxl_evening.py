"""Shows its prompt against beautiful at 1024 pixels, Stable Diffusion XL, in a long evening.

The ends, and what is over-optimised first, are as in `config/sd15_evening.py`. Over-optimisation
comes later, because the base model scores higher on both. Where PickScore has been pushed too far,
skin and leaves look etched at full size: look at pictures, not thumbnails.

Your own checkpoint of SDXL: `--config.pretrained.model=my.safetensors`. If it is prompted by tags:
`--config.prompts.train=tags`. One card of 24 GB; docs/recipes.md says what a card of 12 GB needs.

A picture costs seven times as much as in SD 1.5, so there are four agents and 1,536 pictures to
learn from.
"""

import ml_collections

from config import sd15_evening


def get_config() -> ml_collections.ConfigDict:
    """`pick_score` against `aesthetic_score` on SDXL, on one card of 24 GB."""
    config = sd15_evening.get_config()
    config.pretrained.model = "stabilityai/stable-diffusion-xl-base-1.0"
    config.rewards.batch_size = 4
    config.sample.prompts_per_iteration = 8
    config.sample.rows_per_pass = 32
    config.train.rows_per_pass = 8
    config.evaluation.calibration_prompts = 48
    config.evaluation.report_images = 52
    config.evolution.num_agents = 4
    config.evolution.iterations_per_generation = 8
    return config
