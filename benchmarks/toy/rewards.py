"""Two pairs of rewards of vectors, in units as unlike as those of beauty and of bytes.

Each reward has a target of its own, which turns with the prompt's hand: twice its point of the
circle, in two dimensions that the base model leaves around zero. No vector is at both targets. What
is scored is the distance to the target within the four dimensions of both, in one of two shapes:

* near: minus its square. Returns on the way from one target to the other lie on a front that
  bulges outwards, no point of which a weighted sum of returns misses.
* bell: a bell around the target. Halfway there is little of either, so the front is hollow, and a
  weighted sum of returns jumps from one end of it to the other.

Under the base model scores have the means and the spreads within a prompt of an aesthetic score and
of minus the kilobytes of a JPEG: 5.4 +- 0.5 ("fine") and -92 +- 21 ("coarse").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks.toy.model import points

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_DISTANCE = 2.0  # of a target from zero
_SCORED = slice(2, 6)  # the dimensions of the two targets
_NUM_SCORED = 4
_VARIANCE = 0.37**2  # of what the base model draws in 10 steps; that of its data is 0.5**2


class Shape(Protocol):
    """How a score falls with the distance to the target."""

    def value(self, squares: torch.Tensor) -> torch.Tensor:
        """Scores of squared distances."""
        ...

    def mean(self, distance: float) -> float:
        """Mean score of Gaussian draws of the base model's variance, that far from the target."""
        ...

    def std(self, distance: float) -> float:
        """Their standard deviation."""
        ...


class Near:
    """Minus the square."""

    def value(self, squares: torch.Tensor) -> torch.Tensor:
        """Scores of squared distances."""
        return -squares

    def mean(self, distance: float) -> float:
        """Minus that of a noncentral chi-squared variable."""
        return -(distance**2 + _NUM_SCORED * _VARIANCE)

    def std(self, distance: float) -> float:
        """That of a noncentral chi-squared variable."""
        return math.sqrt(4 * _VARIANCE * distance**2 + 2 * _NUM_SCORED * _VARIANCE**2)


class Bell:
    """exp(-square / 2)."""

    def value(self, squares: torch.Tensor) -> torch.Tensor:
        """Scores of squared distances."""
        return (-squares / 2).exp()

    def mean(self, distance: float) -> float:
        """A Gaussian integral."""
        return self._moment(1, distance)

    def std(self, distance: float) -> float:
        """From two of them."""
        return math.sqrt(self._moment(2, distance) - self._moment(1, distance) ** 2)

    @staticmethod
    def _moment(power: int, distance: float) -> float:
        width = 1 / power + _VARIANCE
        shrunk = (1 / power / width) ** (_NUM_SCORED / 2)
        return float(shrunk * math.exp(-(distance**2) / (2 * width)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A shape, in units of its own.

    Attributes:
        shape: of the score around the target.
        first: of the target's two dimensions.
        base: mean score under the base model.
        spread: standard deviation of the score within a prompt under the base model.
        unit: of the score.
    """

    shape: Shape
    first: int
    base: float
    spread: float
    unit: str

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """(rows,) scores of vectors as pictures (rows, 3, 8, 1)."""
        vectors, on_circle = images[:, 0, :, 0], points(prompts).to(images)
        target = vectors.new_zeros(vectors.shape)
        target[:, self.first : self.first + 2] = _DISTANCE * on_circle
        squares = (vectors - target)[:, _SCORED].square().sum(dim=1)
        deviation = self.shape.value(squares) - self.shape.mean(_DISTANCE)
        return self.base + self.spread * deviation / self.shape.std(_DISTANCE)

    @property
    def reference(self) -> float:
        """Where z is 0: one spread below the base model."""
        return self.base - self.spread

    @property
    def ideal(self) -> float:
        """Where z is 1: the mean score of draws around the target, as wide as the base model's."""
        rise = self.shape.mean(0) - self.shape.mean(_DISTANCE)
        return self.base + self.spread * rise / self.shape.std(_DISTANCE)


near_fine = Reward(shape=Near(), first=2, base=5.4, spread=0.5, unit="score")
near_coarse = Reward(shape=Near(), first=4, base=-92.0, spread=21.0, unit="-kB")
bell_fine = Reward(shape=Bell(), first=2, base=5.4, spread=0.5, unit="score")
bell_coarse = Reward(shape=Bell(), first=4, base=-92.0, spread=21.0, unit="-kB")
