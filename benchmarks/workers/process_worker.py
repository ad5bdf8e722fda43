"""One of the processes that `benchmarks/processes.py` starts with torchrun: iterations of DDPO."""

from __future__ import annotations

import argparse
import json
import os
import time

import torch

from benchmarks.rig import settings_with
from config.settings.files import path
from ddpo.processes import Processes
from ddpo.trainer import Trainer


def main() -> None:
    """Do one iteration to compare and others to time; the first process writes the answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=path)
    parser.add_argument("iterations", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("images", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = settings_with(
        rewards={"names": ("clip_alignment", "colorfulness")},  # smooth: a file's size is not
        sample={
            "num_steps": arguments.steps,
            "prompts_per_iteration": arguments.images,
            "images_per_prompt": 1,
        },
        train={"max_sensitivity": 0.0},
    )
    processes = Processes.start(settings.task_counts, timeout_seconds=600)
    if processes.count != int(os.environ["WORLD_SIZE"]):
        raise RuntimeError(f"{processes.count} processes instead of {os.environ['WORLD_SIZE']}")
    trainer = Trainer(settings, processes, lambda *_: lambda: None)
    num_objectives = len(settings.rewards.names)
    weights = torch.full((settings.evolution.num_agents, num_objectives), 1 / num_objectives)
    trainer.load([trainer.agents.initial_policy()] * len(weights), weights)
    first = trainer.draw(0, 0)
    stats = trainer.update(first, trainer.advantages(first))
    wall, cpu = time.perf_counter(), time.process_time()
    for index in range(arguments.iterations):
        batch = trainer.draw(0, 1 + index)
        trainer.update(batch, trainer.advantages(batch))
    seconds = processes.gather((time.perf_counter() - wall, time.process_time() - cpu))
    if processes.is_first:
        answer = {
            "wall": max(each[0] for each in seconds),
            "cpu": max(each[1] for each in seconds),
            "rewards": first.rewards.values.tolist(),
            "grad_norms": stats.grad_norm.tolist(),
        }
        arguments.out.write_text(json.dumps(answer), encoding="utf-8")
    trainer.close()
    processes.close()


if __name__ == "__main__":
    main()
