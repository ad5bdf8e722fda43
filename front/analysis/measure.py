"""Pareto analysis: measures how continuous the front is.

PGMORL (Xu et al. 2020, section 3.5) turns a set of policies into a continuous front by
interpolating parameters within a family of policies. Here every pair of neighbours on the front is
blended at several places. Every blend is measured on the report set as the policies were: with the
run's own model, rewards, prompts, seeds and sampler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ddpo.agents.adapter import Adapter
from ddpo.types import standard_error
from front.analysis.judge import Judge, check_same
from front.analysis.values import Analysis, InPredictions, Link, MeasuredBlend
from front.blend import depth_of_corner, height_above_chord, neighbours
from front.errors import FrontError
from front.member import Blend
from morl.indicators import hypervolume
from morl.objectives import to_z
from morl.pareto import non_dominated
from morl.types import BASE_POLICY
from morl.weights import normalise
from run.progress import named_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ddpo.types import Evaluation
    from front.front import Front
    from front.member import FrontPolicy, GuardValue
    from morl.types import Array, PolicyId

    Parts = tuple[tuple[FrontPolicy, float], ...]


def analyse(
    front: Front,
    num_points: int,
    *,
    with_predictions: bool = False,
    model: str = "",
    device: str = "",
    rows_per_pass: int = 0,
) -> tuple[Analysis, Mapping[str, Evaluation]]:
    """Measure blends between all neighbours on the front.

    Args:
        front: with at least two policies.
        num_points: blends between each pair of neighbours, evenly spaced.
        with_predictions: measure every blend in predictions, too, at twice the cost of a blend.
        model: where the base model is now; empty where it was.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.

    Returns:
        The analysis, and the evaluation of every policy and blend, and of the base model, by id.

    Raises:
        UserError: if there is one policy only, the run's parts cannot be used, or its policies
            score differently now.
    """
    if len(front.policies) < 2:
        raise FrontError("the front is a single policy: there is nothing to interpolate")
    recipes = recipes_between(front, dict.fromkeys(neighbours(front.z), num_points))
    read = {policy.id: Adapter.read(policy.file) for policy in front.policies}
    adapters = {str(name): adapter for name, adapter in read.items()}
    for name, parts in recipes.items():
        adapters[name] = Adapter.blend([(read[p.id], part) for p, part in parts])
    nothing = (next(iter(read.values())), 0.0)  # of any policy's update: the base model
    adapters.setdefault(BASE_POLICY, Adapter.blend([nothing]))
    judge = Judge(front, model, device, rows_per_pass)
    try:
        mixed = [[(read[p.id], part) for p, part in parts] for parts in recipes.values()]
        mixed = mixed if with_predictions else []
        total = len(adapters) + len(mixed)
        with named_bar("measuring blends", total) as bar:
            measured = judge.measure(list(adapters.values()), bar.update)
            predicted = judge.measure_predictions(mixed, bar.update)
    finally:
        judge.close()
    evaluations = dict(zip(adapters, measured, strict=True))
    check_same(front, evaluations)
    num_images = total * len(judge.report_set.prompts)
    base = evaluations[BASE_POLICY]
    guards = {name: judge.guard_values(evaluations[name], base) for name in recipes}
    in_predictions = dict(zip(recipes, predicted, strict=False))
    analysis = summarise(front, recipes, evaluations, guards, num_images, in_predictions)
    return analysis, evaluations


def recipes_between(front: Front, points: Mapping[tuple[int, int], int]) -> dict[str, Parts]:
    """The parts of blends, by their names: evenly spaced between pairs of policies.

    Args:
        front: whose policies are blended.
        points: pair of indices into `front.policies` -> blends between the two.
    """
    found = []
    for (i, j), num in points.items():
        first, second = front.policies[i], front.policies[j]
        shares = [(k + 1) / (num + 1) for k in range(num)]
        found += [((first, 1 - share), (second, share)) for share in shares]
    return {f"b{index:03d}": parts for index, parts in enumerate(found)}


def spread_points(front: Front, num_blends: int, most: int) -> dict[tuple[int, int], int]:
    """How many blends to put between which neighbours: always into the widest gap that is left.

    Args:
        front: with two policies at least.
        num_blends: in all, at most.
        most: between two neighbours.

    Returns:
        Pair of indices into `front.policies` -> blends, in the order of the front; none with 0.
    """
    pairs = neighbours(front.z)
    widths = {(i, j): float(np.linalg.norm(front.z[i] - front.z[j])) for i, j in pairs}
    points = dict.fromkeys(pairs, 0)
    for _ in range(min(num_blends, most * len(pairs))):
        open_pairs = [pair for pair in pairs if points[pair] < most]
        widest = max(open_pairs, key=lambda pair: widths[pair] / (points[pair] + 1))
        points[widest] += 1
    return {pair: num for pair, num in points.items() if num}


def summarise(
    front: Front,
    recipes: Mapping[str, Parts],
    evaluations: Mapping[str, Evaluation],
    guards: Mapping[str, Mapping[str, GuardValue]],
    num_images: int,
    in_predictions: Mapping[str, Evaluation] | None = None,
) -> Analysis:
    """The conclusions about a front from its measured blends.

    Args:
        front: whose neighbours were blended.
        recipes: name -> parts of a blend.
        evaluations: on the report set, of blends, policies and the base model, by name.
        guards: name -> guards' values for a blend.
        num_images: drawn for it.
        in_predictions: name -> evaluation of the same blend in the space of predictions.
    """
    blends = [
        Blend(
            id=name,
            parts=parts,
            weights=normalise(np.sum([part * policy.weights for policy, part in parts], axis=0)),
            report_returns=evaluations[name].returns.numpy(),
            report_std_error=evaluations[name].std_error.numpy(),
            guards=guards.get(name, {}),
        )
        for name, parts in recipes.items()
    ]
    dense = np.vstack([front.z, *(_z(front, blend) for blend in blends)])
    return Analysis(
        links=_links(front, blends, evaluations, in_predictions or {}),
        hypervolume=front.hypervolume,
        dense_hypervolume=hypervolume(dense),
        num_images=num_images,
    )


def _z(front: Front, blend: Blend) -> Array:
    assert blend.report_returns is not None
    return to_z(blend.report_returns, front.objectives)


def _height(
    front: Front,
    blend: Evaluation,
    parts: Sequence[tuple[FrontPolicy, float]],
    ends: Sequence[Evaluation],
) -> tuple[float, float]:
    """How far a blend lies above the chord between its parts, and the paired error of that."""
    points = [to_z(policy.report_returns, front.objectives) for policy, _ in parts]
    returns = to_z(blend.returns.numpy(), front.objectives)
    height = height_above_chord(returns, points[0], points[1])
    own, first, second = (
        to_z(each.rewards.double().numpy(), front.objectives) for each in (blend, *ends)
    )
    excess = own - (1 - height.position) * first - height.position * second
    error = standard_error(torch.from_numpy(excess @ height.weights)[:, None])
    return height.value, error.item()


def _in_predictions(
    front: Front,
    blend: Evaluation,
    parts: Sequence[tuple[FrontPolicy, float]],
    ends: Sequence[Evaluation],
) -> InPredictions:
    height, error = _height(front, blend, parts, ends)
    return InPredictions(
        returns=blend.returns.numpy(),
        std_error=blend.std_error.numpy(),
        height=height,
        height_std_error=error,
    )


def _links(
    front: Front,
    blends: Sequence[Blend],
    evaluations: Mapping[str, Evaluation],
    in_predictions: Mapping[str, Evaluation],
) -> tuple[Link, ...]:
    """Compare every blend with the chord between its parts, image by image."""
    # Every blend.
    is_useful = non_dominated(np.vstack([front.z, *(_z(front, blend) for blend in blends)]))
    measured = []
    for blend, useful in zip(blends, is_useful[len(front.policies) :], strict=True):
        (first, _), (second, _) = blend.parts
        ends = [evaluations[first.id], evaluations[second.id]]
        height, height_std_error = _height(front, evaluations[blend.id], blend.parts, ends)
        predicted = in_predictions.get(blend.id)
        measured.append(
            MeasuredBlend(
                blend=blend,
                height=height,
                height_std_error=height_std_error,
                depth=depth_of_corner(
                    *(to_z(policy.report_returns, front.objectives) for policy in (first, second))
                ),
                is_useful=bool(useful),
                in_predictions=None
                if predicted is None
                else _in_predictions(front, predicted, blend.parts, ends),
                evaluation=evaluations[blend.id],
                gain=evaluations[blend.id].gain_over(evaluations[BASE_POLICY]),
            )
        )
    # The blends of each pair of policies, together.
    pairs: dict[tuple[PolicyId, PolicyId], list[MeasuredBlend]] = {}
    for each in measured:
        (first, _), (second, _) = each.blend.parts
        pairs.setdefault((first.id, second.id), []).append(each)
    return tuple(
        Link(
            first=group[0].blend.parts[0][0],
            second=group[0].blend.parts[1][0],
            blends=tuple(group),
        )
        for group in pairs.values()
    )
