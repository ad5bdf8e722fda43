"""Sampling: keyed, batch-independent, and the same as plain diffusers."""

from __future__ import annotations

import pytest
import torch

from ddpo.sampler import keyed_noise
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe
from tests.support.rig import make_rig


def test_a_sample_depends_on_neither_the_pass_size_nor_the_number_of_agents():
    wide = make_rig(3)
    rollout = wide.rollout(wide.batch(3, 5))
    for agents, rows_per_pass in ((3, 8), (1, 24)):
        rig = make_rig(agents, sample={"rows_per_pass": rows_per_pass})
        for k in range(3 // agents):
            images = rig.rollout(rig.batch(agents, 5, first_agent=k)).images
            expected = rollout.images if agents == 3 else rollout.images[5 * k : 5 * k + 5]
            torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("rounded_as_diffusers")
def test_pictures_are_bitwise_those_of_a_plain_pipeline():
    rig = make_rig(1, sample={"negative_prompt": "b"})
    batch = rig.batch(1, 3)
    expected = draw_with_diffusers(make_tiny_pipe(), batch.texts, batch.seeds, negative_prompt="b")
    assert torch.equal(rig.rollout(batch).images, expected)


def test_guidance_of_one_needs_one_row_a_sample_and_is_the_conditional_prediction():
    plain = make_rig(2, sample={"guidance_scale": 1.0})
    rollout = plain.rollout(plain.batch(2, 2))
    assert plain.agents.take_num_rows() == 4 * 4
    nearly = make_rig(2, sample={"guidance_scale": 1.0 + 1e-6})
    guided = nearly.rollout(nearly.batch(2, 2))
    assert nearly.agents.take_num_rows() == 2 * 4 * 4
    torch.testing.assert_close(rollout.images, guided.images, rtol=0, atol=1e-4)


def test_log_probabilities_are_those_of_the_sampled_actions():
    rig = make_rig(1)
    rollout = rig.rollout(rig.batch(1, 2))
    schedule = rig.sampler.schedule
    noise = keyed_noise(rollout.prompts.seeds, (5, 4, 8, 8))
    for i in range(4):
        expected = torch.distributions.Normal(0.0, schedule.sigma[i]).log_prob(
            schedule.sigma[i] * noise[:, i + 1]
        )
        torch.testing.assert_close(
            rollout.log_probs[:, i], expected.mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-4
        )


def test_rollouts_know_their_shapes():
    rig = make_rig(2)
    rollout = rig.rollout(rig.batch(2, 3))
    assert rollout.latents.shape == (6, 5, 4, 8, 8)
    assert rollout.images.shape == (6, 3, 16, 16)
    assert rollout.images.min() >= 0
    assert rollout.images.max() <= 1
    assert rollout.timesteps.tolist() == sorted(rollout.timesteps.tolist(), reverse=True)
    with pytest.raises(ValueError, match="log_probs: expected"):
        type(rollout)(
            prompts=rollout.prompts,
            schedule=rollout.schedule,
            latents=rollout.latents,
            log_probs=rollout.log_probs[:, :2],
            images=rollout.images,
        )


def test_seeds_key_the_noise_row_by_row():
    one, two = keyed_noise([5], (4, 2, 2)), keyed_noise([9, 5], (4, 2, 2))
    assert torch.equal(one[0], two[1])
    assert not torch.equal(two[0], two[1])


def test_each_distinct_prompt_is_encoded_once():
    rig = make_rig(1)
    calls = []
    rig.model.pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    rig.model.encode_prompts(["x", "y", "x"])
    rig.model.encode_prompts(["y"])
    assert len(calls) == 2


def test_a_prompt_of_many_samples_is_held_once():
    rig = make_rig(2)
    batch = rig.sampler.prompt_batch(["a", "b", "a", "a", "b", "c"], range(6), 2)
    assert len(batch.encoded) == 3
    whole = rig.model.encode_prompts(batch.texts)
    assert torch.equal(batch.conditioning.text, whole.text)
    chunk = batch.chunk(1, 3)
    assert chunk.texts == ("b", "a", "b", "c")
    assert torch.equal(chunk.conditioning.text, whole[[1, 2, 4, 5]].text)
    rows = torch.tensor([5, 0])
    assert torch.equal(batch.conditioning_of(rows).text, whole[rows].text)
