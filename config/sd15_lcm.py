"""Beautiful against small, any Stable Diffusion 1.5 with the LCM LoRA: DDPO at four steps.

For rewards that have no gradient: a judge on another machine, a classifier, a rule. Put yours in
`rewards.names`; the two here show what to expect. RLCM (Oertell et al. 2024) does the same for one
reward and needs 3 instead of 125 GPU hours for DDPO's final aesthetic score.

Towards small: empty grounds, few colours. Towards beauty: painterly texture. Scores alone learn
slowly, so the ends are nearer the base model than with gradients. Over-optimised first: small
files, because subjects fade into their grounds; `image_reward`, not trained on, falls with them.

Your own checkpoint: `--config.pretrained.model=my.safetensors`. If it draws in four steps by
itself: `--config.pretrained.lora=` as well, and for LCM_Dreamshaper_v7, which reads the guidance
scale, `--config.sample.guidance_scale=8.5`. One card of 24 GB; docs/recipes.md says what a card of
12 GB needs. Learning rate and clip range are DDPO's.
"""

import ml_collections

from config import sd15_evening


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_compressibility`, on one card of 24 GB."""
    config = sd15_evening.get_config()
    config.pretrained.lora = "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"
    config.rewards.names = ("aesthetic_score", "jpeg_compressibility")
    config.sample.sampler = "lcm"
    config.sample.num_steps = 4
    config.sample.guidance_scale = 1.0
    config.sample.images_per_prompt = 8
    config.sample.rows_per_pass = 40
    config.train.update_rule = "ddpo"
    config.train.learning_rate = 3e-4
    config.train.updates_per_epoch = 2
    config.train.rows_per_pass = 40
    config.evolution.num_agents = 4
    config.evolution.start = "soup"
    config.evolution.strategy = "prediction_guided"
    config.evolution.warmup_generations = 2
    config.evolution.evolutionary_generations = 8
    config.evolution.iterations_per_generation = 8
    return config
