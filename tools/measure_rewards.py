"""Measures the cost of rewards: milliseconds per picture, alone and together.

    python -m tools.measure_rewards jpeg_compressibility colorfulness --size 512 --threads 1

It takes any name that `rewards.names` takes. Settings are overridden as in training
(`--config.rewards.device=cuda`). "together" is all rewards on the same pictures, as in a rollout,
with shared work done once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from config.settings.derived import objective_name
from config.settings.errors import UserError
from ddpo.rewards.lookup import build_reward
from ddpo.rewards.scorer import Scorer
from run.command_line import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ddpo.rewards import Reward

ROUNDS = 3


def pictures(rows: int, size: int) -> torch.Tensor:
    """Random images (rows, 3, size, size) with coarse structure and grain."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(rows, 3, 8, 8, generator=generator)
    grain = torch.randn(rows, 3, size, size, generator=generator)
    return (F.interpolate(coarse, (size, size), mode="bicubic") + 0.03 * grain).clamp(0, 1)


def milliseconds(rewards: Mapping[str, Reward], images: torch.Tensor, batch_size: int) -> float:
    """Milliseconds per image: the median over rounds, after one round that is not counted."""
    scorer = Scorer(rewards, batch_size=batch_size, timeout_seconds=3600)
    prompts, seconds = ["a photo of a cat"] * len(images), []
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        scorer.gather([scorer.submit(images, prompts)], num_agents=1)
        seconds.append(time.perf_counter() - started)
    scorer.close()
    return 1000 * statistics.median(seconds[1:]) / len(images)


def main(arguments: Sequence[str]) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rewards", nargs="+", metavar="REWARD")
    parser.add_argument("--size", type=int, default=512, help="edge of the pictures, in pixels")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    known, overrides = parser.parse_known_args(arguments)
    torch.set_num_threads(known.threads)
    try:
        settings = read_settings(overrides).rewards
        device = torch.device(settings.device or "cpu")
        rewards = {
            objective_name(name): build_reward(name, settings, device)[0] for name in known.rewards
        }
    except (UserError, OSError, ValueError) as error:
        sys.exit(str(error))
    images = pictures(known.images, known.size)
    rows = {name: {name: reward} for name, reward in rewards.items()}
    if len(rewards) > 1:
        rows["together"] = rewards
    sys.stdout.write(f"| Reward | ms per {known.size} px picture |\n| --- | --- |\n")
    for name, group in rows.items():
        cost = milliseconds(group, images, settings.batch_size)
        sys.stdout.write(f"| `{name}` | {cost:.2f} |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
