"""Two pairs of rewards of vectors, with units as different as an aesthetic score and bytes.

Each reward has its own target, which turns with the prompt's clock hand: twice the prompt's point
of the circle, in two dimensions that the base model leaves around zero. No vector is at both
targets. The score is a function of the distance d to the target, within the four dimensions of both
targets:

* near: -d^2. The front between the targets bulges outwards, so weighted sums of returns reach all
  of its points.
* bell: exp(-d^2 / 2). Halfway between the targets both scores are low, so the front is hollow. The
  best weighted sum of returns jumps from one end to the other.

Under the base model, scores have the means and within-prompt spreads of an aesthetic score
("fine": 5.4 +- 0.5) and of minus the kilobytes of a JPEG ("coarse": -92 +- 21).
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
_VARIANCE = 0.37**2  # of the base model's vectors with 10 steps; its data has 0.5**2


class Shape(Protocol):
    """A score as a function of the distance to the target."""

    def value(self, squares: torch.Tensor) -> torch.Tensor:
        """Scores of squared distances."""
        ...

    def mean(self, distance: float) -> float:
        """Mean score of Gaussian draws with the base model's variance, centred at this distance."""
        ...

    def std(self, distance: float) -> float:
        """Standard deviation of the score of these draws."""
        ...


class Near:
    """Minus the square."""

    def value(self, squares: torch.Tensor) -> torch.Tensor:
        """Scores of squared distances."""
        return -squares

    def mean(self, distance: float) -> float:
        """Minus the mean of a noncentral chi-squared variable."""
        return -(distance**2 + _NUM_SCORED * _VARIANCE)

    def std(self, distance: float) -> float:
        """The standard deviation of a noncentral chi-squared variable."""
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
        """From two Gaussian integrals."""
        return math.sqrt(self._moment(2, distance) - self._moment(1, distance) ** 2)

    @staticmethod
    def _moment(power: int, distance: float) -> float:
        width = 1 / power + _VARIANCE
        shrunk = (1 / power / width) ** (_NUM_SCORED / 2)
        return float(shrunk * math.exp(-(distance**2) / (2 * width)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A shape with its own unit.

    Attributes:
        shape: of the score around the target.
        first: the first of the target's two dimensions.
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
        """Scores (rows,) of vectors, given as pictures (rows, 3, 8, 1)."""
        vectors, on_circle = images[:, 0, :, 0], points(prompts).to(images)
        target = vectors.new_zeros(vectors.shape)
        target[:, self.first : self.first + 2] = _DISTANCE * on_circle
        squares = (vectors - target)[:, _SCORED].square().sum(dim=1)
        deviation = self.shape.value(squares) - self.shape.mean(_DISTANCE)
        return self.base + self.spread * deviation / self.shape.std(_DISTANCE)

    @property
    def reference(self) -> float:
        """The point z = 0: one spread below the base model."""
        return self.base - self.spread

    @property
    def ideal(self) -> float:
        """The point z = 1: the mean score of draws around the target, with the base's variance."""
        rise = self.shape.mean(0) - self.shape.mean(_DISTANCE)
        return self.base + self.spread * rise / self.shape.std(_DISTANCE)


near_fine = Reward(shape=Near(), first=2, base=5.4, spread=0.5, unit="score")
near_coarse = Reward(shape=Near(), first=4, base=-92.0, spread=21.0, unit="-kB")
bell_fine = Reward(shape=Bell(), first=2, base=5.4, spread=0.5, unit="score")
bell_coarse = Reward(shape=Bell(), first=4, base=-92.0, spread=21.0, unit="-kB")
