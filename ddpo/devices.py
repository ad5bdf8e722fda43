"""Number formats, and copies between the host and the device."""

from __future__ import annotations

import torch

# By the names that settings use; tf32 is float32 whose products a GPU rounds to 10 bits.
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Half precision made float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def to_device(
    values: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The values on the device, in the order of its own work; the host goes on at once.

    On CUDA a copy from ordinary memory would make the host wait, so it goes through pinned memory.
    """
    if device.type == "cuda" and not values.is_cuda:
        values = values.contiguous().pin_memory()  # which expanded values cannot be
    return values.to(device, dtype or values.dtype, non_blocking=True)


def pairs_of(values: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
    """Values (pairs, ...) of these rows and steps, on the device of `rows`.

    Where the values (rows, T, ...) are kept on the host, it waits for the device to learn which are
    meant.
    """
    home = values.device
    if home == rows.device:
        return values[rows, steps]
    index = steps if isinstance(steps, int) else steps.to(home)
    return to_device(values[rows.to(home), index], rows.device)
