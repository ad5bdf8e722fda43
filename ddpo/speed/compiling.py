"""Whether torch.compile works here, and its limits."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import torch
from torch import _dynamo as dynamo

if TYPE_CHECKING:
    from collections.abc import Callable

# Per function: for a single row and for more, in each dtype, with and without gradient.
_MOST_GRAPHS = 32

logger = logging.getLogger(__name__)


def succeeds(trial: Callable[[], torch.Tensor], what: str) -> bool:
    """Whether a compiled function works, forward and backward. If not, a warning says why.

    Compiling may still fail later, for another shape. Torch then reports it and runs that call
    uncompiled. This holds for the present thread, see `settle`.

    Args:
        trial: runs the function and returns a tensor to differentiate.
        what: names the function in the message.
    """
    # Dynamo reads the gradient of every input, even of inputs that keep none.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    settle(is_lenient=False)
    try:
        trial().sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, and the tools it calls, may raise anything
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        logger.warning("%s could not be compiled; continuing uncompiled: %s", what, reason)
        return False
    settle(is_lenient=True)
    return True


def settle(*, is_lenient: bool) -> None:
    """Set the compiler's limits in this thread; autograd runs a GPU's backward passes in others.

    Args:
        is_lenient: True runs functions that cannot be compiled uncompiled; False raises.
    """
    dynamo.config.recompile_limit = _MOST_GRAPHS
    dynamo.config.suppress_errors = is_lenient
