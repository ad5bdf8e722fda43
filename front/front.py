"""A finished run as a value: its Pareto front, and the ways to choose from it.

    from front import Front

    front = Front.load("logs/my_run")
    policy = front.pick(weights=(0.3, 0.7))
    policy.apply(pipe)  # a plain diffusers pipeline

Only numbers are read here: no deep-learning library is imported before an adapter is applied.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from config.settings.errors import UserError
from ddpo.files import ADAPTER_FILE
from front.blend import affine_shares, coefficients
from morl.history import Improvement
from morl.indicators import expected_utility, hypervolume, sparsity
from morl.objectives import check_objectives, comparable, to_z
from morl.types import Array, Objective, PolicyId, frozen_vector, frozen_weights
from morl.weights import even_weights, normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from numpy.typing import ArrayLike

    T = TypeVar("T")

FORMAT = 1
_SLOT = "front"  # the adapter name under which a policy is loaded into a pipeline
_NUM_USERS = 101  # weight vectors that the expected utility is a mean over
_SUM_TOLERANCE = 1e-6  # weights typed by hand, such as 0.333,0.333,0.334


class FrontError(UserError):
    """No front, a damaged one, or nothing in it that answers the question."""


class ChoiceError(FrontError):
    """The question is wrong: weights or names that this front does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Something that policies should keep, though nothing trains it; see docs/guards.md.

    Attributes:
        name: unique within a run.
        unit: of its values.
        max_loss: how far below the base model's value a policy may be; None for no limit.
    """

    name: str
    unit: str
    max_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardValue:
    """What a guard says of a policy on the report set, and how far that is below the base model."""

    value: float
    std_error: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontPolicy:
    """A policy on the published front.

    Attributes:
        id: its name in the run.
        parent: of which policy it was trained; None for the base model.
        generation: in which it was made; -1 for the base model.
        weights: (M,) it was trained along.
        returns: (M,) on the selection set, raw units.
        std_error: (M,) of `returns`.
        report_returns: (M,) on the report set, raw units: the published numbers.
        report_std_error: (M,) of `report_returns`.
        adapter: folder of its LoRA adapter, in diffusers' format.
        guards: by name; empty in a run without guards.
    """

    id: PolicyId
    parent: PolicyId | None
    generation: int
    weights: Array
    returns: Array
    std_error: Array
    report_returns: Array
    report_std_error: Array
    adapter: Path
    guards: Mapping[str, GuardValue] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[tuple[FrontPolicy, float], ...]:
        """The policy itself, at full strength: a blend of one."""
        return ((self, 1.0),)

    @property
    def size_bytes(self) -> int:
        """Size of the adapter on disk.

        Raises:
            FrontError: if the adapter is missing.
        """
        return self.file.stat().st_size

    @property
    def file(self) -> Path:
        """The adapter's safetensors file.

        Raises:
            FrontError: if it is missing.
        """
        path = self.adapter / ADAPTER_FILE
        if not path.is_file():
            raise FrontError(
                f"the adapter of {self.id} is missing: {path}; copy the run's whole adapters/ "
                "folder along with front.json"
            )
        return path

    def apply(self, pipe: Any, name: str = _SLOT) -> None:
        """Make a plain diffusers pipeline draw as this policy.

        Args:
            pipe: with the base model that the run was trained on.
            name: adapter slot in the pipeline. What an earlier call put there is replaced; other
                adapters stay loaded, and inactive.

        Raises:
            FrontError: if the adapter is missing, damaged, or made for another model.
        """
        _apply(self, pipe, name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blend:
    """A combination of policies: their weight updates dW, added in shares that sum to 1.

    Attributes:
        id: its name: that in `front.json`, or one made of the parts.
        parts: the policies and their coefficients, which sum to 1.
        weights: (M,) the preference it stands for.
        report_returns: (M,) measured on the report set, raw units; None if nobody measured.
        report_std_error: (M,) of `report_returns`, or None.
    """

    id: str
    parts: tuple[tuple[FrontPolicy, float], ...]
    weights: Array
    report_returns: Array | None = None
    report_std_error: Array | None = None

    def apply(self, pipe: Any, name: str = _SLOT) -> None:
        """Make a plain diffusers pipeline draw as this blend; see `FrontPolicy.apply`."""
        _apply(self, pipe, name)


def _apply(member: FrontPolicy | Blend, pipe: Any, name: str) -> None:
    from ddpo.agents.adapter import Adapter  # noqa: PLC0415 - imports torch

    Adapter.of(member).apply(pipe, name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BaseReturns:
    """The base model's returns (M,) on the report set, their standard errors, and its guards."""

    report_returns: Array
    report_std_error: Array
    guards: Mapping[str, GuardValue]


@dataclass(frozen=True, kw_only=True, eq=False)
class Front:
    """The Pareto front of a finished run.

    Attributes:
        path: the run directory.
        objectives: M of them, with the run's reference and ideal points.
        policies: from the lowest to the highest report return in the first objective.
        blends: measured blends that `analyse` added, in the same order.
        base: the base model.
        guards: what else was measured on the report set.
        dominated_on_report: archive members that another member dominates on the report set.
        sample_prompts: of the pictures in `samples/report/`, the same for every policy.
        sample_seeds: of the same pictures.
        images: images sampled to train, to select, and to report.
        unet_rows: rows of all UNet passes.
        history: every improvement of the search; empty if the run's `history.json` is not there.
        config: content of `config.json`: settings, seed, device, package versions.
    """

    path: Path
    objectives: tuple[Objective, ...]
    policies: tuple[FrontPolicy, ...]
    blends: tuple[Blend, ...]
    base: BaseReturns
    guards: tuple[Guard, ...]
    dominated_on_report: tuple[PolicyId, ...]
    sample_prompts: tuple[str, ...]
    sample_seeds: tuple[int, ...]
    images: Mapping[str, int]
    unet_rows: int
    history: tuple[Improvement, ...]
    config: Mapping[str, Any]

    @classmethod
    def load(cls, run: str | Path) -> Front:
        """Read a run directory, or a copy of its front.

        Args:
            run: folder with `front.json`, `config.json` and `adapters/`; `history.json` is read if
                it is there.

        Raises:
            FrontError: if there is no run, it is not finished, or a file of it is damaged.
        """
        path = Path(run)
        if not path.is_dir():
            raise FrontError(f"{path} is not a folder; give the run directory that training made")
        if not (path / "config.json").is_file():
            raise FrontError(f"{path} is not a run directory: it has no config.json")
        if not (path / "front.json").is_file():
            raise FrontError(
                f"the run {path} is not finished: front.json is written at its end; go on with "
                f"mo_train.py --config.resume_from={path}"
            )
        config = _read(path / "config.json", dict)
        history: tuple[Improvement, ...] = ()
        if (path / "history.json").is_file():
            history = _read(path / "history.json", _history)
        return _read(path / "front.json", lambda data: cls._from_json(path, data, config, history))

    @classmethod
    def _from_json(
        cls,
        path: Path,
        data: Mapping[str, Any],
        config: Mapping[str, Any],
        history: tuple[Improvement, ...],
    ) -> Front:
        if data["format"] != FORMAT:
            raise FrontError(
                f"{path / 'front.json'} has format {data['format']}; this program reads {FORMAT}"
            )
        objectives = check_objectives([Objective.from_json(entry) for entry in data["objectives"]])
        num = len(objectives)
        policies = sorted((_policy(path, entry, num) for entry in data["policies"]), key=_first)
        if not policies:
            raise ValueError("there is no policy")
        known = {policy.id: policy for policy in policies}
        if len(known) < len(policies):
            raise ValueError("two policies have the same id")
        blends = sorted((_blend(entry, known, num) for entry in data.get("blends", [])), key=_first)
        base = BaseReturns(
            report_returns=frozen_vector("base", data["base"]["report_returns"], num),
            report_std_error=frozen_vector("base", data["base"]["report_std_error"], num),
            guards=_guards(data["base"]),
        )
        return cls(
            path=path,
            objectives=objectives,
            policies=tuple(policies),
            blends=tuple(blends),
            base=base,
            guards=tuple(Guard(**guard) for guard in data.get("guards", [])),
            dominated_on_report=tuple(data["dominated_on_report"]),
            sample_prompts=tuple(data.get("samples", {}).get("prompts", ())),
            sample_seeds=tuple(data.get("samples", {}).get("seeds", ())),
            images=dict(data["images"]),
            unet_rows=data["unet_rows"],
            history=history,
            config=config,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives, in order."""
        return tuple(objective.name for objective in self.objectives)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the run, nested, as `config.json` holds them."""
        settings: Mapping[str, Any] = self.config["settings"]
        return settings

    @property
    def members(self) -> tuple[FrontPolicy | Blend, ...]:
        """Policies and measured blends together, by the first objective's report return."""
        return tuple(sorted((*self.policies, *self.blends), key=_first))

    @cached_property
    def z(self) -> Array:
        """(n, M) report returns of `policies` in z-units."""
        return to_z([policy.report_returns for policy in self.policies], self.objectives)

    @property
    def hypervolume(self) -> float:
        """Of the policies on the report set, in z-units."""
        return hypervolume(self.z)

    @property
    def dense_hypervolume(self) -> float:
        """Of the policies and the measured blends on the report set, in z-units."""
        return hypervolume(
            to_z([_measured(member) for member in self.members], self.objectives),
        )

    @property
    def sparsity(self) -> float:
        """Of the policies on the report set, in z-units; read it with their number."""
        return sparsity(self.z)

    @property
    def expected_utility(self) -> float:
        """Mean over evenly spread preferences of the best policy's weighted return, in z-units."""
        return expected_utility(self.z, even_weights(_NUM_USERS, len(self.objectives)))

    def policy(self, identifier: str) -> FrontPolicy | Blend:
        """The policy, or the measured blend, of this name.

        Raises:
            ChoiceError: if there is none.
            FrontError: if it was left out, as dominated on the report set.
        """
        for member in self.members:
            if member.id == identifier:
                return member
        if identifier in self.dominated_on_report:
            raise FrontError(
                f"policy {identifier!r} is not on the front: another policy dominates it on the "
                f"report set; its adapter is {self.path / 'adapters' / identifier}"
            )
        ids = [member.id for member in self.members]
        raise ChoiceError(f"no policy {identifier!r} on the front; there are {', '.join(ids)}")

    @overload
    def pick(
        self,
        weights: ArrayLike | None = None,
        at_least: Mapping[str, float] | None = None,
        *,
        with_blends: Literal[False] = False,
    ) -> FrontPolicy: ...

    @overload
    def pick(
        self,
        weights: ArrayLike | None = None,
        at_least: Mapping[str, float] | None = None,
        *,
        with_blends: bool,
    ) -> FrontPolicy | Blend: ...

    def pick(
        self,
        weights: ArrayLike | None = None,
        at_least: Mapping[str, float] | None = None,
        *,
        with_blends: bool = False,
    ) -> FrontPolicy | Blend:
        """The policy that is best under a preference.

        Best is the largest weighted sum of report returns in z-units. Without weights, the
        objectives that `at_least` does not bound count alike.

        Args:
            weights: (M,) non-negative, sum 1, in the order of `objectives`.
            at_least: objective name -> smallest acceptable report return, raw units.
            with_blends: choose among the measured blends, too.

        Raises:
            ChoiceError: if neither is given, or the weights or a name are wrong.
            FrontError: if no policy is good enough.
        """
        if weights is None and not at_least:
            raise ChoiceError("give weights, or a least return for an objective")
        floors = dict(at_least or {})
        for name in floors:
            self._index(name)
        if weights is not None:
            preference = self.check_weights(weights)
        else:
            free = [name not in floors for name in self.names]
            preference = normalise(np.array(free if any(free) else [True] * len(free), dtype=float))
        members = self.members if with_blends else self.policies
        returns = np.array([_measured(member) for member in members])
        candidates = self._above(floors, returns)
        scores = comparable(to_z(returns[candidates], self.objectives) @ preference)
        return members[candidates[int(scores.argmax())]]

    def _above(self, floors: Mapping[str, float], returns: Array) -> list[int]:
        """Indices of the returns (n, M) that reach every floor."""
        floor = np.full(len(self.objectives), -np.inf)
        for name, value in floors.items():
            floor[self._index(name)] = value
        indices = np.flatnonzero((returns >= floor).all(axis=1))
        if len(indices) == 0:
            best = dict(zip(self.names, returns.max(axis=0).tolist(), strict=True))
            wanted = " and ".join(f"{name} >= {value:g}" for name, value in floors.items())
            reach = ", ".join(f"{name} {best[name]:.4g}" for name in floors)
            together = " together" if len(floors) > 1 else ""
            raise FrontError(
                f"no policy reaches {wanted}{together}; the best of the front: {reach}. "
                "Lower the bound"
            )
        return [int(i) for i in indices]

    def blend(self, weights: ArrayLike) -> Blend:
        """The blend of at most M neighbours on the front that stands for a preference.

        Each policy stands for the preferences under which it is the best one; between the centres
        of these regions the preference is interpolated (see `front.blend.coefficients`). With two
        objectives the policy that `pick` gives is always among the parts.

        Args:
            weights: (M,) non-negative, sum 1, in the order of `objectives`.

        Returns:
            A blend. Its returns are None, because nobody has measured it, unless it is one policy
            alone; `analyse` measures blends.

        Raises:
            ChoiceError: if the weights are wrong.
        """
        preference = self.check_weights(weights)
        shares = coefficients(self.z, preference)
        parts = tuple(
            (policy, float(share))
            for policy, share in zip(self.policies, shares, strict=True)
            if share > 0
        )
        return _mix(parts, preference)

    def member(self, weights: ArrayLike) -> Blend:
        """The member of a conditioned run's family at any weights, not only those archived.

        The family is that of the newest generation whose policies on the front span the weights.
        Its members' updates are affine in the weights, so the blend is the member, up to rounding.

        Args:
            weights: (M,) non-negative, sum 1, in the order of `objectives`.

        Raises:
            ChoiceError: if the weights are wrong, or the run's agents are no family.
            FrontError: if no generation has enough policies on the front.
        """
        preference = self.check_weights(weights)
        if self.settings.get("agents", {}).get("kind") != "conditioned":
            raise ChoiceError(
                "this run's agents have adapters of their own (agents.kind=population): there is "
                "no member for every weight vector; blend policies instead"
            )
        trained = [policy for policy in self.policies if policy.generation >= 0]
        for generation in sorted({policy.generation for policy in trained}, reverse=True):
            members = [policy for policy in trained if policy.generation == generation]
            shares = affine_shares(np.array([policy.weights for policy in members]), preference)
            if shares is not None:
                pairs = zip(members, shares.tolist(), strict=True)
                return _mix(tuple((policy, share) for policy, share in pairs if share), preference)
        raise FrontError(
            f"the family's member at {','.join(f'{weight:g}' for weight in preference)} cannot be "
            f"had from this front: it takes {len(self.objectives)} policies of one generation; "
            "blend policies instead"
        )

    def check_weights(self, weights: ArrayLike) -> Array:
        """A preference as a weight vector (M,) whose sum is exactly 1.

        Raises:
            ChoiceError: if the count is wrong, an entry is negative or not a number, or the sum is
                not 1.
        """
        values = np.asarray(weights, dtype=np.float64)
        shown = f"weights={','.join(f'{value:g}' for value in values.ravel())}"
        order = ", ".join(self.names)
        if values.shape != (len(self.objectives),):
            raise ChoiceError(
                f"{shown} must be {len(self.objectives)} numbers, one for each of {order}"
            )
        if not np.isfinite(values).all() or (values < 0).any():
            raise ChoiceError(f"{shown} must be numbers of at least 0, one for each of {order}")
        if abs(values.sum() - 1) > _SUM_TOLERANCE:
            positive = values.sum() > 0
            scaled = ",".join(f"{value:.7g}" for value in values / values.sum()) if positive else ""
            hint = f"; the same preference is {scaled}" if positive else ""
            raise ChoiceError(f"{shown} must sum to 1, not {values.sum():g}{hint}")
        return normalise(values)

    def _index(self, name: str) -> int:
        """Position of an objective."""
        if name not in self.names:
            close = difflib.get_close_matches(name, self.names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ChoiceError(f"{name!r} is not one of this run's {', '.join(self.names)}{hint}")
        return self.names.index(name)


def _mix(parts: tuple[tuple[FrontPolicy, float], ...], preference: Array) -> Blend:
    """The blend of these parts; one policy alone is as good as it was measured to be."""
    name = "-".join(f"{policy.id}-{round(1000 * share):04d}" for policy, share in parts)
    (policy, _), *others = parts
    return Blend(
        id=f"blend-{name}",
        parts=parts,
        weights=preference,
        report_returns=None if others else policy.report_returns,
        report_std_error=None if others else policy.report_std_error,
    )


def _measured(member: FrontPolicy | Blend) -> Array:
    """Report returns of a member of the front; those of `front.json` are always measured."""
    assert member.report_returns is not None
    return member.report_returns


def _first(member: FrontPolicy | Blend) -> tuple[float, str]:
    return float(_measured(member)[0]), member.id


def _read(path: Path, make: Callable[[Any], T]) -> T:
    """A JSON file, as what `make` makes of it.

    Raises:
        FrontError: if the file is damaged.
    """
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise FrontError(f"{path} is damaged: {what}") from error


def _history(records: Sequence[Mapping[str, Any]]) -> tuple[Improvement, ...]:
    return tuple(Improvement.from_json(record) for record in records)


def _policy(run: Path, entry: Mapping[str, Any], num: int) -> FrontPolicy:
    adapter = run / entry["adapter"]
    if not adapter.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"the adapter of {entry['id']} lies outside the run: {entry['adapter']}")
    vectors = {
        name: frozen_vector(name, entry[name], num)
        for name in ("returns", "std_error", "report_returns", "report_std_error")
    }
    return FrontPolicy(
        id=PolicyId(entry["id"]),
        parent=None if entry["parent"] is None else PolicyId(entry["parent"]),
        generation=int(entry["generation"]),
        weights=frozen_weights("weights", entry["weights"]),
        adapter=adapter,
        guards=_guards(entry),
        **vectors,
    )


def _guards(entry: Mapping[str, Any]) -> dict[str, GuardValue]:
    return {name: GuardValue(**value) for name, value in entry.get("guards", {}).items()}


def _blend(entry: Mapping[str, Any], policies: Mapping[PolicyId, FrontPolicy], num: int) -> Blend:
    parts = tuple((policies[part["policy"]], part["coefficient"]) for part in entry["parts"])
    return Blend(
        id=entry["id"],
        parts=parts,
        weights=frozen_weights("weights", entry["weights"]),
        report_returns=frozen_vector("report_returns", entry["report_returns"], num),
        report_std_error=frozen_vector("report_std_error", entry["report_std_error"], num),
    )
