"""Beautiful against small: DDPO's rewards on the embedded model, offline."""

import ml_collections

from config import base


def get_config() -> ml_collections.ConfigDict:
    """`emoji_beauty` against `jpeg_compressibility`."""
    config = base.get_config()
    config.rewards.names = ("emoji_beauty", "jpeg_compressibility")
    return config
