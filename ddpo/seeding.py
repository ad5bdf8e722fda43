"""Keyed randomness: every random draw has its own key and does not depend on earlier draws.

So a picture depends neither on the batch size nor on the number of agents or processes, and
resuming needs no stored random state. `Stream` lists all draws of a run.
"""

from __future__ import annotations

from enum import Enum

import numpy as np


class Stream(Enum):
    """A random stream, given by the layout of its keys: words that name a draw, and fixed numbers.

    numpy fills short keys with zeros, so (1, 2, 3) and (1, 2, 3, 0) are the same key. The fixed
    numbers keep the streams apart nevertheless.
    """

    # Noise of the pictures to learn from. Generations stay below a million, so that these keys
    # differ from the keys of the next three streams.
    NOISE = ("run_seed", "generation", "iteration", "agent", "sample")
    # Noise of the pictures for calibration, for the search's decisions, for the published front.
    CALIBRATION = ("run_seed", 1_000_001, "sample")
    SELECTION = ("run_seed", 1_000_002, "sample")
    REPORT = ("run_seed", 1_000_003, "sample")
    # Shuffling of an agent's samples and choice of their steps in an update.
    SHUFFLE = ("run_seed", "generation", "iteration", "agent", "num_samples", 1)
    # Weights along which a conditioned family is trained.
    WEIGHTS = ("run_seed", "generation", "iteration", 0, 0, 2)
    # Noise that a rule on the forward process adds to a finished picture.
    ADDED_NOISE = ("picture_seed", 1)
    # Order of the training prompts in one round of the set.
    PROMPTS = ("run_seed", "round")
    # Held-out prompts of a set: the same in every run.
    SPLIT = (7,)
    # Random selection of the search. `morl/evolution.py` repeats this layout.
    SEARCH = ("run_seed", "generation", 0, 0, 3)

    def key(self, **words: int) -> tuple[int, ...]:
        """The key of one draw, for numpy's `default_rng`.

        Args:
            words: a number for each word of the layout.

        Raises:
            TypeError: if a word is missing or unknown.

        >>> Stream.SELECTION.key(run_seed=7, sample=3)
        (7, 1000002, 3)
        """
        names = {word for word in self.value if isinstance(word, str)}
        if names != words.keys():
            raise TypeError(f"{self.name} is keyed by {sorted(names)}, not by {sorted(words)}")
        return tuple(words[word] if isinstance(word, str) else word for word in self.value)

    def seed(self, **words: int) -> int:
        """A 63-bit seed for torch: a hash of the key, see `key`.

        >>> Stream.REPORT.seed(run_seed=0, sample=1) == Stream.REPORT.seed(run_seed=0, sample=2)
        False
        """
        state = np.random.SeedSequence(self.key(**words)).generate_state(1, np.uint64)[0]
        return int(state >> np.uint64(1))
