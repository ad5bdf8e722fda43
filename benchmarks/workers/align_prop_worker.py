"""Answers `benchmarks/peers.py` with TRL's AlignPropTrainer, unchanged."""

from __future__ import annotations

import itertools
import time
from typing import Any

from trl import (
    AlignPropConfig,
    AlignPropTrainer,
    DefaultDDPOStableDiffusionPipeline,
)

from benchmarks.workers.protocol import serve
from benchmarks.workers.trl_peer import TrlPeer, read_arguments
from ddpo.rewards.colorfulness import colorfulness


class Peer(TrlPeer):
    """Trains towards colourful pictures.

    Args:
        model: folder of the pipeline.
        images: per epoch.
        steps: denoising steps.
        guidance: guidance scale.
        gradient_steps: K, the last steps that gradients go through.
    """

    def __init__(
        self, model: str, images: int, steps: int, guidance: float, gradient_steps: int
    ) -> None:
        prompts = itertools.cycle("abcdefgh")
        trainer = AlignPropTrainer(
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
        super().__init__(trainer, images)

    def epoch(self, batch: int) -> dict[str, Any]:
        """One optimiser step from all images, in passes of `batch`."""
        start = time.process_time()
        self.step(batch)
        training = time.process_time() - start  # it draws with its graph: both are one
        return {"sampling": 0.0, "training": training, "unet_rows": self.rows}


def main() -> None:
    """Serve."""
    serve({"epoch": Peer(**read_arguments("gradient_steps")).epoch})


if __name__ == "__main__":
    main()
