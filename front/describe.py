"""The texts that the commands of `mo_front.py` print about a front and about one policy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from front.member import FrontPolicy
from front.tables import file_size, terminal_table, with_error
from morl.objectives import to_z

if TYPE_CHECKING:
    from collections.abc import Mapping

    from front.front import Front
    from front.member import Blend, GuardValue

NOTABLE = 2.0  # standard errors that a loss must exceed to be warned of


def front_text(front: Front) -> str:
    """The front as a table, and the quality of the whole."""
    header = ["policy", "weights", *(f"{o.name} [{o.unit}]" for o in front.objectives)]
    header += [*(f"guard {guard.name} [{guard.unit}]" for guard in front.guards), "on disk"]
    rows = [_row(front, member) for member in front.members]
    base = _returns(front.base.report_returns, front.base.report_std_error)
    rows.append(["(base model)", "", *base, *_guards(front, front.base.guards), ""])
    costs = front.costs
    spent = f"{costs.train} to train, {costs.selection} to selection, {costs.report} to report"
    lines = [
        terminal_table(header, rows),
        "",
        f"report set, ± 1 standard error; {counted(front)}",
        *_quality(front),
        f"images            {spent}; {costs.unet_rows} UNet rows",
    ]
    if front.blends:
        dense = f"hypervolume       {front.dense_hypervolume:.4f}  with {len(front.blends)} blends"
        lines.insert(4, dense)
    return "\n".join(lines)


def counted(front: Front) -> str:
    """How many policies there are to choose from."""
    return "1 policy" if len(front.policies) == 1 else f"{len(front.policies)} policies"


def _quality(front: Front) -> list[str]:
    """Quality of a front as a whole; for one objective, the best return."""
    if len(front.objectives) == 1:
        return [f"return            {front.z.max():.4f}  [z-units]"]
    return [
        f"hypervolume       {front.hypervolume:.4f}  [z-units]",
        f"sparsity          {front.sparsity:.4f}  [z-units]",
        f"expected utility  {front.expected_utility:.4f}  [z-units]",
    ]


def _row(front: Front, member: FrontPolicy | Blend) -> list[str]:
    if isinstance(member, FrontPolicy):
        origin = ", ".join(f"{weight:.2f}" for weight in member.weights)
        size = file_size(member.size_bytes)
    else:
        origin, size = recipe(member), "(blend)"
    returns = _returns(member.report_returns, member.report_std_error)
    return [member.id, origin, *returns, *_guards(front, member.guards), size]


def _guards(front: Front, values: Mapping[str, GuardValue]) -> list[str]:
    """A cell for every guard; empty where it was not measured."""
    found = [values.get(guard.name) for guard in front.guards]
    return ["" if each is None else with_error(each.value, each.std_error) for each in found]


def recipe(member: FrontPolicy | Blend) -> str:
    """What a blend is made of."""
    return " + ".join(f"{part:.2f} {policy.id}" for policy, part in member.parts)


def _returns(values: Any, errors: Any) -> list[str]:
    return [with_error(value, error) for value, error in zip(values, errors, strict=True)]


def summary(front: Front) -> dict[str, Any]:
    """What `show --json` prints."""
    return {
        "run": str(front.path),
        "objectives": [objective.to_json() for objective in front.objectives],
        "policies": [
            {
                "id": policy.id,
                "parent": policy.parent,
                "generation": policy.generation,
                "weights": policy.weights.tolist(),
                "report_returns": policy.report_returns.tolist(),
                "report_std_error": policy.report_std_error.tolist(),
                "z": z.tolist(),
                "adapter": str(policy.adapter),
                "bytes": policy.size_bytes,
            }
            for policy, z in zip(front.policies, front.z, strict=True)
        ],
        "blends": [
            {
                "id": blend.id,
                "parts": {policy.id: part for policy, part in blend.parts},
                "report_returns": _list(blend.report_returns),
                "report_std_error": _list(blend.report_std_error),
            }
            for blend in front.blends
        ],
        "base": {
            "report_returns": front.base.report_returns.tolist(),
            "report_std_error": front.base.report_std_error.tolist(),
        },
        "hypervolume": front.hypervolume,
        "dense_hypervolume": front.dense_hypervolume,
        "sparsity": front.sparsity,
        "expected_utility": front.expected_utility,
        "images": {
            "train": front.costs.train,
            "selection": front.costs.selection,
            "report": front.costs.report,
        },
        "unet_rows": front.costs.unet_rows,
    }


def _list(vector: Any) -> list[float] | None:
    return None if vector is None else vector.tolist()


def member_text(front: Front, member: FrontPolicy | Blend) -> str:
    """What a policy or blend is, and how good it is."""
    if isinstance(member, FrontPolicy):
        weights = ",".join(f"{weight:.3g}" for weight in member.weights)
        origin = f", from {member.parent}" if member.parent else ""
        title = f"{member.id}: generation {member.generation}, trained along {weights}{origin}"
    else:
        title = f"{member.id}: {recipe(member)}"
    if member.report_returns is None:
        chord = np.sum([part * policy.report_returns for policy, part in member.parts], axis=0)
        between = ", ".join(
            f"{name} {value:.4g}" for name, value in zip(front.names, chord, strict=True)
        )
        return (
            f"{title}\n  not measured (`analyse` measures blends); on the chord of its parts: "
            f"{between}"
        )
    returns = _returns(member.report_returns, member.report_std_error)
    base = _returns(front.base.report_returns, front.base.report_std_error)
    z = to_z(member.report_returns, front.objectives)
    rows = [
        [f"  {objective.name}", objective.unit, value, f"{score:.3f}", before]
        for objective, value, score, before in zip(front.objectives, returns, z, base, strict=True)
    ]
    lines = [title, terminal_table(["  report set", "unit", "return", "z", "base model"], rows)]
    if isinstance(member, FrontPolicy):
        lines.append(f"  adapter {member.adapter}, {file_size(member.size_bytes)}")
        lines.append(f"  pipe.load_lora_weights({str(member.adapter)!r})")
    return "\n".join(lines)


def loss_warnings(front: Front, member: FrontPolicy | Blend) -> list[str]:
    """A line for each objective that a member loses, beyond what chance explains."""
    if member.report_returns is None or member.report_std_error is None:
        return []
    here = zip(member.report_returns, member.report_std_error, strict=True)
    base = zip(front.base.report_returns, front.base.report_std_error, strict=True)
    lines = []
    for objective, now, before in zip(front.objectives, here, base, strict=True):
        error = math.hypot(now[1], before[1])
        if now[0] < before[0] - NOTABLE * error:
            lines.append(
                f"warning: {objective.name} is worse than the base model's: {with_error(*now)} "
                f"{objective.unit}, not {with_error(*before)}"
            )
    return lines
