"""Beautiful, Stable Diffusion 1.5: one reward and one policy, as in DDPO's own experiment.

Any reward of docs/rewards.md, or a function of yours, takes the place of the aesthetic predictor:
`--config.rewards.names=my_rewards.py:warmth`. If it is over-optimised, pictures of all prompts grow
alike: `diversity` and `clip_score` are measured beside it.

DDPO's hyperparameters, memory and costs per image are as in `aesthetic_compressibility`; one
agent costs a sixth. With a few-step base or gradients of rewards it takes an evening.
"""

import ml_collections

from config import aesthetic_compressibility


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` alone, 25,600 images to learn from, on one card of 24 GB."""
    config = aesthetic_compressibility.get_config()
    config.rewards.names = ("aesthetic_score",)
    config.evolution.num_agents = 1
    config.evolution.strategy = "fixed_weights"
    return config
