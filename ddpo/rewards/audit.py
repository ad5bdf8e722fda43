"""An audit of rewards before they are trusted: what they give to pictures nobody asked for.

A reward that ranks garbage above what the base model draws will be paid in garbage. The audit
scores the base model's pictures, damaged versions of them, and pictures that follow a reward's
gradient for a few steps. It reports what looks wrong, and which judge would have seen it. Judges
are guards and the other rewards. A judge sees the damage if it gives most of these pictures less
than it gives to 95 % of the base model's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddpo.rewards.damage import DAMAGES, blurred, detail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ddpo.rewards.gradients import RewardGradients

AUDITED = 32  # pictures of the base model that are damaged
BASE = "base model"
_HIGH, _LOW = 0.95, 0.05  # quantiles of the base model's scores
_MANY = 0.25  # of the damaged pictures above the high quantile, five times the base model's share
_NO_SPREAD = 0.01  # of the variance, within prompts
_SAME = 0.95  # correlation within prompts
_STEPS, _STEP = 8, 2 / 255  # of ascent: at most 16 of 255 levels
_SURVIVES = 0.25  # of what an ascent has gained, after a blur that a person hardly sees
_MORE_DETAIL = 1.5  # times the detail of the pictures before


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that looks wrong with a reward.

    Attributes:
        reward: its name.
        kind: "garbage", "gradient", "spread" or "same".
        text: a sentence.
    """

    reward: str
    kind: str
    text: str

    def to_json(self) -> dict[str, str]:
        """As the audit's file stores it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Audit:
    """The result of an audit.

    Attributes:
        rewards: M names.
        pictures: kind -> pictures (n, 3, H, W) in [0, 1], the base model's first.
        scores: kind -> (n, M) scores of these.
        above: kind -> M fractions of these above the high quantile of the base model's scores.
        caught: kind -> the guards and rewards that would see it.
        guards: all guards that looked.
        findings: in the order of the rewards.
    """

    rewards: tuple[str, ...]
    pictures: Mapping[str, torch.Tensor]
    scores: Mapping[str, torch.Tensor]
    above: Mapping[str, list[float]]
    caught: Mapping[str, tuple[str, ...]]
    guards: tuple[str, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the pictures."""
        return {
            "rewards": list(self.rewards),
            "mean_scores": {k: v.nanmean(dim=0).tolist() for k, v in self.scores.items()},
            "above": dict(self.above),
            "guards": list(self.guards),
            "caught": {kind: list(names) for kind, names in self.caught.items()},
            "findings": [finding.to_json() for finding in self.findings],
        }


def audit(
    rewards: Sequence[str],
    images: torch.Tensor,
    redrawn: torch.Tensor,
    prompts: Sequence[str],
    base_scores: torch.Tensor,
    score: Callable[[torch.Tensor], torch.Tensor],
    guard: Callable[[torch.Tensor], Mapping[str, torch.Tensor]],
    gradients: RewardGradients | None = None,
    slopes: Sequence[float] = (),
) -> Audit:
    """Audit rewards on garbage.

    Args:
        rewards: M names.
        images: (n, 3, H, W) in [0, 1], of the base model, on the CPU.
        redrawn: other pictures of the same prompts.
        prompts: n, one per picture.
        base_scores: (N, M) of the base model's pictures, these and more.
        score: scores (n, M) of n such pictures.
        guard: guard -> values (n,) of n such pictures against the base model's.
        gradients: of the rewards, where they are followed.
        slopes: see `RewardGradients.slopes`.
    """
    # The pictures: the base model's, damaged ones, and ones that follow a reward's gradient.
    pictures = {BASE: images, **{name: damage(images) for name, damage in DAMAGES.items()}}
    followed = [(k, slope) for k, slope in enumerate(slopes) if slope] if gradients else []
    for k, slope in followed:
        assert gradients is not None
        direction = slope * torch.eye(len(rewards))[k]
        pictures[along(rewards[k])] = ascended(gradients, images, prompts, direction)
    # Their scores, and how many lie above the base model's high quantile.
    scores = {kind: score(each) for kind, each in pictures.items()}
    low, high = base_scores.double().nanquantile(torch.tensor([_LOW, _HIGH]).double(), dim=0)
    above = {kind: (values > high).double().mean(dim=0).tolist() for kind, values in scores.items()}
    # The judges that see a kind: its median falls below the base model's low quantile.
    limits = {name: values.nanquantile(_LOW) for name, values in guard(redrawn).items()}
    caught = {}
    for kind in list(pictures)[1:]:
        values = {**guard(pictures[kind]), **dict(zip(rewards, scores[kind].T, strict=True))}
        floor = {**limits, **dict(zip(rewards, low, strict=True))}
        caught[kind] = tuple(n for n, each in values.items() if each.nanmedian() < floor[n])
    # Findings: garbage with high scores, then gradients that only add detail which a blur removes.
    findings = []
    for k, name in enumerate(rewards):
        findings += _garbage_findings(name, k, above, caught)
    for k, _ in followed:
        name = rewards[k]
        before, after = (pictures[kind] for kind in (BASE, along(name)))
        spread = base_scores[:, k].double()
        rise = (scores[along(name)][:, k] - scores[BASE][:, k]).nanmean().item()
        if rise <= spread[spread.isfinite()].std().item():
            continue
        left = (score(blurred(after))[:, k] - score(blurred(before))[:, k]).nanmean().item() / rise
        if left < _SURVIVES and detail(after).mean() > _MORE_DETAIL * detail(before).mean():
            findings.append(
                Finding(
                    reward=name,
                    kind="gradient",
                    text=f"its gradient points at pixel noise: {_STEPS} small steps along it raise "
                    f"the score by {rise:.3g}, of which a light blur leaves {100 * left:.0f} %; "
                    f"{_by(caught[along(name)], name)}",
                )
            )
    return Audit(
        rewards=tuple(rewards),
        pictures=pictures,
        scores=scores,
        above=above,
        caught=caught,
        guards=tuple(limits),
        findings=tuple(findings),
    )


def along(reward: str) -> str:
    """The kind of pictures that follow a reward's gradient."""
    return f"along {reward}"


def ascended(
    gradients: RewardGradients,
    images: torch.Tensor,
    prompts: Sequence[str],
    direction: torch.Tensor,
) -> torch.Tensor:
    """Pictures after a few small steps along the signs of a gradient (Goodfellow et al. 2015)."""
    directions, out = direction.expand(len(images), -1), images
    for _ in range(_STEPS):
        gradient, _ = gradients.ascent(out, prompts, directions)
        out = (out + _STEP * gradient.to(out).sign()).clamp(0, 1)
    return out


def spread_findings(
    rewards: Sequence[str],
    within: torch.Tensor,
    between: torch.Tensor,
    correlation: torch.Tensor,
) -> list[Finding]:
    """Problems in the way that rewards vary over the base model's pictures.

    Args:
        rewards: M names.
        within: (M,) standard deviations around the prompts' means.
        between: (M,) standard deviations of the prompts' means.
        correlation: (M, M) within prompts.
    """
    findings = []
    share = within.square() / (within.square() + between.square()).clamp(min=1e-300)
    for name, deviation, part in zip(rewards, within.tolist(), share.tolist(), strict=True):
        if not deviation or part < _NO_SPREAD:
            text = (
                f"it hardly tells pictures of one prompt apart: {100 * part:.2g} % of its variance "
                "lies within prompts, and nothing can be learnt from the rest"
            )
            findings.append(Finding(reward=name, kind="spread", text=text))
    for i, first in enumerate(rewards):
        for j in range(i):
            value = correlation[i, j].item()
            if abs(value) > _SAME:
                what = "nearly the same as" if value > 0 else "nearly the opposite of"
                text = f"it is {what} {rewards[j]}: correlation {value:+.2f} within a prompt"
                findings.append(Finding(reward=first, kind="same", text=text))
    return findings


def _garbage_findings(
    name: str,
    k: int,
    above: Mapping[str, list[float]],
    caught: Mapping[str, tuple[str, ...]],
) -> list[Finding]:
    return [
        Finding(
            reward=name,
            kind="garbage",
            text=f"{kind}: {100 * above[kind][k]:.0f} % of these pictures score above the base "
            f"model's 95th percentile; {_by(caught[kind], name)}",
        )
        for kind in DAMAGES
        if above[kind][k] >= _MANY
    ]


def _by(judges: Sequence[str], reward: str) -> str:
    """Which judges see what a reward does not."""
    others = [judge for judge in judges if judge != reward]
    return f"{', '.join(others) or 'no judge at hand'} would see it"
