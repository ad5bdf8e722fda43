"""One adapter for all trade-offs: a family of policies, one for every weight vector.

dW(w) = B_0 A_0 + sum_k 2 w_k B_k A_k over the M objectives (after Panacea, arXiv 2402.02030, and
ParetoSlider, arXiv 2604.20816). At weights w this is an ordinary LoRA: the A's stacked and the B's
side by side, 1 and 2 w_k folded into the B's, of rank (M + 1) r and the strength alpha / r of its
parts. So members of the family run, are judged, saved and exported as the adapters of agents are;
only a step is taken together. Even weights contain the vertices of the simplex, where the factors
are 0, 1 and 2: the family is read from its members there, to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ddpo.agents.adam import AdapterAdam
from ddpo.agents.slots import Agents
from ddpo.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from config.base import AdapterSettings, Settings, TrainSettings
    from ddpo.types import Policy


def make_agents(
    unet: nn.Module, num_agents: int, settings: Settings, processes: Processes
) -> Agents:
    """The agents of `agents.kind`; `num_agents` of them are in this process."""
    if settings.agents.kind == "population":
        return Agents(unet, num_agents, settings.policy_adapter, settings.train)
    num_objectives = len(settings.rewards.objectives)
    return ConditionedAgents(
        unet, num_agents, settings.policy_adapter, settings.train, num_objectives, processes
    )


class ConditionedAgents(Agents):
    """K slots that show members of one family of adapters; one optimiser step moves them all.

    The loss of the family is the mean of the slots' losses. Its gradient is the mean of theirs,
    each times how the member depends on the family; it is clipped as one. A gradient that is not
    finite, in whichever slot, makes the family skip the step.

    Args:
        unet: see `Agents`.
        num_agents: K, slots of this process.
        adapter: of a member: rank (M + 1) r.
        train: AdamW's settings.
        num_objectives: M.
        processes: that hold further slots; each holds the whole family. By default none do.
    """

    def __init__(
        self,
        unet: nn.Module,
        num_agents: int,
        adapter: AdapterSettings,
        train: TrainSettings,
        num_objectives: int,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(unet, num_agents, adapter, train)
        self._processes = processes or Processes.alone(self.device)
        self.family = self._weights.detach()[:1].clone()  # (1, P), B's without their factors
        self._adam = AdapterAdam(self.family, train)  # one for all slots
        self._adam.load(0, self.initial_policy())
        # (P,) which factor an entry has: 0 that of A's and B_0, which is 1; k that of B_k, 2 w_k.
        self._factor_of = torch.zeros(
            self.family.shape[1], dtype=torch.int64, device=self.family.device
        )
        parts = torch.arange(num_objectives + 1).repeat_interleave(
            adapter.rank // (num_objectives + 1)
        )
        for name in self.layer_names:
            _, b = self.matrices(self._factor_of, name)
            b.copy_(parts)
        self._task_weights = torch.full((num_agents, num_objectives), 1 / num_objectives)
        self.show(self._task_weights)

    def show(self, weights: torch.Tensor) -> None:
        """Put the family's members at weights (K, M) into the slots, in place."""
        weights = weights.to(self.family)
        self._factors = torch.cat([torch.ones_like(weights[:, :1]), 2 * weights], dim=1)
        self._update_slots()

    def _update_slots(self) -> None:
        members = self.family * self._factors[:, self._factor_of]
        self._weights.detach()[: len(members)] = members

    def load(self, slot: int, policy: Policy) -> None:
        """Copy an adapter and its prompt statistics into a slot; the family stays as it is."""
        self._put(slot, policy)

    def _optimiser_state(self, slot: int) -> dict[str, Any]:  # noqa: ARG002
        """Every member has the family's."""
        return self._adam.snapshot(0)

    def load_tasks(
        self, policies: Sequence[Policy], weights: torch.Tensor, own: range | None = None
    ) -> None:
        """Begin a generation with the family that the policies are members of.

        Args:
            policies: K, of all tasks: members of one family, or all the initial policy.
            weights: (K, M), where they are in the family; each vertex is among them.
            own: see `Agents`.

        Raises:
            ValueError: if a vertex of the simplex is missing, or a policy was made for other layers
                or another rank.
        """
        super().load_tasks(policies, weights, own)
        self.family[0] = family_of(policies, weights, self._factor_of)
        self._adam.load(0, policies[0])
        self._task_weights = weights[self._own.start : self._own.stop]
        self.show(self._task_weights)

    def draw_directions(self, weights: torch.Tensor, seed: int) -> torch.Tensor:
        """Show members at weights drawn anew over the simplex, see `stratified_weights`."""
        drawn = stratified_weights(weights, seed)
        self.show(drawn[self._own.start : self._own.stop])
        return drawn

    def snapshot_tasks(self) -> list[Policy]:
        """The family's members at the tasks' own weights."""
        self.show(self._task_weights)
        return super().snapshot_tasks()

    def step(self, max_grad_norm: float) -> torch.Tensor:
        """Take one AdamW step with the family, and show its members as they are then.

        Returns:
            (K,) the norm of the family's gradient before clipping, for every slot; not finite if
            the step was skipped.
        """
        self.loss_scale.unscale(self.gradients)
        is_overflow = ~self.gradients.norm(dim=1).isfinite()
        num_slots = len(self._factors)
        total = (self.gradients[:num_slots] * self._factors[:, self._factor_of]).sum(dim=0)[None]
        self._processes.sum(total)  # those of a group hold the same
        mean = total / (num_slots * self._processes.count)
        norm = self._adam.step(mean, max_grad_norm)
        self._update_slots()
        self.loss_scale.update(is_overflow)
        self.skipped_in_row = torch.where(norm.isfinite(), 0, self.skipped_in_row + 1)
        return norm.expand(self.num_agents)


def family_of(
    policies: Sequence[Policy], weights: torch.Tensor, factor_of: torch.Tensor
) -> torch.Tensor:
    """The family (P,) that policies are members of, from those at the vertices of the simplex.

    Their factors are 1, 2 and 0, so nothing is rounded.

    Args:
        policies: K members.
        weights: (K, M), where they are.
        factor_of: (P,) as in `ConditionedAgents`.

    Raises:
        ValueError: if a vertex is missing.
    """
    most, where = weights.max(dim=0)
    if (most != 1).any():
        raise ValueError(
            f"weights={weights.tolist()} must contain the vertices of the simplex: the family is "
            "read from its members there"
        )
    vertices = [policies[index].adapter for index in where.tolist()]
    sources = torch.stack([vertices[0], *(vertex / 2 for vertex in vertices)])
    return sources.gather(0, factor_of.to(sources.device)[None])[0]


def stratified_weights(around: torch.Tensor, seed: int) -> torch.Tensor:
    """K random weight vectors, together spread over the simplex: a Latin hypercube, broken sticks.

    Each by itself is uniform on the simplex. Of the K uniform numbers that say how much of the
    first objective there is, one lies in each K-th of (0, 1), and so for the share of each further
    objective in what the earlier ones leave. With M = 2 so every K-th of the segment has one.

    Args:
        around: (K, M) vectors in whose order they come: each draw is matched with one of them, so
            that the squared distances have the least sum. Even weights for M = 2 all meet their
            own K-th of the segment.
        seed: keys the draw.

    Returns:
        (K, M) float64, non-negative, rows sum to 1 up to rounding.

    Example:
        >>> even = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
        >>> (3 * stratified_weights(even, seed=0)[:, 0]).floor()
        tensor([0., 1., 2.], dtype=torch.float64)
    """
    num, num_objectives = around.shape
    rng = np.random.default_rng(seed)
    cells = rng.permuted(np.tile(np.arange(num)[:, None], num_objectives - 1), axis=0)
    uniform = (cells + rng.random(cells.shape)) / num
    drawn, left = np.empty(around.shape), np.ones(num)
    for k in range(num_objectives - 1):
        # The share of one of n objectives in a uniform mix of them has a Beta(1, n - 1) density.
        drawn[:, k] = left * (1 - (1 - uniform[:, k]) ** (1 / (num_objectives - 1 - k)))
        left -= drawn[:, k]
    drawn[:, -1] = left
    _, order = linear_sum_assignment(cdist(around.cpu().numpy(), drawn, "sqeuclidean"))
    return torch.from_numpy(drawn[order])
