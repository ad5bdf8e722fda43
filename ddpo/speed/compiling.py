"""torch.compile where it works: of the UNet with its adapters, or of `ddpo.speed.fused`."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, cast

import torch
from torch import _dynamo as dynamo

if TYPE_CHECKING:
    from collections.abc import Callable

    from ddpo.agents.slots import Agents

# With and without gradient, generations of few and of all agents, last passes of fewer rows.
_MOST_GRAPHS = 32

logger = logging.getLogger(__name__)


def compile_unet(agents: Agents, backend: str, trial: Callable[[], torch.Tensor]) -> bool:
    """Replace the agents' UNet pass by a compiled one, if a trial of it succeeds.

    Results change by rounding only.

    Each number of rows has a graph of its own. One graph for all, which torch would try from the
    second on, had sympy prove things about numbers of rows, and came to no end.

    Args:
        agents: whose UNet to compile.
        backend: of torch.compile, such as "inductor".
        trial: makes a pass in the shape of training and returns what to differentiate.

    Returns:
        Whether the compiled UNet is in use.
    """
    plain = agents.unet

    def compiled_trial() -> torch.Tensor:
        agents.unet = cast("torch.nn.Module", torch.compile(plain, backend=backend, dynamic=False))
        return trial()

    if not succeeds(compiled_trial, "the UNet"):
        agents.unet = plain
    agents.zero_grad()
    return agents.unet is not plain


def succeeds(trial: Callable[[], torch.Tensor], what: str) -> bool:
    """Whether something compiled can be used, forward and backward; if not, says why.

    Where compiling fails later, in another shape, torch tells it and runs that uncompiled: of this
    thread, see `settle`.

    Args:
        trial: runs it and returns what to differentiate.
        what: it is, for the message.
    """
    # Dynamo asks every input for its gradient, of which adapter matrices, being views, have none.
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
