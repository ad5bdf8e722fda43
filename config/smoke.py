"""The whole loop in under a minute: too short to learn anything, long enough to break anything."""

import ml_collections

from config import ddpo


def get_config() -> ml_collections.ConfigDict:
    """Two agents, one warm-up and one evolutionary generation of one iteration."""
    config = ddpo.get_config()
    config.sample.num_steps = 4
    config.evaluation.num_steps = 0
    config.sample.prompts_per_iteration = 2
    config.sample.images_per_prompt = 4
    config.evaluation.selection_images = 16
    config.evaluation.report_images = 16
    config.evolution.num_agents = 2
    config.evolution.start = "even_weights"
    config.evolution.warmup_generations = 1
    config.evolution.evolutionary_generations = 1
    config.evolution.iterations_per_generation = 1
    return config
