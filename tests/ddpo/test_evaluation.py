"""Returns are estimated on fixed prompts and noise, from those pictures that have scores."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from ddpo.evaluation import evaluate, evaluation_set
from ddpo.processes import Processes, Share
from ddpo.rewards.scorer import RewardError, Scorer
from ddpo.types import clustered_standard_error, standard_error
from tests.support.rewards import brightness, flawed
from tests.support.rig import make_rig


@pytest.mark.parametrize(("fraction", "is_too_much"), [(0.3, False), (0.2, True)])
def test_missing_scores_are_counted_in_all_processes_together(fraction, is_too_much):
    """Two of the four images of this process lack a score, none of another's four."""
    rig = make_rig(1, sample={"rows_per_pass": 64})
    scorer = Scorer({"flawed": flawed, "bright": brightness}, max_invalid_fraction=fraction)
    on = evaluation_set("selection", ["a", "b"], 8, run_seed=3)

    class Half(Processes):
        def share(self, num_agents, num_samples):
            return Share.of(0, 2, num_agents=num_agents, num_samples=num_samples)

        def join(self, values, *_):
            return torch.cat([values, torch.zeros_like(values)], dim=1)

    arguments = ([rig.agents.snapshot(0)], on, rig.sampler, scorer, rig.agents)
    with pytest.raises(RewardError, match="2 of 8") if is_too_much else nullcontext():
        evaluate(*arguments, processes=Half(0, 1, rig.agents.device))


def test_a_dead_reward_ends_an_evaluation_before_it_has_drawn_all_pictures():
    rig = make_rig(1, sample={"rows_per_pass": 64})
    scorer = Scorer({"dead": lambda images, _: torch.full((len(images),), torch.nan)})
    on = evaluation_set("selection", ["a", "b"], 8, run_seed=3)
    with pytest.raises(RewardError, match="8 of 40 images lack a finite score"):
        evaluate([rig.agents.snapshot(0)] * 5, on, rig.sampler, scorer, rig.agents)


def test_the_evaluation_leaves_out_what_has_no_score():
    rig = make_rig(1, sample={"rows_per_pass": 64})
    scorer = Scorer({"flawed": flawed, "bright": brightness}, max_invalid_fraction=0.5)
    on = evaluation_set("selection", ["a", "b"], 6, run_seed=3)
    (result,) = evaluate([rig.agents.snapshot(0)], on, rig.sampler, scorer, rig.agents)
    valid = result.rewards[1:-1].double()
    torch.testing.assert_close(result.returns, valid.mean(dim=0))
    torch.testing.assert_close(result.std_error, valid.std(dim=0) / 2)
    gain = result.gain_over(result)
    assert all(numbers.tolist() == [0, 0] for numbers in gain)


def test_a_policy_without_scores_is_never_judged():
    rig = make_rig(1, sample={"rows_per_pass": 64})
    scorer = Scorer({"none": lambda x, _: torch.full((len(x),), torch.nan)}, max_invalid_fraction=1)
    on = evaluation_set("selection", ["a"], 4, run_seed=3)
    with pytest.raises(RewardError, match="only 0 scored images of 4"):
        evaluate([rig.agents.snapshot(0)], on, rig.sampler, scorer, rig.agents)


def test_evaluation_is_paired_across_policies_and_independent_of_grouping():
    rig = make_rig(2, sample={"rows_per_pass": 12})
    base = rig.agents.snapshot(0)
    rig.perturb()
    policies = [base, rig.agents.snapshot(0), base]
    scorer = Scorer({"bright": brightness})
    on = evaluation_set("selection", ["a", "b"], 5, run_seed=3)
    results = evaluate(policies, on, rig.sampler, scorer, rig.agents, keep_images=4)
    torch.testing.assert_close(results[0].rewards, results[2].rewards, rtol=0, atol=1e-5)
    assert results[0].images.shape == (4, 3, 16, 16)
    gain = results[1].gain_over(results[0])
    difference = results[1].rewards - results[0].rewards
    assert gain.mean.item() == pytest.approx(difference.mean().item(), rel=1e-5)
    assert gain.std_error.item() == pytest.approx(difference.std().item() / 5**0.5, rel=1e-4)
    assert gain.mean.abs() > 0


def test_errors_clustered_by_prompt_are_those_of_the_prompts_means():
    of_prompt = torch.tensor([0.0, 3.0, 6.0]).repeat(4)[:, None]
    rewards = torch.cat([of_prompt, torch.full((1, 1), torch.nan)])
    prompts = [*"abc" * 4, "d"]
    error = clustered_standard_error(rewards, prompts)
    assert error.item() == pytest.approx(3 / 3**0.5)  # 12 pictures say as much as 3 prompts
    assert standard_error(rewards).item() < error.item() / 1.5
    assert clustered_standard_error(rewards, "a" * 13).isnan().all()


def test_evaluation_sets_share_no_seed():
    sets = [evaluation_set(p, ["a"], 50, 0) for p in ("calibration", "selection", "report")]
    seeds = {seed for one in sets for seed in one.seeds}
    assert len(seeds) == 150
