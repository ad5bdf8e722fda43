"""One adapter for all trade-offs: a family of policies, one for every weight vector w.

    dW(w) = (alpha / r) (B_0 A_0 + sum_k 2 w_k B_k A_k),    k = 1..M

This follows Panacea (arXiv 2402.02030) and ParetoSlider (arXiv 2604.20816). At fixed weights it is
an ordinary LoRA of rank (M + 1) r: the A's are stacked, the B's lie side by side, and the factors
1 and 2 w_k are folded into the B's. So members of the family run and are judged, saved and exported
like any agent's adapter. Only the optimiser step is shared.

The family can be read back from its members at the vertices of the simplex, which are among the
even weights. The factors there are 0, 1 and 2, so this is exact, bit for bit.
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
    """Make the agents of `agents.kind`; this process has `num_agents` of them."""
    if settings.agents.kind == "population":
        return Agents(unet, num_agents, settings.policy_adapter, settings.train)
    num_objectives = len(settings.rewards.objectives)
    return ConditionedAgents(
        unet, num_agents, settings.policy_adapter, settings.train, num_objectives, processes
    )


class ConditionedAgents(Agents):
    """K slots that hold members of one family of adapters; one optimiser step moves them all.

    The loss of the family is the mean of the slots' losses. Its gradient is the mean of the slots'
    gradients, each multiplied by its member's factors, and is clipped as a whole. If the gradient
    of any slot is not finite, the family skips the step.

    Args:
        unet: see `Agents`.
        num_agents: K, slots of this process.
        adapter: of a member: rank (M + 1) r.
        train: AdamW's settings.
        num_objectives: M.
        processes: all processes of the run; each holds some slots and the whole family. By default
            there is only this one.
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
        # (P,) index of each entry's factor: 0 for A's and B_0 (factor 1), k for B_k (2 w_k).
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
        """Put the family's members at the weights (K, M) into the slots, in place."""
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
        """The family's state, the same for every member."""
        return self._adam.snapshot(0)

    def load_tasks(
        self, policies: Sequence[Policy], weights: torch.Tensor, own: range | None = None
    ) -> None:
        """Begin a generation with the family to which the policies belong.

        Args:
            policies: K, of all tasks: members of one family, or all the initial policy.
            weights: (K, M), their places in the family; every vertex is among them.
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
        """Draw new weights over the simplex and show their members; see `stratified_weights`."""
        drawn = stratified_weights(weights, seed)
        self.show(drawn[self._own.start : self._own.stop])
        return drawn

    def snapshot_tasks(self) -> list[Policy]:
        """The family's members at the tasks' own weights."""
        self.show(self._task_weights)
        return super().snapshot_tasks()

    def step(self, max_grad_norm: float) -> torch.Tensor:
        """Take one AdamW step with the family and update its members in the slots.

        Returns:
            (K,) norm of the family's gradient before clipping, the same for every slot; not finite
            if the step was skipped.
        """
        self.loss_scale.unscale(self.gradients)
        is_overflow = ~self.gradients.norm(dim=1).isfinite()
        # The chain rule: the family's gradient is the mean over slots of gradient times factors.
        num_slots = len(self._factors)
        total = (self.gradients[:num_slots] * self._factors[:, self._factor_of]).sum(dim=0)[None]
        self._processes.sum(total)  # processes of a group hold equal gradients: the mean is right
        mean = total / (num_slots * self._processes.count)
        # One step, then the members as they are now.
        norm = self._adam.step(mean, max_grad_norm)
        self._update_slots()
        self.loss_scale.update(is_overflow)
        self.skipped_in_row = torch.where(norm.isfinite(), 0, self.skipped_in_row + 1)
        return norm.expand(self.num_agents)


def family_of(
    policies: Sequence[Policy], weights: torch.Tensor, factor_of: torch.Tensor
) -> torch.Tensor:
    """The family (P,) of some policies, read from its members at the vertices of the simplex.

    The factors there are 0, 1 and 2, so nothing is rounded.

    Args:
        policies: K members.
        weights: (K, M), their places in the family.
        factor_of: (P,) index of each entry's factor, as in `ConditionedAgents`.

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
    """K random weight vectors that are spread over the simplex.

    They combine a Latin hypercube with stick breaking. Each vector alone is uniform on the simplex.
    One uniform number per vector sets the weight of the first objective. If (0, 1) is cut into K
    equal parts, each part holds one of these numbers. Further numbers, drawn in the same way, set
    the share of each further objective in the remaining weight. For M = 2, each of K equal parts of
    the segment gets one vector.

    Args:
        around: (K, M) vectors that set the order: each draw is matched to one of them, so that the
            sum of squared distances is smallest. With M = 2, each of the even weights gets the draw
            from its own part of the segment.
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
    # Latin hypercube: (K, M - 1) uniform numbers. A column has one in each of K parts of (0, 1).
    cells = rng.permuted(np.tile(np.arange(num)[:, None], num_objectives - 1), axis=0)
    uniform = (cells + rng.random(cells.shape)) / num
    # Stick breaking. In a uniform mix of n objectives, one has a share of density Beta(1, n - 1).
    drawn, left = np.empty(around.shape), np.ones(num)
    for k in range(num_objectives - 1):
        drawn[:, k] = left * (1 - (1 - uniform[:, k]) ** (1 / (num_objectives - 1 - k)))
        left -= drawn[:, k]
    drawn[:, -1] = left
    # Order: match each draw to its nearest vector.
    _, order = linear_sum_assignment(cdist(around.cpu().numpy(), drawn, "sqeuclidean"))
    return torch.from_numpy(drawn[order])
