"""The performance buffer of PGMORL (Xu et al. 2020): which policies stay parents."""

from collections.abc import Iterable, Sequence

import numpy as np

from morl.objectives import check_objectives, comparable, returns_in_z
from morl.types import Array, Objective, Offspring
from morl.weights import even_weights

# PGMORL's authors keep two policies along each of 100 directions (their code's `--pbuffer-num` and
# `--pbuffer-size`). A run here evaluates some 50 policies in all, so it needs fewer directions.
NUM_DIRECTIONS = 20
SLOTS_PER_DIRECTION = 2


class PerformanceBuffer:
    """Directions from the reference point; for each, the policies farthest along it.

    A policy belongs to the unit direction d with the largest d . z, which is the nearest in angle.
    Within a direction, policies rank by d . z. Policies below the reference need no special case:
    they belong where they are least far behind. Ties keep the earlier policy.

    Args:
        objectives: M of them.
        num_directions: By default `NUM_DIRECTIONS`, or M if there are more objectives.
        slots_per_direction: Policies kept along each.

    Attributes:
        members: The population, sorted by direction, then best first.

    Raises:
        ValueError: There are fewer directions than objectives, or no slots.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        num_directions: int | None = None,
        slots_per_direction: int = SLOTS_PER_DIRECTION,
    ) -> None:
        if slots_per_direction < 1:
            raise ValueError(f"slots_per_direction={slots_per_direction} must be at least 1")
        self._objectives = check_objectives(objectives)
        if num_directions is None:
            num_directions = max(NUM_DIRECTIONS, len(objectives))
        weights = even_weights(num_directions, len(objectives))
        self._directions: Array = weights / np.linalg.norm(weights, axis=1, keepdims=True)
        self._slots_per_direction = slots_per_direction
        self.members: tuple[Offspring, ...] = ()

    def add(self, batch: Iterable[Offspring]) -> None:
        """Offers policies. The result depends neither on their order nor on their batches."""
        pool = (*self.members, *batch)
        along = comparable(returns_in_z(pool, self._objectives) @ self._directions.T)
        direction, distance = along.argmax(axis=1), along.max(axis=1)
        order = sorted(
            range(len(pool)),
            key=lambda i: (direction[i], -distance[i], pool[i].generation, pool[i].policy),
        )
        taken = np.zeros(len(self._directions), dtype=int)
        members = []
        for i in order:
            taken[direction[i]] += 1
            if taken[direction[i]] <= self._slots_per_direction:
                members.append(pool[i])
        self.members = tuple(members)
