"""The search of a run: decided once, in the first process, and answered in every one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ddpo.agents.soup import blend_policies
from morl.types import BASE_POLICY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ddpo.agents.slots import Agents
    from ddpo.processes import Processes
    from ddpo.types import Policy
    from morl.evolution import Evolution
    from morl.types import Generation, Offspring, PolicyId


class SharedSearch:
    """Asks and tells an `Evolution`, and keeps the policies that it may still ask for.

    Args:
        evolution: decides; only the one in the first process is used.
        policies: by name, the same in every process.
        warmup_archive: the archive as it stood after the warm-up; without one, the base model
            alone.
        agents: know how to blend policies.
        processes: the ones that share the run.
        on_ask: called in every process with each generation that begins.
    """

    def __init__(
        self,
        evolution: Evolution,
        policies: Mapping[PolicyId, Policy],
        warmup_archive: Sequence[PolicyId],
        agents: Agents,
        processes: Processes,
        on_ask: Callable[[Generation], object],
    ) -> None:
        self.evolution = evolution
        self.policies = dict(policies)
        self.warmup_archive = tuple(warmup_archive)
        self._agents = agents
        self._by_first = processes.by_first
        self._on_ask = on_ask

    def ask(self) -> Generation | None:
        """The next generation to train, or None when the run is complete."""
        generation = self._by_first(self.evolution.ask)
        if generation is not None:
            self._on_ask(generation)
        return generation

    def parents(self, generation: Generation) -> list[Policy]:
        """The policy that each task starts from, blended where it has several ingredients."""
        return [
            blend_policies(
                self._agents,
                [(self.policies[name], coefficient) for name, coefficient in parts.items()],
            )
            for parts in self._by_first(self.evolution.ingredients, generation)
        ]

    def weights(self, generation: Generation) -> torch.Tensor:
        """(K, M) float64, what each task's policy is improved along."""
        return torch.from_numpy(np.stack([task.weights for task in generation.tasks]))

    def add(self, policies: Mapping[PolicyId, Policy]) -> None:
        """Keep policies, until nothing asks for them."""
        self.policies |= policies

    def tell(self, offspring: Sequence[Offspring], excluded: Collection[PolicyId]) -> None:
        """Tell the offspring of the generation asked for, see `Evolution.tell`."""
        self._by_first(self.evolution.tell, offspring, excluded)

    def drop_unneeded(self, generation: Generation) -> None:
        """Drop the policies that nothing asks for after a generation."""
        needed = self._by_first(self._needed_after, generation)
        self.policies = {name: policy for name, policy in self.policies.items() if name in needed}

    def _needed_after(self, generation: Generation) -> set[PolicyId]:
        if generation.stage != "evolutionary":
            self.warmup_archive = tuple(member.policy for member in self.evolution.archive)
        return {*self.evolution.live_policies, *self.warmup_archive, BASE_POLICY}

    def archive(self) -> dict[PolicyId, Policy]:
        """The policies in the archive; in the first process."""
        return {member.policy: self.policies[member.policy] for member in self.evolution.archive}

    def finalists(self) -> dict[PolicyId, Policy]:
        """The policies of the archive and of the warm-up's archive, and the base model."""
        return {name: self.policies[name] for name in self._by_first(self._finalists)}

    @property
    def num_finalists(self) -> int:
        """How many finalists there would be now; in the first process."""
        return len(self._finalists())

    def _finalists(self) -> list[PolicyId]:
        archive = (member.policy for member in self.evolution.archive)
        return sorted({*archive, *self.warmup_archive, BASE_POLICY})
