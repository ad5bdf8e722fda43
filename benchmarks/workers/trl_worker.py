"""Answers `benchmarks/peers.py` with TRL's DDPOTrainer, unchanged."""

from __future__ import annotations

import argparse
import itertools
import logging
import time
import warnings
from functools import partial
from typing import Any

import torch
from accelerate import PartialState

PartialState(cpu=True)  # TRL's pipeline logs before its trainer has made the state

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)

from trl import (  # noqa: E402
    DDPOConfig,
    DDPOTrainer,
    DefaultDDPOStableDiffusionPipeline,
)

from benchmarks.workers.protocol import serve  # noqa: E402
from ddpo.rewards.jpeg_compressibility import JpegSize  # noqa: E402


class Peer:
    """One policy's trainer, kept between requests, which may change its batch size.

    Args:
        model: folder of the pipeline.
        images: per epoch.
        steps: denoising steps.
        guidance: guidance scale.
    """

    def __init__(self, model: str, images: int, steps: int, guidance: float) -> None:
        prompts = itertools.cycle("abcdefgh")
        reward = JpegSize(sign=-1)
        self.trainer = DDPOTrainer(
            DDPOConfig(
                sample_num_steps=steps,
                sample_guidance_scale=guidance,
                sample_batch_size=images,
                sample_num_batches_per_epoch=1,
                train_batch_size=images,
                train_gradient_accumulation_steps=1,
                train_cfg=guidance != 1,
                per_prompt_stat_tracking=True,
                save_freq=10**9,
                log_with=None,
                mixed_precision="no",  # its default, float16, is slow on a CPU
                accelerator_kwargs={"cpu": True},
            ),
            lambda images, prompts, _: (reward(images, prompts), {}),
            lambda: (next(prompts), {}),
            DefaultDDPOStableDiffusionPipeline(model),
        )
        self.trainer.sd_pipeline.set_progress_bar_config(disable=True)
        self.images = images
        self.rows = 0
        self.trainer.sd_pipeline.unet.register_forward_pre_hook(self._count)
        self.sampling = self.training = 0.0
        self.trainer._generate_samples = self._timed(self.trainer._generate_samples, "sampling")
        self.trainer._train_batched_samples = self._timed(
            self.trainer._train_batched_samples, "training"
        )

    def epoch(self, batch: int) -> dict[str, Any]:
        """One epoch: sample, score, one update in passes of `batch` samples."""
        trainer = self.trainer
        trainer.config.train_batch_size = batch
        accumulation = self.images // batch
        trainer.config.train_gradient_accumulation_steps = accumulation
        trainer.accelerator.gradient_accumulation_steps = accumulation * trainer.num_train_timesteps
        trainer.accelerator.step = 0  # passes so far; the epoch's last one takes the step
        self.rows, self.sampling, self.training = 0, 0.0, 0.0
        trainer.step(epoch=0, global_step=0)
        return {"sampling": self.sampling, "training": self.training, "unet_rows": self.rows}

    def _count(self, unet: Any, arguments: tuple[Any, ...]) -> None:  # noqa: ARG002
        self.rows += len(arguments[0])

    def _timed(self, function: Any, name: str) -> Any:
        return partial(self._run_timed, function, name)

    def _run_timed(self, function: Any, name: str, *arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        result = function(*arguments, **named)
        setattr(self, name, getattr(self, name) + time.process_time() - start)
        return result


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("images", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("guidance", type=float)
    peer = Peer(**vars(parser.parse_args()))
    serve({"epoch": peer.epoch})


if __name__ == "__main__":
    main()
