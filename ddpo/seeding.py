"""Keyed randomness: every random draw has a name, none depends on what was drawn before it.

`Stream` lists all draws of a run. So a picture depends neither on the batch size nor on the number
of agents or processes, and resuming needs no stored random state.
"""

from __future__ import annotations

from enum import Enum

import numpy as np


class Stream(Enum):
    """A random stream, by the layout of its keys: words that name one draw, and fixed numbers.

    numpy fills short keys with zeros, (1, 2, 3) and (1, 2, 3, 0) are one and the same. The fixed
    numbers keep the streams apart all the same.
    """

    # Noise of a picture to learn from. Generations stay below a million, see the next three.
    NOISE = ("run_seed", "generation", "iteration", "agent", "sample")
    # Noise of a picture to calibrate with, to judge the search by, to publish.
    CALIBRATION = ("run_seed", 1_000_001, "sample")
    SELECTION = ("run_seed", 1_000_002, "sample")
    REPORT = ("run_seed", 1_000_003, "sample")
    # How an agent's update shuffles its samples and chooses their steps.
    SHUFFLE = ("run_seed", "generation", "iteration", "agent", "num_samples", 1)
    # Weights that a conditioned family is trained along.
    WEIGHTS = ("run_seed", "generation", "iteration", 0, 0, 2)
    # Noise that a rule on the forward process adds to a finished picture.
    ADDED_NOISE = ("picture_seed", 1)
    # Order of the training prompts in one round of all of them.
    PROMPTS = ("run_seed", "round")
    # Which prompts of a set are held out: the same in every run.
    SPLIT = (7,)
    # Search by random selection; `morl/` knows this layout by itself.
    SEARCH = ("run_seed", "generation", 0, 0, 3)

    def key(self, **words: int) -> tuple[int, ...]:
        """The key of one draw, for numpy's `default_rng`.

        Args:
            words: a number for each word of the layout.

        Raises:
            TypeError: if a word is missing or is none of this stream.

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
