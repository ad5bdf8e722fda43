"""Counts the operations that make the host wait for the device."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Methods that turn a tensor into numbers; below, operations that need its values.
METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


OPERATIONS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}


class _Operations(TorchDispatchMode):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        # one boolean index is one `nonzero`
        is_masked = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in OPERATIONS or is_masked:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_waits():
    counts = Counter()
    with pytest.MonkeyPatch.context() as patch, _Operations(counts):
        for name in METHODS:
            original = getattr(torch.Tensor, name)

            def counting(self, *args, _original=original, _name=name, **kwargs):
                counts[_name] += 1
                return _original(self, *args, **kwargs)

            patch.setattr(torch.Tensor, name, counting)
        yield counts
