"""Values that a run leaves in its JSON files; no deep-learning library is needed to read them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from config.settings.errors import UserError
from morl.types import Generation, Objective, Offspring, PolicyId
from run.versions import Versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from morl.evolution import Evolution

T = TypeVar("T")

_FORMAT = 1
CONFIG, SEARCH = "config.json", "search.json"  # names in a run directory


class RecordError(UserError):
    """A file of a run is missing or damaged."""


def read_record(path: Path, make: Callable[[Any], T]) -> T:
    """A JSON file, as what `make` makes of its content.

    Raises:
        RecordError: naming the file, if it cannot be read or `make` cannot take its content.
    """
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(f"{path} is damaged: {what}") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunConfig:
    """The content of `config.json`.

    Attributes:
        settings: `Settings.to_json()` of the program that wrote it.
        seed: of the run.
        device: such as "cuda:0".
        versions: of the program that wrote it.
    """

    settings: Mapping[str, Any]
    seed: int
    device: str
    versions: Versions

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "format": _FORMAT,
            "settings": dict(self.settings),
            "seed": self.seed,
            "device": self.device,
            **self.versions.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_json`."""
        return cls(
            settings=dict(data["settings"]),
            seed=data.get("seed", 0),
            device=data.get("device", ""),
            versions=Versions.from_json(data),
        )

    @classmethod
    def read(cls, run: Path) -> RunConfig:
        """Read from a run directory.

        Raises:
            RecordError: if the file is missing or damaged.
        """
        return read_record(run / CONFIG, cls.from_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a run has spent.

    Attributes:
        train: images sampled to learn from.
        selection: images sampled to calibrate and to decide the search.
        report: images sampled for the published front.
        unet_rows: UNet rows of all passes, a row with gradient counted once.
    """

    train: int = 0
    selection: int = 0
    report: int = 0
    unet_rows: int = 0

    def __add__(self, other: Costs) -> Costs:
        names = [field.name for field in dataclasses.fields(self)]
        return Costs(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def to_json(self) -> dict[str, int]:
        """As records store it."""
        return dataclasses.asdict(self)


class CurvePoint(NamedTuple):
    """The archive's hypervolume, after that many training images.

    Attributes:
        images: sampled to learn from so far.
        hypervolume: of the archive on the selection set, z-units.
    """

    images: int
    hypervolume: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Prompts and seeds of the pictures that are kept of every policy, the same for all.

    Attributes:
        prompts: one per picture.
        seeds: one per picture.
    """

    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def to_json(self) -> dict[str, list[str] | list[int]]:
        """As records store it."""
        return {"prompts": list(self.prompts), "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Samples:
        """The inverse of `to_json`."""
        return cls(prompts=tuple(data["prompts"]), seeds=tuple(data["seeds"]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinishedGeneration:
    """A generation and its offspring, one per task in the same order."""

    generation: Generation
    offspring: tuple[Offspring, ...]

    def to_json(self) -> dict[str, Any]:
        """As `search.json` stores it."""
        return {
            "generation": self.generation.to_json(),
            "offspring": [child.to_json() for child in self.offspring],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FinishedGeneration:
        """The inverse of `to_json`."""
        return cls(
            generation=Generation.from_json(data["generation"]),
            offspring=tuple(Offspring.from_json(child) for child in data["offspring"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchRecord:
    """The content of `search.json`: the search so far, and what it has cost.

    Attributes:
        num_agents: K.
        objectives: M of them.
        base: the evaluated base model.
        excluded: policies that guards keep out of the archive.
        generations: the finished ones.
        archives: members of the archive: first the base model alone, then after each generation.
        num_generations: of the whole run.
        curve: a point for the base model and for each generation.
        costs: so far.
        samples: of the pictures in `samples/selection/`.
    """

    num_agents: int
    objectives: tuple[Objective, ...]
    base: Offspring
    excluded: tuple[PolicyId, ...]
    generations: tuple[FinishedGeneration, ...]
    archives: tuple[tuple[PolicyId, ...], ...]
    num_generations: int
    curve: tuple[CurvePoint, ...]
    costs: Costs
    samples: Samples

    @classmethod
    def of(
        cls, evolution: Evolution, curve: Sequence[CurvePoint], costs: Costs, samples: Samples
    ) -> SearchRecord:
        """The record of a search.

        Args:
            evolution: the search.
            curve: a point for the base model and for each generation.
            costs: so far.
            samples: of the pictures of the selection set.
        """
        return cls(
            num_agents=evolution.num_agents,
            objectives=evolution.objectives,
            base=evolution.base,
            excluded=evolution.excluded,
            generations=tuple(
                FinishedGeneration(generation=generation, offspring=offspring)
                for generation, offspring in evolution.told
            ),
            archives=evolution.archives,
            num_generations=evolution.num_generations,
            curve=tuple(curve),
            costs=costs,
            samples=samples,
        )

    @property
    def policies(self) -> tuple[Offspring, ...]:
        """The base model and every policy that was made, in order."""
        children = (child for each in self.generations for child in each.offspring)
        return (self.base, *children)

    @property
    def archive(self) -> tuple[Offspring, ...]:
        """The members of the archive after the last generation."""
        by_name = {policy.policy: policy for policy in self.policies}
        return tuple(by_name[name] for name in self.archives[-1])

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "format": _FORMAT,
            "num_agents": self.num_agents,
            "objectives": [objective.to_json() for objective in self.objectives],
            "base": self.base.to_json(),
            "excluded": list(self.excluded),
            "generations": [each.to_json() for each in self.generations],
            "archives": [list(names) for names in self.archives],
            "num_generations": self.num_generations,
            "curve": [list(point) for point in self.curve],
            "costs": self.costs.to_json(),
            "samples": self.samples.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchRecord:
        """The inverse of `to_json`.

        Raises:
            KeyError: if an entry is missing.
            TypeError: if one has another form.
            ValueError: if one is out of range.
        """
        return cls(
            num_agents=data["num_agents"],
            objectives=tuple(Objective.from_json(entry) for entry in data["objectives"]),
            base=Offspring.from_json(data["base"]),
            excluded=tuple(PolicyId(name) for name in data.get("excluded", ())),
            generations=tuple(FinishedGeneration.from_json(each) for each in data["generations"]),
            archives=tuple(tuple(PolicyId(n) for n in names) for names in data["archives"]),
            num_generations=data["num_generations"],
            curve=tuple(CurvePoint(images, volume) for images, volume in data["curve"]),
            costs=Costs(**data["costs"]),
            samples=Samples.from_json(data["samples"]),
        )

    @classmethod
    def read(cls, run: Path) -> SearchRecord:
        """Read from a run directory.

        Raises:
            RecordError: if the file is missing or damaged.
        """
        return read_record(run / SEARCH, cls.from_json)
