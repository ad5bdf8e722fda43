"""Shows its prompt against beautiful, SDXL-Turbo at 512 pixels: four steps, no guidance.

Towards PickScore: more of the prompt, crisp and bright. Towards the aesthetic predictor: painterly,
fewer things. Turbo varies little to begin with, so over-optimisation shows first as sameness: watch
`diversity`, then `image_reward`; neither is trained on.

Your own Turbo checkpoint: `--config.pretrained.model=my_turbo.safetensors`. Small files instead:
`--config.rewards.names=aesthetic_score,jpeg_compressibility`. One card of 24 GB; docs/recipes.md
says what a card of 12 GB needs.

Picture size and timestep spacing are as published for Turbo (Sauer et al. 2023); a single file does
not hold them.
"""

import ml_collections

from config import sd15_evening


def get_config() -> ml_collections.ConfigDict:
    """`pick_score` against `aesthetic_score` on SDXL-Turbo, on one card of 24 GB."""
    config = sd15_evening.get_config()
    config.pretrained.model = "stabilityai/sdxl-turbo"
    config.pretrained.timestep_spacing = "trailing"
    config.pretrained.height = config.pretrained.width = 512
    config.sample.num_steps = 4
    config.sample.guidance_scale = 1.0
    config.sample.rows_per_pass = 40
    config.train.rows_per_pass = 10
    config.evolution.iterations_per_generation = 20
    return config
