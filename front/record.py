"""The content of `front.json`, as it is written and read; numbers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from front.errors import FrontError
from front.member import Guard, GuardValue
from front.setups import SetupRecord
from morl.objectives import check_objectives
from morl.types import Objective, PolicyId, frozen_vector, frozen_weights
from run.records import Costs, Samples, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

    from morl.types import Array

NAME = "front.json"
_FORMAT = 1
_MEASURED = ("returns", "std_error", "report_returns", "report_std_error")
_BY_PROMPT = "report_std_error_by_prompt"
_NOTED_SINCE = (  # later than the others: not in every file
    _BY_PROMPT,
    "gain_over_base",
    "gain_std_error",
    "gain_std_error_by_prompt",
)


def _present(record: object, *names: str) -> dict[str, list[float]]:
    """The vectors among these that somebody noted, as a file stores them."""
    vectors = {name: getattr(record, name) for name in names}
    return {name: vector.tolist() for name, vector in vectors.items() if vector is not None}


def if_known(error: torch.Tensor) -> Array | None:
    """A standard error clustered by prompt; a report set of one prompt has none."""
    return error.numpy() if error.isfinite().all() else None


def _vectors(data: Mapping[str, Any], names: Iterable[str], size: int) -> dict[str, Any]:
    """The inverse of `_present`."""
    return {n: frozen_vector(n, data[n], size) if n in data else None for n in names}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyRecord:
    """A policy of the front.

    Attributes:
        id: its name in the run.
        parent: the policy it was trained from; None for the base model.
        generation: the one that made it; -1 for the base model.
        weights: (M,) it was trained along.
        returns: (M,) on the selection set, raw units.
        std_error: (M,) of `returns`.
        report_returns: (M,) on the report set, raw units: the published numbers.
        report_std_error: (M,) of `report_returns`.
        report_std_error_by_prompt: (M,) clustered by prompt: for other prompts, too. This and
            the next three are None where nobody noted them.
        gain_over_base: (M,) on the report set, image by image.
        gain_std_error: (M,) of `gain_over_base`.
        gain_std_error_by_prompt: (M,) of `gain_over_base`, clustered by prompt.
        adapter: its folder, relative to the run.
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
    report_std_error_by_prompt: Array | None
    gain_over_base: Array | None
    gain_std_error: Array | None
    gain_std_error_by_prompt: Array | None
    adapter: str
    guards: Mapping[str, GuardValue] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the file stores it."""
        return {
            "id": self.id,
            "parent": self.parent,
            "generation": self.generation,
            "weights": self.weights.tolist(),
            **{name: getattr(self, name).tolist() for name in _MEASURED},
            **_present(self, *_NOTED_SINCE),
            "adapter": self.adapter,
            **_guards_to_json(self.guards),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_objectives: int) -> PolicyRecord:
        """The inverse of `to_json`."""
        vectors = {name: frozen_vector(name, data[name], num_objectives) for name in _MEASURED}
        return cls(
            id=PolicyId(data["id"]),
            parent=None if data["parent"] is None else PolicyId(data["parent"]),
            generation=int(data["generation"]),
            weights=frozen_weights("weights", data["weights"]),
            **vectors,
            **_vectors(data, _NOTED_SINCE, num_objectives),
            adapter=data["adapter"],
            guards=_guards_from_json(data),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlendRecord:
    """A measured blend of policies of the front.

    Attributes:
        id: its name.
        parts: policies and their coefficients, which sum to 1.
        weights: (M,) the preference it stands for.
        report_returns: (M,) on the report set, raw units.
        report_std_error: (M,) of `report_returns`.
        report_std_error_by_prompt: (M,) clustered by prompt. This and the next three are None in
            fronts analysed before they were noted.
        gain_over_base: (M,) on the report set, image by image.
        gain_std_error: (M,) of `gain_over_base`.
        gain_std_error_by_prompt: (M,) of `gain_over_base`, clustered by prompt.
        guards: by name; empty in a run without guards.
    """

    id: str
    parts: tuple[tuple[PolicyId, float], ...]
    weights: Array
    report_returns: Array
    report_std_error: Array
    report_std_error_by_prompt: Array | None = None
    gain_over_base: Array | None = None
    gain_std_error: Array | None = None
    gain_std_error_by_prompt: Array | None = None
    guards: Mapping[str, GuardValue] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the file stores it."""
        return {
            "id": self.id,
            "parts": [{"policy": name, "coefficient": part} for name, part in self.parts],
            "weights": self.weights.tolist(),
            "report_returns": self.report_returns.tolist(),
            "report_std_error": self.report_std_error.tolist(),
            **_present(self, *_NOTED_SINCE),
            **_guards_to_json(self.guards),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_objectives: int) -> BlendRecord:
        """The inverse of `to_json`."""
        returns, error = (
            frozen_vector(name, data[name], num_objectives)
            for name in ("report_returns", "report_std_error")
        )
        return cls(
            id=data["id"],
            parts=tuple((PolicyId(p["policy"]), p["coefficient"]) for p in data["parts"]),
            weights=frozen_weights("weights", data["weights"]),
            report_returns=returns,
            report_std_error=error,
            **_vectors(data, _NOTED_SINCE, num_objectives),
            guards=_guards_from_json(data),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BaseRecord:
    """The base model's returns (M,) on the report set, their standard errors, and its guards."""

    report_returns: Array
    report_std_error: Array
    report_std_error_by_prompt: Array | None
    guards: Mapping[str, GuardValue] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the file stores it."""
        return {
            "report_returns": self.report_returns.tolist(),
            "report_std_error": self.report_std_error.tolist(),
            **_present(self, _BY_PROMPT),
            **_guards_to_json(self.guards),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_objectives: int) -> BaseRecord:
        """The inverse of `to_json`."""
        returns, error = (
            frozen_vector("base", data[name], num_objectives)
            for name in ("report_returns", "report_std_error")
        )
        return cls(
            report_returns=returns,
            report_std_error=error,
            **_vectors(data, [_BY_PROMPT], num_objectives),
            guards=_guards_from_json(data),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """How a run drew with its base model, beyond what its settings say.

    Attributes:
        pipeline: its class in diffusers.
        height: of the pictures, in pixels.
        width: see above.
        schedule: prediction type, spacing and zero SNR, in the words of diffusers' schedulers.
        config: hub id or name of the configuration of a base model of one file; empty for others.
        has_plain_lora: whether diffusers, too, merges the LoRA of the base model as it was merged.
        sampler: one of `ddpo.ddim.SAMPLERS`.
        has_plain_unet: whether diffusers, too, reads all of the UNet from a base model of one file.
    """

    pipeline: str
    height: int
    width: int
    schedule: Mapping[str, Any]
    config: str = ""
    has_plain_lora: bool = True
    sampler: str = "ddim"
    has_plain_unet: bool = True

    def to_json(self) -> dict[str, Any]:
        """As the file stores it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervolumes:
    """Of the archive, in z-units.

    Attributes:
        selection: on the selection set.
        report: on the report set, as the others are.
        report_warmup: of the archive after the warm-up.
        report_base: of the base model.
        report_with_blends: with the measured blends; None before an analysis.
    """

    selection: float
    report: float
    report_warmup: float
    report_base: float
    report_with_blends: float | None = None

    def to_json(self) -> dict[str, float]:
        """As the file stores it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontRecord:
    """A published front.

    Attributes:
        objectives: M of them, with the run's reference and ideal points.
        policies: in the order of the archive.
        dominated_on_report: archive members that another member dominates on the report set.
        base: the base model.
        hypervolume: of the archive.
        costs: of the run.
        guards: what else was measured on the report set.
        samples: of the pictures in `samples/report/`.
        model: how the base model drew; None where nobody noted it.
        blends: measured blends; None before an analysis.
        transfer: the front under other ways of drawing, as trained first; empty if not measured.
    """

    objectives: tuple[Objective, ...]
    policies: tuple[PolicyRecord, ...]
    dominated_on_report: tuple[PolicyId, ...]
    base: BaseRecord
    hypervolume: Hypervolumes
    costs: Costs
    guards: tuple[Guard, ...]
    samples: Samples
    model: ModelRecord | None = None
    blends: tuple[BlendRecord, ...] | None = None
    transfer: tuple[SetupRecord, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        images = self.costs.to_json()
        unet_rows = images.pop("unet_rows")
        return {
            "format": _FORMAT,
            "objectives": [objective.to_json() for objective in self.objectives],
            "policies": [policy.to_json() for policy in self.policies],
            "dominated_on_report": list(self.dominated_on_report),
            "base": self.base.to_json(),
            "hypervolume": self.hypervolume.to_json(),
            "images": images,
            "unet_rows": unet_rows,
            **({"guards": [guard.to_json() for guard in self.guards]} if self.guards else {}),
            "samples": self.samples.to_json(),
            **({} if self.model is None else {"model": self.model.to_json()}),
            **({} if self.blends is None else {"blends": [b.to_json() for b in self.blends]}),
            **({"transfer": [each.to_json() for each in self.transfer]} if self.transfer else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FrontRecord:
        """The inverse of `to_json`; what older programs did not write is empty.

        Raises:
            FrontError: if it has another format.
            KeyError: if an entry is missing.
            TypeError: if one has another form.
            ValueError: if one is out of range.
        """
        if data["format"] != _FORMAT:
            raise FrontError(f"{NAME} has format {data['format']}; this program reads {_FORMAT}")
        objectives = check_objectives([Objective.from_json(entry) for entry in data["objectives"]])
        num = len(objectives)
        blends = None
        if "blends" in data:
            blends = tuple(BlendRecord.from_json(blend, num) for blend in data["blends"])
        return cls(
            objectives=objectives,
            policies=tuple(PolicyRecord.from_json(entry, num) for entry in data["policies"]),
            dominated_on_report=tuple(PolicyId(name) for name in data["dominated_on_report"]),
            base=BaseRecord.from_json(data["base"], num),
            hypervolume=Hypervolumes(**data["hypervolume"]),
            costs=Costs(**data["images"], unet_rows=data["unet_rows"]),
            guards=tuple(Guard(**_renamed(guard)) for guard in data.get("guards", [])),
            samples=Samples.from_json(data["samples"]) if "samples" in data else Samples(),
            model=ModelRecord(**data["model"]) if "model" in data else None,
            blends=blends,
            transfer=tuple(SetupRecord.from_json(each, num) for each in data.get("transfer", [])),
        )

    @classmethod
    def read(cls, run: Path) -> FrontRecord:
        """Read from a run directory.

        Raises:
            FrontError: if it has another format.
            RecordError: if the file is missing or damaged.
        """
        return read_record(run / NAME, cls.from_json)


def _guards_to_json(guards: Mapping[str, GuardValue]) -> dict[str, Any]:
    values = {name: value.to_json() for name, value in guards.items()}
    return {"guards": values} if values else {}


def _guards_from_json(entry: Mapping[str, Any]) -> dict[str, GuardValue]:
    guards = entry.get("guards", {})
    return {name: GuardValue(**_renamed(value)) for name, value in guards.items()}


def _renamed(guard: Mapping[str, Any]) -> dict[str, Any]:
    """A guard's entry with the words of today: fronts up to commit 7aaf014 say "loss"."""
    return {name.replace("loss", "drop"): value for name, value in guard.items()}
