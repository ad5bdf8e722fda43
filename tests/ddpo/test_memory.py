"""The settings that trade memory for time leave the results as they are."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ddpo.collect import collect
from ddpo.rewards.scorer import Scorer
from tests.support.cases import few
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig


def advantages():
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def saved_bytes(rig, batch):
    """Memory that one training pass keeps for its backward pass, and the gradient."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = rig.agents.predict(latents, torch.full((8,), 500), batch.conditioning, 2)
    weights = {p.untyped_storage().data_ptr() for p in rig.model.unet.parameters()}
    rig.agents.zero_grad()
    out.square().sum().backward()
    return sum(kept[key] for key in kept.keys() - weights), rig.agents.gradients.clone()


def test_gradient_checkpointing_keeps_a_fraction_and_changes_no_bit_of_the_gradient():
    rig = make_rig(2)
    rig.perturb()
    batch = rig.batch(2, 4)
    plain, expected = saved_bytes(rig, batch)
    rig.model.pipe.unet.enable_gradient_checkpointing()
    checkpointed, gradient = saved_bytes(rig, batch)
    assert not rig.model.unet.training
    assert checkpointed < plain / 3
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("kl_coef", few([0.0, 0.5], [0.5]))
def test_gradient_checkpointing_changes_no_bit_of_an_update(kl_coef):
    """With a divergence from the base model, a pass of which lies between, too."""
    adapters = []
    for is_on in (False, True):
        rig = make_rig(2, train={"kl_coef": kl_coef})
        rig.perturb()
        if is_on:
            rig.model.pipe.unet.enable_gradient_checkpointing()
        rollout = rig.rollout(rig.batch(2, 4))
        rig.updater.update(rig.agents, rollout, advantages(), [1, 2])
        adapters.append(rig.agents.snapshot(1).adapter)
    assert torch.equal(*adapters)


@pytest.mark.parametrize("rule", few(["ddpo", "diffusion_nft"], ["ddpo"]))
def test_a_rollout_on_the_host_makes_the_same_update(rule):
    adapters = []
    for offload in (False, True):
        rig = make_rig(2, sample={"offload_rollouts": offload}, train={"update_rule": rule})
        scorer = Scorer({"r": lambda images, _: images.mean(dim=(1, 2, 3))})
        rollout, _ = collect(rig.sampler, scorer, rig.agents, rig.batch(2, 4))
        scorer.close()
        rig.updater.update(rig.agents, rollout, advantages(), [1, 2])
        adapters.append(rig.agents.snapshot(1).adapter)
    assert torch.equal(*adapters)


@pytest.mark.parametrize("rule", ["diffusion_nft", "awm"])
def test_noise_to_learn_from_and_old_predictions_are_kept_where_the_rollout_is(rule):
    """There is no second device here, so "meta" stands in for the rollout's device."""
    rig = make_rig(2, train={"update_rule": rule})
    rollout = rig.rollout(rig.batch(2, 4))
    away = dataclasses.replace(rollout, latents=rollout.latents.to("meta"))
    rig.updater.rule.begin(away)
    assert rig.updater.rule.noise.is_meta
    rig.updater.rule.predict = lambda _agents, _rollout, rows, _: rollout.latents[rows, 0]
    pairs = torch.zeros(2, 3, 2, dtype=torch.int64)
    old = rig.updater.measure_all(rig.agents, away, [pairs])
    assert old.shape[:2] == (8, 4)
    assert old.is_meta == (rule == "diffusion_nft")  # awm's are one number per pair


def test_attention_is_pytorchs_own():
    processors = make_tiny_pipe().unet.attn_processors.values()
    assert {type(processor).__name__ for processor in processors} == {"AttnProcessor2_0"}
