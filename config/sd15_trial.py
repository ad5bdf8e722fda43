"""Beautiful against small, Stable Diffusion 1.5, in an evening: try this before a run of days.

The trade-off is the one of `aesthetic_compressibility`, on one card of 24 GB. Of DDPO's methods,
this one needed the fewest images on the embedded model (docs/evidence.md): a soup start, and the
last steps untrained. It is short because of 20 denoising steps instead of 50 and a thirtieth of the
images. It shows that model, rewards and memory fit, and which way the pictures go, not how far.
"""

import ml_collections

from config import aesthetic_compressibility


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_compressibility`, 5,120 images to learn from."""
    config = aesthetic_compressibility.get_config()
    config.sample.num_steps = 20
    config.sample.prompts_per_iteration = 8
    config.train.max_sensitivity = 5.0

    config.evaluation.selection_images = 90  # `diversity` needs two of each of 45 prompts
    config.evaluation.report_images = 64
    config.evolution.num_agents = 4
    config.evolution.start = "soup"
    config.evolution.warmup_generations = 2
    config.evolution.evolutionary_generations = 3
    config.evolution.iterations_per_generation = 5
    return config
