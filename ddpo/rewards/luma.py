"""Grey values of pictures, for rewards that only look at light."""

from __future__ import annotations

import torch

_REC_601 = (0.299, 0.587, 0.114)
_REC_709 = (0.2126, 0.7152, 0.0722)


def luma(images: torch.Tensor) -> torch.Tensor:
    """Rec. 601 luma (rows, H, W) of images (rows, 3, H, W): grey values as in JPEG and OpenCV."""
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(_REC_601))


def relative_luminance(images: torch.Tensor) -> torch.Tensor:
    """Physical light (rows, H, W) of sRGB images (rows, 3, H, W), 0 for black and 1 for white.

    sRGB is made linear (IEC 61966-2-1) and then weighted by Rec. 709.
    """
    linear = torch.where(
        images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055).clamp(min=0) ** 2.4
    )
    return torch.einsum("nchw,c->nhw", linear, images.new_tensor(_REC_709))
