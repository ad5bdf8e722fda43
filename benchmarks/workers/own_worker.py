"""Answers `benchmarks/peers.py` with this project's trainer, called as in `mo_train.py`."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.rig import settings_with
from benchmarks.workers.protocol import serve
from ddpo.processes import Processes
from ddpo.trainer import Trainer

torch.set_num_threads(1)


class Own:
    """K agents that train towards small JPEG files, or by a reward's gradient to colourful ones.

    Args:
        model: folder of the pipeline.
        prompts: a file with one prompt per line.
        agents: K.
        images: per agent and iteration.
        steps: denoising steps.
        guidance: guidance scale.
        sample_rows: UNet rows per pass without gradient.
        train_rows: UNet rows per pass with gradient.
        how: "single" takes gradients while sampling; "two" passes the steps again; "gradient-2"
            follows the reward's gradient through the last two steps.
    """

    def __init__(
        self,
        model: str,
        prompts: str,
        agents: int,
        images: int,
        steps: int,
        guidance: float,
        sample_rows: int,
        train_rows: int,
        how: str,
    ) -> None:
        self.agents = agents
        kind, _, gradient_steps = how.partition("-")
        is_gradient = kind == "gradient"
        rule = {"update_rule": "reward_gradient", "gradient_steps": int(gradient_steps or 1)}
        settings = settings_with(
            pretrained={"model": model},
            rewards={"names": ("colorfulness" if is_gradient else "jpeg_compressibility",)},
            prompts={"train": prompts},
            sample={
                "num_steps": steps,
                "guidance_scale": guidance,
                "prompts_per_iteration": images,
                "images_per_prompt": 1,
                "rows_per_pass": sample_rows,
            },
            train={
                "updates_per_epoch": 1,
                "rows_per_pass": train_rows,
                "max_sensitivity": 0.0,
                "single_pass": kind == "single",
                **(rule if is_gradient else {}),
            },
            evolution={"num_agents": agents},
        )
        processes = Processes.alone(torch.device("cpu"))
        self.trainer = Trainer(settings, processes, lambda *_: lambda: None)
        initial = self.trainer.agents.initial_policy()
        self.trainer.load([initial] * agents, torch.ones(agents, 1))
        if is_gradient:
            self.trainer.calibrate(scales=(1.0,), slopes=(1.0,))
        self.count = 0
        self.training = 0.0
        self._update = self.trainer.updater.update
        setattr(self.trainer.updater, "update", self._timed_update)  # noqa: B010

    def epoch(self) -> dict[str, Any]:
        """One iteration of all agents: sample, score, one update."""
        self.count += 1
        self.training = 0.0
        start = time.process_time()
        batch = self.trainer.draw(0, self.count)
        self.trainer.update(batch, self.trainer.advantages(batch))
        rows = self.trainer.take_unet_rows()
        sampling = time.process_time() - start - self.training
        return {"sampling": sampling, "training": self.training, "unet_rows": rows}

    def _timed_update(self, *arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        stats = self._update(*arguments, **named)
        self.training = time.process_time() - start
        return stats


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("prompts")
    for name in ("agents", "images", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("guidance", type=float)
    parser.add_argument("sample_rows", type=int)
    parser.add_argument("train_rows", type=int)
    parser.add_argument("how")
    own = Own(**vars(parser.parse_args()))
    serve({"epoch": own.epoch})


if __name__ == "__main__":
    main()
