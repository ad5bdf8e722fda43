"""A conditioned family around a tiny model."""

from __future__ import annotations

import torch

from morl.weights import even_weights
from tests.support.rig import make_rig

THREE = ("colorfulness", "jpeg_compressibility", "jpeg_incompressibility")


def family_rig(num_agents=3, pipe=None, num_objectives=2, **changes):
    """A rig whose agents are members of one family with non-zero B's."""
    rig = make_rig(
        num_agents,
        pipe,
        agents={"kind": "conditioned"},
        evolution={"strategy": "fixed_weights"},
        rewards={"names": THREE[:num_objectives]},
        **changes,
    )
    agents = rig.agents
    generator = torch.Generator().manual_seed(1)
    agents.family += 0.05 * torch.randn(agents.family.shape, generator=generator)
    agents.load_tasks(
        members(agents, even(num_agents, num_objectives)), even(num_agents, num_objectives)
    )
    return rig


def even(num, num_objectives=2):
    return torch.from_numpy(even_weights(num, num_objectives))


def members(agents, weights):
    """The family's policies at these weights."""
    agents.show(weights)
    return [agents.snapshot(slot) for slot in range(len(weights))]
