"""Beautiful against large, Stable Diffusion 1.5, with gradients: 5 hours where DDPO takes 347.

The quick form of `config/aesthetic_incompressibility.py`, made as
`config/aesthetic_compressibility_quick.py` is.

Towards large: texture everywhere, in the end noise that only JPEG values. Towards beauty: a painted
portrait. Over-optimised first: large files; `image_reward`, which is not trained on, falls as noise
covers the animal.
"""

import ml_collections

from config import aesthetic_compressibility_quick


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_incompressibility`, on one card of 24 GB."""
    config = aesthetic_compressibility_quick.get_config()
    config.rewards.names = ("aesthetic_score", "jpeg_incompressibility")
    return config
