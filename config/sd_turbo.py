"""Beautiful against small, SD-Turbo at 512 pixels: a gradient and a black box together.

The aesthetic predictor's gradient is followed; the size of the JPEG file is learnt from scores
alone, by DDPO, from the same pictures. Your own black box in its place:
`--config.rewards.names=aesthetic_score,my.py:taste --config.rewards.black_boxes=my.py:taste`.

Towards small: empty grounds, few colours. Towards beauty: painterly texture. Over-optimised first:
beauty, because a gradient learns faster than scores do. `image_reward` and `diversity` are not
trained on.

Your own Turbo checkpoint of SD 2.1: `--config.pretrained.model=my_turbo.safetensors`. One card of
24 GB; docs/recipes.md says what a card of 12 GB needs.

The last step with noise is left out of DDPO's part: its log-probability is 7 times as sensitive as
the other steps'.
"""

import ml_collections

from config import sdxl_turbo


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_compressibility` on SD-Turbo, on one card of 24 GB."""
    config = sdxl_turbo.get_config()
    config.pretrained.model = "stabilityai/sd-turbo"
    config.rewards.names = ("aesthetic_score", "jpeg_compressibility")
    config.rewards.black_boxes = ("jpeg_compressibility",)
    config.sample.images_per_prompt = 4  # DDPO compares the pictures of a prompt
    config.train.rows_per_pass = 40
    return config
