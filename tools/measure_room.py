"""Measures whether the embedded model leaves reinforcement learning something to explore.

One agent, all weight on small files: how far does plain DDPO move the reward, in standard
deviations within a caption, and does the judge still find the subject?

    python -m tools.measure_room --iterations 20
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from ddpo.advantages import PromptStatistics, advantages, within_prompt_std
from ddpo.agents import Agents
from ddpo.assets import ASSETS
from ddpo.evaluation import EvaluationSet, evaluate
from ddpo.pipeline import FrozenDiffusion
from ddpo.prompts import draw_prompts, load_prompts
from ddpo.rewards import REWARDS
from ddpo.sampler import Sampler
from ddpo.scorer import Scorer, collect
from ddpo.seeding import keyed_seed
from ddpo.update import Updater
from mo_train import read_settings
from tools import emoji_data
from tools.emoji_judge import load_judge

SEED = 20


def main() -> None:
    """Train, and print one line a checkpoint and one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--images-per-prompt", type=int, default=8)
    parser.add_argument("--reward", default="jpeg_compressibility", choices=sorted(REWARDS))
    parser.add_argument("--judge", type=Path, default=ASSETS / "emoji-judge" / "judge.safetensors")
    parser.add_argument("--config", nargs="*", default=[], help="overrides, as KEY=VALUE")
    args = parser.parse_args()
    settings = read_settings([f"--config.{override}" for override in args.config])
    settings = dataclasses.replace(
        settings,
        sample=dataclasses.replace(settings.sample, images_per_prompt=args.images_per_prompt),
    )
    device = torch.device("cpu")
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    model = FrozenDiffusion.load(settings.pretrained, device)
    agents = Agents(model.unet, 1, settings.adapter, settings.train)
    sampler = Sampler(model, settings.sample)
    updater = Updater(sampler, settings.train)
    scorer = Scorer({args.reward: REWARDS[args.reward].build(settings.rewards, device)})
    judge = load_judge(args.judge)
    prompts = load_prompts(settings.prompts.train)
    held_out = EvaluationSet.make("report", prompts, 4 * len(prompts), SEED)
    captions = list(emoji_data.CAPTIONS)
    labels = torch.tensor([captions.index(prompt) for prompt in held_out.prompts])

    def measure() -> tuple[torch.Tensor, float]:
        policy = agents.snapshot(0)
        result = evaluate([policy], held_out, sampler, scorer, agents, len(labels))[0]
        with torch.no_grad():
            answers = judge(result.images.float() / 255).argmax(dim=1)
        return result.rewards, (answers == labels).float().mean().item()

    rewards, found = measure()
    base, scale = rewards.mean().item(), within_prompt_std(rewards, held_out.prompts)
    lines = [{"iteration": 0, "reward": base, "gain": 0.0, "found": found}]
    statistics = [PromptStatistics().add(held_out.prompts, rewards, settings.advantage.buffer_size)]
    started = time.monotonic()
    for iteration in tqdm(range(args.iterations)):
        distinct = draw_prompts(prompts, settings.sample.prompts_per_iteration, iteration, SEED)
        texts = [text for text in distinct for _ in range(settings.sample.images_per_prompt)]
        seeds = [keyed_seed(SEED, 0, iteration, 0, i) for i in range(len(texts))]
        batch = sampler.prompt_batch(texts, seeds, 1)
        rollout, scores = collect(sampler, scorer, agents, batch)
        values, statistics = advantages(
            scores.values, torch.ones(1, 1), [texts], statistics, scale, settings.advantage
        )
        updater.update(agents, rollout, values, [keyed_seed(SEED, iteration)])
        if (iteration + 1) % 5 == 0 or iteration + 1 == args.iterations:
            rewards, found = measure()
            reward = rewards.mean().item()
            gain = (reward - base) / scale.item()
            lines.append(
                {"iteration": iteration + 1, "reward": reward, "gain": gain, "found": found}
            )
            tqdm.write(json.dumps(lines[-1]))
    summary = {"scale": scale.item(), "seconds": time.monotonic() - started, "curve": lines}
    sys.stdout.write(json.dumps(summary) + "\n")
    scorer.close()


if __name__ == "__main__":
    main()
