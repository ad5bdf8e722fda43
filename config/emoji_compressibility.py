"""Beautiful against small: DDPO's pair of rewards on the embedded model, offline.

At one end files are a fifth smaller; at the other beauty rises a little (docs/gallery.md).
"""

import ml_collections

from config import base


def get_config() -> ml_collections.ConfigDict:
    """`emoji_beauty` against `jpeg_compressibility`."""
    config = base.get_config()
    config.rewards.names = ("emoji_beauty", "jpeg_compressibility")
    return config
