"""Pareto analysis: how far the front is continuous, measured.

PGMORL (Xu et al. 2020, section 3.5) turns a set of policies into a continuous front by
interpolating parameters within a family of policies. Here every pair of neighbours on the front is
blended at several places, and every blend is measured on the report set with the run's own model,
rewards, prompts, seeds and sampler, as the policies were.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from ddpo import speed
from ddpo.agents.adapter import Adapter, policy_of
from ddpo.agents.slots import Agents
from ddpo.evaluation import evaluate, evaluation_set
from ddpo.files import write_json
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.prompts import split_prompts
from ddpo.rewards.scorer import Scorer
from ddpo.sampler import Sampler
from ddpo.types import EvaluationSet, standard_error
from front.blend import depth_of_corner, height_above_chord, neighbours
from front.front import Blend, Front, FrontError
from front.plots import plot_dense_front
from front.settings import device_of, settings_of
from morl.indicators import hypervolume
from morl.objectives import to_z
from morl.pareto import non_dominated
from morl.weights import normalise
from run.samples import write_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from config.settings.schema import Settings
    from ddpo.evaluation import evaluation_set
    from ddpo.types import Evaluation
    from front.front import FrontPolicy
    from morl.types import Array, PolicyId

FORMAT = 1
ANALYSIS = "analysis.json"
DENSE_PLOT = "dense_front.png"
# A blend fails if it is below the chord by more than this many standard errors, and by more than
# this part of the way to the corner, where it would have the worse of both parts in everything.
_STD_ERRORS = 2.0
_TOLERANCE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredBlend:
    """A blend of two neighbours and where it lies.

    Attributes:
        blend: with its returns on the report set.
        height: above the chord between its parts, z-units; see `height_above_chord`.
        height_std_error: of `height`, paired over the images.
        depth: of the corner below the chord, z-units.
        is_useful: no policy and no other blend dominates it on the report set.
    """

    blend: Blend
    height: float
    height_std_error: float
    depth: float
    is_useful: bool

    @property
    def holds(self) -> bool:
        """Whether it lies near the chord or above it."""
        below = -self.height
        return below <= max(_STD_ERRORS * self.height_std_error, _TOLERANCE * self.depth)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Link:
    """Two neighbours on the front and the blends between them, from the first to the second."""

    first: FrontPolicy
    second: FrontPolicy
    blends: tuple[MeasuredBlend, ...]

    @property
    def holds(self) -> bool:
        """Whether interpolation holds all along."""
        return all(blend.holds for blend in self.blends)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """What the blends say about a front.

    Attributes:
        links: one per pair of neighbours.
        hypervolume: of the policies on the report set, z-units.
        dense_hypervolume: of the policies and the blends.
        num_images: drawn for it.
    """

    links: tuple[Link, ...]
    hypervolume: float
    dense_hypervolume: float
    num_images: int

    @property
    def useful(self) -> tuple[Blend, ...]:
        """The blends that nothing dominates."""
        measured = (each for link in self.links for each in link.blends)
        return tuple(each.blend for each in measured if each.is_useful)

    def families(self, front: Front) -> list[list[PolicyId]]:
        """Policies that interpolation connects, in the order of the front."""
        family = {policy.id: {policy.id} for policy in front.policies}
        for link in self.links:
            if link.holds and family[link.first.id] is not family[link.second.id]:
                joined = family[link.first.id] | family[link.second.id]
                family |= dict.fromkeys(joined, joined)
        order = [policy.id for policy in front.policies]
        firsts = [name for name in order if name == min(family[name], key=order.index)]
        return [[name for name in order if name in family[first]] for first in firsts]

    def to_json(self, front: Front) -> dict[str, Any]:
        """The content of `analysis.json`: every blend, useful or not."""
        return {
            "format": FORMAT,
            "links": [
                {
                    "first": link.first.id,
                    "second": link.second.id,
                    "holds": link.holds,
                    "blends": [
                        {
                            **blend_record(each.blend),
                            "height": each.height,
                            "height_std_error": each.height_std_error,
                            "depth": each.depth,
                            "holds": each.holds,
                            "is_useful": each.is_useful,
                        }
                        for each in link.blends
                    ],
                }
                for link in self.links
            ],
            "families": self.families(front),
            "hypervolume": self.hypervolume,
            "dense_hypervolume": self.dense_hypervolume,
            "images": self.num_images,
        }


def blend_record(blend: Blend) -> dict[str, Any]:
    """A measured blend as `front.json` lists it."""
    returns, error = blend.report_returns, blend.report_std_error
    return {
        "id": blend.id,
        "parts": [{"policy": policy.id, "coefficient": share} for policy, share in blend.parts],
        "weights": blend.weights.tolist(),
        "report_returns": None if returns is None else returns.tolist(),
        "report_std_error": None if error is None else error.tolist(),
    }


class Judge:
    """Measures policies and blends as the run measured its front: on the report set.

    Args:
        front: of the run.
        model: where its base model is now; empty where it was.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.

    Raises:
        UserError: if the settings, the model, a reward or the prompts cannot be used.
    """

    def __init__(
        self, front: Front, model: str = "", device: str = "", rows_per_pass: int = 0
    ) -> None:
        settings = settings_of(front, model, rows_per_pass, with_rewards=True)
        where = device_of(device)
        self.on = _report_set(settings, front)
        self._num_shown = len(front.sample_prompts)
        diffusion = FrozenDiffusion.load(settings.pretrained, where)
        self._scorer = Scorer.build(settings.rewards, where)
        rank = 2 * settings.policy_adapter.rank  # room for a blend of two
        adapter = dataclasses.replace(settings.adapter, rank=rank, alpha=float(rank))
        # As many at a time as in the run, unless a pass is to have fewer rows than that.
        per_agent = settings.sample.rows_per_sample
        num_agents = min(
            settings.evolution.num_agents, max(1, settings.sample.rows_per_pass // per_agent)
        )
        self._agents = Agents(diffusion.unet, num_agents, adapter, settings.train)
        speed.apply(settings.speed, diffusion, self._agents)
        self._sampler = Sampler(diffusion, settings.evaluation_sample)

    def measure(
        self, adapters: Sequence[Adapter], on_group: Callable[[int], object]
    ) -> list[Evaluation]:
        """Evaluate adapters on the report set.

        Args:
            adapters: of rank at most twice the run's.
            on_group: called with the number of adapters done, several at a time.

        Raises:
            UserError: if an adapter does not fit, or a reward fails.
        """
        out: list[Evaluation] = []
        size = self._agents.num_agents
        for start in range(0, len(adapters), size):
            group = [policy_of(self._agents, each) for each in adapters[start : start + size]]
            out += evaluate(
                group, self.on, self._sampler, self._scorer, self._agents, self._num_shown
            )
            on_group(len(group))
        return out

    def close(self) -> None:
        """Stop the reward threads."""
        self._scorer.close()


def _report_set(settings: Settings, front: Front) -> EvaluationSet:
    """What the front was measured on.

    Raises:
        FrontError: if its prompts cannot be read, or are others now.
    """
    try:
        prompts = split_prompts(settings.prompts).report
    except ValueError as error:
        raise FrontError(f"the report set cannot be drawn again: {error}") from error
    on = evaluation_set("report", prompts, settings.evaluation.report_images, settings.seed)
    shown = on.first(len(front.sample_prompts))
    if (shown.prompts, shown.seeds) != (front.sample_prompts, front.sample_seeds):
        raise FrontError(
            f"the report set is not that of the run: prompts.report={settings.prompts.report!r} "
            "holds other prompts now; restore it first"
        )
    return on


def analyse(
    front: Front, num_points: int, *, model: str = "", device: str = "", rows_per_pass: int = 0
) -> tuple[Analysis, Mapping[str, Evaluation]]:
    """Measure blends between all neighbours on the front.

    Args:
        front: with at least two policies.
        num_points: blends between each pair of neighbours, evenly spaced.
        model: where the base model is now; empty where it was.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.

    Returns:
        The analysis, and the evaluation of every policy and blend by its id.

    Raises:
        UserError: if there is one policy only, the run's parts cannot be used, or its policies are
            not worth what they were.
    """
    if len(front.policies) < 2:
        raise FrontError("the front is a single policy: there is nothing to interpolate")
    pairs = [(front.policies[i], front.policies[j]) for i, j in neighbours(front.z)]
    shares = [(i + 1) / (num_points + 1) for i in range(num_points)]
    recipes = [((a, 1 - share), (b, share)) for a, b in pairs for share in shares]
    read = {policy.id: Adapter.read(policy.file) for policy in front.policies}
    adapters = {str(name): adapter for name, adapter in read.items()}
    for index, parts in enumerate(recipes):
        adapters[f"b{index:03d}"] = Adapter.blend([(read[p.id], share) for p, share in parts])
    judge = Judge(front, model, device, rows_per_pass)
    try:
        with tqdm(total=len(adapters), unit="policy", leave=False, disable=None) as bar:
            measured = judge.measure(list(adapters.values()), bar.update)
    finally:
        judge.close()
    evaluations = dict(zip(adapters, measured, strict=True))
    _check_same(front, evaluations)
    blends = [
        Blend(
            id=name,
            parts=parts,
            weights=normalise(np.sum([share * policy.weights for policy, share in parts], axis=0)),
            report_returns=evaluations[name].returns.numpy(),
            report_std_error=evaluations[name].std_error.numpy(),
        )
        for name, parts in zip(list(adapters)[len(read) :], recipes, strict=True)
    ]
    dense = np.vstack([front.z, *(_z(front, blend) for blend in blends)])
    analysis = Analysis(
        links=_links(front, blends, evaluations),
        hypervolume=front.hypervolume,
        dense_hypervolume=hypervolume(dense),
        num_images=len(adapters) * len(judge.on.prompts),
    )
    return analysis, evaluations


def _check_same(front: Front, evaluations: Mapping[str, Evaluation]) -> None:
    """Refuse blends that were measured otherwise than the policies that they stand beside.

    Raises:
        FrontError: if a policy's return is off by more than its standard error.
    """
    for policy in front.policies:
        now, then = evaluations[policy.id].returns.numpy(), policy.report_returns
        room = policy.report_std_error + 1e-3 * np.abs(then)
        for name, a, b, off in zip(front.names, now, then, np.abs(now - then) > room, strict=True):
            if off:
                raise FrontError(
                    f"{policy.id} has {name}={a:.4g} now and had {b:.4g} when the run measured it: "
                    "its prompts, the reward or the base model have changed since. Nothing was "
                    "published; restore them first"
                )


def _z(front: Front, blend: Blend) -> Array:
    assert blend.report_returns is not None
    return to_z(blend.report_returns, front.objectives)


def _links(
    front: Front, blends: Sequence[Blend], evaluations: Mapping[str, Evaluation]
) -> tuple[Link, ...]:
    """Compare every blend with the chord between its parts, image by image."""
    is_useful = non_dominated(np.vstack([front.z, *(_z(front, blend) for blend in blends)]))
    measured = []
    for blend, useful in zip(blends, is_useful[len(front.policies) :], strict=True):
        (first, _), (second, _) = blend.parts
        images = [
            to_z(evaluations[name].rewards.double().numpy(), front.objectives)
            for name in (blend.id, first.id, second.id)
        ]
        ends = [to_z(policy.report_returns, front.objectives) for policy in (first, second)]
        height = height_above_chord(_z(front, blend), *ends)
        excess = images[0] - (1 - height.share) * images[1] - height.share * images[2]
        error = standard_error(torch.from_numpy(excess @ height.weights)[:, None])
        measured.append(
            MeasuredBlend(
                blend=blend,
                height=height.value,
                height_std_error=error.item(),
                depth=depth_of_corner(*ends),
                is_useful=bool(useful),
            )
        )
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


def publish_analysis(
    front: Front, analysis: Analysis, evaluations: Mapping[str, Evaluation]
) -> None:
    """Add the useful blends to `front.json`; write `analysis.json`, `dense_front.png`, pictures.

    Blends of an earlier analysis are replaced.

    Raises:
        FrontError: if the run directory cannot be written to.
    """
    path = front.path / "front.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["blends"] = [blend_record(blend) for blend in analysis.useful]
        content["hypervolume"]["report_with_blends"] = analysis.dense_hypervolume
        for blend in front.blends:
            (front.path / "samples" / "report" / f"{blend.id}.webp").unlink(missing_ok=True)
        for blend in analysis.useful:
            write_samples(front.path, "report", blend.id, evaluations[blend.id].images)
        write_json(front.path / ANALYSIS, analysis.to_json(front))
        plot_dense_front(front.path / DENSE_PLOT, front, analysis)
        write_json(path, content)  # last: what it names is there
    except OSError as error:
        raise FrontError(f"{front.path} cannot be written to: {error}") from error
