"""K agents on one frozen UNet: stacked LoRA adapters, their optimiser, snapshots of policies.

One UNet pass carries the rows of all agents, agent-major. The base layers see one large batch. In
an adapted layer, every row meets its own agent's adapter (`ddpo/agents/lora.py`). One agent is the
case K = 1.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddpo.agents.adam import AdapterAdam
from ddpo.agents.lora import AdaptedLayers
from ddpo.agents.loss_scale import LossScale
from ddpo.types import Policy, PromptStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from config.base import AdapterSettings, TrainSettings
    from ddpo.types import Conditioning

INITIAL_SEED = 0  # of the initial A, which all agents of all runs share


class Agents:
    """K worker slots on one UNet: adapters, gradients and AdamW state, each a (K, P) block.

    The UNet is changed in place: its target layers are wrapped, and everything else is frozen.
    Every layer's matrices are views of the block of weights, so gradients arrive as one block.
    Clipping per agent, snapshots and sums over processes then touch one tensor each.

    Args:
        unet: a UNet2DConditionModel.
        num_agents: K.
        adapter: rank, alpha, target layers.
        train: AdamW's settings.

    Attributes:
        layers: the adapted layers; they take the matrices of a pass.

    Raises:
        UserError: if no linear layer of the UNet matches one of the target names.
    """

    def __init__(
        self, unet: nn.Module, num_agents: int, adapter: AdapterSettings, train: TrainSettings
    ) -> None:
        self.unet = unet.requires_grad_(False).eval()
        self.num_agents = num_agents
        self.settings = adapter
        self.layers = AdaptedLayers(unet, adapter)
        device, model_dtype = next(unet.parameters()).device, self.layers.dtype
        # Adapters are float32 whatever the model's dtype is, or float64 for exact tests.
        self.dtype = torch.promote_types(model_dtype, torch.float32)
        self._weights = nn.Parameter(
            torch.zeros(num_agents, self.layers.layout.size, device=device, dtype=self.dtype)
        )
        self._weights.grad = torch.zeros_like(self._weights)
        self._block: torch.Tensor = self._weights  # the adapters that passes use, a row per agent
        self._adam = AdapterAdam(self._weights, train)
        self.loss_scale = LossScale(num_agents, device, is_on=model_dtype == torch.float16)
        self.statistics: list[PromptStatistics] = [PromptStatistics() for _ in range(num_agents)]
        # (K,) optimiser steps that each agent has skipped since its last one or since loading.
        self.skipped_in_row = torch.zeros(num_agents, device=device)
        self._num_rows = 0
        self._own = range(num_agents)  # the tasks of this process, one per slot
        initial = self.initial_policy()
        for slot in range(num_agents):
            self.load(slot, initial)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The adapted layers, in the UNet's order."""
        return self.layers.layout.layer_names

    @property
    def device(self) -> torch.device:
        """Where the adapters live."""
        return self._weights.device

    def matrices(self, flat: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one layer's A (..., rank, in) and B (..., out, rank) in a flat (..., P)."""
        return self.layers.layout.matrices(flat, name)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        num_active: int,
    ) -> torch.Tensor:
        """One UNet pass for the first `num_active` agents.

        Args:
            latents: (rows, C, h, w), agent-major; rows divide evenly by `num_active`.
            timesteps: () or (rows,).
            conditioning: of the prompts, one row each.
            num_active: how many agents own rows in this pass, 1..K; inside `copies`, how many
                copies.

        Returns:
            (rows, C, h, w) in the adapters' dtype.

        Raises:
            ValueError: if the rows do not divide evenly.
        """
        num_agents = len(self._block)
        if not 1 <= num_active <= num_agents or len(latents) % num_active:
            raise ValueError(
                f"{len(latents)} rows for {num_active} of {num_agents} agents: at most all agents "
                "can be active, and each must have the same number of rows"
            )
        self._num_rows += len(latents)
        self.layers.show(self._block, num_active)
        dtype = self.layers.dtype
        out: torch.Tensor = self.unet(
            latents.to(dtype), timesteps, return_dict=False, **conditioning.unet_arguments(dtype)
        )[0]
        return out.to(self.dtype)

    def take_num_rows(self) -> int:
        """UNet rows since the last call, with or without gradient."""
        num_rows, self._num_rows = self._num_rows, 0
        return num_rows

    def remove(self) -> None:
        """Take the adapters out of the UNet, so that other agents can wrap it; these are done."""
        for name, layer in self.layers.by_name.items():
            self.unet.set_submodule(name, layer.base)

    def base_model(self) -> AbstractContextManager[None]:
        """Inside, the adapters are off: predictions are the base model's."""
        return self.layers.off()

    @contextmanager
    def copies(self, num_active: int, samples: int) -> Iterator[torch.Tensor]:
        """Inside, every sample of a pass has its own copy of its agent's adapter.

        So a pass gives one gradient per sample. DP-SGD clips such gradients (Abadi et al. 2016,
        section 3.1); here they wait for their sample's reward.

        Args:
            num_active: how many agents are copied, from the first.
            samples: copies per agent.

        Yields:
            (num_active * samples, P) the copies, agent-major; gradients gather in them.
        """
        adapters = self._weights.detach()[:num_active]
        self._block = adapters.repeat_interleave(samples, dim=0).requires_grad_()
        try:
            yield self._block
        finally:
            self._block = self._weights

    @property
    def gradients(self) -> torch.Tensor:
        """Gradients (K, P) of all agents, as one block."""
        assert self._weights.grad is not None
        return self._weights.grad

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        self.gradients.zero_()

    def step(self, max_grad_norm: float) -> torch.Tensor:
        """Clip each agent's gradient by its own norm and take one AdamW step.

        An agent whose gradient is not finite skips the step: its adapter, moments and step count
        stay as they are. (A loss that is not finite has no finite gradient.) The device decides;
        the host does not wait for it.

        Returns:
            (K,) gradient norms before clipping; not finite for agents that skipped.
        """
        self.loss_scale.unscale(self.gradients)
        norms = self._adam.step(self.gradients, max_grad_norm)
        is_bad = ~norms.isfinite()
        self.loss_scale.update(is_bad)
        self.skipped_in_row = torch.where(is_bad, self.skipped_in_row + 1, 0)
        return norms

    def initial_policy(self) -> Policy:
        """The base model as a policy: A drawn from `INITIAL_SEED`, B zero."""
        generator = torch.Generator().manual_seed(INITIAL_SEED)
        flat = torch.zeros(self._weights.shape[1])
        for name in self.layer_names:
            a, _ = self.matrices(flat, name)
            bound = 1 / math.sqrt(a.shape[1])  # peft's Kaiming-uniform with a = sqrt(5)
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
        return Policy(
            adapter=flat,
            exp_avg=torch.zeros_like(flat),
            exp_avg_sq=torch.zeros_like(flat),
            step=0,
            statistics=PromptStatistics(),
        )

    def load(self, slot: int, policy: Policy) -> None:
        """Copy a policy into a slot, in place: adapter, optimiser state and prompt statistics.

        Raises:
            ValueError: if the policy belongs to other layers or another rank.
        """
        self._put(slot, policy)
        self._adam.load(slot, policy)

    def _put(self, slot: int, policy: Policy) -> None:
        """Copy a policy's adapter and prompt statistics into a slot, in place."""
        row = self._weights.detach()[slot]
        if policy.adapter.shape != row.shape:
            raise ValueError(
                f"the policy has {len(policy.adapter)} adapter entries, this model's policies have "
                f"{len(row)}; it was made with another model, rank or target_modules"
            )
        row.copy_(policy.adapter)
        self.statistics[slot] = policy.statistics
        self.loss_scale.reset(slot)
        self.skipped_in_row[slot] = 0

    def snapshot(self, slot: int) -> Policy:
        """A frozen copy of a slot, on the CPU."""
        return Policy(
            adapter=self._weights.detach()[slot].cpu().clone(),
            statistics=self.statistics[slot],
            **self._optimiser_state(slot),
        )

    def _optimiser_state(self, slot: int) -> dict[str, Any]:
        """Moments and step count of a slot, under the field names of `Policy`."""
        return self._adam.snapshot(slot)

    def load_tasks(
        self, policies: Sequence[Policy], weights: torch.Tensor, own: range | None = None
    ) -> None:
        """Begin a generation: one policy per slot, to be improved along its weights.

        Args:
            policies: K, of all tasks.
            weights: (K, M), of all tasks.
            own: the tasks of this process, the first of them in slot 0; by default all.
        """
        del weights  # they enter through the advantages only
        self._own = range(len(policies)) if own is None else own
        for slot, task in enumerate(self._own):
            self.load(slot, policies[task])

    def draw_directions(self, weights: torch.Tensor, seed: int) -> torch.Tensor:
        """Begin an iteration: choose the weights along which the agents are improved.

        Args:
            weights: (K, M), of all tasks.
            seed: keys random directions; not used here.

        Returns:
            (K, M) weights of this iteration: here the tasks' own.
        """
        del seed
        return weights

    def snapshot_tasks(self) -> list[Policy]:
        """The current policies of this process's tasks."""
        return [self.snapshot(slot) for slot in range(len(self._own))]
