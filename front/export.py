"""The adapters of a run's policies, as files that other programs load."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from front.adapter import Adapter, AdapterError
from front.cards import write_adapter_card
from front.front import ADAPTER_FILE, FrontError

if TYPE_CHECKING:
    from pathlib import Path

    from ddpo.agents.slots import Agents, Policy
    from front.front import Blend, Front, FrontPolicy

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


def adapter_of(agents: Agents, policy: Policy) -> Adapter:
    """The adapter of a policy; `agents` know the layers it belongs to."""
    settings = agents.settings
    return Adapter(
        matrices={name: agents.matrices(policy.adapter, name) for name in agents.layer_names},
        rank=settings.rank,
        alpha=settings.alpha,
        target_modules=settings.target_modules,
    )


def policy_of(agents: Agents, adapter: Adapter) -> Policy:
    """An adapter as a policy that `agents` can load, its optimiser state empty: for evaluation.

    Args:
        agents: of the same layers; their rank may be higher, the rest is zero.
        adapter: of a policy or a blend.

    Raises:
        AdapterError: if the adapter belongs to other layers, or has a higher rank.
    """
    settings = agents.settings
    if set(adapter.matrices) != set(agents.layer_names) or adapter.rank > settings.rank:
        raise AdapterError(
            f"the adapter (rank {adapter.rank}, {len(adapter.matrices)} layers) does not fit the "
            f"base model's {len(agents.layer_names)} layers at rank {settings.rank}"
        )
    initial = agents.initial_policy()
    flat = torch.zeros_like(initial.adapter)
    for layer, (a, b) in adapter.matrices.items():
        to_a, to_b = agents.matrices(flat, layer)
        if to_a.shape[1] != a.shape[1] or len(to_b) != len(b):
            raise AdapterError(f"the adapter does not fit the base model: {layer} differs")
        to_a[: adapter.rank] = a
        to_b[:, : adapter.rank] = adapter.scale / (settings.alpha / settings.rank) * b
    return dataclasses.replace(initial, adapter=flat)


def save_adapter(agents: Agents, policy: Policy, folder: Path) -> None:
    """Write a policy's adapter for `pipe.load_lora_weights(folder)`; see `Adapter.save`.

    The file is the same for every pipeline class: the UNet's layers carry one prefix in all.

    Args:
        agents: knows the layers the adapter belongs to.
        policy: whose adapter to write.
        folder: made if absent.
    """
    adapter_of(agents, policy).save(folder)


def holds_adapter(agents: Agents, policy: Policy, folder: Path) -> bool:
    """Whether `save_adapter` has written this very policy to a folder, to the bit."""
    try:
        found = Adapter.read(folder / ADAPTER_FILE).state_dict()
    except AdapterError:
        return False
    own = adapter_of(agents, policy).state_dict()
    return own.keys() == found.keys() and all(torch.equal(own[n], found[n]) for n in own)


def write_folder(
    folder: Path,
    front: Front,
    member: FrontPolicy | Blend,
    adapter: Adapter | None = None,
    *,
    layout: str = "diffusers",
    precision: str = "fp32",
    error: float = 0.0,
    repo: str = "",
) -> Path:
    """Write a ready adapter folder: the adapter, its model card, and the pictures the card shows.

    Args:
        folder: exists already.
        front: the member belongs to.
        member: whose adapter to write.
        adapter: to write instead of the member's own, such as one of reduced rank.
        layout: "diffusers", or "kohya" for ComfyUI, A1111 and Forge.
        precision: a key of `PRECISIONS`.
        error: relative error of a reduced adapter, for the card.
        repo: the hub repository it is for, for the card.

    Returns:
        The adapter's file.

    Raises:
        UserError: if an adapter is missing or damaged, or too large for the precision, or the
            folder cannot be written to.
    """
    adapter = (adapter or Adapter.of(member)).to(PRECISIONS[precision])
    try:
        if layout == "kohya":
            name = f"{front.path.resolve().name}_{member.id}.safetensors"
            file = adapter.save_kohya(folder / name)
        else:
            file = adapter.save(folder)
        write_adapter_card(
            folder, front, member, adapter, weight_name=file.name, error=error, repo=repo
        )
    except (OSError, SafetensorError) as problem:
        raise FrontError(f"{folder} could not be written: {problem}") from problem
    return file
