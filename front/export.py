"""The adapters of a run's policies, as files that plain diffusers loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from front.adapter import Adapter

if TYPE_CHECKING:
    from pathlib import Path

    from ddpo.agents import Agents, Policy


def adapter_of(agents: Agents, policy: Policy) -> Adapter:
    """The adapter of a policy; `agents` know the layers it belongs to."""
    settings = agents.settings
    return Adapter(
        matrices={name: agents.matrices(policy.adapter, name) for name in agents.layer_names},
        rank=settings.rank,
        alpha=settings.alpha,
        target_modules=settings.target_modules,
    )


def save_adapter(agents: Agents, policy: Policy, folder: Path) -> None:
    """Write a policy's adapter for `pipe.load_lora_weights(folder)`; see `Adapter.save`.

    The file is the same for every pipeline class: the UNet's layers carry one prefix in all.

    Args:
        agents: knows the layers the adapter belongs to.
        policy: whose adapter to write.
        folder: made if absent.
    """
    adapter_of(agents, policy).save(folder)
