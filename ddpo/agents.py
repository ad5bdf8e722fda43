"""K agents on one frozen UNet: stacked LoRA adapters, their optimiser, snapshots of policies.

One UNet pass carries the rows of all agents, agent-major. The base layers see one large batch; each
adapted layer adds two batched matrix products, in which every row meets its own agent's adapter
(LoRA: Hu et al. 2022, eq. 3). One agent is the case K = 1.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ddpo.advantages import PromptStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.schema import AdapterSettings, TrainSettings

# Gradients are views of one block on purpose; the layout contract matters to DDP only, unused here.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout")

_ALIGNMENT = 16  # float32 entries: every adapter matrix starts on a 64-byte boundary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """A frozen snapshot of one agent: all that training it further depends on.

    Attributes:
        adapter: (P,) float32, all LoRA matrices of one agent, flat.
        exp_avg: (P,) Adam's first moment.
        exp_avg_sq: (P,) Adam's second moment.
        step: number of optimiser steps taken.
        statistics: recent reward vectors per prompt.
    """

    adapter: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    step: int
    statistics: PromptStatistics

    def __post_init__(self) -> None:
        for name in ("exp_avg", "exp_avg_sq"):
            if getattr(self, name).shape != self.adapter.shape:
                raise ValueError(f"{name} must have the shape of adapter")
        if not self.adapter.isfinite().all():
            raise ValueError("adapter has entries that are not finite")


class _Slice(NamedTuple):
    """Where one adapted layer's A (rank, in) and B (out, rank) lie in the flat adapter."""

    start_a: int
    shape_a: tuple[int, int]
    start_b: int
    shape_b: tuple[int, int]


class StackedLoRALinear(nn.Module):
    """A frozen linear layer plus K low-rank updates, one per agent.

    Input rows are agent-major, (num_active * B, ..., in); row block k gets
    base(x) + scale * x A_k^T B_k^T.
    """

    def __init__(self, base: nn.Linear, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = a, b  # (K, rank, in), (K, out, rank)
        self.scale = scale
        self.num_active = len(a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's output plus each row's low-rank update: (..., in) to (..., out)."""
        k = self.num_active
        out: torch.Tensor = self.base(x)
        a, b = self.a[:k].to(x.dtype), self.b[:k].to(x.dtype)
        hidden = torch.bmm(x.reshape(k, -1, x.shape[-1]), a.transpose(1, 2))
        stacked = out.reshape(k, -1, out.shape[-1])
        return torch.baddbmm(stacked, hidden, b.transpose(1, 2), alpha=self.scale).view_as(out)


class Agents:
    """K worker slots on one UNet: adapters, gradients and AdamW state, each a (K, P) block.

    The UNet is changed in place: its target layers are wrapped and all else is frozen. Every
    layer's matrices, and their gradients, are views of the two blocks, so that clipping per agent,
    snapshots and (later) reductions over processes each touch one tensor.

    Args:
        unet: a UNet2DConditionModel.
        num_agents: K.
        adapter: rank, alpha, target layers, seed of the shared initial A.
        train: AdamW's settings.

    Raises:
        ValueError: if no linear layer of the UNet matches the target names.
    """

    def __init__(
        self, unet: nn.Module, num_agents: int, adapter: AdapterSettings, train: TrainSettings
    ) -> None:
        self.unet = unet.requires_grad_(False).eval()
        self.num_agents = num_agents
        self.settings = adapter
        targets = dict(_target_layers(unet, adapter.target_modules))
        if not targets:
            raise ValueError(
                f"adapter.target_modules={adapter.target_modules} matches no linear layer of the "
                "UNet; attention projections are 'to_q', 'to_k', 'to_v', 'to_out.0'"
            )
        self.slices, size = _layout(targets, adapter.rank)
        device = next(unet.parameters()).device
        self._weights = torch.zeros(num_agents, size, device=device)
        self._grads = torch.zeros_like(self._weights)
        self._layers: list[StackedLoRALinear] = []
        for name, base in targets.items():
            a, b = (nn.Parameter(view) for view in self.matrices(self._weights, name))
            a.grad, b.grad = self.matrices(self._grads, name)
            layer = StackedLoRALinear(base, a, b, adapter.alpha / adapter.rank)
            self._layers.append(layer)
            unet.set_submodule(name, layer)
        self._rows = [nn.Parameter(row) for row in self._weights]
        self._optimiser = torch.optim.AdamW(
            self._rows,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            weight_decay=train.weight_decay,
        )
        self.statistics: list[PromptStatistics] = [PromptStatistics() for _ in range(num_agents)]
        initial = self.initial_policy()
        for slot in range(num_agents):
            self.load(slot, initial)

    @property
    def parameters_per_agent(self) -> int:
        """Trained parameters of one adapter, without alignment padding."""
        return sum(math.prod(s.shape_a) + math.prod(s.shape_b) for s in self.slices.values())

    @property
    def device(self) -> torch.device:
        """Where the adapters live."""
        return self._weights.device

    def matrices(self, flat: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one layer's A (..., rank, in) and B (..., out, rank) in (..., P) blocks."""
        where = self.slices[name]
        a = flat.narrow(-1, where.start_a, math.prod(where.shape_a))
        b = flat.narrow(-1, where.start_b, math.prod(where.shape_b))
        return a.unflatten(-1, where.shape_a), b.unflatten(-1, where.shape_b)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeds: torch.Tensor,
        num_active: int,
    ) -> torch.Tensor:
        """One UNet pass for the first `num_active` agents.

        Args:
            latents: (rows, C, h, w), agent-major; rows divide evenly by `num_active`.
            timesteps: () or (rows,).
            embeds: (rows, L, D).
            num_active: how many agents own rows in this pass, 1..K.

        Returns:
            (rows, C, h, w), at least float32.

        Raises:
            ValueError: if the rows do not divide evenly.
        """
        if not 1 <= num_active <= self.num_agents or len(latents) % num_active:
            raise ValueError(
                f"{len(latents)} rows for {num_active} of {self.num_agents} agents: rows must be a "
                "multiple of the active agents, which are at most all"
            )
        for layer in self._layers:
            layer.num_active = num_active
        dtype = next(self.unet.parameters()).dtype
        out: torch.Tensor = self.unet(
            latents.to(dtype), timesteps, embeds.to(dtype), return_dict=False
        )[0]
        return out.to(torch.promote_types(dtype, torch.float32))

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place (they are views of one block)."""
        self._grads.zero_()

    def step(self, max_grad_norm: float) -> torch.Tensor:
        """Clip each agent's gradient by its own norm and take one AdamW step.

        Returns:
            (K,) gradient norms before clipping.

        Raises:
            FloatingPointError: naming the agents, if a gradient is not finite; no agent moves.
        """
        norms: torch.Tensor = self._grads.norm(dim=1)
        if not norms.isfinite().all():
            bad = (~norms.isfinite()).nonzero().flatten().tolist()
            raise FloatingPointError(
                f"gradient of agents {bad} is not finite; lower train.learning_rate or use float32"
            )
        self._grads.mul_((max_grad_norm / (norms + 1e-6)).clamp(max=1.0)[:, None])
        for row, grad in zip(self._rows, self._grads, strict=True):
            row.grad = grad
        self._optimiser.step()
        return norms

    def initial_policy(self) -> Policy:
        """The base model as a policy: A drawn once from the adapter seed, B zero."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        flat = torch.zeros(self._weights.shape[1])
        for name, where in self.slices.items():
            bound = 1 / math.sqrt(where.shape_a[1])  # peft's Kaiming-uniform with a = sqrt(5)
            a, _ = self.matrices(flat, name)
            a.copy_(torch.empty(where.shape_a).uniform_(-bound, bound, generator=generator))
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
        row = self._rows[slot]
        if policy.adapter.shape != row.shape:
            raise ValueError(
                f"the policy has {len(policy.adapter)} adapter entries, this model's have "
                f"{len(row)}; it was made with another model, rank or target_modules"
            )
        with torch.no_grad():
            row.copy_(policy.adapter)
        state = self._optimiser.state[row]
        state["step"] = torch.tensor(float(policy.step))
        state["exp_avg"] = policy.exp_avg.to(row.device, copy=True)
        state["exp_avg_sq"] = policy.exp_avg_sq.to(row.device, copy=True)
        self.statistics[slot] = policy.statistics

    def snapshot(self, slot: int) -> Policy:
        """A frozen copy of a slot, on the CPU."""
        row = self._rows[slot]
        state = self._optimiser.state[row]
        return Policy(
            adapter=row.detach().cpu().clone(),
            exp_avg=state["exp_avg"].cpu().clone(),
            exp_avg_sq=state["exp_avg_sq"].cpu().clone(),
            step=int(state["step"]),
            statistics=self.statistics[slot],
        )


def _target_layers(unet: nn.Module, suffixes: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and any(
            name == suffix or name.endswith("." + suffix) for suffix in suffixes
        ):
            yield name, module


def _layout(targets: dict[str, nn.Linear], rank: int) -> tuple[dict[str, _Slice], int]:
    """Give every matrix an aligned place in the flat adapter; returns places and total size."""
    slices, size = {}, 0
    for name, base in targets.items():
        shape_a, shape_b = (rank, base.in_features), (base.out_features, rank)
        start_b = size + _aligned(math.prod(shape_a))
        slices[name] = _Slice(size, shape_a, start_b, shape_b)
        size = start_b + _aligned(math.prod(shape_b))
    return slices, size


def _aligned(entries: int) -> int:
    return -(-entries // _ALIGNMENT) * _ALIGNMENT
