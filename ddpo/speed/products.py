"""Matrix products with frozen weights: by the faster library, and differentiated by hand.

    y = x W^T + b    =>    dL/dx = dL/dy W

With W and b constant, this one product is the whole backward pass.

On AMD CPUs MKL uses only half of AVX-512. oneDNN uses all of it, but PyTorch calls it only for
convolutions of 16 or more rows, and it starts more slowly. So a large product is written as a
convolution of one pixel:

    y[n, :, p] = W x[n, :, p] + b    for 16 rows n
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

_BATCH = 16  # rows that PyTorch needs to leave a convolution to oneDNN
FEWEST_MULTIPLICATIONS = 2**22  # smaller products are faster with MKL
_ZEN_5 = 26  # "cpu family" of AMD's first processors that compute all 512 bits together


class FrozenLinear(nn.Linear):
    """A linear layer with frozen weights, computed by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name
        """(..., in) to (..., out)."""
        return constant_linear(input, self.weight, self.bias)


def constant_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`linear`, differentiable with respect to x only."""
    out: torch.Tensor
    if torch.is_grad_enabled() and x.requires_grad:
        out = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    else:
        out = linear(x, weight, bias)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.weight = weight  # not with save_for_backward: checkpointing would repeat the product
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return linear(gradient, ctx.weight.mT), None, None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The product x W^T + b by the faster library; the same up to rounding.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).

    Returns:
        (..., out).
    """
    if not is_for_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    pixels = x.contiguous().view(_BATCH, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last
    out = nn.functional.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def is_for_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `linear` leaves x W^T to oneDNN: if MKL lags and the product is large enough."""
    is_float32_on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    is_whole = x.shape[:-1].numel() % _BATCH == 0
    is_large = x.numel() * weight.shape[0] >= FEWEST_MULTIPLICATIONS
    return MKL_LAGS and is_float32_on_cpu and is_whole and is_large


def mkl_lags(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether PyTorch uses MKL on an AMD processor that computes 512 bits together.

    AMD's Zen 4 also has AVX-512, but computes it in two halves: there MKL keeps up.
    """
    backends = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available() and cpuinfo.is_file()):
        return False
    text = cpuinfo.read_text(encoding="utf-8")
    family = re.search(r"^cpu family\s*: (\d+)$", text, re.MULTILINE)
    is_zen_5 = "AuthenticAMD" in text and family is not None and int(family[1]) >= _ZEN_5
    return is_zen_5 and backends.cpu.get_cpu_capability() == "AVX512"


MKL_LAGS = mkl_lags()


def exact(x: torch.Tensor) -> torch.Tensor:
    """The same values in float32 or wider, for sums that are rounded only once."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
