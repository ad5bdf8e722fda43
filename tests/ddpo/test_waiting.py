"""Nothing waits for the device inside the loops over denoising steps, passes and updates.

On a CPU nobody has to wait, so what is counted are the operations that would wait on a GPU.
"""

from __future__ import annotations

import threading
from itertools import product

import pytest
import torch

from ddpo.collect import collect
from ddpo.rewards.scorer import Scorer
from tests.support.cases import few
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig
from tests.support.waits import METHODS, counted_waits


@pytest.mark.parametrize("method", [*METHODS, "nonzero"])
def test_the_counter_counts(method):
    values = torch.tensor(1)
    with counted_waits() as counts:
        getattr(values, method)()
    assert counts.total() > 0
    with counted_waits() as counts:
        torch.ones(2)[torch.tensor([True, False])]
        torch.where(torch.ones(2))
    assert counts.total() == 2


def test_denoising_never_waits():
    rig = make_rig(2)
    batch = rig.batch(2, 3)
    with counted_waits() as counts, torch.inference_mode():
        rig.sampler.denoise(rig.agents, batch)
    assert not counts


@pytest.mark.parametrize(
    ("rule", "kl_coef"),
    few(
        product(["ddpo", "diffusion_nft", "awm"], [0.0, 0.1]),
        [("ddpo", 0.1), ("diffusion_nft", 0.0), ("awm", 0.1)],
    ),
)
def test_an_update_waits_as_often_whatever_its_number_of_steps_and_passes(rule, kl_coef):
    totals = []
    for updates, rows in ((1, 64), (4, 8)):
        train = {"updates_per_epoch": updates, "rows_per_pass": rows, "update_rule": rule}
        rig = make_rig(2, train={**train, "kl_coef": kl_coef})
        rollout = rig.rollout(rig.batch(2, 4))
        values = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        passes = []
        with counted_waits() as counts:
            rig.updater.update(rig.agents, rollout, values, [1, 2], lambda p=passes: p.append(1))
        totals.append((len(passes), counts))
    (few, first), (many, second) = totals
    assert many >= 4 * few
    assert first == second
    assert first.total() < 20


def test_rewards_are_computed_while_the_next_pictures_are_drawn():
    """The first reward waits for a step of the second batch: one after the other, it would hang."""
    rig = make_rig(1, sample={"rows_per_pass": 8})  # batches of 4 samples
    begun, steps = threading.Event(), []

    def reward(images, prompts):
        assert begun.wait(30)
        return images.mean(dim=(1, 2, 3))

    def on_step():
        steps.append(1)
        if len(steps) > 4:
            begun.set()

    scorer = Scorer({"r": reward})
    _, rewards = collect(rig.sampler, scorer, rig.agents, rig.batch(1, 8), on_step)
    scorer.close()
    assert rewards.values.isfinite().all()
    assert len(steps) == 8


def test_half_precision_waits_no_more():
    rig = make_rig(2, make_tiny_pipe().to(torch.float16))
    rig.agents.gradients.fill_(0.1)
    with counted_waits() as counts:
        rig.agents.step(1.0)
    assert not counts
