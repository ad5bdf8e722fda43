"""One reward, one policy: what DDPO or gradients of rewards do alone. Embedded model, offline.

For a weighted sum of several rewards, name them all and their weights:
`--config.rewards.names=clip_alignment,colorfulness --config.evolution.weights=0.7,0.3`.
"""

import ml_collections

from config import base


def get_config() -> ml_collections.ConfigDict:
    """`clip_alignment` alone, by its gradient."""
    config = base.get_config()
    config.rewards.names = ("clip_alignment",)
    config.evolution.num_agents = 1
    return config
