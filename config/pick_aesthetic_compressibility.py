"""Picked, beautiful and small, Stable Diffusion 1.5: a front that is a surface.

Trade-off: `pick_score` and `aesthetic_score` rise together at first and fight bytes. Far out the
three corners are an over-painted scene that fits its prompt, a portrait that does not, and a flat
ground.

Objectives: z = 0 and z = 1 are measured when the run starts, see `mo_train.py --calibrate`. Six
agents start from the three corners and the three middles of the edges of the simplex.
"""

import ml_collections

from config import pick_aesthetic


def get_config() -> ml_collections.ConfigDict:
    """`pick_score`, `aesthetic_score` and `jpeg_compressibility`, on one card of 24 GB."""
    config = pick_aesthetic.get_config()
    config.rewards.names = ("pick_score", "aesthetic_score", "jpeg_compressibility")
    config.evolution.evolutionary_generations = 8
    return config
