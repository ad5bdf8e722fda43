"""Guards: measures that reveal over-optimisation, taken at evaluation and never trained on.

A policy that has learnt to please its rewards may have lost what nobody asked it to keep. Guards
are measured on the evaluation pictures of every policy, beside the base model's pictures of the
same prompts and noise. Two guards compare CLIP embeddings of the pictures, and one measures how far
all judges agree. Any reward can be a guard, too. Larger is better for all of them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from config.settings.derived import objective_name
from ddpo.rewards import PICTURE_GUARDS, parts_of
from ddpo.rewards.clip import load_clip
from ddpo.rewards.image_batch import ImageBatch
from ddpo.rewards.scorer import RewardError, Scorer, reward_device
from ddpo.rewards.weights import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from config.base import GuardSettings, RewardSettings, Settings
    from ddpo.rewards.clip import ClipTower
    from ddpo.rewards.scorer import Submission
    from ddpo.types import Evaluation, EvaluationSet

Name = TypeVar("Name", bound=str)

_UNITS = {"base_similarity": "cosine", "diversity": "cosine", "agreement": "share"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GuardReading:
    """The guards' values for one policy.

    Attributes:
        names: G guards.
        values: (G,) float64 means over the evaluation pictures.
        std_errors: (G,) float64 of the means.
        drops: (G,) float64, how far below the base model's values.
        max_drops: how far they may be, G numbers or none.
    """

    names: tuple[str, ...]
    values: torch.Tensor
    std_errors: torch.Tensor
    drops: torch.Tensor
    max_drops: tuple[float, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """The guards whose limits the policy has broken."""
        limits = zip(self.names, self.drops.tolist(), self.max_drops, strict=False)
        return tuple(name for name, drop, limit in limits if drop > limit)

    def to_json(self) -> dict[str, dict[str, float]]:
        """As `front.json` stores it."""
        columns = (self.values.tolist(), self.std_errors.tolist(), self.drops.tolist())
        rows = zip(self.names, *columns, strict=True)
        return {
            name: {"value": value, "std_error": error, "drop": drop}
            for name, value, error, drop in rows
        }


class Guards:
    """Measures the guards of a run.

    Args:
        settings: names, at least one, and limits.
        scorer: scores the guards that are rewards; None if there are none.
        towers: guard -> the CLIP that embeds pictures for it; guards may share one.
    """

    def __init__(
        self, settings: GuardSettings, scorer: Scorer | None, towers: Mapping[str, ClipTower]
    ) -> None:
        self.settings = settings
        self.names = tuple(objective_name(name) for name in settings.names)
        self._scorer = scorer
        self._towers = tuple(dict.fromkeys(towers.values()))
        # Features of a picture: the scores, then its embedding by each CLIP.
        self._num_scores = stop = len(scorer.rewards) if scorer else 0
        columns = {}
        for tower in self._towers:
            start, stop = stop, stop + tower.model.config.projection_dim
            columns[tower] = slice(start, stop)
        self._embeds = {name: columns[tower] for name, tower in towers.items()}
        self.num_features = stop  # F

    @classmethod
    def build(cls, settings: Settings, device: torch.device) -> Guards | None:
        """The guards that the settings name; None if they name none.

        They run where rewards do.

        Raises:
            RewardError: naming the guard whose model cannot be loaded.
        """
        guards, rewards = settings.guards, settings.rewards
        if not guards.names:
            return None
        names = tuple(name for name in guards.names if name not in PICTURE_GUARDS)
        scorer = Scorer.build(dataclasses.replace(rewards, names=names), device) if names else None
        embedded = [name for name in guards.names if PICTURE_GUARDS.get(name)]
        return cls(guards, scorer, {name: _load_tower(name, rewards, device) for name in embedded})

    @property
    def units(self) -> dict[str, str]:
        """Guard -> the unit of its values."""
        rewards = self._scorer.units if self._scorer else {}
        return {name: rewards.get(name) or _UNITS[name] for name in self.names}

    def check(self, height: int, width: int, prompts: Sequence[str]) -> None:
        """Try the guards that are rewards, as `Scorer.check` does.

        Raises:
            RewardError: naming the guard, what was expected and what came.
        """
        if self._scorer:
            self._scorer.check(height, width, prompts)

    def submit(self, images: torch.Tensor, prompts: Sequence[str]) -> Pending:
        """Start measuring pictures (rows, 3, H, W), agent-major; see `gather`."""
        scores = self._scorer.submit(images, prompts) if self._scorer else []
        embeds = None
        if self._towers:
            batch = ImageBatch(images, self._towers[0].device)  # all are where rewards run
            embeds = torch.cat([tower.embed_images(batch).cpu() for tower in self._towers], dim=1)
            embeds = embeds.where(batch.is_whole[:, None], math.nan)
        return Pending(num_pictures=len(images), scores=scores, embeds=embeds)

    def gather(self, pending: Sequence[Pending], num_agents: int) -> torch.Tensor:
        """(K, N, F) float32 features of the pictures submitted: guard scores, then embeddings.

        NaN where a score is missing or the picture is not finite.

        Raises:
            RewardError: if a reward fails.
        """
        num_pictures = sum(p.num_pictures for p in pending) // num_agents
        columns = [torch.empty(num_agents, num_pictures, 0)]
        if self._scorer:
            columns.append(self._scorer.gather([p.scores for p in pending], num_agents).values)
        embeds = [p.embeds.unflatten(0, (num_agents, -1)) for p in pending if p.embeds is not None]
        if embeds:
            columns.append(torch.cat(embeds, dim=1).float())
        return torch.cat(columns, dim=-1)

    def refuse_too_many_missing(self, features: torch.Tensor) -> None:
        """Give up if more images than allowed lack a guard's score.

        Args:
            features: (K, N, F) of a whole evaluation, from all processes.

        Raises:
            RewardError: see `Scorer.refuse_too_many_missing`.
        """
        if self._scorer:
            self._scorer.refuse_too_many_missing(features[..., : self._num_scores])

    def read(
        self, evaluation_set: EvaluationSet, policy: Evaluation, base: Evaluation
    ) -> GuardReading:
        """The guards of one policy.

        Args:
            evaluation_set: the set that both were evaluated on.
            policy: with the features of its pictures.
            base: the base model's.
        """
        prompts = evaluation_set.prompts
        values = self.values(prompts, policy, base)
        reference = values if policy is base else self.values(prompts, base, base)
        mean = values.nanmean(dim=0)
        counts = values.isfinite().sum(dim=0)
        variance = (values - mean).square().nansum(dim=0) / (counts - 1).clamp(min=1)
        std_errors = (variance / counts).sqrt()
        if "diversity" in self.names:  # its values are not independent
            index = self.names.index("diversity")
            std_errors[index] = diversity_std_error(values[:, index], prompts)
        if "agreement" in self.names and policy is base:  # nor are these
            index = self.names.index("agreement")
            std_errors[index] = diversity_std_error(values[:, index], prompts)
        return GuardReading(
            names=self.names,
            values=mean,
            std_errors=std_errors,
            drops=(reference - values).nanmean(dim=0),
            max_drops=self.settings.max_drops,
        )

    def values(self, prompts: Sequence[str], policy: Evaluation, base: Evaluation) -> torch.Tensor:
        """(N, G) float64 values of each guard, one row per picture.

        Args:
            prompts: N.
            policy: whose pictures are measured.
            base: the base model's pictures of the same prompts and noise; the same object as
                `policy` for its own values.
        """
        return torch.stack(list(self._columns(prompts, policy, base)), dim=-1).double()

    def _columns(
        self, prompts: Sequence[str], policy: Evaluation, base: Evaluation
    ) -> Iterator[torch.Tensor]:
        """(N,) values of each guard, one per picture."""
        features = policy.features
        scores = iter(features[:, : self._num_scores].unbind(dim=1))
        for name in self.names:
            if name == "base_similarity":
                embeds = self._embeds[name]
                yield (features[:, embeds] * base.features[:, embeds]).sum(dim=1)
            elif name == "diversity":
                yield diversity(features[:, self._embeds[name]], prompts)
            elif name == "agreement":
                judged = self._judged(base)
                if policy is base:
                    yield agreement_of_draws(judged, prompts)
                else:
                    yield agreement(self._judged(policy) - judged)
            else:
                yield next(scores)

    def _judged(self, evaluation: Evaluation) -> torch.Tensor:
        """(N, J) scores of all judges: the objectives, and the guards that are rewards."""
        guards = evaluation.features[:, : self._num_scores]
        return torch.cat([evaluation.rewards, guards], dim=1)

    def close(self) -> None:
        """Stop the threads."""
        if self._scorer:
            self._scorer.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pending:
    """Pictures that are being measured."""

    num_pictures: int
    scores: Sequence[Submission]
    embeds: torch.Tensor | None


def _load_tower(name: str, settings: RewardSettings, device: torch.device) -> ClipTower:
    """The CLIP of a guard that compares pictures.

    Raises:
        RewardError: if it cannot be loaded.
    """
    source = parts_of(name, settings.sources)["clip"].source
    try:
        return load_clip(source, reward_device(settings, device), settings.dtype)
    except (OSError, ValueError) as error:
        raise RewardError(f"{shown(f'{name}.clip', source)} cannot be loaded: {error}") from error


def diversity(embeds: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Mean of 1 - cosine to the other pictures of the same prompt.

    Args:
        embeds: (N, D) of length 1; NaN for a picture that is left out.
        prompts: N.

    Returns:
        (N,); NaN for the only picture of a prompt, and for pictures left out.

    >>> diversity(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), ["a", "a", "b"])
    tensor([1., 1., nan])
    """
    out = torch.full((len(embeds),), math.nan, dtype=embeds.dtype)
    is_whole = embeds.isfinite().all(dim=1).tolist()
    for rows in _rows_by_prompt(prompts):
        whole = [row for row in rows if is_whole[row]]
        if len(whole) > 1:
            cosines = embeds[whole] @ embeds[whole].T
            others = (cosines.sum(dim=1) - cosines.diagonal()) / (len(whole) - 1)
            out[whole] = 1 - others
    return out


def agreement(differences: torch.Tensor) -> torch.Tensor:
    """Share of the pairs of judges that do not contradict each other about a picture.

    Two judges contradict each other where one says better and the other worse.

    Args:
        differences: (..., J) of the scores of two pictures by J judges; NaN where one is missing.

    Returns:
        (...); NaN where a score is missing.

    >>> agreement(torch.tensor([[0.1, 2.0, 3.0], [0.1, -2.0, 3.0], [0.0, -2.0, 3.0]]))
    tensor([1.0000, 0.3333, 0.6667])
    """
    signs = differences.sign()
    first, second = torch.triu_indices(signs.shape[-1], signs.shape[-1], 1)
    products = signs[..., first] * signs[..., second]
    return (products >= 0).to(signs).mean(dim=-1).where(signs.isfinite().all(dim=-1), math.nan)


def agreement_of_draws(scores: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Mean `agreement` about each picture against the others of its prompt.

    Args:
        scores: (N, J) by J judges; NaN where one is missing.
        prompts: N.

    Returns:
        (N,); NaN for the only picture of a prompt, and for pictures without a score.
    """
    out = torch.full((len(scores),), math.nan, dtype=scores.dtype)
    is_whole = scores.isfinite().all(dim=1).tolist()
    for rows in _rows_by_prompt(prompts):
        whole = [row for row in rows if is_whole[row]]
        if len(whole) > 1:
            pairs = agreement(scores[whole][:, None] - scores[whole][None])  # 1 with itself
            out[whole] = (pairs.sum(dim=1) - 1) / (len(whole) - 1)
    return out


def diversity_std_error(values: torch.Tensor, prompts: Sequence[str]) -> float:
    """Standard error of the mean of `diversity`, for these prompts and other pictures of them.

    The same holds for `agreement_of_draws`. The distance of two pictures enters the values of both,
    so values within a prompt are not independent: the mean U of its n values is a U-statistic. Its
    variance is the jackknife's over pictures (Arvesen 1969), for which U without picture i is

        U - 2 (values_i - U) / (n - 2)

    Two pictures have only one distance, which shows no variance. Such a prompt counts with its
    squared difference from the mean over all prompts.

    Args:
        values: (N,) from one of these functions; NaN is left out.
        prompts: N.
    """
    groups = [values[rows] for rows in _rows_by_prompt(prompts)]
    groups = [group[group.isfinite()] for group in groups if group.isfinite().any()]
    mean, of_prompts = values.nanmean(), len(groups) / max(len(groups) - 1, 1)
    total = 0.0
    for group in groups:
        n, centre = len(group), group.mean()
        if n > 2:
            variance = (n - 1) / n * (2 * (group - centre) / (n - 2)).square().sum()
        else:
            variance = of_prompts * (centre - mean).square()
        total += n**2 * variance.item()
    return math.sqrt(total) / int(values.isfinite().sum())


def _rows_by_prompt(prompts: Sequence[str]) -> list[list[int]]:
    """Where each distinct prompt stands, in alphabetical order."""
    rows: dict[str, list[int]] = {prompt: [] for prompt in sorted(set(prompts))}
    for row, prompt in enumerate(prompts):
        rows[prompt].append(row)
    return list(rows.values())


def excluded_policies(
    readings: Mapping[Name, GuardReading], say: Callable[[str], object]
) -> frozenset[Name]:
    """The policies that have lost more than a guard allows; each is reported.

    Args:
        readings: policy -> its guards' values.
        say: shows a sentence.
    """
    broken = {name: reading for name, reading in readings.items() if reading.broken}
    for name, reading in broken.items():
        lost = dict(zip(reading.names, reading.drops.tolist(), strict=True))
        which = ", ".join(f"{lost[guard]:.4g} of {guard}" for guard in reading.broken)
        say(f"{name} is kept out of the archive: it has lost {which}")
    return frozenset(broken)


def guard_metrics(readings: Iterable[GuardReading], num_excluded: int) -> dict[str, float]:
    """Over the policies of a generation: each guard's mean and its largest drop."""
    rows = list(readings)
    values, drops = torch.stack([r.values for r in rows]), torch.stack([r.drops for r in rows])
    out: dict[str, Any] = {"guard/num_excluded": float(num_excluded)}
    for index, name in enumerate(rows[0].names):
        out[f"guard/{name}/mean"] = values[:, index].mean().item()
        out[f"guard/{name}/max_drop"] = drops[:, index].max().item()
    return out
