"""Answers `benchmarks/peers.py` with TRL's AlignPropTrainer: no line of it is changed."""

from __future__ import annotations

import argparse
import itertools
import logging
import time
import warnings
from typing import Any

import torch
from accelerate import PartialState

PartialState(cpu=True)  # TRL's pipeline logs before its trainer has made the state

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)

from trl import (  # noqa: E402
    AlignPropConfig,
    AlignPropTrainer,
    DefaultDDPOStableDiffusionPipeline,
)

from benchmarks.workers.protocol import serve  # noqa: E402
from ddpo.rewards.colorfulness import colorfulness  # noqa: E402


class Peer:
    """One policy's trainer, kept between requests; its batch size may change from one to the next.

    Args:
        model: folder of the pipeline.
        images: of an epoch.
        steps: denoising steps.
        guidance: scale of it.
        gradient_steps: K, the last steps that gradients go through.
    """

    def __init__(
        self, model: str, images: int, steps: int, guidance: float, gradient_steps: int
    ) -> None:
        prompts = itertools.cycle("abcdefgh")
        self.trainer = AlignPropTrainer(
            AlignPropConfig(
                sample_num_steps=steps,
                sample_guidance_scale=guidance,
                sample_eta=1.0,
                train_batch_size=images,
                train_gradient_accumulation_steps=1,
                truncated_backprop_rand=False,
                truncated_backprop_timestep=steps - gradient_steps,
                save_freq=10**9,
                log_with=None,
                mixed_precision="no",  # its default, float16, is slow on a CPU
                accelerator_kwargs={"cpu": True},
            ),
            lambda images, prompts, _: (colorfulness(images.clamp(0, 1), prompts), {}),
            lambda: (next(prompts), {}),
            DefaultDDPOStableDiffusionPipeline(model),
        )
        self.trainer.sd_pipeline.set_progress_bar_config(disable=True)
        self.images = images
        self.rows = 0
        self.trainer.sd_pipeline.unet.register_forward_pre_hook(self._count)

    def epoch(self, batch: int) -> dict[str, Any]:
        """One optimiser step from all images, in passes of `batch`."""
        trainer = self.trainer
        trainer.config.train_batch_size = batch
        passes = self.images // batch
        trainer.config.train_gradient_accumulation_steps = passes
        trainer.accelerator.gradient_accumulation_steps = passes
        trainer.accelerator.step = 0  # passes so far: the last one of the epoch takes the step
        self.rows = 0
        start = time.process_time()
        trainer.step(epoch=0, global_step=0)
        # it draws with its graph: drawing and training are one
        return {
            "sampling": 0.0,
            "training": time.process_time() - start,
            "unet_rows": self.rows,
        }

    def _count(self, unet: Any, arguments: tuple[Any, ...]) -> None:  # noqa: ARG002
        self.rows += len(arguments[0])


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("images", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("guidance", type=float)
    parser.add_argument("gradient_steps", type=int)
    peer = Peer(**vars(parser.parse_args()))
    serve({"epoch": peer.epoch})


if __name__ == "__main__":
    main()
