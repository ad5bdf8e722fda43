"""Shows its prompt against small, Stable Diffusion 1.5: how few bytes still make an animal.

Trade-off: JPEG pays for edges and texture, CLIP needs enough of them to recognise one of 398
animals. The sibling of the default recipe at full size; `base_similarity` shows how far the
pictures have gone.

Objectives: z = 0 and z = 1 are measured when the run starts, see `mo_train.py --calibrate`.
`clip_score` is 100 times a cosine: unrelated captions lie near 15, matching ones near 25 to 30 (any
table of CLIPScore on ViT-L/14 shows that order; not measured here).

The prompts are DDPO's for its JPEG experiments, ImageNet's animals: about 300 to train on, 49 for
selection and 49 for the report, disjoint.
"""

import ml_collections

from config import aesthetic_compressibility


def get_config() -> ml_collections.ConfigDict:
    """`clip_score` against `jpeg_compressibility`, on one card of 24 GB."""
    config = aesthetic_compressibility.get_config()
    config.rewards.names = ("clip_score", "jpeg_compressibility")
    config.guards.names = ("base_similarity", "diversity")
    config.prompts.train = "imagenet_animals"
    config.prompts.report = "imagenet_animals"
    config.sample.prompts_per_iteration = 64
    config.sample.images_per_prompt = 4
    config.evaluation.selection_images = 196  # 4 of each prompt
    return config
