"""torch.compile where it works: whether it does here, and its limits."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import torch
from torch import _dynamo as dynamo

if TYPE_CHECKING:
    from collections.abc import Callable

# Of one function: for a single row and for more, in each dtype, with and without gradient.
_MOST_GRAPHS = 32

logger = logging.getLogger(__name__)


def succeeds(trial: Callable[[], torch.Tensor], what: str) -> bool:
    """Whether something compiled can be used, forward and backward; if not, says why.

    Where compiling fails later, in another shape, torch reports it and runs that uncompiled: of
    this thread, see `settle`.

    Args:
        trial: runs it and returns what to differentiate.
        what: it is, for the message.
    """
    # Dynamo asks every input for its gradient, also those that keep none.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    settle(is_lenient=False)
    try:
        trial().sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, and what it calls, may raise anything
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        logger.warning("%s could not be compiled, so this goes on uncompiled: %s", what, reason)
        return False
    settle(is_lenient=True)
    return True


def settle(*, is_lenient: bool) -> None:
    """Set the compiler's limits, in this thread: autograd runs a GPU's backward passes in others.

    Args:
        is_lenient: whether what cannot be compiled runs uncompiled.
    """
    dynamo.config.recompile_limit = _MOST_GRAPHS
    dynamo.config.suppress_errors = is_lenient
