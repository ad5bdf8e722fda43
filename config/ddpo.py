"""DDPO instead of gradients of rewards: for rewards without a gradient, and for comparisons.

The departures from the papers that needed the fewest images (docs/evidence.md): a soup start, the
last noisy step untrained, and fewer denoising steps to learn from than to judge by. `faithful.py`
undoes them.
"""

import ml_collections

from config import base


def get_config() -> ml_collections.ConfigDict:
    """`clip_alignment` against `jpeg_compressibility` on the emoji model of 32 pixels."""
    config = base.get_config()
    config.pretrained.model = "emoji-sd"
    config.rewards.names = ("clip_alignment", "jpeg_compressibility")
    config.rewards.sources = ()
    config.prompts.report = "emoji_report"  # this model knows animals only
    config.sample.num_steps = 6
    config.sample.prompts_per_iteration = 12
    config.sample.images_per_prompt = 4
    config.train.update_rule = "ddpo"
    config.train.learning_rate = 5e-3
    config.train.updates_per_epoch = 4
    config.evaluation.selection_images = 96
    config.evaluation.report_images = 512
    config.evolution.num_agents = 4
    config.evolution.start = "soup"
    config.evolution.strategy = "prediction_guided"
    config.evolution.warmup_generations = 2
    config.evolution.evolutionary_generations = 8
    config.evolution.iterations_per_generation = 6
    return config
