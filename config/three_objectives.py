"""Recognisable, small and colourful: a front that is a surface. Embedded model, offline."""

import ml_collections

from config import base


def get_config() -> ml_collections.ConfigDict:
    """`clip_alignment`, `jpeg_compressibility` and `colorfulness`, six agents."""
    config = base.get_config()
    config.rewards.names = ("clip_alignment", "jpeg_compressibility", "colorfulness")
    config.evolution.num_agents = 6
    config.evolution.evolutionary_generations = 5
    return config
