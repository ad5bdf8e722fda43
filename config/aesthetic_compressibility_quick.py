"""Beautiful against small, Stable Diffusion 1.5, with gradients: 5 hours where DDPO takes 347.

Objectives and prompts are as in `config/aesthetic_compressibility.py`, the method as in
`config/sd15_evening.py`. That method needed about a tenth of the pictures on the embedded model
(docs/evidence.md). Hours are for one RTX 4090, by the dry run.

Towards small: the animal fades into a flat ground. Towards beauty: a painted portrait of it.
Over-optimised first: the aesthetic predictor, as one style for all animals. `image_reward` and
`diversity` are not trained on. JPEG sizes are followed through their companion.
"""

import ml_collections

from config import sd15_evening


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_compressibility`, on one card of 24 GB."""
    config = sd15_evening.get_config()
    config.rewards.names = ("aesthetic_score", "jpeg_compressibility")
    config.prompts.train = "simple_animals"
    config.prompts.report = "other_animals"
    config.sample.num_steps = 50
    config.evaluation.selection_images = 90  # 2 of each prompt
    config.evaluation.report_images = 128  # 8 of each
    return config
