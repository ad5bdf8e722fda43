"""The values that flow through the search: policies, objectives, tasks, generations, offspring.

All of them are frozen, check themselves when made, and turn into plain JSON and back without loss
(`json` writes every float64 so that it reads back bit for bit).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NewType, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
PolicyId = NewType("PolicyId", str)
Stage = Literal["warmup", "soup", "evolutionary"]
RecordT = TypeVar("RecordT", bound="Record")

BASE_POLICY = PolicyId("base")
STAGES: tuple[Stage, ...] = ("warmup", "soup", "evolutionary")


def policy_id(generation: int, slot: int) -> PolicyId:
    """Names the policy that agent `slot` produces in `generation`.

    Example:
        >>> policy_id(3, 2)
        'g003a2'
    """
    return PolicyId(f"g{generation:03d}a{slot}")


def frozen_vector(name: str, values: ArrayLike, size: int | None = None) -> Array:
    """Copies `values` into a read-only float64 vector.

    Args:
        name: What the vector is, for the error message.
        values: M finite numbers.
        size: The M that is expected; None accepts any M >= 2.

    Raises:
        ValueError: The values are not a finite vector of that size.

    Example:
        >>> frozen_vector("returns", [5, -92])
        array([  5., -92.])
    """
    vector = np.array(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size < 2:
        raise ValueError(
            f"{name}={vector.tolist()} must be a vector with one entry per objective, "
            f"at least two; give shape (M,) instead of {vector.shape}"
        )
    if size is not None and vector.size != size:
        raise ValueError(
            f"{name}={vector.tolist()} must have {size} entries, one per objective, "
            f"not {vector.size}"
        )
    if not np.isfinite(vector).all():
        raise ValueError(
            f"{name}={vector.tolist()} must be finite; find out which reward produced "
            "the value that is not a number before telling it to the search"
        )
    vector.flags.writeable = False
    return vector


def frozen_weights(name: str, values: ArrayLike) -> Array:
    """Copies `values` into a read-only weight vector: non-negative, sum 1.

    Raises:
        ValueError: An entry is negative or the sum differs from 1 by more than 1e-9.
    """
    weights = frozen_vector(name, values)
    if (weights < 0).any() or abs(weights.sum() - 1.0) > 1e-9:
        raise ValueError(
            f"{name}={weights.tolist()} must be non-negative and sum to 1; "
            "use morl.weights.normalise"
        )
    return weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """A frozen value that can be written as JSON and read back."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as numbers, strings, lists and dictionaries."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls: type[RecordT], data: Mapping[str, Any]) -> RecordT:
        """Makes the value that `to_json` described.

        Raises:
            ValueError: Fields are missing, unknown or out of range.
        """
        expected = {field.name for field in fields(cls)}
        if set(data) != expected:
            raise ValueError(
                f"{cls.__name__} has fields {sorted(data)}, expected "
                f"{sorted(expected)}; was the file written by another version?"
            )
        return cls(**data)

    def _set(self, **values: object) -> None:
        """Stores converted field values; only for `__post_init__`."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective(Record):
    """One reward to maximise; larger is better.

    Attributes:
        name: Unique within a run.
        unit: Of the raw returns, e.g. "kB".
        reference: Raw return that counts as z = 0.
        ideal: Raw return that counts as z = 1; larger than `reference`.
    """

    name: str
    unit: str
    reference: float
    ideal: float

    def __post_init__(self) -> None:
        """Checks the two points.

        Raises:
            ValueError: They are not finite or not in order.
        """
        if not self.name:
            raise ValueError("an objective has an empty name; name the reward it measures")
        if not (np.isfinite([self.reference, self.ideal]).all() and self.reference < self.ideal):
            raise ValueError(
                f"objective {self.name}: reference={self.reference} must be finite and below "
                f"ideal={self.ideal}; negate a reward of which less is better"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task(Record):
    """A policy to improve and the weights (M,) to improve it along.

    `predicted_returns` (M,), in raw units, are the returns that the prediction model expects. They
    are None if the strategy does not predict.
    """

    policy: PolicyId
    weights: Array
    predicted_returns: Array | None = None

    def __post_init__(self) -> None:
        """Checks and freezes the vectors."""
        weights = frozen_weights("weights", self.weights)
        self._set(weights=weights)
        if self.predicted_returns is not None:
            self._set(
                predicted_returns=frozen_vector(
                    "predicted_returns", self.predicted_returns, weights.size
                )
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation(Record):
    """The tasks that are trained together for `num_iterations`, one per agent slot.

    The soup stage trains nothing and has no iterations: see `Evolution.ingredients`.
    """

    index: int
    stage: Stage
    tasks: tuple[Task, ...]
    num_iterations: int

    def __post_init__(self) -> None:
        """Checks the stage and the counts; reads tasks from JSON.

        Raises:
            ValueError: The stage is unknown, there is no task, or a count is out of range.
        """
        tasks = tuple(t if isinstance(t, Task) else Task.from_json(t) for t in self.tasks)
        self._set(tasks=tasks)
        if self.stage not in STAGES:
            raise ValueError(f"stage={self.stage!r} must be one of {STAGES}")
        has_right_length = (self.num_iterations == 0) == (self.stage == "soup")
        if not tasks or self.index < 0 or self.num_iterations < 0 or not has_right_length:
            raise ValueError(
                f"generation index={self.index} needs index >= 0, at least one task (has "
                f"{len(tasks)}) and num_iterations >= 1, 0 in the soup stage (has "
                f"{self.num_iterations})"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Offspring(Record):
    """An evaluated policy.

    Attributes:
        policy: Its name.
        parent: The policy it was trained from; None for the base model.
        weights: (M,) weights it was trained along; even for the base model.
        returns: (M,) estimated expected rewards, raw units.
        std_error: (M,) standard errors of `returns`, raw units, non-negative.
        generation: The generation that made it; -1 for the base model.
    """

    policy: PolicyId
    parent: PolicyId | None
    weights: Array
    returns: Array
    std_error: Array
    generation: int

    def __post_init__(self) -> None:
        """Checks and freezes the vectors.

        Raises:
            ValueError: A vector is not finite or has the wrong size, an error is negative, or
                `policy`, `parent` and `generation` disagree on whether it is the base model.
        """
        weights = frozen_weights(f"weights of {self.policy}", self.weights)
        returns = frozen_vector(f"returns of {self.policy}", self.returns, weights.size)
        error = frozen_vector(f"std_error of {self.policy}", self.std_error, weights.size)
        if (error < 0).any():
            raise ValueError(f"std_error={error.tolist()} of {self.policy} must not be negative")
        marks = (self.policy == BASE_POLICY, self.parent is None, self.generation == -1)
        if any(marks) and not all(marks):
            raise ValueError(
                f"policy={self.policy!r}, parent={self.parent!r}, generation={self.generation}: "
                f"the base model, and only it, is {BASE_POLICY!r} with parent None, generation -1"
            )
        self._set(weights=weights, returns=returns, std_error=error)


def stack(vectors: Sequence[Array], num_objectives: int) -> Array:
    """Stacks vectors (M,) into (n, M); none give (0, M)."""
    return np.array(vectors, dtype=np.float64).reshape(len(vectors), num_objectives)
