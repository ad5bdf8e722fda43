"""Audits the embedded judge of beauty; prints a table and one JSON line.

    python -m tools.measure_beauty --data node_modules

It scores real pictures, damaged ones, empty ones, noise, and pictures by the embedded model.
"better" is the share of pairs (real picture, this picture) in which the real one scores higher.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel

from config.settings.files import path
from ddpo.assets import ASSETS
from ddpo.rewards.emoji_beauty import BeautyHead, load_beauty
from tools import emoji_data
from tools.emoji_bank import to_unit
from tools.emoji_beauty import beauty
from tools.emoji_damage import DAMAGES
from tools.measure_emoji_sd import Sampling, draw

AMOUNTS = (0.2, 0.5, 0.9)
WAYS = ((20, 3.0), (10, 3.0), (10, 1.0), (5, 3.0), (3, 1.0))  # steps, guidance
CLIMB_STEPS, CLIMB_RATE = 40, 0.02


def made_pictures(real: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Returns groups of pictures (rows, 3, H, W) in [0, 1], made from real ones or from nothing."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(real)
    rng = np.random.default_rng(seed)
    grounds = np.stack([emoji_data.draw_background(rng) for _ in range(rows)])
    grain = torch.rand(real.shape, generator=generator)
    groups = {
        "flat colour": torch.rand(rows, 3, 1, 1, generator=generator).expand_as(real),
        "background alone": torch.from_numpy(grounds).permute(0, 3, 1, 2),
        "white noise": grain,
        "grey noise": grain.mean(1, keepdim=True).expand_as(real),
        "noise of 8 pixels": grain[:, :, ::8, ::8].repeat_interleave(8, 2).repeat_interleave(8, 3),
    }
    for name, way in DAMAGES.items():
        for amount in AMOUNTS:
            spoilt = [way(real[i], real[i - 1], amount, generator) for i in range(rows)]
            groups[f"{name} {amount:.1f}"] = torch.stack(spoilt).clamp(0, 1)
    return groups


def climb(clip: CLIPModel, head: BeautyHead, images: torch.Tensor) -> torch.Tensor:
    """Returns images changed in the direction of higher scores, pixel by pixel."""
    images = images.clone()
    for _ in range(CLIMB_STEPS):
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(beauty(clip, head, images).sum(), images)
        images = (images.detach() + CLIMB_RATE * gradient.sign()).clamp(0, 1)
    return images


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=path, default=ASSETS, help="folder with the models")
    parser.add_argument("--data", type=path, required=True, help="node_modules with the pictures")
    parser.add_argument("--seed", type=int, default=123)
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(
        args.assets / "emoji64-sd", local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    clip = CLIPModel.from_pretrained(args.assets / "emoji64-clip", local_files_only=True).eval()
    head = load_beauty(str(args.assets / "emoji64-beauty" / "head.safetensors"))
    sprites = emoji_data.load_sprites(args.data)
    pictures = np.stack([row.picture for row in emoji_data.render_bank(sprites, 2, args.seed)])
    real = to_unit(torch.from_numpy(pictures)) / 2 + 0.5
    groups = {"real": real, **made_pictures(real, args.seed)}
    prompts = list(emoji_data.CAPTIONS)
    for steps, guidance in WAYS:
        sampling = Sampling(steps=steps, guidance=guidance)
        seeds = list(range(len(prompts)))
        groups[f"drawn, {steps} steps, guidance {guidance:.0f}"] = draw(
            pipeline, prompts, seeds, sampling
        )
    groups["climbed from noise"] = climb(clip, head, groups["white noise"][:32])
    groups["climbed from flat"] = climb(clip, head, groups["flat colour"][:32])
    rows = {}
    with torch.no_grad():
        reference = beauty(clip, head, real)
        for name, images in groups.items():
            scores = beauty(clip, head, images)
            better = (reference[:, None] > scores[None]).float().mean()
            numbers = (scores.mean(), scores.std(), better)
            rows[name] = [round(number.item(), 3) for number in numbers]
            mean, deviation, share = rows[name]
            sys.stdout.write(f"{name:32} {mean:6.2f} +- {deviation:4.2f}  better {share:5.1%}\n")
    sys.stdout.write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
