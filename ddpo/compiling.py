"""torch.compile for the UNet, with its stacked adapters inside, where it works."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, cast

import torch
from torch import _dynamo as dynamo

if TYPE_CHECKING:
    from collections.abc import Callable

    from ddpo.agents import Agents

# With and without gradient, generations of few and of all agents, last passes of fewer rows.
_MOST_GRAPHS = 32

logger = logging.getLogger(__name__)


def compile_unet(agents: Agents, backend: str, trial: Callable[[], torch.Tensor]) -> bool:
    """Replace the agents' UNet pass by a compiled one, if a trial of it succeeds.

    What cannot be compiled is told, and the UNet stays as it is; where compiling fails later, at
    another number of rows, torch tells it and runs those without. Results change by rounding only.

    Each number of rows has a graph of its own. One graph for all, which torch would try from the
    second on, had sympy prove things about numbers of rows, and came to no end.

    Args:
        agents: whose UNet to compile.
        backend: of torch.compile, such as "inductor".
        trial: makes a pass in the shape of training and returns what to differentiate.

    Returns:
        Whether the compiled UNet is in use.
    """
    # It asks every input for its gradient, of which adapter matrices, being views, have none.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    dynamo.config.recompile_limit = _MOST_GRAPHS
    dynamo.config.suppress_errors = False
    plain = agents.unet
    try:
        agents.unet = cast("torch.nn.Module", torch.compile(plain, backend=backend, dynamic=False))
        trial().sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, and what it calls, may raise anything
        agents.unet = plain
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        logger.warning("the UNet could not be compiled and runs without: %s", reason)
    else:
        dynamo.config.suppress_errors = True
    agents.zero_grad()
    return agents.unet is not plain
