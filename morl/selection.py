"""Selection strategies: which tasks to train next.

A strategy is a function from a `SelectionContext` to exactly one task per agent slot. To add one,
write the function and its line in `STRATEGIES`.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from config.base import EvolutionSettings
from morl.history import History
from morl.indicators import hypervolume_gains, sparsities_with, sparsity
from morl.objectives import comparable, from_z, returns_in_z
from morl.pareto import non_dominated, weakly_dominates
from morl.prediction import predict_changes
from morl.types import Array, Indices, Objective, Offspring, Task
from morl.weights import normalise, wanted_weights, weights_around_each

logger = logging.getLogger(__name__)

_SAME_DIRECTION = 1e-3  # distance of unit vectors below which two directions are the same
_MIN_GAIN = 1e-9  # hypervolume in z: smaller gains are rounding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectionContext:
    """What a strategy may look at.

    Attributes:
        population: Possible parents, at least one.
        archive: The non-dominated policies found so far.
        current: The last policy of each agent slot; at first the base model everywhere.
    """

    settings: EvolutionSettings
    objectives: tuple[Objective, ...]
    population: tuple[Offspring, ...]
    archive: tuple[Offspring, ...]
    current: tuple[Offspring, ...]
    history: History

    def __post_init__(self) -> None:
        """Checks that there is a policy to select.

        Raises:
            ValueError: The population is empty.
        """
        if not self.population:
            raise ValueError(
                "the population is empty, so there is no policy to improve; the "
                "performance buffer must be given the base model or its offspring"
            )

    @property
    def slot_weights(self) -> Array:
        """The agents' weights (n, M), even or named, one row per slot."""
        return wanted_weights(self.settings, len(self.objectives))


Strategy = Callable[[SelectionContext, np.random.Generator], tuple[Task, ...]]


def keep_on(policies: Sequence[Offspring], weights: Array) -> tuple[Task, ...]:
    """The tasks that improve each policy along its own row of the weights (n, M)."""
    return tuple(
        Task(policy=policy.policy, weights=row)
        for policy, row in zip(policies, weights, strict=True)
    )


def fixed_weights(context: SelectionContext, rng: np.random.Generator) -> tuple[Task, ...]:
    """Every slot continues its own last policy along its own weights."""
    del rng
    return keep_on(context.current, context.slot_weights)


def random(context: SelectionContext, rng: np.random.Generator) -> tuple[Task, ...]:
    """Policies of the population and weights of the simplex, both uniformly at random."""
    chosen = rng.integers(len(context.population), size=context.settings.num_agents)
    weights = rng.dirichlet(np.ones(len(context.objectives)), size=context.settings.num_agents)
    return tuple(
        Task(policy=context.population[i].policy, weights=normalise(w))
        for i, w in zip(chosen, weights, strict=True)
    )


def moead(context: SelectionContext, rng: np.random.Generator) -> tuple[Task, ...]:
    """For each slot's weight vector w, the policy of the population with the largest w . z.

    MOEA/D (Zhang and Li 2007) with weighted sums.
    """
    del rng
    utility = context.slot_weights @ returns_in_z(context.population, context.objectives).T
    best = comparable(utility).argmax(axis=1)
    return tuple(
        Task(policy=context.population[i].policy, weights=weights)
        for i, weights in zip(best, context.slot_weights, strict=True)
    )


def prediction_guided(context: SelectionContext, rng: np.random.Generator) -> tuple[Task, ...]:
    """The tasks whose predicted offspring extend the archive most (PGMORL, Xu et al. 2020).

    For every policy of the population, the candidates are K weight vectors around its last ones,
    without those already tried from it. Their offspring are predicted, and `choose_greedily`
    chooses. If there are fewer candidates than slots, `moead` fills the other slots.
    """
    settings, objectives = context.settings, context.objectives
    owner, weights = candidate_weights(context)
    parents = returns_in_z(context.population, objectives)
    history = context.history.changes(objectives, settings.iterations_per_generation)
    prediction = predict_changes(history, parents, owner, weights)
    logger.debug("prediction models, and how many policies each: %s", Counter(prediction.kinds))
    children = parents[owner] + prediction.changes
    utility_gains = (weights * prediction.changes).sum(axis=1)
    chosen = choose_greedily(
        returns_in_z(context.archive, objectives),
        children,
        utility_gains,
        settings.num_agents,
        settings.sparsity_coef,
    )
    tasks = tuple(
        Task(
            policy=context.population[owner[i]].policy,
            weights=weights[i],
            predicted_returns=from_z(children[i], objectives),
        )
        for i in chosen
    )
    if len(tasks) < settings.num_agents:
        logger.info(
            "%d candidates for %d agents: the other slots improve the best policies along "
            "even weights",
            len(weights),
            settings.num_agents,
        )
    return tasks + moead(context, rng)[len(tasks) :]


def candidate_weights(context: SelectionContext) -> tuple[Indices, Array]:
    """New directions for every policy of the population.

    Returns:
        For each of C candidates, the index of the policy (C,) and the weights (C, M).
    """
    owner, rows = [], []
    num_objectives = len(context.objectives)
    centres = np.array([policy.weights for policy in context.population])
    candidates = weights_around_each(centres, context.settings.num_weight_candidates)
    for i, (policy, around) in enumerate(zip(context.population, candidates, strict=True)):
        tried = context.history.tried(policy.policy, num_objectives)
        distance = np.linalg.norm(_unit(around)[:, None] - _unit(tried)[None], axis=2)
        fresh = around[distance.min(axis=1, initial=np.inf) >= _SAME_DIRECTION]
        owner += [i] * len(fresh)
        rows.append(fresh)
    return np.array(owner, dtype=np.intp), np.concatenate(rows)


def _unit(weights: Array) -> Array:
    return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True))


def choose_greedily(
    front: Array, children: Array, utility_gains: Array, num: int, sparsity_coef: float
) -> tuple[int, ...]:
    """Chooses predicted offspring one by one; each enters the front before the next is chosen.

    This is PGMORL's task selection. Among the candidates that extend the front, the best has the
    largest gain in hypervolume minus `sparsity_coef` times the gain in sparsity. If none extends
    it, the candidate with the largest predicted gain in utility w . z is chosen.

    Gains are updated, not computed again: a chosen child q takes from the gain of another child p
    the part both would have added. That part is the gain of their shared corner min(p, q).

    Args:
        front: (n, M) in z.
        children: (C, M) predicted returns of the candidates, in z.
        utility_gains: (C,) predicted w . (child - parent).
        num: How many to choose; fewer only if C is smaller.
        sparsity_coef: At least 0.

    Returns:
        Indices of the chosen, in order.

    Example:
        >>> front = np.array([[1.0, 0.5]])
        >>> choose_greedily(front, np.array([[0.9, 0.4], [0.5, 1.0]]), np.array([9.0, 0.1]), 2, 0.0)
        (1, 0)
    """
    front = np.unique(front[non_dominated(front)], axis=0)
    gains = hypervolume_gains(front, children)
    is_free = np.ones(len(children), dtype=np.bool_)
    chosen: list[int] = []
    for _ in range(min(num, len(children))):
        extends = np.flatnonzero(is_free & (gains > _MIN_GAIN))
        if len(extends) > 0:
            # The best of the candidates that extend the front.
            thinner = sparsities_with(front, children[extends]) - sparsity(front)
            score = gains[extends] - sparsity_coef * thinner
            best = int(extends[comparable(score).argmax()])
            # It enters the front, and the others lose what both would have added.
            shared = np.minimum(children[extends], children[best])
            gains[extends] -= hypervolume_gains(front, shared)
            front = np.vstack([front[~weakly_dominates(children[best], front)], children[best]])
        else:
            free = np.flatnonzero(is_free)
            best = int(free[comparable(utility_gains[free]).argmax()])
        is_free[best] = False
        chosen.append(best)
    return tuple(chosen)


STRATEGIES: dict[str, Strategy] = {
    "prediction_guided": prediction_guided,
    "random": random,
    "fixed_weights": fixed_weights,
    "moead": moead,
}
