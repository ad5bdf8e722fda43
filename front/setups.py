"""The transfer of a front: its gains under other samplers, steps, guidance and LoRA strengths.

A policy is trained and judged with one way of drawing. People draw in others. `mo_front.py
transfer` measures the front again under each `Setup`. This file holds the resulting numbers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from front.tables import with_error
from morl.indicators import hypervolume
from morl.objectives import to_z
from morl.types import BASE_POLICY, PolicyId, frozen_vector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from morl.types import Array, Objective

_SURE = 2.0  # standard errors beyond which a difference counts
_TOO_LITTLE = 0.5  # of a gain: a policy that surely keeps less has lost it
SAMPLER_NAMES = {  # as people know them
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A way of drawing.

    Attributes:
        sampler: a key of `SAMPLER_NAMES`.
        eta: noise of DDIM, from 0 (none) to 1; 0 for the others, which have their own.
        steps: denoising steps.
        guidance: classifier-free guidance; 1 is none.
        strength: of the LoRA.
    """

    sampler: str
    eta: float
    steps: int
    guidance: float
    strength: float = 1.0

    def words(self, own: Setup | None = None) -> str:
        """What it is, or only what differs from another.

        Example:
            >>> own = Setup(sampler="ddim", eta=1, steps=10, guidance=1)
            >>> own.words()
            'DDIM eta 1, 10 steps, guidance 1, strength 1'
            >>> Setup(sampler="euler_a", eta=0, steps=10, guidance=1, strength=0.5).words(own)
            'Euler a, strength 0.5'
        """
        eta = f" eta {self.eta:g}" if self.sampler == "ddim" else ""
        words = {
            "sampler": SAMPLER_NAMES[self.sampler] + eta,
            "steps": f"{self.steps} steps",
            "guidance": f"guidance {self.guidance:g}",
            "strength": f"strength {self.strength:g}",
        }
        if own is not None:
            is_other = {name: getattr(self, name) != getattr(own, name) for name in words}
            is_other["sampler"] |= self.eta != own.eta
            words = {name: text for name, text in words.items() if is_other[name]}
        return ", ".join(words.values()) or "as trained"


class Kept(NamedTuple):
    """The share of a gain that is left under a setup, and its standard error."""

    share: float
    std_error: float

    @property
    def is_lost(self) -> bool:
        """Whether surely less than half of the gain is left."""
        return self.share + _SURE * self.std_error < _TOO_LITTLE

    def __str__(self) -> str:
        """In per cent."""
        return f"{with_error(100 * self.share, 100 * self.std_error)} %"


class Swap(NamedTuple):
    """Two policies whose order in an objective is surely the other way round under a setup."""

    objective: str
    was_better: PolicyId
    is_better: PolicyId


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transferred:
    """A policy, or the base model, under a setup.

    Attributes:
        returns: (M,) on the pictures drawn, raw units.
        std_error: (M,) of `returns`.
        gain: (M,) over the base model under the same setup, picture by picture.
        gain_std_error: (M,) of `gain`.
        kept: M shares of the gain as trained; None where that was not surely above 0.
    """

    returns: Array
    std_error: Array
    gain: Array
    gain_std_error: Array
    kept: tuple[Kept | None, ...]

    def to_json(self) -> dict[str, Any]:
        """As `front.json` stores it."""
        arrays = ("returns", "std_error", "gain", "gain_std_error")
        return {
            **{name: getattr(self, name).tolist() for name in arrays},
            "kept": [kept and kept.share for kept in self.kept],
            "kept_std_error": [kept and kept.std_error for kept in self.kept],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_objectives: int) -> Transferred:
        """The inverse of `to_json`."""
        arrays = ("returns", "std_error", "gain", "gain_std_error")
        kept = zip(data["kept"], data["kept_std_error"], strict=True)
        return cls(
            **{name: frozen_vector(name, data[name], num_objectives) for name in arrays},
            kept=tuple(None if share is None else Kept(share, error) for share, error in kept),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetupRecord:
    """A front under one setup.

    Attributes:
        setup: how it was drawn.
        num_images: of each policy: the first of the report set.
        base: the base model.
        policies: id -> what is left of it, in the order of the front.
        swaps: pairs whose order changed.
        hypervolume: of the policies, z-units.
        base_hypervolume: of the base model.
    """

    setup: Setup
    num_images: int
    base: Transferred
    policies: Mapping[PolicyId, Transferred]
    swaps: tuple[Swap, ...]
    hypervolume: float
    base_hypervolume: float

    def lost(self, names: Sequence[str]) -> list[tuple[PolicyId, str]]:
        """Each policy and objective of which surely less than half of the gain is left."""
        return [
            (identifier, name)
            for identifier, policy in self.policies.items()
            for name, kept in zip(names, policy.kept, strict=True)
            if kept is not None and kept.is_lost
        ]

    def to_json(self) -> dict[str, Any]:
        """As `front.json` stores it."""
        return {
            "setup": asdict(self.setup),
            "num_images": self.num_images,
            "base": self.base.to_json(),
            "policies": {name: policy.to_json() for name, policy in self.policies.items()},
            "swaps": [swap._asdict() for swap in self.swaps],
            "hypervolume": self.hypervolume,
            "base_hypervolume": self.base_hypervolume,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_objectives: int) -> SetupRecord:
        """The inverse of `to_json`."""
        return cls(
            setup=Setup(**data["setup"]),
            num_images=int(data["num_images"]),
            base=Transferred.from_json(data["base"], num_objectives),
            policies={
                PolicyId(name): Transferred.from_json(policy, num_objectives)
                for name, policy in data["policies"].items()
            },
            swaps=tuple(Swap(**swap) for swap in data["swaps"]),
            hypervolume=float(data["hypervolume"]),
            base_hypervolume=float(data["base_hypervolume"]),
        )


def transferred(
    setup: Setup,
    objectives: Sequence[Objective],
    own: Mapping[PolicyId, Array],
    rewards: Mapping[PolicyId, Array],
) -> SetupRecord:
    """The gains of a front under a setup, compared with its own way of drawing.

    All is paired: the pictures of a row have one prompt and one seed.

    Args:
        setup: how the pictures were drawn.
        objectives: M of them.
        own: id -> rewards (N, M) of the pictures drawn as in training, the base model's among them;
            NaN where a score is missing.
        rewards: the same for pictures drawn under `setup`.
    """
    names = [name for name in own if name != BASE_POLICY]
    base = rewards[BASE_POLICY]
    entries = {
        name: Transferred(
            **_measured("returns", "std_error", rewards[name]),
            **_measured("gain", "gain_std_error", rewards[name] - base),
            kept=_kept(own[name] - own[BASE_POLICY], rewards[name] - base),
        )
        for name in (*names, BASE_POLICY)
    }
    z = {name: to_z(entry.returns, objectives) for name, entry in entries.items()}
    return SetupRecord(
        setup=setup,
        num_images=len(base),
        base=entries.pop(BASE_POLICY),
        policies=entries,
        swaps=_swaps([objective.name for objective in objectives], names, own, rewards),
        hypervolume=hypervolume(np.stack([z[name] for name in names])),
        base_hypervolume=hypervolume(z[BASE_POLICY][None]),
    )


def _mean(values: Array) -> tuple[Array, Array]:
    """Mean and standard error (M,) over the rows that are whole."""
    whole = values[np.isfinite(values).all(axis=1)].astype(np.float64)
    return whole.mean(axis=0), whole.std(axis=0, ddof=1) / math.sqrt(len(whole))


def _measured(name: str, error_name: str, values: Array) -> dict[str, Array]:
    return dict(zip((name, error_name), _mean(values), strict=True))


def _kept(before: Array, after: Array) -> tuple[Kept | None, ...]:
    """Ratios of paired means, with errors by the delta method (Cochran 1977, section 6.3)."""
    whole = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
    before, after = before[whole].astype(np.float64), after[whole].astype(np.float64)
    gain, error = _mean(before)
    is_gain = gain > np.maximum(_SURE * error, 0)
    share = after.mean(axis=0) / np.where(is_gain, gain, 1)
    _, share_error = _mean((after - share * before) / np.where(is_gain, gain, 1))
    rows = zip(share.tolist(), share_error.tolist(), is_gain.tolist(), strict=True)
    return tuple(Kept(each, off) if ok else None for each, off, ok in rows)


def _swaps(
    objectives: Sequence[str],
    names: Sequence[PolicyId],
    own: Mapping[PolicyId, Array],
    rewards: Mapping[PolicyId, Array],
) -> tuple[Swap, ...]:
    found = []
    for was_better in names:
        for is_better in names:
            before, error = _mean(own[was_better] - own[is_better])
            after, error_after = _mean(rewards[is_better] - rewards[was_better])
            is_swap = (before > _SURE * error) & (after > _SURE * error_after)
            found += [
                Swap(objective, was_better, is_better)
                for objective, is_one in zip(objectives, is_swap, strict=True)
                if is_one
            ]
    return tuple(found)


class _Published(Protocol):
    """A policy of a front."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def report_returns(self) -> Array:
        """(M,) on the whole report set."""
        ...


def transfer_table(
    records: Sequence[SetupRecord], names: Sequence[str], policies: Sequence[_Published]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a front under every setup.

    Args:
        records: as trained first.
        names: of the objectives.
        policies: of the front. Its ends are chosen on the whole report set: chosen by the
            few pictures of a short measurement, they would look better than they are.
    """
    own = records[0]
    policies = [policy for policy in policies if policy.id in own.policies]
    best = np.argmax([policy.report_returns for policy in policies], axis=0)
    ends = [PolicyId(policies[index].id) for index in best]
    header = ["setup", "hypervolume", "over the base model"]
    header += [f"{name} kept by {end}" for name, end in zip(names, ends, strict=True)]
    header += ["less than half kept by", "orders changed"]
    rows = []
    for record in records:
        kept = [record.policies[end].kept[k] for k, end in enumerate(ends)]
        lost = [
            f"{name}: {', '.join(losers)}"
            for name in names
            if (losers := [policy for policy, which in record.lost(names) if which == name])
        ]
        rows.append(
            [
                record.setup.words(None if record is own else own.setup),
                f"{record.hypervolume:.3f}",
                f"{record.hypervolume - record.base_hypervolume:+.3f}",
                *("not sure" if each is None else str(each) for each in kept),
                "; ".join(lost) or "none",
                str(len(record.swaps)),
            ]
        )
    return header, rows


def policy_table(
    records: Sequence[SetupRecord], policy: str, objectives: Sequence[Objective]
) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: one policy's gains under every setup; None if it was not measured."""
    if not records or policy not in records[0].policies:
        return None
    header = ["setup"]
    for objective in objectives:
        header += [f"gain in {objective.name} [{objective.unit}]", "kept"]
    rows = []
    for record in records:
        entry = record.policies[PolicyId(policy)]
        row = [record.setup.words(None if record is records[0] else records[0].setup)]
        for gain, error, kept in zip(entry.gain, entry.gain_std_error, entry.kept, strict=True):
            row += [with_error(gain, error), "" if kept is None else str(kept)]
        rows.append(row)
    return header, rows
