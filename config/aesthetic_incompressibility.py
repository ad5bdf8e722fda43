"""Beautiful against large, Stable Diffusion 1.5: six agents with DDPO's hyperparameters.

Trade-off: both rewards like detail, so the front is short near the base model. It opens where
texture turns into noise: the largest JPEG files are noise, which the aesthetic predictor dislikes.

Sources, guards, memory and cost are as in `config/aesthetic_compressibility.py`.
"""

import ml_collections

from config import aesthetic_compressibility


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_incompressibility`, on one card of 24 GB."""
    config = aesthetic_compressibility.get_config()
    config.rewards.names = ("aesthetic_score", "jpeg_incompressibility")
    return config
