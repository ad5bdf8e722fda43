"""Colourful against small: saturated, busy pictures cost bytes. Embedded model, offline."""

import ml_collections

from config import base


def get_config() -> ml_collections.ConfigDict:
    """`colorfulness` against `jpeg_compressibility`."""
    config = base.get_config()
    config.rewards.names = ("colorfulness", "jpeg_compressibility")
    return config
