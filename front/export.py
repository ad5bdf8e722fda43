"""The adapters of a run's policies, as files that other programs load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from ddpo.agents.adapter import Adapter
from front.cards import write_adapter_card
from front.errors import FrontError

if TYPE_CHECKING:
    from pathlib import Path

    from front.front import Front
    from front.member import Blend, FrontPolicy

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


def write_folder(
    folder: Path,
    front: Front,
    member: FrontPolicy | Blend,
    adapter: Adapter | None = None,
    *,
    file_format: str = "diffusers",
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
        file_format: "diffusers", or "kohya" for ComfyUI, A1111 and Forge.
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
        file = write_adapter(folder, front, member, adapter, file_format)
        write_adapter_card(
            folder,
            front,
            member,
            adapter,
            weight_name=file.name,
            is_kohya=file_format == "kohya",
            error=error,
            repo=repo,
        )
    except (OSError, SafetensorError) as problem:
        raise FrontError(f"{folder} could not be written: {problem}") from problem
    return file


def write_adapter(
    folder: Path, front: Front, member: FrontPolicy | Blend, adapter: Adapter, file_format: str
) -> Path:
    """Write an adapter alone, in the layout that another program reads.

    Args:
        folder: exists already.
        front: the member belongs to.
        member: whose adapter it is.
        adapter: to write.
        file_format: "diffusers", or "kohya" for ComfyUI, A1111 and Forge.
    """
    if file_format == "diffusers":
        return adapter.save(folder)
    schedule = front.model.schedule if front.model else {}
    return adapter.save_kohya(
        folder / f"{front.path.resolve().name}_{member.id}.safetensors",
        prediction_type=schedule.get("prediction_type", ""),
        zero_snr=schedule.get("rescale_betas_zero_snr", False),
    )
