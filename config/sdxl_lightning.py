"""Beautiful against small at 1024 pixels, any SDXL with the Lightning LoRA: four steps.

Towards small: plain grounds, soft focus, one subject; in the end a flat colour. Towards beauty:
texture and light, files two or three times as large. Over-optimised first: the aesthetic predictor,
as one haze or painted style for all prompts. `image_reward` and `diversity`, which are not trained
on, fall where either end has gone too far.

Your own checkpoint of SDXL: `--config.pretrained.model=my.safetensors`; the LoRA makes it draw in
four steps. If it does so by itself: `--config.pretrained.lora=` as well. One card of 24 GB;
docs/recipes.md says what a card of 12 GB needs.

SDXL-Lightning (Lin et al. 2024) was made for four trailing steps without guidance. JPEG sizes are
followed through their companion (docs/reward_gradients.md).
"""

import ml_collections

from config import sdxl_turbo


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_compressibility`, on one card of 24 GB."""
    config = sdxl_turbo.get_config()
    config.pretrained.model = "stabilityai/stable-diffusion-xl-base-1.0"
    config.pretrained.lora = "ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors"
    config.pretrained.height = config.pretrained.width = 1024
    config.rewards.names = ("aesthetic_score", "jpeg_compressibility")
    config.sample.rows_per_pass = 20
    config.train.rows_per_pass = 5
    return config
