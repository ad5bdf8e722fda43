"""The clipped surrogate by hand."""

from __future__ import annotations

import pytest
import torch

from ddpo.rules.loss import clip_range_from_nats, clipped_surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # inside the range: -A rho
        (1.5, 2.0, -2.4, 0.0),  # too likely already: clipped, no gradient
        (1.5, -2.0, 3.0, 3.0),  # too likely and bad: pushed back
        (0.5, 2.0, -1.0, -1.0),  # unlikely and good: pulled
        (0.5, -2.0, 1.6, 0.0),  # unlikely already and bad: clipped
    ],
)
def test_surrogate_and_gradient(ratio, advantage, loss, gradient):
    old = torch.tensor([-1.3])
    log_prob = (old + torch.tensor(ratio).log()).requires_grad_()
    surrogate = clipped_surrogate(log_prob, old, torch.tensor([advantage]), clip_range=0.2)
    surrogate.loss.sum().backward()
    assert surrogate.loss.item() == pytest.approx(loss, rel=1e-5)
    assert log_prob.grad.item() == pytest.approx(gradient, rel=1e-5)  # d rho / d log rho = rho
    assert surrogate.metrics["clip_fraction"].item() == (abs(ratio - 1) > 0.2)


def test_published_clip_range_is_1_64_nats_at_full_latents():
    assert clip_range_from_nats(1.6384, 4 * 64 * 64) == pytest.approx(1e-4)
    assert clip_range_from_nats(1.6384, 4 * 8 * 8) == pytest.approx(6.4e-3)
