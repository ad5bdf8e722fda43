"""Normalise, then weight: by hand, and the laws that make weights mean something."""

from __future__ import annotations

import pytest
import torch

from ddpo.advantages import advantages, within_prompt_std
from ddpo.normalisations import MAX_ADVANTAGE
from ddpo.types import PromptStatistics
from tests.support.rig import make_settings

PROMPTS = ["a", "a", "b", "b"]
REWARDS = torch.tensor([[[1.0, -90.0], [3.0, -110.0], [5.0, -50.0], [5.0, -70.0]]])


def run(rewards, weights, normalisation="frozen", scales=(2.0, 20.0), statistics=None, **changes):
    settings = make_settings(
        advantage={"normalisation": normalisation, "min_count": 2, **changes}
    ).advantage
    agents = len(rewards)
    return advantages(
        rewards,
        torch.tensor(weights),
        [PROMPTS] * agents,
        statistics or [PromptStatistics()] * agents,
        torch.tensor(scales),
        settings,
    )


def test_frozen_scale_by_hand():
    values, _ = run(REWARDS, [[0.25, 0.75]])
    # centred: quality (-1, 1, 0, 0) / 2, size (10, -10, 10, -10) / 20
    combined = torch.tensor([0.25, -0.25, 0.375, -0.375])
    torch.testing.assert_close(values[0], combined / combined.std(correction=0), rtol=1e-4, atol=0)


def test_per_prompt_scale_by_hand():
    values, _ = run(REWARDS, [[0.5, 0.5]], "per_prompt")
    # quality (-1, 1, 0, 0) / 1 (no spread in b: 0), size (1, -1, 1, -1)
    combined = torch.tensor([0.0, 0.0, 0.5, -0.5])
    torch.testing.assert_close(
        values[0], combined / combined.std(correction=0), rtol=1e-4, atol=1e-5
    )


def test_raw_is_the_seed_formula():
    values, _ = run(REWARDS, [[0.5, 0.5]], "raw")
    mixed = torch.tensor([-44.5, -53.5, -22.5, -32.5])  # per prompt: +-4.5 / 4.5 and +-5 / 5
    assert mixed[0] > mixed[1]
    torch.testing.assert_close(values[0], torch.tensor([1.0, -1.0, 1.0, -1.0]), rtol=1e-4, atol=0)


def test_raw_mixing_follows_the_larger_unit_and_normalised_mixing_does_not():
    generator = torch.Generator().manual_seed(0)
    quality = 5.4 + 0.5 * torch.randn(400, generator=generator)
    size = -92 + 25 * torch.randn(400, generator=generator)
    rewards = torch.stack([quality, size], dim=-1)[None]
    settings = {
        mode: make_settings(advantage={"normalisation": mode}).advantage
        for mode in ("raw", "frozen")
    }
    correlation = {}
    for mode, setting in settings.items():
        values, _ = advantages(
            rewards,
            torch.tensor([[0.5, 0.5]]),
            [["p"] * 400],
            [PromptStatistics()],
            torch.tensor([0.5, 25.0]),
            setting,
        )
        correlation[mode] = torch.corrcoef(torch.stack([values[0], quality]))[0, 1].item()
    assert correlation["raw"] < 0.1
    assert correlation["frozen"] > 0.6


@pytest.mark.parametrize("normalisation", ["frozen", "per_prompt"])
@pytest.mark.parametrize(("unit", "constant"), [(0.001, -3.0), (1e-9, 2e-8), (1e9, 0.0)])
def test_units_and_constants_change_nothing(normalisation, unit, constant):
    plain, _ = run(REWARDS, [[0.3, 0.7]], normalisation)
    changed = REWARDS * torch.tensor([100.0, unit]) + torch.tensor([7.0, constant])
    scaled, _ = run(changed, [[0.3, 0.7]], normalisation, scales=(200.0, 20 * unit))
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-3)


def test_one_weight_at_one_ignores_the_other_objective():
    other = REWARDS.clone()
    other[..., 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(run(REWARDS, [[1.0, 0.0]])[0], run(other, [[1.0, 0.0]])[0])


def test_advantages_are_clipped():
    """One of 40 rewards stands out, by 6.4 standard deviations."""
    rewards = torch.zeros(1, 40, 2)
    rewards[0, 0, 0] = 100.0
    settings = make_settings().advantage
    values, _ = advantages(
        rewards, torch.tensor([[1.0, 0.0]]), [["a"] * 40], [PromptStatistics()], torch.ones(2),
        settings,
    )  # fmt: skip
    assert values.abs().max() == MAX_ADVANTAGE


def test_integer_rewards_do_not_give_integer_advantages():
    values, _ = run(torch.tensor([[[1, 2], [2, 5], [7, 1], [4, 4]]]), [[0.3, 0.7]])
    assert values.dtype == torch.float32
    assert (values != values.round()).any()


def test_statistics_remember_the_last_vectors_and_are_immutable():
    first = PromptStatistics().add(["a"] * 3, torch.tensor([[1.0], [2.0], [3.0]]), size=2)
    second = first.add(["a", "b"], torch.tensor([[4.0], [9.0]]), size=2)
    assert first.rewards("a").flatten().tolist() == [2.0, 3.0]
    assert second.rewards("a").flatten().tolist() == [3.0, 4.0]
    assert second.rewards("b").flatten().tolist() == [9.0]
    assert len(first.rewards("b")) == 0


def test_an_unfamiliar_prompt_is_centred_on_the_whole_batch():
    values, _ = run(REWARDS, [[1.0, 0.0]], min_count=3)
    centred = REWARDS[0, :, 0] - 3.5
    torch.testing.assert_close(values[0], centred / centred.std(correction=0), rtol=1e-4, atol=0)


def test_history_of_the_policy_moves_the_baseline():
    seen = PromptStatistics().add(["a", "a"], torch.tensor([[9.0, 0.0], [9.0, 0.0]]), 8)
    values, updated = run(REWARDS, [[1.0, 0.0]], statistics=[seen])
    assert (values[0, :2] < 0).all()  # (9, 9, 1, 3) has mean 5.5
    assert len(updated[0].rewards("a")) == 4
    assert len(seen.rewards("a")) == 2


@pytest.mark.parametrize("normalisation", ["frozen", "per_prompt", "raw"])
def test_a_sample_without_a_score_teaches_nothing_and_changes_nothing(normalisation):
    missing = torch.tensor([[torch.nan, -90.0], [4.0, torch.inf]])
    rewards = torch.cat([REWARDS[0], missing])[None]
    settings = make_settings(advantage={"normalisation": normalisation, "min_count": 2}).advantage
    scales = torch.tensor([2.0, 20.0])
    values, updated = advantages(
        rewards, torch.tensor([[0.3, 0.7]]), [[*PROMPTS, "a", "c"]], [PromptStatistics()], scales,
        settings,
    )  # fmt: skip
    expected, statistics = run(REWARDS, [[0.3, 0.7]], normalisation)
    assert torch.equal(values[0, :4], expected[0])
    assert values[0, 4:].tolist() == [0, 0]
    assert updated[0].buffers == statistics[0].buffers


def test_an_agent_without_any_score_has_no_advantages():
    values, updated = run(torch.full((1, 4, 2), torch.nan), [[0.5, 0.5]])
    assert values.tolist() == [[0, 0, 0, 0]]
    assert updated[0].buffers == {}


def test_within_prompt_std_pools_the_groups():
    rewards = torch.tensor([[1.0, 7.0], [3.0, 7.0], [10.0, 7.0], [14.0, 7.0]])
    # squares 2 and 8 over 2 degrees of freedom; the other objective does not vary
    expected = torch.tensor([5.0**0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(within_prompt_std(rewards, PROMPTS), expected)
    more = torch.cat([rewards, torch.tensor([[torch.nan, 0.0]])])
    torch.testing.assert_close(within_prompt_std(more, [*PROMPTS, "a"]), expected)
    small = 1e-9 * torch.tensor([1.0, 1 + 1e-7])  # an objective's unit is no reason, rounding is
    rounded = within_prompt_std(rewards * small[:, None].repeat(2, 1), PROMPTS)
    torch.testing.assert_close(rounded, 1e-9 * expected, rtol=1e-6, atol=0)
