"""Reward models that come as one file of tensors, from disk or a hub, and never as code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from config.settings.errors import UserError
from config.settings.files import is_file

if TYPE_CHECKING:
    from collections.abc import Mapping


def load_tensors(part: str, source: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file, on the CPU.

    torch's files are read with `weights_only=True`, so no code in them runs. If a checkpoint keeps
    its tensors under "state_dict", they are taken from there.

    Args:
        part: the part that it is for, such as "aesthetic_score.head", for messages.
        source: a local .safetensors, .pt or .pth file, or owner/repository/file of a hub.

    Raises:
        UserError: if there is no such file, or it holds anything but tensors.
        OSError: if it cannot be downloaded.
    """
    path = Path(source)
    if not is_file(path):
        owner, _, rest = source.partition("/")
        repository, _, file = rest.partition("/")
        if path.is_absolute() or not file:
            raise UserError(
                f"{shown(part, source)} is neither a file nor owner/repository/file of a hub"
            )
        path = _download(part, f"{owner}/{repository}", file)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a file that is no checkpoint fails in many ways
        raise UserError(f"{shown(part, source)} is not a file of plain tensors: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(torch.is_tensor(t) for t in state.values()):
        raise UserError(f"{shown(part, source)} does not hold named tensors")
    return state


def load_into(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], part: str, source: str
) -> None:
    """Copy tensors into a module that has exactly these tensors.

    Raises:
        UserError: naming the part and the tensors that are missing, left over, or of another shape.
    """
    try:
        module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise UserError(f"{shown(part, source)} holds other tensors: {error}") from error


def shown(part: str, source: str) -> str:
    """The form in which messages name a part of a reward and its source."""
    return f"rewards.sources: {part}={source!r}"


def _download(part: str, repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - a local file needs no hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise OSError(
            f"{file} of {repository} could not be downloaded; give a local file as "
            f"rewards.sources={part}=FILE: {error}"
        ) from error
