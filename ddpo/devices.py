"""Number formats, copies between the host and the device, and which pictures are decoded alone."""

from __future__ import annotations

import torch

# By the names in settings. tf32 is float32, with products rounded to 10 bits on a GPU.
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


LARGE_PICTURE = 256 * 256  # pixels


def is_large(pixels: int) -> bool:
    """Whether pictures of this many pixels go through the VAE one at a time.

    One such picture keeps a device busy. All pictures of a pass together would need more memory
    than denoising does.
    """
    return pixels >= LARGE_PICTURE


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32; float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def to_device(
    values: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Copy values to the device without making the host wait; the device keeps the order of work.

    On CUDA, a copy from ordinary memory would make the host wait, so it goes through pinned memory.
    """
    if device.type == "cuda" and not values.is_cuda:
        values = values.contiguous().pin_memory()  # expanded tensors cannot be pinned
    return values.to(device, dtype or values.dtype, non_blocking=True)


def pairs_of(values: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
    """Values (pairs, ...) of these rows and steps, on the device of `rows`.

    If the values (rows, T, ...) are kept on the host, the host waits for the indices.
    """
    home = values.device
    if home == rows.device:
        return values[rows, steps]
    index = steps if isinstance(steps, int) else steps.to(home)
    return to_device(values[rows.to(home), index], rows.device)
