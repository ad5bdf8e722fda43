"""The sweep of learning rates: one JSON file, written after every run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.evidence import best_rate
from benchmarks.toy.arms import LEARNING_RATES
from ddpo.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

MIN_RATE, MAX_RATE = 1e-3, 6.4e-2


class Sweep:
    """Final hypervolumes on the report set by pair, arm, learning rate and seed.

    Args:
        path: the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, dict[str, dict[str, float]]]] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        )

    def has(self, pair: str, arm: str, learning_rate: float, seed: int) -> bool:
        """Whether this run is done."""
        return str(seed) in self.of(pair, arm).get(f"{learning_rate:g}", {})

    def keep(
        self, pair: str, arm: str, learning_rate: float, seed: int, hypervolume: float
    ) -> None:
        """Add a run, and write the file."""
        rates = self._found.setdefault(pair, {}).setdefault(arm, {})
        rates.setdefault(f"{learning_rate:g}", {})[str(seed)] = round(hypervolume, 5)
        text = json.dumps(self._found, indent=1, sort_keys=True)
        write_atomic(self._path, (text + "\n").encode())

    def rates(self, pair: str, arm: str) -> list[float]:
        """The learning rates to try; if the best so far is at an end, one more beyond it."""
        tried = self.means(pair, arm)
        rates = sorted({*LEARNING_RATES, *tried})
        if set(rates) <= set(tried):
            best = best_rate(tried)
            if best == rates[0] > MIN_RATE:
                return [best / 2, *rates]
            if best == rates[-1] < MAX_RATE:
                return [*rates, 2 * best]
        return rates

    def of(self, pair: str, arm: str) -> Mapping[str, Mapping[str, float]]:
        """Learning rate -> seed -> hypervolume."""
        return self._found.get(pair, {}).get(arm, {})

    def means(self, pair: str, arm: str) -> dict[float, float]:
        """Learning rate -> mean hypervolume over the seeds, in ascending order of rates."""
        found = {float(rate): statistics.mean(v.values()) for rate, v in self.of(pair, arm).items()}
        return dict(sorted(found.items()))

    def best(self, pair: str, arm: str) -> float:
        """The learning rate with the largest mean hypervolume.

        Raises:
            ValueError: if this arm was not tuned.
        """
        means = self.means(pair, arm)
        if not means:
            raise ValueError(f"{arm} has no sweep on {pair}: python -m benchmarks.toy --tune")
        return best_rate(means)
