"""A resumable training run: learning rate, averaged weights, state file, progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

STEADY_FRACTION = 0.65  # of the steps, before the learning rate falls
SAVE_SECONDS = 120.0
AVERAGE_EVERY = 4  # steps

ModuleType = TypeVar("ModuleType", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a part is trained.

    Attributes:
        path: State file, written every two minutes and at the end.
        steps: How many.
        seed: Of weights, batches and noise.
        batch: Examples per step.
        device: Where the training computes.
    """

    path: Path
    steps: int
    seed: int
    batch: int
    device: str = "cpu"


def fallen(progress: float) -> float:
    """Returns how far a run is into the part in which the learning rate falls, 0 to 1."""
    return max(0.0, progress - STEADY_FRACTION) / (1 - STEADY_FRACTION)


def learning_rate(peak: float, progress: float, step: int, warmup: int) -> float:
    """Returns the learning rate: linear over `warmup` steps, constant, then falling to 1 %.

    While it is constant, a run can get more steps, and continues as if it had had them all along.

    Example:
        >>> learning_rate(1.0, 0.6, 99, 100), learning_rate(1.0, 1.0, 99, 100)
        (1.0, 0.01)
    """
    cosine = 0.5 * (1 + math.cos(math.pi * fallen(progress)))
    return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * cosine)


def averaging(decay: float) -> Callable[..., None]:
    """Returns how `AveragedModel` averages: exponentially, over a tenth of the steps at most."""

    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: int) -> None:
        weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, weight)

    return average


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a training state under a temporary name, then renames it."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def kept_path(path: Path, step: int) -> Path:
    """Returns where a run with this state file keeps its averaged weights after `step`.

    Example:
        >>> kept_path(Path("work/unet.pt"), 500).name
        'unet-500.pt'
    """
    return path.with_name(f"{path.stem}-{step}{path.suffix}")


def channels_last(module: ModuleType) -> ModuleType:
    """Returns the module with its weights in channels-last order, half as fast again on CPU."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


class TrainingRun:
    """Iterates over the steps of a training, and resumes where an earlier run stopped.

    Every step has its own random generator, keyed by seed and step. So an interrupted run draws the
    same batches as any other.

        run = TrainingRun("vae", vae, course, peak=1e-3)
        for generator in run:
            run.update(loss_of(vae, generator))
        vae.load_state_dict(run.averaged())

    Args:
        name: Shown in the progress bar.
        module: It is trained in place, on its device.
        course: Its state file, steps and seed.
        peak: Highest learning rate.
        decay: Of the exponential average of the weights.
        warmup: Steps of linear warm-up.
        weight_decay: Of AdamW.
        keep: Steps after which the averaged weights are kept in a file of their own.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        course: Course,
        *,
        peak: float,
        decay: float = 0.998,
        warmup: int = 100,
        weight_decay: float = 1e-3,
        keep: tuple[int, ...] = (),
    ) -> None:
        self.name, self.module, self.course = name, module, course
        self.peak, self.warmup, self.keep = peak, warmup, keep
        self.average = AveragedModel(module, multi_avg_fn=averaging(decay**AVERAGE_EVERY))
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self.step, self.seconds, self._saved = 0, 0.0, 0.0
        self._shown: dict[str, float] = {}
        if course.path.exists():
            state = torch.load(course.path, weights_only=True, map_location="cpu")
            self.module.load_state_dict(state["module"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
            self._saved = self.seconds

    @property
    def progress(self) -> float:
        """Fraction of the steps that are taken, 1 at the end."""
        return min(1.0, self.step / self.course.steps)

    def __iter__(self) -> Iterator[torch.Generator]:
        """Yields one generator per step; `update` must be called before the next."""
        with tqdm(total=100, desc=self.name, bar_format="{l_bar}{bar}| {elapsed}{postfix}") as bar:
            while self.progress < 1:
                start, step = time.perf_counter(), self.step
                yield torch.Generator().manual_seed(self.course.seed * 1_000_003 + step)
                if self.step != step + 1:
                    raise RuntimeError(f"{self.name}: call `update` once in every step")
                self.seconds += time.perf_counter() - start
                bar.n = round(100 * self.progress, 1)
                if self.step % 25 == 0:
                    bar.set_postfix(step=self.step, **self._shown)
                if self.seconds - self._saved > SAVE_SECONDS or self.progress >= 1:
                    self._save()

    def update(self, loss: torch.Tensor, **shown: float) -> None:
        """Takes one optimiser step down the gradient of `loss`; shows running means."""
        rate = learning_rate(self.peak, self.progress, self.step, self.warmup)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.step % AVERAGE_EVERY == 0:
            self.average.update_parameters(self.module)
        if self.step in self.keep:
            save_state(kept_path(self.course.path, self.step), self.averaged())
        for key, value in {"loss": loss.item(), **shown}.items():
            self._shown[key] = 0.98 * self._shown.get(key, value) + 0.02 * value

    def averaged(self) -> dict[str, torch.Tensor]:
        """Returns the averaged weights, under the module's names, on the CPU."""
        return {name: value.cpu() for name, value in self.average.module.state_dict().items()}

    def _save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        save_state(self.course.path, state)
        self._saved = self.seconds
