"""A finished run as a value: its Pareto front, and the ways to choose from it.

    from front import Front

    front = Front.load("logs/my_run")
    policy = front.pick(weights=(0.3, 0.7))
    policy.apply(pipe)  # a plain diffusers pipeline

Only numbers are read here: no deep-learning library is imported before an adapter is applied.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from config.settings.runs import named_run, runs_beside
from front.blend import affine_coefficients, coefficients
from front.errors import ChoiceError, FrontError
from front.member import Blend, FrontPolicy
from front.record import NAME, FrontRecord
from morl.history import Improvement
from morl.indicators import expected_utility, hypervolume, sparsity
from morl.objectives import comparable, to_z
from morl.weights import even_weights, normalise
from run.records import CONFIG, RecordError, RunConfig, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from front.member import Guard
    from front.record import BaseRecord, ModelRecord, PolicyRecord
    from front.setups import SetupRecord
    from morl.types import Array, Objective, PolicyId
    from run.records import Costs

_HISTORY = "history.json"
_NUM_USERS = 101  # weight vectors that the expected utility is a mean over
_SUM_TOLERANCE = 1e-6  # weights typed by hand, such as 0.333,0.333,0.334


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
        model: how the base model drew; None for a run of an older program.
        transfer: the front under other ways of drawing that `transfer` measured, or nothing.
        costs: images sampled to train, to select and to report; UNet rows.
        history: every improvement of the search; empty if the run's `history.json` is not there.
        config: content of `config.json`: settings, seed, device, package versions.
    """

    path: Path
    objectives: tuple[Objective, ...]
    policies: tuple[FrontPolicy, ...]
    blends: tuple[Blend, ...]
    base: BaseRecord
    guards: tuple[Guard, ...]
    dominated_on_report: tuple[PolicyId, ...]
    sample_prompts: tuple[str, ...]
    sample_seeds: tuple[int, ...]
    model: ModelRecord | None
    transfer: tuple[SetupRecord, ...]
    costs: Costs
    history: tuple[Improvement, ...]
    config: RunConfig

    @classmethod
    def load(cls, run: str | Path) -> Front:
        """Read a run directory, or a copy of its front.

        Args:
            run: folder with `front.json`, `config.json` and `adapters/`; `history.json` is read if
                it is there. "latest" is the newest run in `logs`, "folder/latest" the newest in a
                folder.

        Raises:
            FrontError: if there is no run, it is not finished, or a file of it is damaged.
        """
        path = named_run(Path(run))
        if not path.is_dir():
            raise FrontError(
                f"{path} is not a folder; give the run directory that training made"
                f"{runs_beside(path)}"
            )
        if not (path / CONFIG).is_file():
            raise FrontError(
                f"{path} is not a run directory: it has no {CONFIG}{runs_beside(path / 'any')}"
            )
        if not (path / NAME).is_file():
            raise FrontError(
                f"the run {path} is not finished: {NAME} is written at its end; resume it with "
                f"mo_train.py --config.resume_from={path}, or see `mo_front.py report`"
            )
        try:
            config = RunConfig.read(path)
            history: tuple[Improvement, ...] = ()
            if (path / _HISTORY).is_file():
                history = read_record(path / _HISTORY, _history)
            return read_record(
                path / NAME,
                lambda data: cls._of(path, FrontRecord.from_json(data), config, history),
            )
        except RecordError as error:
            raise FrontError(str(error)) from error

    @classmethod
    def _of(
        cls,
        path: Path,
        record: FrontRecord,
        config: RunConfig,
        history: tuple[Improvement, ...],
    ) -> Front:
        policies = sorted((_policy(path, entry) for entry in record.policies), key=_first)
        if not policies:
            raise ValueError("there is no policy")
        known = {policy.id: policy for policy in policies}
        if len(known) < len(policies):
            raise ValueError("two policies have the same id")
        blends = [
            Blend(
                id=blend.id,
                parts=tuple((known[name], part) for name, part in blend.parts),
                weights=blend.weights,
                report_returns=blend.report_returns,
                report_std_error=blend.report_std_error,
                guards=blend.guards,
            )
            for blend in record.blends or ()
        ]
        return cls(
            path=path,
            objectives=record.objectives,
            policies=tuple(policies),
            blends=tuple(sorted(blends, key=_first)),
            base=record.base,
            guards=record.guards,
            dominated_on_report=record.dominated_on_report,
            sample_prompts=record.samples.prompts,
            sample_seeds=record.samples.seeds,
            model=record.model,
            transfer=record.transfer,
            costs=record.costs,
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
        return self.config.settings

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

    def gain(self, member: FrontPolicy | Blend) -> Array:
        """(M,) what a member of the front has over the base model, report set, z-units."""
        z, base = to_z([_measured(member), self.base.report_returns], self.objectives)
        return np.asarray(z - base)

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
        pairs = zip(self.policies, coefficients(self.z, preference).tolist(), strict=True)
        return Blend.of(tuple((policy, part) for policy, part in pairs if part > 0), preference)

    def member(self, weights: ArrayLike) -> Blend:
        """The member of a conditioned run's family at any weights, not only those archived.

        The newest generation whose policies on the front span the weights gives the family.
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
            found = affine_coefficients(np.array([p.weights for p in members]), preference)
            if found is not None:
                pairs = zip(members, found.tolist(), strict=True)
                return Blend.of(tuple((policy, part) for policy, part in pairs if part), preference)
        raise FrontError(
            f"the family's member at {','.join(f'{weight:g}' for weight in preference)} cannot be "
            f"made from this front: it needs {len(self.objectives)} policies of one generation; "
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


def _measured(member: FrontPolicy | Blend) -> Array:
    """Report returns of a member of the front; in `front.json` all members are measured."""
    assert member.report_returns is not None
    return member.report_returns


def _first(member: FrontPolicy | Blend) -> tuple[float, str]:
    return float(_measured(member)[0]), member.id


def _history(records: Sequence[Mapping[str, Any]]) -> tuple[Improvement, ...]:
    return tuple(Improvement.from_json(record) for record in records)


def _policy(run: Path, record: PolicyRecord) -> FrontPolicy:
    adapter = run / record.adapter
    if not adapter.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"the adapter of {record.id} lies outside the run: {record.adapter}")
    return FrontPolicy(
        id=record.id,
        parent=record.parent,
        generation=record.generation,
        weights=record.weights,
        returns=record.returns,
        std_error=record.std_error,
        report_returns=record.report_returns,
        report_std_error=record.report_std_error,
        adapter=adapter,
        guards=record.guards,
    )
