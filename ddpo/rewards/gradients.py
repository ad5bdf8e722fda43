"""Gradients of the objectives with respect to pictures.

Policies are judged by the rewards themselves, which see 8-bit pictures, Pillow's resize and real
files. For gradients, there are three kinds of objectives:

- A differentiable reward: the gradient of its function without rounding is followed (`ImageBatch`,
  `clip_pixels`).
- A reward with a differentiable companion: the companion's gradient is followed.
- A black box: only a policy gradient learns from it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import torch

from ddpo.rewards import known_entry
from ddpo.rewards.image_batch import BatchReward, ImageBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from config.base import RewardSettings
    from ddpo.rewards import Reward

logger = logging.getLogger(__name__)

MIN_CORRELATION = 0.95  # of a companion with its reward; with less it is not followed
FIT_PICTURES = 64  # pictures of the base model to which companions are fitted
# Factor before the backward pass: half precision would round small gradients to zero.
_SCALE = 2.0**12


class Differentiable(Protocol):
    """A differentiable function of pictures."""

    def __call__(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (rows,) of a batch that keeps a graph, one prompt per row."""
        ...


class RewardGradients:
    """The objectives as differentiable functions of pictures.

    Args:
        functions: objective -> its differentiable function; None for a black box.
        companions: the objectives whose function is a companion of their reward.
        device: where they run; by default where the pictures are.
        batch_size: pictures at a time.
    """

    def __init__(
        self,
        functions: Mapping[str, Differentiable | None],
        companions: frozenset[str] = frozenset(),
        *,
        device: torch.device | None = None,
        batch_size: int = 64,
    ) -> None:
        self.functions = dict(functions)
        self._companions = companions
        self._device = device
        self._batch_size = batch_size

    @classmethod
    def build(
        cls, settings: RewardSettings, rewards: Mapping[str, Reward], device: torch.device
    ) -> RewardGradients:
        """The differentiable functions of a run's rewards.

        Args:
            settings: name the black boxes and the remote rewards.
            rewards: objective -> reward.
            device: where they run.
        """
        functions: dict[str, Differentiable | None] = {}
        companions = set()
        for name, (objective, reward) in zip(settings.names, rewards.items(), strict=True):
            functions[objective] = None
            if name in settings.black_boxes or name in settings.remote_names:
                continue
            entry = known_entry(name)
            if entry is None or entry.is_differentiable:
                functions[objective] = _with_graph(reward)
            elif entry.companion is not None:
                functions[objective] = _companion(entry.companion)
                companions.add(objective)
        return cls(functions, frozenset(companions), device=device, batch_size=settings.batch_size)

    def slopes(
        self, images: torch.Tensor, prompts: Sequence[str], rewards: torch.Tensor
    ) -> tuple[float, ...]:
        """How much each reward changes per unit of its differentiable function.

        A companion is fitted to its reward by least squares. If a function fails, or its gradient
        is not finite or zero everywhere, its objective becomes a black box. The result is logged.

        Args:
            images: (n, 3, H, W) in [0, 1], of the base model.
            prompts: n, one per picture.
            rewards: (n, M); NaN where a score is missing.

        Returns:
            M numbers: 1 for a differentiable reward, the fitted slope for a companion, 0 for a
            black box.
        """
        images, prompts = images[:FIT_PICTURES], prompts[:FIT_PICTURES]
        return tuple(
            self._slope(name, function, images, prompts, column)
            for (name, function), column in zip(
                self.functions.items(), rewards[: len(images)].T, strict=True
            )
        )

    def ascent(
        self, images: torch.Tensor, prompts: Sequence[str], directions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of sum_k d_k f_k with respect to pictures; f_k are the functions.

        Args:
            images: (rows, 3, H, W) in [0, 1].
            prompts: one per row.
            directions: (rows, M), d of each picture; 0 for black boxes.

        Returns:
            The gradient (rows, 3, H, W) and the sum (rows,), on the images' device.
        """
        parts = []
        for start in range(0, len(images), self._batch_size):
            chunk = slice(start, start + self._batch_size)
            parts.append(self._ascent(images[chunk], prompts[chunk], directions[chunk]))
        gradients, values = zip(*parts, strict=True)
        return torch.cat(gradients), torch.cat(values)

    @torch.enable_grad()
    def _ascent(
        self, images: torch.Tensor, prompts: Sequence[str], directions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = images.detach().nan_to_num(0.5).requires_grad_()  # pictures with NaN have d = 0
        batch = ImageBatch(leaf, self._device, keep_graph=True)
        directions = directions.to(batch.device)
        value = torch.zeros(len(images), device=batch.device)
        for function, factor in zip(self.functions.values(), directions.T, strict=True):
            if function is not None and factor.any():
                value = value + factor * function(batch, prompts)
        if value.requires_grad:
            (_SCALE * value.sum()).backward()
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / _SCALE
        return gradient, value.detach().to(images.device)

    def _slope(
        self,
        name: str,
        function: Differentiable | None,
        images: torch.Tensor,
        prompts: Sequence[str],
        rewards: torch.Tensor,
    ) -> float:
        if function is None:
            return 0.0
        if problem := self._problem(name, images[:2], prompts[:2]):
            logger.info("%s is a black box: %s", name, problem)
            return 0.0
        if name not in self._companions:
            logger.info("%s: its gradient is followed", name)
            return 1.0
        with torch.no_grad():
            values = function(ImageBatch(images, self._device), prompts).to(rewards)
        present = rewards.isfinite()
        slope, correlation = fit(values[present], rewards[present])
        strength = abs(correlation)  # a companion may fall as its reward rises
        if strength < MIN_CORRELATION:
            logger.warning(
                "%s is a black box: on the base model's pictures its differentiable companion has "
                "a correlation of %.3f with it, below %g",
                name,
                strength,
                MIN_CORRELATION,
            )
            return 0.0
        logger.info(
            "%s: the gradient of its companion is followed (correlation %.3f)", name, strength
        )
        return slope

    def _problem(self, name: str, images: torch.Tensor, prompts: Sequence[str]) -> str | None:
        """Why the gradient of an objective cannot be used; None if it can."""
        wanted = torch.tensor([float(each == name) for each in self.functions])
        try:
            gradient, _ = self.ascent(images, prompts, wanted.expand(len(images), -1))
        except Exception as error:  # a user's own function may raise anything
            return f"its gradient cannot be taken ({type(error).__name__}: {error})"
        if not gradient.isfinite().all():
            return "its gradient is not finite"
        return None if gradient.any() else "no gradient reaches the picture"


def fit(values: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Least-squares fit of targets (n,) on values (n,): the slope and the correlation.

    >>> slope, correlation = fit(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 5.0]))
    >>> slope, round(correlation, 6)
    (2.0, 1.0)
    """
    x, y = values.double() - values.double().mean(), targets.double() - targets.double().mean()
    if not (len(x) > 1 and x.any() and y.any()):
        return 0.0, 0.0
    slope = (x @ y) / (x @ x)
    return slope.item(), ((x @ y) / (x.norm() * y.norm())).item()


def _with_graph(reward: Reward) -> Differentiable:
    if isinstance(reward, BatchReward):
        return reward.score
    return lambda batch, prompts: reward(batch.images, prompts).to(batch.device)


def _companion(function: Callable[[torch.Tensor], torch.Tensor]) -> Differentiable:
    return lambda batch, prompts: function(batch.images)  # noqa: ARG005
