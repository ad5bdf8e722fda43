"""Rewards with a planted flaw, one for each finding, and rewards without."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ddpo.rewards.audit import BASE, along, audit, spread_findings
from ddpo.rewards.damage import DAMAGES, blurred, detail
from ddpo.rewards.gradients import RewardGradients

PROMPTS = [f"p{i}" for i in range(24)]
CHECKERS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)


def pictures(seed):
    """Smooth pictures of 16 x 16 around their own colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(24, 3, 4, 4, generator=generator)
    return functional.interpolate(coarse, (16, 16), mode="bilinear") * 0.5 + 0.25


def detailed(images):
    """Much detail: noise is its garbage."""
    return detail(images)


def smooth(images):
    """Little detail."""
    return -detail(images)


def checkers(images):
    """Follows a pattern that a blur removes."""
    return (images * CHECKERS).mean(dim=(1, 2, 3))


def warmth(images):
    """More red than blue."""
    return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))


def plain(images):
    """Nearness to the mean colour of these pictures: no damage brings them nearer."""
    return -(images.mean(dim=(2, 3)) - 0.5).square().sum(dim=1).clamp(min=0.01)


def run(*functions, gradients=()):
    """Audit functions of pictures; `smooth` is the guard; `gradients` names those followed."""
    images, redrawn = pictures(0), pictures(1)
    names = [function.__name__ for function in functions]

    def score(pictures):
        return torch.stack([function(pictures) for function in functions], dim=1)

    followed = RewardGradients(
        {f.__name__: (lambda batch, _, f=f: f(batch.images)) for f in functions}
    )
    slopes = [float(name in gradients) for name in names]
    return audit(
        names,
        images,
        redrawn,
        PROMPTS,
        score(torch.cat([images, redrawn])),
        score,
        lambda pictures: {"smoothness": smooth(pictures)},
        followed,
        slopes,
    )


def found(seen):
    return {(finding.reward, finding.kind) for finding in seen.findings}


def test_a_reward_that_ranks_noise_above_pictures_is_found_with_the_guard_that_sees_it():
    seen = run(detailed)
    assert seen.above["noise"] == [1]
    (finding,) = [each for each in seen.findings if each.text.startswith("noise")]
    assert (finding.reward, finding.kind) == ("detailed", "garbage")
    assert "100 % of these pictures" in finding.text
    assert finding.text.endswith("smoothness would see it")
    assert "smoothness" not in seen.caught["flat colours"]  # which are as smooth as can be


def test_another_reward_counts_as_a_judge_and_a_reward_not_as_its_own():
    def flat_of(*rewards):
        texts = [each.text for each in run(*rewards).findings if each.reward == "smooth"]
        return next(text for text in texts if text.startswith("flat colours"))

    assert flat_of(smooth).endswith("no judge at hand would see it")
    assert flat_of(smooth, detailed).endswith("; detailed would see it")


def test_a_gradient_that_points_at_pixel_noise_is_found_and_one_that_does_not_is_not():
    seen = run(checkers, warmth, gradients=("checkers", "warmth"))
    kinds = found(seen)
    assert ("checkers", "gradient") in kinds
    assert ("warmth", "gradient") not in kinds
    rise = seen.scores[along("warmth")][:, 1] - seen.scores[BASE][:, 1]
    assert rise.mean() > 0.12  # its gradient was followed: twice 16 of 255 levels
    assert (seen.pictures[along("checkers")] - seen.pictures[BASE]).abs().max() <= 16.01 / 255
    assert ("checkers", "gradient") not in found(run(checkers))


def test_a_reward_without_a_flaw_is_not_reported():
    assert run(plain, gradients=("plain",)).findings == ()


def test_rewards_without_spread_or_nearly_alike_are_found():
    correlation = torch.tensor([[1.0, 0.99, 0.1], [0.99, 1.0, -0.97], [0.1, -0.97, 1.0]])
    within, between = torch.tensor([0.01, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    findings = spread_findings(["a", "b", "c"], within, between, correlation)
    assert [(each.reward, each.kind) for each in findings] == [
        ("a", "spread"),
        ("c", "spread"),
        ("b", "same"),
        ("c", "same"),
    ]
    assert "nearly the same as a: correlation +0.99" in findings[2].text
    assert "nearly the opposite of b: correlation -0.97" in findings[3].text
    fine = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    assert spread_findings(["a", "b"], torch.ones(2), torch.ones(2), fine) == []


@pytest.mark.parametrize("shape", [(16, 16), (17, 23)])
def test_damaged_pictures_are_pictures_and_are_damaged_in_their_own_way(shape):
    images = functional.interpolate(pictures(0), shape, mode="bilinear")
    damaged = {name: damage(images) for name, damage in DAMAGES.items()}
    for name, out in damaged.items():
        assert out.shape == images.shape, name
        assert 0 <= out.min() <= out.max() <= 1
        assert torch.equal(out, DAMAGES[name](images))  # no hidden randomness
    assert detail(damaged["flat colours"]).max() == 0
    assert detail(damaged["noise"]).min() > 10 * detail(images).max()
    assert detail(damaged["over-sharpened"]).mean() > 5 * detail(images).mean()
    spread = [each.std(dim=1).mean() for each in (damaged["saturated"], images)]
    assert spread[0] > 2 * spread[1]
    width = -(-shape[1] // 3)
    assert torch.equal(damaged["tiled"][..., :width], damaged["tiled"][..., width : 2 * width])
    assert (damaged["JPEG damage"] - images).abs().mean() > 0.01
    assert torch.allclose(blurred(damaged["flat colours"]), damaged["flat colours"])
