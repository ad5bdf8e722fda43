"""Shared by the workers of both TRL trainers; importing it prepares the process for them."""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import torch
from accelerate import PartialState

PartialState(cpu=True)  # TRL's pipeline logs before its trainer has made the state

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)


class TrlPeer:
    """One policy's trainer, kept between requests, which may change its batch size.

    Args:
        trainer: of TRL, around a pipeline of Stable Diffusion.
        images: per epoch.
    """

    def __init__(self, trainer: Any, images: int) -> None:
        self.trainer, self.images, self.rows = trainer, images, 0
        trainer.sd_pipeline.set_progress_bar_config(disable=True)
        trainer.sd_pipeline.unet.register_forward_pre_hook(self._count)

    def step(self, batch: int, gradients_per_pass: int = 1) -> None:
        """One epoch with one optimiser step, in passes of `batch` samples.

        Args:
            batch: samples per pass.
            gradients_per_pass: how often the trainer accumulates gradients in each.
        """
        trainer, passes = self.trainer, self.images // batch
        trainer.config.train_batch_size = batch
        trainer.config.train_gradient_accumulation_steps = passes
        trainer.accelerator.gradient_accumulation_steps = passes * gradients_per_pass
        trainer.accelerator.step = 0  # passes so far; the epoch's last one takes the step
        self.rows = 0
        trainer.step(epoch=0, global_step=0)

    def _count(self, unet: Any, arguments: tuple[Any, ...]) -> None:  # noqa: ARG002
        self.rows += len(arguments[0])


def read_arguments(*further: str) -> dict[str, Any]:
    """The worker's arguments: the pipeline's folder, sizes, and further whole numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("images", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("guidance", type=float)
    for name in further:
        parser.add_argument(name, type=int)
    return vars(parser.parse_args())
