"""Beautiful against detailed: a large file has more detail. Embedded model, offline.

At one end files are two fifths larger; at the other beauty rises, and detail with it
(docs/gallery.md).
"""

import ml_collections

from config import base


def get_config() -> ml_collections.ConfigDict:
    """`emoji_beauty` against `jpeg_incompressibility`."""
    config = base.get_config()
    config.rewards.names = ("emoji_beauty", "jpeg_incompressibility")
    return config
