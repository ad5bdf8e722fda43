"""What people pick for the prompt against what they find beautiful, Stable Diffusion 1.5.

Trade-off: PickScore reads the prompt ("a cat washing dishes"), the aesthetic predictor does not and
leads to portraits of the animal alone. Near the base model both gain together, so expect a front
that starts with a common rise. `diversity` falls where a policy draws the same picture from any
noise.

Objectives: z = 0 and z = 1 are measured when the run starts, see `mo_train.py --calibrate`.
A way to read PickScore's axis: a difference of about 1 means that people prefer one picture to the
other three to one (softmax of two logits).

The prompts are DDPO's 45 animals x 3 activities, an eighth held out for selection and an eighth for
the report. PickScore's CLIP-H weighs 3.9 GB in float32 beside the model; `rewards.dtype=bfloat16`
halves it.
"""

import ml_collections

from config import aesthetic_compressibility


def get_config() -> ml_collections.ConfigDict:
    """`pick_score` against `aesthetic_score`, on one card of 24 GB."""
    config = aesthetic_compressibility.get_config()
    config.rewards.names = ("pick_score", "aesthetic_score")
    config.prompts.train = "nouns_activities"
    config.prompts.report = "nouns_activities"
    return config
