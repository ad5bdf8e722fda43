"""Scores images outside the main thread, while the next chunk is sampled.

A score can be missing: the reward returned NaN or infinity, the picture itself is not finite, or,
with `rewards.on_error=skip`, the reward raised or hung. A missing score is NaN in `RewardBatch`.
Its sample teaches nothing and enters no statistic. If too many are missing, in all processes
together, the run ends.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from config.settings.errors import UserError
from ddpo.rewards.image_batch import BatchReward, ImageBatch
from ddpo.rewards.lookup import build_reward
from ddpo.rewards.worker import Worker
from ddpo.types import RewardBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from config.base import RewardSettings
    from ddpo.rewards import Reward
    from ddpo.rewards.worker import Call

logger = logging.getLogger(__name__)


class RewardError(UserError):
    """A reward raised, hung, or did not return one score per image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Submission:
    """A batch that is being scored.

    Attributes:
        num_images: in the batch.
        calls: objective name -> the call that returns scores (num_images,).
    """

    num_images: int
    calls: Mapping[str, Call[torch.Tensor]]


class Scorer:
    """Applies the objectives' rewards to batches of images, with one worker thread per reward.

    Args:
        rewards: objective name -> reward, in the order of the objectives.
        units: objective name -> unit of its score.
        device: where rewards get their images; by default where the images are.
        batch_size: images per call of a reward.
        timeout_seconds: time limit of one call.
        on_error: "abort" ends the run when a reward raises or hangs; "skip" leaves those images
            out.
        max_invalid_fraction: largest fraction of a rollout's or an evaluation's images that may
            lack a score.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        *,
        units: Mapping[str, str] | None = None,
        device: torch.device | None = None,
        batch_size: int = 64,
        timeout_seconds: float = 600.0,
        on_error: str = "abort",
        max_invalid_fraction: float = 0.1,
    ) -> None:
        self.rewards = dict(rewards)
        self.units = dict(units or {})
        self._device = device
        self._batch_size = batch_size
        self._timeout_seconds = timeout_seconds
        self._on_error = on_error
        self._max_invalid_fraction = max_invalid_fraction
        self._workers = {name: Worker(f"reward-{name}") for name in self.rewards}
        # One stream for all rewards: a result shared on an ImageBatch is then ready for the next.
        self._stream: torch.cuda.Stream | None = None

    @classmethod
    def build(cls, settings: RewardSettings, device: torch.device) -> Scorer:
        """Build the rewards named in the settings.

        Raises:
            RewardError: naming the reward that cannot be found or whose models cannot be loaded.
        """
        device = reward_device(settings, device)
        rewards, units = {}, {}
        for name, objective in zip(settings.names, settings.objectives, strict=True):
            try:
                rewards[objective], units[objective] = build_reward(name, settings, device)
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                raise RewardError(f"reward {name!r} cannot be loaded: {error}") from error
        return cls(
            rewards,
            units=units,
            device=device,
            batch_size=settings.batch_size,
            timeout_seconds=settings.timeout_seconds,
            on_error=settings.on_error,
            max_invalid_fraction=settings.max_invalid_fraction,
        )

    def check(self, height: int, width: int, prompts: Sequence[str]) -> None:
        """Call every reward once on pictures of noise, so that its mistakes show early.

        Args:
            height: of a run's pictures, in pixels.
            width: of a run's pictures, in pixels.
            prompts: one per picture: some of the run's prompts, with metadata that a reward may
                need.

        Raises:
            RewardError: naming the reward, the expected result and the actual one.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(len(prompts), 3, height, width, generator=generator)
        for submission in self.submit(noise, prompts):
            for name, call in submission.calls.items():
                self._result(name, call)

    def cut(self, prompts: Sequence[str]) -> dict[str, list[str]]:
        """Objective -> the prompts whose ends it does not read, for rewards that can say so."""
        return {
            name: reward.cut(prompts)
            for name, reward in self.rewards.items()
            if isinstance(reward, BatchReward)
        }

    def submit(self, images: torch.Tensor, prompts: Sequence[str]) -> list[Submission]:
        """Start scoring images (rows, 3, H, W), one prompt per row; see `gather`."""
        ready = self._event_after(images)
        submissions = []
        for start in range(0, len(images), self._batch_size):
            stop = start + self._batch_size
            batch = ImageBatch(images[start:stop], self._device)
            texts = tuple(prompts[start:stop])
            calls = {
                name: self._workers[name].submit(self._task(name, batch, texts, ready))
                for name in self.rewards
            }
            submissions.append(Submission(num_images=len(batch), calls=calls))
        return submissions

    def gather(self, chunks: Sequence[Sequence[Submission]], num_agents: int) -> RewardBatch:
        """Wait for the submitted chunks and put their scores together.

        Args:
            chunks: results of `submit`, each for agent-major rows of all agents.
            num_agents: K.

        Returns:
            Rewards (K, N, M), NaN where a score is missing.

        Raises:
            RewardError: if a reward fails.
        """
        seconds = dict.fromkeys(self.rewards, 0.0)
        tables = []
        for submissions in chunks:
            columns = []
            for name in self.rewards:
                columns.append(torch.cat([self._scores(name, one) for one in submissions]))
                seconds[name] += sum(one.calls[name].seconds for one in submissions)
            tables.append(torch.stack(columns, dim=-1).unflatten(0, (num_agents, -1)))
        values = torch.cat(tables, dim=1)
        num_images = values.shape[0] * values.shape[1]
        return RewardBatch(
            objectives=tuple(self.rewards),
            values=values,
            seconds_per_image=tuple(total / num_images for total in seconds.values()),
        )

    def refuse_too_many_missing(self, values: torch.Tensor, num_images: int | None = None) -> None:
        """End the run if more images than allowed lack a score.

        Args:
            values: (K, N, M) of a rollout or evaluation.
            num_images: in total, in all processes; by default the images of `values`.

        Raises:
            RewardError: saying how many images lack scores, and of which rewards.
        """
        is_valid = values.isfinite().all(dim=-1)
        invalid = int((~is_valid).sum())
        num_images = num_images or is_valid.numel()
        if invalid <= self._max_invalid_fraction * num_images:
            return
        missing = values.isnan().sum(dim=(0, 1)).tolist()
        counts = ", ".join(f"{name} {n}" for name, n in zip(self.rewards, missing, strict=True))
        raise RewardError(
            f"{invalid} of {num_images} images lack a finite score ({counts}), more "
            f"than rewards.max_invalid_fraction={self._max_invalid_fraction:g}"
        )

    def close(self) -> None:
        """End the worker threads; a thread that hangs is left behind."""
        for worker in self._workers.values():
            worker.close()

    def _scores(self, name: str, submission: Submission) -> torch.Tensor:
        """Scores (num_images,); with `on_error="skip"` NaN where the reward failed."""
        try:
            return self._result(name, submission.calls[name])
        except RewardError as error:
            if self._on_error == "abort":
                raise
            logger.warning("%s; %d images are left out", error, submission.num_images)
            return torch.full((submission.num_images,), torch.nan)

    def _result(self, name: str, call: Call[torch.Tensor]) -> torch.Tensor:
        """The result of a call, if it comes in time.

        Raises:
            RewardError: if the call raised or hangs.
        """
        try:
            return call.result(self._timeout_seconds)
        except TimeoutError as error:
            self._workers[name].abandon(call)
            raise RewardError(
                f"reward {name!r} hangs: no answer within rewards.timeout_seconds="
                f"{self._timeout_seconds:g}"
            ) from error

    def _task(
        self, name: str, batch: ImageBatch, prompts: Sequence[str], ready: torch.cuda.Event | None
    ) -> Callable[[], torch.Tensor]:
        """A function that scores a batch on the rewards' stream, once its images are drawn."""

        def task() -> torch.Tensor:
            with torch.cuda.stream(self._stream), torch.no_grad():
                if self._stream is not None and ready is not None:
                    self._stream.wait_event(ready)
                return _score(name, self.rewards[name], batch, prompts)

        return task

    def _event_after(self, images: torch.Tensor) -> torch.cuda.Event | None:
        """The event that the rewards' stream waits for before reading images; None without CUDA."""
        if not images.is_cuda:
            return None
        if self._stream is None:
            self._stream = torch.cuda.Stream(images.device)
        images.record_stream(self._stream)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(images.device))
        return event


def reward_device(settings: RewardSettings, beside: torch.device) -> torch.device:
    """Where rewards run: on the device in the settings, or else on the base model's."""
    return torch.device(settings.device) if settings.device else beside


def _score(name: str, reward: Reward, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
    """Call one reward and check its answer.

    Returns:
        (rows,) float32 on the CPU; NaN where a score, or the picture itself, is not finite.

    Raises:
        RewardError: naming the reward, the expected result and the actual one.
    """
    rows = len(batch)
    try:
        if isinstance(reward, BatchReward):
            scores = reward.score(batch, prompts)
        else:
            scores = reward(batch.images, prompts)
    except torch.OutOfMemoryError as error:
        raise RewardError(
            f"reward {name!r} ran out of memory on {rows} images; lower rewards.batch_size, or set "
            f"rewards.device=cpu ({error})"
        ) from error
    except BaseException as error:  # a reward may raise anything, SystemExit included
        raise RewardError(f"reward {name!r} failed on {rows} images: {error!r}") from error
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (rows,):
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise RewardError(f"reward {name!r}: expected a tensor ({rows},), got {got}")
    if scores.is_complex() or scores.dtype == torch.bool:
        raise RewardError(f"reward {name!r}: expected real numbers, got {scores.dtype}")
    scores = scores.detach().float().cpu()
    return scores.where(scores.isfinite() & batch.is_whole, torch.nan)
