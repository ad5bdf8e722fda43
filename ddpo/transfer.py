"""Copies from the host to the device that nothing waits for."""

from __future__ import annotations

import torch


def to_device(
    values: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The values on the device, in the order of its own work; the host goes on at once.

    On CUDA a copy from ordinary memory would make the host wait, so it goes through pinned memory.
    """
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, dtype or values.dtype, non_blocking=True)
