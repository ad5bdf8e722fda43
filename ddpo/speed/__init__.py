"""Faster layers in place of the plain ones: the same results up to rounding.

Nothing in the method, the adapters or the models needs this folder. Each faster layer is tested
against its plain form. The first lines of each file say what it rearranges, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpo.speed.allocator import keep_freed_memory
from ddpo.speed.fused import can_fuse, fuse
from ddpo.speed.layers import quicken
from ddpo.speed.lora import FastAdaptedLayers

if TYPE_CHECKING:
    from ddpo.agents.slots import Agents
    from ddpo.model.stable_diffusion import BaseModel


def apply(speed: str, model: BaseModel, agents: Agents | None = None) -> None:
    """Put faster layers into a model and its agents, in place. A second call changes nothing.

    Args:
        speed: "off" changes nothing; "layers" takes faster layers; "fused" also compiles the passes
            between products. If compiling does not work, a warning says so.
        model: with frozen weights, on its device.
        agents: whose adapters are in the model's UNet; None without adapters.
    """
    if speed == "off":
        return
    if model.device.type == "cpu":
        keep_freed_memory()
    is_fused = speed == "fused" and can_fuse(model.device)
    for network in model.networks:
        quicken(network)
        if is_fused:
            fuse(network)
    if agents is not None and not isinstance(agents.layers, FastAdaptedLayers):
        agents.layers = FastAdaptedLayers(agents.layers)
