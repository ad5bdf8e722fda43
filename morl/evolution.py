"""The search as ask and tell: it chooses the next tasks from evaluated returns alone.

    while (generation := evolution.ask()) is not None:
        offspring = train_and_evaluate(generation)
        evolution.tell(offspring)

Warm-up generations keep the weights they start with. In evolutionary generations a strategy chooses
policies and weights. With a soup start, the warm-up trains one policy per objective. One generation
between the two stages then blends them into one policy per agent (rewarded soups: Rame et al.
2023).

The state of a search is the list of its generations and their offspring. Archive, population and
history follow from that list, and random choices depend only on the seed and the generation. So a
resumed search decides exactly as one that was never interrupted.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from config.base import EvolutionSettings
from morl.buffer import PerformanceBuffer
from morl.history import History, Improvement
from morl.indicators import expected_utility, hypervolume, sparsity
from morl.objectives import check_objectives, returns_in_z, to_z
from morl.pareto import ParetoArchive
from morl.selection import STRATEGIES, SelectionContext, keep_on
from morl.types import (
    BASE_POLICY,
    Array,
    Generation,
    Objective,
    Offspring,
    PolicyId,
    Stage,
    Task,
)
from morl.weights import even_weights, wanted_weights

logger = logging.getLogger(__name__)

_FORMAT = 1
# Ends the keys of the search's draws. No other random stream of a run has it (ddpo/seeding.py).
_STREAM = (0, 0, 3)
_NUM_USERS = 100  # weight vectors over which expected utility is averaged


class Evolution:
    """The two stages of PGMORL (Xu et al. 2020), warm-up and evolution, over given objectives.

    Args:
        settings: Stages, strategy, sizes.
        objectives: M >= 1, in the order of the returns.
        base: The evaluated base model.

    Raises:
        ValueError: A setting is out of range, the strategy is unknown, or `base` is no base model.
    """

    def __init__(
        self, settings: EvolutionSettings, objectives: Sequence[Objective], base: Offspring
    ) -> None:
        self._settings = settings
        self._objectives = check_objectives(objectives)
        _check_settings(settings, len(self._objectives))
        if base.policy != BASE_POLICY or base.returns.size != len(self._objectives):
            raise ValueError(
                f"base={base.policy!r} with {base.returns.size} returns must be "
                f"{BASE_POLICY!r} with one for each of {len(self._objectives)}"
            )
        self._users = even_weights(_NUM_USERS, len(self._objectives))
        self._base = base
        self._current = (base,) * len(self._warmup_weights)
        self._pending: Generation | None = None
        self._told: list[tuple[Generation, tuple[Offspring, ...]]] = []
        self._told_json: list[dict[str, Any]] = []  # kept: `state` is called every generation
        self._excluded: set[PolicyId] = set()
        self._archive = ParetoArchive(self._objectives)
        self._buffer = PerformanceBuffer(self._objectives)
        self.history = History(base)
        self._archive.add([base])
        self._buffer.add([base])
        self._archives = [self._archive_ids()]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, in the order of every vector."""
        return self._objectives

    @property
    def archive(self) -> tuple[Offspring, ...]:
        """All non-dominated policies found so far; the base model until one dominates it."""
        return self._archive.members

    @property
    def archives(self) -> tuple[tuple[PolicyId, ...], ...]:
        """The archive's members at the start (the base model) and after each generation."""
        return tuple(self._archives)

    @property
    def base(self) -> Offspring:
        """The evaluated base model."""
        return self._base

    @property
    def told(self) -> tuple[tuple[Generation, tuple[Offspring, ...]], ...]:
        """Every finished generation with its offspring, in order."""
        return tuple(self._told)

    @property
    def excluded(self) -> tuple[PolicyId, ...]:
        """The policies kept out of archive and population, sorted by name."""
        return tuple(sorted(self._excluded))

    @property
    def offspring(self) -> tuple[Offspring, ...]:
        """All offspring of the finished generations, in order."""
        return tuple(child for _, offspring in self._told for child in offspring)

    @property
    def population(self) -> tuple[Offspring, ...]:
        """The policies that may become parents."""
        return self._buffer.members

    @property
    def live_policies(self) -> frozenset[PolicyId]:
        """The policies whose adapters may still be needed; all others may be dropped."""
        pending = {task.policy for task in self._pending.tasks} if self._pending else set()
        kept = (*self.archive, *self.population, *self._current)
        return frozenset(pending | {offspring.policy for offspring in kept})

    @property
    def num_agents(self) -> int:
        """How many policies an evolutionary generation improves."""
        return self._settings.num_agents

    @property
    def num_generations(self) -> int:
        """How many generations a whole run has."""
        return self._settings.num_generations

    @property
    def num_generations_done(self) -> int:
        """How many generations are finished."""
        return len(self._told)

    @property
    def is_finished(self) -> bool:
        """Whether all generations are done."""
        return self.num_generations_done >= self.num_generations

    def ask(self) -> Generation | None:
        """The next generation to train, or None when the run is complete.

        Raises:
            RuntimeError: The previous generation's offspring were not told yet.
        """
        if self._pending is not None:
            raise RuntimeError(
                f"generation {self._pending.index} was asked for and not told; call "
                "tell with its offspring before asking again"
            )
        if self.is_finished:
            return None
        index = self.num_generations_done
        stage = self._stage(index)
        self._pending = Generation(
            index=index,
            stage=stage,
            tasks=self._tasks(stage, index),
            num_iterations=0 if stage == "soup" else self._settings.iterations_per_generation,
        )
        return self._pending

    def ingredients(self, generation: Generation) -> list[dict[PolicyId, float]]:
        """The starting point of each task, as policy -> share.

        Normally that is the task's own policy with share 1. In the soup stage it is a blend of the
        M extreme policies, and their shares are the task's weights.
        """
        if generation.stage != "soup":
            return [{task.policy: 1.0} for task in generation.tasks]
        extremes = [policy.policy for policy in self._current]
        shares = [zip(extremes, task.weights.tolist(), strict=True) for task in generation.tasks]
        return [{name: share for name, share in pairs if share > 0} for pairs in shares]

    def _stage(self, index: int) -> Stage:
        if index < self._settings.warmup_generations:
            return "warmup"
        is_soup = self._settings.start == "soup" and index == self._settings.warmup_generations
        return "soup" if is_soup else "evolutionary"

    def _tasks(self, stage: Stage, index: int) -> tuple[Task, ...]:
        if stage == "warmup":
            return keep_on(self._current, self._warmup_weights)
        if stage == "soup":
            even = self._context().slot_weights
            return keep_on([self._current[w.argmax()] for w in even], even)
        return STRATEGIES[self._settings.strategy](self._context(), self._rng(index))

    @property
    def _warmup_weights(self) -> Array:
        """Weights of the warm-up's tasks: the agents', or one per objective with a soup start."""
        num_objectives = len(self._objectives)
        if self._settings.start == "soup":
            return np.eye(num_objectives)
        return wanted_weights(self._settings, num_objectives)

    def tell(self, offspring: Sequence[Offspring], excluded: Collection[PolicyId] = ()) -> None:
        """Takes the evaluated offspring of the generation asked for, one per task in slot order.

        Nothing changes if an offspring is refused.

        Args:
            offspring: Of all tasks.
            excluded: Offspring that are recorded but neither archived nor picked as parents. Where
                no parents are picked (warm-up, soup, fixed_weights), their training continues.

        Raises:
            RuntimeError: No generation was asked for.
            ValueError: An offspring's parent, weights, generation or name do not fit its task.
        """
        if self._pending is None:
            raise RuntimeError("tell without ask: there is no generation to tell about")
        _check_offspring(self._pending, offspring, self.history)
        self._record(self._pending, tuple(offspring), excluded)
        self._pending = None

    def metrics(self) -> dict[str, float]:
        """Indicators of the archive in z-units, and the error of the last predictions.

        With one objective, the hypervolume is the best return, and the other indicators are left
        out.

        `morl/prediction_error/<objective>` is the mean absolute difference between predicted and
        realised returns over the last generation's predicted tasks. It is absent if there are none.
        """
        z = returns_in_z(self.archive, self._objectives)
        values = {
            "morl/hypervolume": hypervolume(z),
            "morl/archive_size": float(len(self.archive)),
            "morl/population_size": float(len(self.population)),
        }
        if len(self._objectives) > 1:
            values["morl/sparsity"] = sparsity(z)
            values["morl/expected_utility"] = expected_utility(z, self._users)
        for objective, error in zip(self._objectives, self._prediction_errors(), strict=False):
            values[f"morl/prediction_error/{objective.name}"] = float(error)
        return values

    def state(self) -> dict[str, Any]:
        """All finished generations as JSON; an unfinished one will be asked for again."""
        return {
            "format": _FORMAT,
            "num_agents": self._settings.num_agents,
            "objectives": [objective.to_json() for objective in self._objectives],
            "base": self._base.to_json(),
            "excluded": sorted(self._excluded),
            "generations": list(self._told_json),
        }

    @classmethod
    def restore(
        cls, settings: EvolutionSettings, objectives: Sequence[Objective], state: Mapping[str, Any]
    ) -> "Evolution":
        """Continues the search that `state` described.

        The stages may have become longer, and the strategy may have changed.

        Raises:
            ValueError: The state has another format, other objectives or another number of agents.
        """
        expected = {
            "format": _FORMAT,
            "num_agents": settings.num_agents,
            "objectives": [objective.to_json() for objective in objectives],
        }
        for name, value in expected.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the saved search has {name}={state.get(name)}, this run has "
                    f"{value}; resume with the settings of the saved run"
                )
        evolution = cls(settings, objectives, Offspring.from_json(state["base"]))
        for entry in state["generations"]:
            generation = Generation.from_json(entry["generation"])
            offspring = tuple(Offspring.from_json(o) for o in entry["offspring"])
            _check_offspring(generation, offspring, evolution.history)
            evolution._record(generation, offspring, state.get("excluded", ()))
        return evolution

    def _context(self) -> SelectionContext:
        return SelectionContext(
            settings=self._settings,
            objectives=self._objectives,
            population=self.population,
            archive=self.archive,
            current=self._current,
            history=self.history,
        )

    def _rng(self, generation: int) -> np.random.Generator:
        key = (self._settings.seed, generation, *_STREAM)
        return np.random.default_rng(np.random.SeedSequence(key))

    def _record(
        self,
        generation: Generation,
        offspring: tuple[Offspring, ...],
        excluded: Collection[PolicyId],
    ) -> None:
        for task, child in zip(generation.tasks, offspring, strict=True):
            if generation.stage == "soup":
                self.history.introduce(child)
                continue
            self.history.add(
                Improvement(
                    parent=task.policy,
                    child=child.policy,
                    weights=task.weights,
                    before=self.history.returns(task.policy),
                    after=child.returns,
                    horizon=generation.num_iterations,
                    generation=generation.index,
                )
            )
        self._excluded |= set(excluded)
        admitted = [child for child in offspring if child.policy not in self._excluded]
        self._archive.add(admitted)
        self._buffer.add(admitted)
        self._archives.append(self._archive_ids())
        self._current = offspring
        self._told.append((generation, offspring))
        self._told_json.append(
            {"generation": generation.to_json(), "offspring": [o.to_json() for o in offspring]}
        )
        logger.debug(
            "generation %d (%s): archive %d, population %d",
            generation.index,
            generation.stage,
            len(self.archive),
            len(self.population),
        )

    def _archive_ids(self) -> tuple[PolicyId, ...]:
        return tuple(member.policy for member in self.archive)

    def _prediction_errors(self) -> Array:
        """Mean absolute error (M,) in z over the predicted tasks of the last generation, or ()."""
        if not self._told:
            return np.zeros(0)
        generation, offspring = self._told[-1]
        pairs = [
            (task.predicted_returns, child.returns)
            for task, child in zip(generation.tasks, offspring, strict=True)
            if task.predicted_returns is not None
        ]
        z = to_z(np.array(pairs).reshape(-1, 2, len(self._objectives)), self._objectives)
        return np.abs(z[:, 0] - z[:, 1]).mean(axis=0) if pairs else np.zeros(0)


def _check_settings(settings: EvolutionSettings, num_objectives: int) -> None:
    """Refuses settings that would fail only after the warm-up."""
    wanted_weights(settings, num_objectives)
    if settings.strategy not in STRATEGIES:
        raise ValueError(
            f"evolution.strategy={settings.strategy!r} is unknown; choose from {sorted(STRATEGIES)}"
        )
    stages = (settings.warmup_generations, settings.evolutionary_generations)
    if min(stages) < 0 or sum(stages) == 0:
        raise ValueError(
            f"warmup_generations={stages[0]} and evolutionary_generations={stages[1]} "
            "must not be negative, and one of them must be positive"
        )
    for name in ("iterations_per_generation", "num_weight_candidates"):
        if getattr(settings, name) < 1:
            raise ValueError(f"evolution.{name}={getattr(settings, name)} must be at least 1")
    if not settings.sparsity_coef >= 0:
        raise ValueError(f"sparsity_coef={settings.sparsity_coef} must be at least 0")


def _check_offspring(
    generation: Generation, offspring: Sequence[Offspring], history: History
) -> None:
    """Refuses offspring that do not match the generation's tasks one to one, in slot order."""
    if len(offspring) != len(generation.tasks):
        raise ValueError(
            f"generation {generation.index} has {len(generation.tasks)} tasks but "
            f"{len(offspring)} offspring were told; tell one per task in slot order"
        )
    names = [child.policy for child in offspring]
    for slot, (task, child) in enumerate(zip(generation.tasks, offspring, strict=True)):
        where = f"offspring {child.policy} of slot {slot} in generation {generation.index}"
        if child.parent != task.policy:
            raise ValueError(f"{where} has parent={child.parent!r}, its task has {task.policy!r}")
        if not np.array_equal(child.weights, task.weights):
            raise ValueError(
                f"{where} has weights={child.weights.tolist()}, its task has "
                f"{task.weights.tolist()}; pass the task's own vector on"
            )
        if child.generation != generation.index:
            raise ValueError(f"{where} says generation={child.generation}")
        if child.policy in history or names.count(child.policy) > 1:
            raise ValueError(f"{where} has a name that is taken; use morl.types.policy_id")
