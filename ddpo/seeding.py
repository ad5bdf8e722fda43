"""Keyed randomness: every random draw has a name, none depends on what was drawn before it."""

from __future__ import annotations

import numpy as np


def keyed_seed(*key: int) -> int:
    """A 63-bit seed that is a hash of the key, e.g. (run seed, generation, iteration, agent, i).

    >>> keyed_seed(0, 1, 2) == keyed_seed(0, 1, 2), keyed_seed(0, 1, 2) == keyed_seed(0, 2, 1)
    (True, False)
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))
