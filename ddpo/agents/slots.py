"""K agents on one frozen UNet: stacked LoRA adapters, their optimiser, snapshots of policies.

One UNet pass carries the rows of all agents, agent-major. The base layers see one large batch; in
each adapted layer batched matrix products let every row meet its own agent's adapter (LoRA: Hu et
al. 2022, eq. 3). One agent is the case K = 1.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from config.settings.errors import UserError
from ddpo.agents.adam import AdapterAdam
from ddpo.agents.layout import FlatLayout, rank_of_products
from ddpo.agents.lora import StackedLoRALinear
from ddpo.agents.loss_scale import LossScale
from ddpo.speed.frozen import freeze
from ddpo.types import Policy, PromptStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from config.settings.schema import AdapterSettings, TrainSettings
    from ddpo.agents.lora import Stack
    from ddpo.types import Conditioning


class Agents:
    """K worker slots on one UNet: adapters, gradients and AdamW state, each a (K, P) block.

    The UNet is changed in place: its target layers are wrapped and all else is frozen. Every
    layer's matrices are views of the block of weights, so that gradients arrive as one block, and
    clipping per agent, snapshots and reductions over processes each touch one tensor.

    Args:
        unet: a UNet2DConditionModel.
        num_agents: K.
        adapter: rank, alpha, target layers, seed of the shared initial A.
        train: AdamW's settings.

    Raises:
        UserError: if no linear layer of the UNet matches one of the target names.
    """

    def __init__(
        self, unet: nn.Module, num_agents: int, adapter: AdapterSettings, train: TrainSettings
    ) -> None:
        freeze(unet)
        self.unet = unet
        self.num_agents = num_agents
        self.settings = adapter
        targets = target_layers(unet, adapter.target_modules)
        self._layout = FlatLayout(targets, adapter.rank)
        reference = next(unet.parameters())
        # Adapters are float32 whatever the model's dtype (float64 if it is, for exact tests).
        self._model_dtype = reference.dtype
        self.dtype = torch.promote_types(reference.dtype, torch.float32)
        self._weights = nn.Parameter(
            torch.zeros(num_agents, self._layout.size, device=reference.device, dtype=self.dtype)
        )
        self._grads = torch.zeros_like(self._weights)
        self._weights.grad = self._grads
        self._block: torch.Tensor = self._weights  # adapters that passes use, a row an agent
        self._stack: Stack = {}  # what every layer sees in the present pass, in a layout of its own
        self._shown_layout, self._positions = self._layout, None
        if (rank := rank_of_products(adapter.rank, reference)) != adapter.rank:
            self._shown_layout = FlatLayout(targets, rank)
            self._positions = self._layout.positions_in(self._shown_layout).to(reference.device)
        # What `_stack` shows without gradient: so many agents, as of that change of the block.
        self._shown: tuple[int, int] | None = None
        self._layers: list[StackedLoRALinear] = []
        for name, base in targets.items():
            layer = StackedLoRALinear(base, adapter.alpha / adapter.rank, self._stack, name)
            self._layers.append(layer)
            unet.set_submodule(name, layer)
        self._adam = AdapterAdam(self._weights, train)
        self.loss_scale = LossScale(
            num_agents, reference.device, is_on=reference.dtype == torch.float16
        )
        self.statistics: list[PromptStatistics] = [PromptStatistics() for _ in range(num_agents)]
        # (K,) optimiser steps that each agent has skipped since its last, or since it was loaded.
        self.skipped_in_row = torch.zeros(num_agents, device=reference.device)
        self._num_rows = 0
        self._own = range(num_agents)  # the tasks of this process, a slot each
        initial = self.initial_policy()
        for slot in range(num_agents):
            self.load(slot, initial)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The adapted layers, in the UNet's order."""
        return self._layout.layer_names

    @property
    def device(self) -> torch.device:
        """Where the adapters live."""
        return self._weights.device

    def matrices(self, flat: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one layer's A (..., rank, in) and B (..., out, rank) in a flat (..., P)."""
        return self._layout.matrices(flat, name)

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
            num_active: how many agents own rows in this pass, 1..K; copies inside `copies`.

        Returns:
            (rows, C, h, w) in the adapters' dtype.

        Raises:
            ValueError: if the rows do not divide evenly.
        """
        num_agents = len(self._block)
        if not 1 <= num_active <= num_agents or len(latents) % num_active:
            raise ValueError(
                f"{len(latents)} rows for {num_active} of {num_agents} agents: rows must be a "
                "multiple of the active agents, which are at most all"
            )
        self._num_rows += len(latents)
        self._show_weights(num_active)
        dtype = self._model_dtype
        out: torch.Tensor = self.unet(
            latents.to(dtype), timesteps, return_dict=False, **conditioning.unet_arguments(dtype)
        )[0]
        return out.to(self.dtype)

    def take_num_rows(self) -> int:
        """UNet rows passed since the last call, with gradient or without."""
        num_rows, self._num_rows = self._num_rows, 0
        return num_rows

    @contextmanager
    def base_model(self) -> Iterator[None]:
        """Predictions inside are the base model's: the adapters, whatever they hold, are off."""
        for layer in self._layers:
            layer.is_adapted = False
        try:
            yield
        finally:
            for layer in self._layers:
                layer.is_adapted = True

    @contextmanager
    def copies(self, num_active: int, samples: int) -> Iterator[torch.Tensor]:
        """Passes inside take every sample for an agent of its own, with a copy of its adapter.

        So the gradient of a pass comes a sample at a time: what DP-SGD clips (Abadi et al. 2016,
        section 3.1), and here waits for the sample's reward.

        Args:
            num_active: agents that are copied, the first so many.
            samples: copies of each.

        Yields:
            (num_active * samples, P) the copies, agent-major; gradients gather in them.
        """
        adapters = self._weights.detach()[:num_active]
        self._block = adapters.repeat_interleave(samples, dim=0).requires_grad_()
        self._shown = None
        try:
            yield self._block
        finally:
            self._block, self._shown = self._weights, None

    def _show_weights(self, num_active: int) -> None:
        """Hand every layer its matrices, which without gradient serve until they change."""
        is_training = torch.is_grad_enabled()
        shown = num_active, self._block._version
        if self._shown == shown and not is_training:
            return
        # What inference mode makes may not be seen to change outside of it: torch.compile looks.
        with nullcontext() if is_training else torch.inference_mode(mode=False):
            block = self._block if is_training else self._block.detach()
            block = block[:num_active].to(self._model_dtype)
            if self._positions is not None:
                padded = block.new_zeros(num_active, self._shown_layout.size)
                block = padded.index_copy(1, self._positions, block)
            factors = self._shown_layout.factors(block)
        self._stack.update(factors)
        self._shown = None if is_training else shown

    @property
    def gradients(self) -> torch.Tensor:
        """(K, P) of all agents, as one block."""
        return self._grads

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        self._grads.zero_()

    def step(self, max_grad_norm: float) -> torch.Tensor:
        """Clip each agent's gradient by its own norm and take one AdamW step.

        An agent whose gradient is not finite skips the step: its adapter, moments and step count
        stay as they are. (A loss that is not finite has no finite gradient.) The device decides;
        the host does not wait for it.

        Returns:
            (K,) gradient norms before clipping; not finite for those that skipped.
        """
        self.loss_scale.unscale(self._grads)
        norms = self._adam.step(self._grads, max_grad_norm)
        self._shown = None  # torch's fused optimiser leaves the block's version as it was
        is_bad = ~norms.isfinite()
        self.loss_scale.update(is_bad)
        self.skipped_in_row = torch.where(is_bad, self.skipped_in_row + 1, 0)
        return norms

    def initial_policy(self) -> Policy:
        """The base model as a policy: A drawn once from the adapter seed, B zero."""
        generator = torch.Generator().manual_seed(self.settings.seed)
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
            ValueError: if the policy was made for other layers or another rank.
        """
        self._put(slot, policy)
        self._adam.load(slot, policy)

    def _put(self, slot: int, policy: Policy) -> None:
        """Copy a policy's adapter and prompt statistics into a slot, in place."""
        row = self._weights.detach()[slot]
        if policy.adapter.shape != row.shape:
            raise ValueError(
                f"the policy has {len(policy.adapter)} adapter entries, this model's have "
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
        """Moments and step count that belong to a slot, by the names of `Policy`."""
        return self._adam.snapshot(slot)

    def load_tasks(
        self, policies: Sequence[Policy], weights: torch.Tensor, own: range | None = None
    ) -> None:
        """Begin a generation: one policy a slot, to be improved along its weights.

        Args:
            policies: K, of all tasks.
            weights: (K, M), of all tasks.
            own: tasks that this process works on, the first of them in slot 0; by default all.
        """
        del weights  # what is improved is a matter of advantages alone
        self._own = range(len(policies)) if own is None else own
        for slot, task in enumerate(self._own):
            self.load(slot, policies[task])

    def aim(self, weights: torch.Tensor, seed: int) -> torch.Tensor:
        """Begin an iteration.

        Args:
            weights: (K, M), of all tasks.
            seed: keys what is random about the directions.

        Returns:
            (K, M), what the agents are improved along in this iteration: here their tasks' weights.
        """
        del seed
        return weights

    def snapshot_tasks(self) -> list[Policy]:
        """What the policies of this process's tasks have become."""
        return [self.snapshot(slot) for slot in range(len(self._own))]


def target_layers(unet: nn.Module, suffixes: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Every linear layer whose name ends in one of the suffixes, by its name.

    Raises:
        UserError: naming the suffixes that no linear layer has.
    """

    def fits(name: str, suffix: str) -> bool:
        return name == suffix or name.endswith("." + suffix)

    linear = {name: each for name, each in unet.named_modules() if isinstance(each, nn.Linear)}
    dead = [suffix for suffix in suffixes if not any(fits(name, suffix) for name in linear)]
    if dead or not suffixes:
        raise UserError(
            f"adapter.target_modules={suffixes}: each must end the name of a linear layer of the "
            f"UNet, but none ends in {' or '.join(map(repr, dead)) or 'one of an empty list'}; "
            "attention projections are 'to_q', 'to_k', 'to_v', 'to_out.0'"
        )
    return {
        name: layer
        for name, layer in linear.items()
        if any(fits(name, suffix) for suffix in suffixes)
    }
