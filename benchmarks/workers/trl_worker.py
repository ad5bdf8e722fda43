"""Answers `benchmarks/peers.py` with TRL's DDPOTrainer, unchanged."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import Any

from trl import (
    DDPOConfig,
    DDPOTrainer,
    DefaultDDPOStableDiffusionPipeline,
)

from benchmarks.workers.protocol import serve
from benchmarks.workers.trl_peer import TrlPeer, read_arguments
from ddpo.rewards.jpeg_compressibility import JpegSize


class Peer(TrlPeer):
    """Trains towards small JPEG files.

    Args:
        model: folder of the pipeline.
        images: per epoch.
        steps: denoising steps.
        guidance: guidance scale.
    """

    def __init__(self, model: str, images: int, steps: int, guidance: float) -> None:
        prompts = itertools.cycle("abcdefgh")
        reward = JpegSize(sign=-1)
        trainer = DDPOTrainer(
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
        super().__init__(trainer, images)
        self.sampling = self.training = 0.0
        trainer._generate_samples = self._timed(trainer._generate_samples, "sampling")
        trainer._train_batched_samples = self._timed(trainer._train_batched_samples, "training")

    def epoch(self, batch: int) -> dict[str, Any]:
        """One epoch: sample, score, one update in passes of `batch` samples."""
        self.sampling = self.training = 0.0
        self.step(batch, gradients_per_pass=self.trainer.num_train_timesteps)
        return {"sampling": self.sampling, "training": self.training, "unet_rows": self.rows}

    def _timed(self, function: Any, name: str) -> Any:
        return partial(self._run_timed, function, name)

    def _run_timed(self, function: Any, name: str, *arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        result = function(*arguments, **named)
        setattr(self, name, getattr(self, name) + time.process_time() - start)
        return result


def main() -> None:
    """Serve."""
    serve({"epoch": Peer(**read_arguments()).epoch})


if __name__ == "__main__":
    main()
