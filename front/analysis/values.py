"""The findings of an analysis: blends of neighbours, their places, the policies they connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from front.record import BlendRecord, if_known

if TYPE_CHECKING:
    from ddpo.types import Evaluation, Gain
    from front.front import Front
    from front.member import Blend, FrontPolicy
    from morl.types import Array, PolicyId

_FORMAT = 1
ANALYSIS = "analysis.json"
DENSE_PLOT = "dense_front.png"
# A blend fails if it is below the chord by more than this many standard errors, and by more than
# this part of the way to the corner, where it would have the worse of both parts in everything.
STD_ERRORS = 2.0
TOLERANCE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InPredictions:
    """The same blend made in every step from its parts' predictions, not from their weights.

    Attributes:
        returns: (M,) on the report set, raw units.
        std_error: (M,) of `returns`.
        height: above the chord, as of the blend.
        height_std_error: of `height`.
    """

    returns: Array
    std_error: Array
    height: float
    height_std_error: float

    def to_json(self) -> dict[str, Any]:
        """As `analysis.json` stores it."""
        return {
            "report_returns": self.returns.tolist(),
            "report_std_error": self.std_error.tolist(),
            "height": self.height,
            "height_std_error": self.height_std_error,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredBlend:
    """A blend of two neighbours and where it lies.

    Attributes:
        blend: with its returns on the report set.
        height: above the chord between its parts, z-units; see `height_above_chord`.
        height_std_error: of `height`, paired over the images.
        depth: of the corner below the chord, z-units.
        is_useful: no policy and no other blend dominates it on the report set.
        evaluation: of the blend on the report set.
        gain: over the base model, image by image.
        in_predictions: the same in predictions; None if that was not measured.
    """

    blend: Blend
    height: float
    height_std_error: float
    depth: float
    is_useful: bool
    evaluation: Evaluation
    gain: Gain
    in_predictions: InPredictions | None = None

    @property
    def record(self) -> BlendRecord:
        """As `front.json` lists it."""
        returns, error = self.blend.report_returns, self.blend.report_std_error
        assert returns is not None
        assert error is not None
        return BlendRecord(
            id=self.blend.id,
            parts=tuple((policy.id, part) for policy, part in self.blend.parts),
            weights=self.blend.weights,
            report_returns=returns,
            report_std_error=error,
            report_std_error_by_prompt=if_known(self.evaluation.std_error_by_prompt),
            gain_over_base=self.gain.mean.numpy(),
            gain_std_error=self.gain.std_error.numpy(),
            gain_std_error_by_prompt=if_known(self.gain.std_error_by_prompt),
            guards=self.blend.guards,
        )

    @property
    def holds(self) -> bool:
        """Whether it lies near the chord or above it."""
        below = -self.height
        return below <= max(STD_ERRORS * self.height_std_error, TOLERANCE * self.depth)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Link:
    """Two neighbours on the front and the blends between them, from the first to the second."""

    first: FrontPolicy
    second: FrontPolicy
    blends: tuple[MeasuredBlend, ...]

    @property
    def holds(self) -> bool:
        """Whether interpolation holds all along."""
        return all(blend.holds for blend in self.blends)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """The conclusions about a front from its blends.

    Attributes:
        links: one per pair of neighbours.
        hypervolume: of the policies on the report set, z-units.
        dense_hypervolume: of the policies and the blends.
        num_images: drawn for it.
    """

    links: tuple[Link, ...]
    hypervolume: float
    dense_hypervolume: float
    num_images: int

    @property
    def useful(self) -> tuple[MeasuredBlend, ...]:
        """The blends that nothing dominates."""
        measured = (each for link in self.links for each in link.blends)
        return tuple(each for each in measured if each.is_useful)

    def families(self, front: Front) -> list[list[PolicyId]]:
        """Policies that interpolation connects, in the order of the front."""
        family = {policy.id: {policy.id} for policy in front.policies}
        for link in self.links:
            if link.holds and family[link.first.id] is not family[link.second.id]:
                joined = family[link.first.id] | family[link.second.id]
                family |= dict.fromkeys(joined, joined)
        order = [policy.id for policy in front.policies]
        firsts = [name for name in order if name == min(family[name], key=order.index)]
        return [[name for name in order if name in family[first]] for first in firsts]

    def to_json(self, front: Front) -> dict[str, Any]:
        """The content of `analysis.json`: every blend, useful or not."""
        return {
            "format": _FORMAT,
            "links": [
                {
                    "first": link.first.id,
                    "second": link.second.id,
                    "holds": link.holds,
                    "blends": [
                        {
                            **each.record.to_json(),
                            "height": each.height,
                            "height_std_error": each.height_std_error,
                            "depth": each.depth,
                            "holds": each.holds,
                            "is_useful": each.is_useful,
                            **(
                                {"in_predictions": each.in_predictions.to_json()}
                                if each.in_predictions
                                else {}
                            ),
                        }
                        for each in link.blends
                    ],
                }
                for link in self.links
            ],
            "families": self.families(front),
            "hypervolume": self.hypervolume,
            "dense_hypervolume": self.dense_hypervolume,
            "images": self.num_images,
        }
