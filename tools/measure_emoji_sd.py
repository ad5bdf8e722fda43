"""Measures the embedded diffusion model and CLIP; prints tables and one JSON line.

    python -m tools.measure_emoji_sd
    python -m tools.measure_emoji_sd --name emoji --lora LORA --sampler lcm --steps 4 --guidance 1

For every caption some pictures are drawn with fixed seeds. A judge, an independent classifier (see
`emoji_judge`), says which of all captions each picture shows.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer

from config.settings.files import path
from ddpo.assets import ASSETS
from ddpo.ddim import SAMPLERS
from tools import emoji_data
from tools.emoji_judge import Judge, load_judge
from tools.emoji_measures import ground_colours, jpeg_kilobytes, sharpness, training_sharpness
from tools.emoji_names import with_article


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How pictures are drawn."""

    steps: int
    eta: float = 1.0
    guidance: float = 3.0


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    sampling: Sampling,
    rows: int = 64,
) -> torch.Tensor:
    """Returns one picture per prompt, (prompts, 3, H, W) in [0, 1]; each has its own seed."""
    pictures = []
    for start in tqdm(range(0, len(prompts), rows), desc=f"draw, {sampling.steps} steps"):
        part = slice(start, start + rows)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        pictures.append(
            pipeline(
                prompts[part],
                generator=generators,
                num_inference_steps=sampling.steps,
                eta=sampling.eta,
                guidance_scale=sampling.guidance,
                output_type="pt",
            ).images.float()
        )
    return torch.cat(pictures)


@torch.no_grad()
def clip_cosines(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    images: torch.Tensor,
    texts: list[str],
    rows: int = 256,
) -> torch.Tensor:
    """Returns cosine similarities (images, texts); images (rows, 3, 64, 64) in [0, 1]."""
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    pixels = 2 * images - 1
    vision = torch.cat(
        [
            model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
            for x in pixels.split(rows)
        ]
    )
    normalize = torch.nn.functional.normalize
    return normalize(vision, dim=-1) @ normalize(text, dim=-1).T


@torch.no_grad()
def measure(
    pipeline: StableDiffusionPipeline,
    judge: Judge,
    clip: CLIPModel,
    sampling: Sampling,
    seeds_per_caption: int,
) -> tuple[dict[str, object], torch.Tensor]:
    """Returns the quality reached with one way of sampling, and the pictures."""
    names = judge.captions
    labels = torch.arange(len(names)).repeat_interleave(seeds_per_caption)
    prompts = [names[label] for label in labels]
    images = draw(pipeline, prompts, list(range(len(prompts))), sampling)
    logits = judge(images)
    hits = logits[:, :-1].argmax(1) == labels
    cosines = clip_cosines(clip, pipeline.tokenizer, images, names)
    own = cosines.gather(1, labels[:, None])[:, 0]
    others = cosines.masked_fill(torch.nn.functional.one_hot(labels, len(names)).bool(), torch.nan)
    by_caption = hits.float().view(len(names), -1).mean(1)
    kilobytes = np.array([jpeg_kilobytes(image) for image in images]).reshape(len(names), -1)
    result: dict[str, object] = {
        **asdict(sampling),
        "pictures": len(prompts),
        "judge_top1": round(hits.float().mean().item(), 4),
        "judge_nothing": round((logits.argmax(1) == len(names)).float().mean().item(), 4),
        "clip_top1": round((cosines.argmax(1) == labels).float().mean().item(), 4),
        "clip_cosine_right": round(own.mean().item(), 3),
        "clip_cosine_right_within_sd": round(own.view(len(names), -1).std(1).mean().item(), 3),
        "clip_cosine_wrong": round(others.nanmean().item(), 3),
        "sharpness": round(sharpness(images), 1),
        "jpeg_kb": round(float(kilobytes.mean()), 3),
        "jpeg_kb_within_sd": round(float(kilobytes.std(1, ddof=1).mean()), 3),
        "worst": {
            names[i]: round(by_caption[i].item(), 2) for i in by_caption.argsort()[:8].tolist()
        },
    }
    return result, images


@torch.no_grad()
def composed(
    pipeline: StableDiffusionPipeline, judge: Judge, sampling: Sampling
) -> tuple[dict[str, float], torch.Tensor]:
    """Returns how often subject and ground of "a cat on a green ground" are right; the pictures."""
    names, grounds = judge.captions, list(emoji_data.GROUNDS)
    colours = torch.arange(len(names)) % len(grounds)
    prompts = [
        f"{with_article(name)} on {with_article(grounds[colour])} ground"
        for name, colour in zip(names, colours.tolist(), strict=True)
    ]
    images = draw(pipeline, prompts, list(range(len(prompts))), sampling)
    subject = judge(images)[:, :-1].argmax(1) == torch.arange(len(names))
    ground = ground_colours(images) == colours
    shares = {"subject": subject, "ground": ground, "both": subject & ground}
    return {key: round(hits.float().mean().item(), 3) for key, hits in shares.items()}, images


@torch.no_grad()
def variety(
    pipeline: StableDiffusionPipeline,
    judge: Judge,
    sampling: Sampling,
    captions: list[str],
    pictures: int = 64,
) -> dict[str, dict[str, float]]:
    """Returns per caption how the JPEG size varies, and whether small files still show it."""
    table = {}
    for caption in captions:
        images = draw(pipeline, [caption] * pictures, list(range(pictures)), sampling)
        label = judge.captions.index(caption)
        hits = (judge(images).argmax(1) == label).numpy().astype(float)
        sizes = np.array([jpeg_kilobytes(image) for image in images])
        small = sizes <= np.quantile(sizes, 0.25)
        varied = hits.std() > 0
        table[caption] = {
            "mean_kb": round(float(sizes.mean()), 3),
            "sd_kb": round(float(sizes.std(ddof=1)), 3),
            "min_kb": round(float(sizes.min()), 3),
            "max_kb": round(float(sizes.max()), 3),
            "judge": round(float(hits.mean()), 3),
            "judge_smallest_quarter": round(float(hits[small].mean()), 3),
            "correlation": round(float(np.corrcoef(sizes, hits)[0, 1]), 2) if varied else 0.0,
        }
    return table


def save_grid(images: torch.Tensor, columns: int, path: Path, zoom: int = 2) -> None:
    """Writes pictures (rows, 3, H, W) in [0, 1] as one PNG."""
    rows = -(-len(images) // columns)
    size = images.shape[-1]
    canvas = torch.ones(3, rows * size, columns * size)
    for index, image in enumerate(images):
        top, left = size * (index // columns), size * (index % columns)
        canvas[:, top : top + size, left : left + size] = image
    array = (canvas.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(
        path
    )


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=path, default=ASSETS, help="folder of the models")
    parser.add_argument("--name", choices=("emoji64", "emoji"), default="emoji64")
    parser.add_argument("--lora", type=path, help="added to the model")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 10])
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=4, help="pictures per caption")
    parser.add_argument("--variety", nargs="*", default=["cat", "spider", "fish", "zebra"])
    parser.add_argument("--data", type=path, help="node_modules: also measure training pictures")
    parser.add_argument("--grid", type=path, help="gets a picture of samples")
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(
        args.assets / f"{args.name}-sd", local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    if args.lora:
        pipeline.load_lora_weights(args.lora)
    sampler = getattr(diffusers, SAMPLERS[args.sampler])
    pipeline.scheduler = sampler.from_config(pipeline.scheduler.config)
    judge = load_judge(args.assets / f"{args.name}-judge" / "judge.safetensors")
    clip = CLIPModel.from_pretrained(
        args.assets / f"{args.name}-clip", local_files_only=True
    ).eval()
    results = []
    samplings = [Sampling(steps=n, eta=args.eta, guidance=args.guidance) for n in args.steps]
    for index, sampling in enumerate(samplings):
        result, images = measure(pipeline, judge, clip, sampling, args.seeds)
        results.append(result)
        for key, value in result.items():
            sys.stdout.write(f"{key:28} {value}\n")
        sys.stdout.write("\n")
        if index == 0 and args.grid:
            save_grid(
                images.view(-1, args.seeds, *images.shape[1:])[:, :2].flatten(0, 1)[:120],
                15,
                args.grid,
            )
    table = variety(pipeline, judge, samplings[-1], args.variety)
    composition: dict[str, float] = {}
    if args.name == "emoji64":  # the other knows no grounds
        composition, images = composed(pipeline, judge, samplings[0])
        sys.stdout.write(f"on named grounds: {composition}\n")
        if args.grid:
            save_grid(images, 14, args.grid.with_stem(f"{args.grid.stem}_grounds"))
    if args.data:
        real = training_sharpness(emoji_data.load_sprites(args.data))
        sys.stdout.write(f"sharpness of training pictures: {real:.1f}\n")
    for caption, row in table.items():
        sys.stdout.write(f"{caption:10} " + "  ".join(f"{k} {v}" for k, v in row.items()) + "\n")
    sys.stdout.write(
        json.dumps({"quality": results, "composed": composition, "variety": table}) + "\n"
    )


if __name__ == "__main__":
    main()
