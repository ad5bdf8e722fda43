"""Attention, transformers, feed-forward networks: what diffusers computes, with fewer copies."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from ddpo.speed import attention, products
from ddpo.speed.attention import FrozenAttention, FrozenFeedForward, FrozenTransformer2D
from tests.support.layers import pair, quickened
from tests.support.rig import make_rig


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_feed_forward_network_takes_rows_that_fit_the_cache(rows, monkeypatch):
    plain, constant = pair(FeedForward, {"dim": 16})
    quickened(constant)
    assert type(constant) is FrozenFeedForward
    sizes = []
    constant.net[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    row_bytes = 10 * 128 * 4  # positions, hidden channels of gate and value, float32
    monkeypatch.setattr(attention, "CACHE_BYTES", 3 * row_bytes + 1)
    x = torch.randn(rows, 10, 16)
    with torch.no_grad():
        torch.testing.assert_close(constant(x), plain(x), rtol=1e-5, atol=1e-6)
    assert sizes == {1: [1], 3: [3], 8: [3, 3, 2]}[rows]
    sizes.clear()
    constant(x.requires_grad_()).sum().backward()
    assert sizes == [rows]


def test_an_adapted_feed_forward_network_takes_all_rows_together(monkeypatch):
    """Each agent's rows must meet its own adapter."""
    monkeypatch.setattr(attention, "CACHE_BYTES", 1)
    adapter = {"target_modules": ("ff.net.0.proj", "ff.net.2")}
    together, alone = make_rig(2, adapter=adapter), make_rig(1, adapter=adapter)
    together.perturb()
    alone.agents.load(0, together.agents.snapshot(1))
    expected = alone.rollout(alone.batch(1, 3, first_agent=1)).images
    images = together.rollout(together.batch(2, 3)).images
    torch.testing.assert_close(images[3:], expected, rtol=1e-4, atol=1e-5)
    assert (images[3:] - images[:3]).abs().max() > 1e-3


def test_other_feed_forward_networks_stay_as_they_are():
    layer = FeedForward(16, activation_fn="gelu")
    quickened(layer)
    assert type(layer) is FeedForward


@pytest.mark.parametrize("lags", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("linear", [False, True])
def test_transformers_and_their_gradients_are_those_of_diffusers(linear, layout, lags, monkeypatch):
    monkeypatch.setattr(products, "MKL_LAGS", lags)
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)
    plain, constant = transformer_pair(use_linear_projection=linear)
    for each in (plain, constant):
        each.to(memory_format=layout)
    quickened(constant)
    assert type(constant) is FrozenTransformer2D
    inputs = torch.randn(16, 8, 5, 3).to(memory_format=layout), torch.randn(16, 7, 6)
    for each in inputs:
        each.requires_grad_()
    results = []
    for layer in (plain.requires_grad_(False), constant):
        (out,) = layer(*inputs, return_dict=False)
        results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    constant.enable_gradient_checkpointing()
    (out,) = constant(*inputs, return_dict=False)
    results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    with torch.inference_mode():
        results.append([constant(*inputs, return_dict=False)[0]])
    for ours in results[1:]:
        for one, other in zip(ours, results[0], strict=False):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput:FutureWarning")
def test_what_a_transformer_is_rarely_asked_is_answered_by_diffusers():
    plain, constant = transformer_pair()
    quickened(constant)
    inputs = torch.randn(2, 8, 5, 3), torch.randn(2, 7, 6)
    mask = torch.tensor([[1.0] * 4 + [0.0] * 3] * 2)
    for more in ({}, {"encoder_attention_mask": mask}):
        torch.testing.assert_close(constant(*inputs, **more).sample, plain(*inputs, **more).sample)
    _, other = transformer_pair(norm_type="ada_norm_zero", num_embeds_ada_norm=3)
    quickened(other)
    assert type(other) is Transformer2DModel


def transformer_pair(**changes):
    """diffusers' transformer and its copy."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "in_channels": 8,
        "norm_num_groups": 4,
        "cross_attention_dim": 6,
        **changes,
    }
    return pair(Transformer2DModel, settings)


def test_attention_is_that_of_diffusers():
    plain, constant = pair(Attention, {"query_dim": 8, "heads": 2, "dim_head": 4})
    quickened(constant)
    assert type(constant) is FrozenAttention
    x, context = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    mask = torch.zeros(2, 5).bernoulli() * -1e4
    assert torch.equal(constant(x), plain(x))
    assert torch.equal(constant(x, context), plain(x, context))
    assert torch.equal(constant(x, None, mask), plain(x, None, mask))
    assert torch.equal(constant(x, unknown=1), plain(x))  # which diffusers ignores
    image = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(constant(image), plain(image))
    constant.set_processor(AttnProcessor())  # later
    with mock.patch.object(AttnProcessor, "__call__", return_value=x) as call:
        assert constant(x) is x
    assert call.called
