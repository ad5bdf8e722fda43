"""Adapters as files that plain diffusers loads: `pipe.load_lora_weights(folder)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

if TYPE_CHECKING:
    from pathlib import Path

    from ddpo.agents import Agents, Policy


def adapter_state_dict(agents: Agents, policy: Policy) -> dict[str, torch.Tensor]:
    """LoRA matrices of a policy under peft's names, e.g. `....to_q.lora_A.weight`."""
    state = {}
    for name in agents.layer_names:
        a, b = agents.matrices(policy.adapter, name)
        state[f"{name}.lora_A.weight"] = a.contiguous()
        state[f"{name}.lora_B.weight"] = b.contiguous()
    return state


def save_adapter(agents: Agents, policy: Policy, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` in diffusers' format, with rank and alpha inside.

    Without that metadata an adapter whose alpha differs from its rank loads at the wrong strength.

    Args:
        agents: knows the layers the adapter belongs to.
        policy: whose adapter to write.
        folder: made if absent.
    """
    settings = agents.settings
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.target_modules),
        init_lora_weights=False,
    )
    metadata = {name: _plain(value) for name, value in lora.to_dict().items()}
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=adapter_state_dict(agents, policy),
        unet_lora_adapter_metadata=metadata,
    )


def _plain(value: object) -> object:
    """Sets have no order and no JSON; lists have both."""
    return sorted(value) if isinstance(value, set) else value
