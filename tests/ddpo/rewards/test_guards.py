"""Guards: known values, their limits, and what a run does with them."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from config.settings.errors import ConfigError
from ddpo.evaluation import evaluation_set
from ddpo.processes import Processes
from ddpo.rewards.guards import (
    Guards,
    agreement_of_draws,
    diversity,
    diversity_std_error,
    excluded_policies,
    guard_metrics,
)
from ddpo.rewards.scorer import RewardError
from ddpo.trainer import Trainer
from ddpo.types import Evaluation, EvaluationSet
from run.command_line import read_settings
from run.session import Session
from tests.support.clip import make_clip
from tests.support.rig import make_settings
from tests.support.worlds import small_world

ON = EvaluationSet(prompts=("a", "a", "b", "b"), seeds=(1, 2, 3, 4))


class Tower:
    """Stands in for CLIP: embeds a picture as its mean colour."""

    device = torch.device("cpu")
    model = type("M", (), {"config": type("C", (), {"projection_dim": 3})})

    def embed_images(self, batch):
        return F.normalize(batch.images.mean(dim=(2, 3)), dim=-1)


def make_guards(names, max_drops=()):
    settings = make_settings(guards={"names": names, "max_drops": max_drops}).guards
    return Guards(settings, None, dict.fromkeys(names, Tower()))


def evaluation_of(features):
    return Evaluation(
        rewards=torch.zeros(len(features), 2), images=torch.empty(0), features=features
    )


def test_diversity_is_one_minus_the_cosine_to_the_others_of_the_prompt():
    embeds = F.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 0]]), dim=-1)
    values = diversity(embeds, ["a", "a", "a", "b"])
    half = 1 - math.sqrt(0.5)
    torch.testing.assert_close(values[:3], torch.tensor([1 + half, 1 + half, 2 * half]) / 2)
    assert values[3].isnan()


@pytest.mark.parametrize(("num_prompts", "num_pictures"), [(60, 2), (12, 4), (6, 16)])
def test_the_standard_error_of_diversity_is_its_spread_over_other_pictures(
    num_prompts, num_pictures
):
    generator = torch.Generator().manual_seed(0)
    prompts = [f"p{i}" for i in range(num_prompts) for _ in range(num_pictures)]
    means, errors = [], []
    for _ in range(200):
        noise = 0.5 * torch.randn(len(prompts), 3, generator=generator, dtype=torch.float64)
        values = diversity(F.normalize(noise + torch.tensor([1.0, 0, 0]), dim=-1), prompts)
        means.append(values.mean())
        errors.append(diversity_std_error(values, prompts))
    truth = torch.stack(means).std().item()
    assert sum(errors) / len(errors) == pytest.approx(truth, rel=0.25)


def test_the_standard_error_of_diversity_by_hand():
    # n = 3: without a picture, the distance of the other two remains
    values = torch.tensor([1.5, 2.0, 2.5], dtype=torch.float64)  # of distances 1, 2 and 3
    assert diversity_std_error(values, "aaa") == pytest.approx((2 / 3 * (1 + 0 + 1)) ** 0.5)
    pairs = torch.tensor([1.0, 1.0, 3.0, 3.0, math.nan], dtype=torch.float64)
    assert diversity_std_error(pairs, "aabbc") == pytest.approx(1)  # of 1 and 3, one per prompt


def test_readings_are_means_with_losses_against_the_base_model():
    base = evaluation_of(F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0]] * 2), dim=-1))
    same_pictures = evaluation_of(torch.tensor([[1.0, 0, 0]] * 4))
    guards = make_guards(("base_similarity", "diversity"), (0.4, 1.0))
    of_base = guards.read(ON, base, base)
    assert of_base.values.tolist() == [1, 1]
    assert of_base.drops.tolist() == [0, 0]
    assert of_base.broken == ()
    collapsed = guards.read(ON, same_pictures, base)
    assert collapsed.values.tolist() == [0.5, 0]
    assert collapsed.drops.tolist() == [0.5, 1]
    assert collapsed.broken == ("base_similarity",)  # 1.0 of diversity may be lost, and was
    assert collapsed.std_errors[0] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert collapsed.to_json()["diversity"] == {"value": 0, "std_error": 0, "drop": 1}


def test_judges_that_part_company_over_a_policy_are_seen_as_a_drop_of_agreement():
    """Base draws: the judges agree. One policy pleases both, another one judge alone."""
    rewards = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 4.0], [5.0, 6.0]])

    def judged(change):
        return Evaluation(
            rewards=rewards + torch.tensor(change),
            images=torch.empty(0),
            features=torch.empty(4, 0),
        )

    settings = make_settings(guards={"names": ("agreement",), "max_drops": (0.5,)}).guards
    guards = Guards(settings, None, {})
    base = judged([0.0, 0.0])
    of_base, better, hacked = (
        guards.read(ON, each, base) for each in (base, judged([1.0, 1.0]), judged([1.0, -1.0]))
    )
    assert (of_base.values.item(), better.values.item(), hacked.values.item()) == (1, 1, 0)
    assert (better.broken, hacked.broken) == ((), ("agreement",))
    assert guards.units == {"agreement": "share"}


def test_agreement_of_base_draws_by_hand():
    """Three judges and three pictures of a prompt: every two judges about every two pictures."""
    scores = torch.tensor(
        [[0.0, 0.0, 0.0], [1.0, 1.0, -1.0], [2.0, -1.0, 1.0], [9.0, 9.0, 9.0], [math.nan, 1, 1]]
    )
    values = agreement_of_draws(scores, ["a", "a", "a", "b", "a"])
    # differences: 0-1 (-, -, +): 1 of 3; 0-2 (-, +, -): 1 of 3; 1-2 (-, +, -): 1 of 3
    torch.testing.assert_close(values[:3], torch.full((3,), 1 / 3))
    assert values[3:].isnan().all()


def test_judges_without_relation_agree_as_little_about_a_policy_as_about_base_draws():
    generator = torch.Generator().manual_seed(0)
    prompts = tuple(f"p{i}" for i in range(100) for _ in range(4))
    on = EvaluationSet(prompts=prompts, seeds=tuple(range(400)))
    base, policy = (
        Evaluation(
            rewards=torch.randn(400, 2, generator=generator),
            images=torch.empty(0),
            features=torch.empty(400, 0),
        )
        for _ in range(2)
    )
    guards = Guards(make_settings(guards={"names": ("agreement",)}).guards, None, {})
    of_base, of_policy = guards.read(on, base, base), guards.read(on, policy, base)
    for reading in (of_base, of_policy):
        assert reading.values.item() == pytest.approx(0.5, abs=4 * reading.std_errors.item())
    assert abs(of_policy.drops.item()) < 0.1


def test_policies_that_lost_too_much_are_excluded_and_reported():
    base = evaluation_of(F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0]] * 2), dim=-1))
    guards = make_guards(("diversity",), (0.5,))
    readings = {
        "good": guards.read(ON, base, base),
        "bad": guards.read(ON, evaluation_of(torch.tensor([[1.0, 0, 0]] * 4)), base),
    }
    said = []
    assert excluded_policies(readings, said.append) == {"bad"}
    assert said == ["bad is kept out of the archive: it has lost 1 of diversity"]
    metrics = guard_metrics(readings.values(), 1)
    assert metrics == {
        "guard/num_excluded": 1,
        "guard/diversity/mean": 0.5,
        "guard/diversity/max_drop": 1,
    }
    free = make_guards(("diversity",)).read(
        ON, evaluation_of(torch.tensor([[1.0, 0, 0]] * 4)), base
    )
    assert free.broken == ()  # shown only


def test_a_missing_score_of_a_guard_is_left_out():
    guards = Guards.build(make_settings(guards={"names": ("colorfulness",)}), torch.device("cpu"))
    base = evaluation_of(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    policy = evaluation_of(torch.tensor([[0.0], [math.nan], [1.0], [2.0]]))
    reading = guards.read(ON, policy, base)
    guards.close()
    assert reading.values.tolist() == [1]
    assert reading.drops.item() == pytest.approx((1 + 2 + 2) / 3)
    assert guards.units == {"colorfulness": "Hasler-Suesstrunk M"}


def test_diversity_gets_two_pictures_of_a_prompt_however_many_prompts_there_are():
    prompts = [f"p{i}" for i in range(7)]
    for num_images, used in ((14, 7), (9, 4), (6, 3), (2, 1)):
        on = evaluation_set("report", prompts, num_images, 0, ("diversity",))
        counts = Counter(on.prompts)
        assert len(on.prompts) == num_images
        assert len(counts) == used
        assert min(counts.values()) >= 2
    assert evaluation_set("report", prompts, 9, 0).prompts == (*prompts, "p0", "p1")


def test_a_picture_that_is_not_finite_is_left_out():
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]])[:, :, None, None]
    images[2, 2] = math.nan
    guards = make_guards(("base_similarity", "diversity"))
    features = guards.gather([guards.submit(images, "abab")], 1)[0]
    whole = features.clone()
    whole[2] = 1
    on = EvaluationSet(prompts=("a", "a", "a", "b"), seeds=(1, 2, 3, 4))
    reading = guards.read(on, evaluation_of(features), evaluation_of(whole))
    assert reading.values.tolist() == [1, 1]  # the two pictures left of "a" are orthogonal


def test_the_guards_clip_runs_where_rewards_do(monkeypatch):
    devices = []

    def load(source, device, dtype):
        devices.append(device.type)
        return Tower()

    monkeypatch.setattr("ddpo.rewards.guards.load_clip", load)
    for changes, expected in (({}, "meta"), ({"device": "cpu"}, "cpu")):
        settings = make_settings(guards={"names": ("diversity",)}, rewards=changes)
        Guards.build(settings, torch.device("meta"))
        assert devices.pop() == expected


def test_guards_that_compare_pictures_may_each_have_a_clip_of_their_own(tmp_path):
    make_clip(tmp_path / "a", seed=1)
    make_clip(tmp_path / "b", seed=2)
    names = ("diversity", "colorfulness", "base_similarity")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def values(similarity, diverse):
        sources = (f"base_similarity.clip={similarity}", f"diversity.clip={diverse}")
        settings = make_settings(guards={"names": names}, rewards={"sources": sources})
        guards = Guards.build(settings, torch.device("cpu"))
        features = guards.gather([guards.submit(images, ON.prompts)], 1)[0]
        guards.close()
        assert features.shape == (4, guards.num_features)
        policy, base = evaluation_of(features), evaluation_of(features.flip(0))
        return guards.num_features, guards.read(ON, policy, base).values

    (one, of_a), (two, mixed) = (
        values(tmp_path / "a", tmp_path / "a"),
        values(tmp_path / "b", tmp_path / "a"),
    )
    of_b = values(tmp_path / "b", tmp_path / "b")[1]
    assert (one, two) == (1 + 8, 1 + 8 + 8)  # a CLIP that two guards share embeds once
    assert not torch.equal(of_a, of_b)
    assert torch.equal(mixed, torch.stack([of_a[0], of_a[1], of_b[2]]))


def test_a_guards_clip_that_cannot_be_loaded_is_named():
    settings = make_settings(
        guards={"names": ("diversity",)}, rewards={"sources": ("diversity.clip=/nowhere",)}
    )
    with pytest.raises(RewardError, match=r"sources: diversity\.clip='/nowhere' cannot be"):
        Guards.build(settings, torch.device("cpu"))


def test_a_guard_of_ones_own_is_not_called_like_another(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("def diversity(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n")
    with pytest.raises(ConfigError, match="would be called diversity, which is another guard"):
        read_settings([f"--config.guards.names={own}:diversity"])


def test_a_guard_that_fails_is_met_before_any_picture(tmp_path):
    words = small_world(tmp_path)
    (tmp_path / "own.py").write_text("def one(images, prompts):\n    return images.mean()\n")
    settings = read_settings([*words, f"--config.guards.names={tmp_path / 'own.py'}:one"])
    with pytest.raises(RewardError, match=r"'one': expected a tensor \(3,\), got \(\)"):
        Trainer(settings, Processes.alone(), lambda *_: lambda: None)


def test_guards_are_not_measured_on_the_pictures_of_calibration(tmp_path, monkeypatch):
    seen, submit = [], Guards.submit

    def counted(self, images, prompts):
        seen.extend(prompts)
        return submit(self, images, prompts)

    monkeypatch.setattr(Guards, "submit", counted)
    settings = read_settings([*small_world(tmp_path), "--config.guards.names=sharpness"])
    with Session.open(settings):  # measures the base model
        pass
    assert len(seen) == settings.evaluation.selection_images


def test_features_are_those_of_the_pictures_whatever_the_pass(rig):
    """Guards read in chunks and agent-major; each picture must meet its own embedding."""
    from ddpo.evaluation import evaluate
    from ddpo.rewards.scorer import Scorer

    on = EvaluationSet(prompts=("a", "b", "c"), seeds=(5, 6, 7))
    found = []
    for rows in (8, 64):
        rig_ = rig(2, sample={"rows_per_pass": rows})
        rig_.perturb()
        scorer = Scorer({"mean": lambda images, _: images.mean(dim=(1, 2, 3))})
        policies = [rig_.agents.snapshot(slot) for slot in range(2)]
        guards = make_guards(("base_similarity",))
        evaluations = evaluate(policies, on, rig_.sampler, scorer, rig_.agents, 3, guards=guards)
        scorer.close()
        for evaluation in evaluations:
            pictures = evaluation.images.float() / 255
            expected = F.normalize(pictures.mean(dim=(2, 3)), dim=-1)
            torch.testing.assert_close(evaluation.features, expected, rtol=1e-4, atol=1e-4)
        found.append(torch.stack([e.features for e in evaluations]))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(found[0][0], found[0][1])
