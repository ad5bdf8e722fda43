"""Builds the embedded models from public emoji pictures: diffusion model, CLIP, judge.

    python -m tools.train_emoji_sd --work /tmp/emoji

The parts are trained one after another. The command may be stopped at any time; with the same
`--work` it resumes. Everything is seeded.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tqdm import tqdm
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from config.settings.files import path
from tools import emoji_clip, emoji_data, emoji_judge, emoji_unet, emoji_vae, older_transformers
from tools.emoji_training import Budget

ASSETS = Path(__file__).resolve().parent.parent / "ddpo" / "assets"


# Number of steps and batch size of each part: about two hours on two cores.
VAE_STEPS, VAE_BATCH, VAE_GUIDED_STEPS = 5000, 8, 600
DECODER_STEPS, DECODER_BATCH = 5000, 16
UNET_STEPS, UNET_BATCH = 12_000, 64
CLIP_STEPS, CLIP_BATCH = 6000, 64
JUDGE_STEPS = 2500
VARIANTS = 500
CLIP_VARIANTS = 200


def load_bank(
    sprites: dict[str, list[Image.Image]], path: Path, variants: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns random pictures (rows, H, W, 3) in bytes and caption indices, kept in `path`."""
    if not path.exists():
        bank = emoji_data.render_bank(sprites, variants, seed)
        rows = list(tqdm(bank, total=len(sprites) * variants, desc="render"))
        np.savez(
            path,
            captions=np.array([caption for caption, _ in rows]),
            pictures=np.stack([picture for _, picture in rows]),
        )
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["pictures"]), torch.from_numpy(arrays["captions"])


def _store_as_float32(config: Path) -> None:
    """Makes transformers load a model in float32 although it is stored in float16."""
    settings = json.loads(config.read_text())
    settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n")


def save_pipeline(
    folder: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scaling_factor: float,
) -> None:
    """Writes a complete pipeline; weights are stored in float16 and load as float32.

    Args:
        folder: Gets the pipeline.
        vae: Autoencoder.
        unet: Denoiser.
        text_encoder: Text encoder trained with the denoiser.
        tokenizer: Its tokenizer.
        scaling_factor: Brings latents to unit standard deviation.
    """
    vae.register_to_config(scaling_factor=scaling_factor)
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=emoji_unet.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    older_transformers.adapt(folder)
    _store_as_float32(folder / "text_encoder" / "config.json")


def save_clip(folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Writes a CLIP model with its processor (the variant that needs no torchvision)."""
    size = emoji_data.RESOLUTION
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    model.half().save_pretrained(folder, safe_serialization=True)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    _store_as_float32(folder / "config.json")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=path, required=True, help="folder for states; resumed from")
    parser.add_argument("--data", type=path, help="node_modules with the pictures [npm install]")
    parser.add_argument("--output", type=path, default=ASSETS, help="where the models go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="times all numbers of steps")
    parser.add_argument("--threads", type=int, help="CPU threads [all]")
    return parser.parse_args()


def main() -> None:
    """Trains the parts that are not trained yet and writes the models."""
    arguments = parse_arguments()
    work, output, seed = arguments.work, arguments.output, arguments.seed
    work.mkdir(parents=True, exist_ok=True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)

    def budget(steps: int) -> Budget:
        return Budget(math.ceil(arguments.scale * steps))

    sprites = emoji_data.load_sprites(arguments.data or emoji_data.install_packages(work / "npm"))
    pictures, captions = load_bank(
        sprites, work / "bank.npz", math.ceil(min(1, arguments.scale) * VARIANTS), seed
    )
    vae = emoji_vae.train_vae(
        pictures, work / "vae.pt", budget(VAE_STEPS), seed, VAE_BATCH, VAE_GUIDED_STEPS
    )
    latents = emoji_vae.encode_bank(vae, pictures, work / "latents.pt")
    emoji_vae.train_decoder(
        vae, latents, pictures, work / "decoder.pt", budget(DECODER_STEPS), seed, DECODER_BATCH
    )
    tokenizer = emoji_unet.build_tokenizer()
    factor = 1 / latents.std().item()
    unet, text_encoder = emoji_unet.train_unet(
        factor * latents,
        captions,
        tokenizer,
        work / "unet.pt",
        budget(UNET_STEPS),
        seed=seed,
        batch=UNET_BATCH,
    )
    bank = emoji_clip.render_bank(
        sprites, math.ceil(min(1, arguments.scale) * CLIP_VARIANTS), seed + 2000
    )
    emoji_clip.reconstruct_half(bank.pictures, vae, seed)
    clip = emoji_clip.train_clip(
        bank, tokenizer, work / "clip.pt", budget(CLIP_STEPS), seed=seed, batch=CLIP_BATCH
    )
    judge = emoji_judge.train_judge(
        sprites, work / "judge.pt", budget(JUDGE_STEPS), seed=seed + 1000
    )
    save_pipeline(
        output / "emoji-sd",
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scaling_factor=factor,
    )
    save_clip(output / "emoji-clip", clip, tokenizer)
    emoji_judge.save_judge(judge, output / "emoji-judge" / "judge.safetensors")
    accuracy = emoji_judge.held_out_accuracy(judge, sprites, seed + 1001)
    sys.stdout.write(f"judge: right on {accuracy:.1%} of new pictures\n")
    prompts = output / "prompts"
    prompts.mkdir(parents=True, exist_ok=True)
    (prompts / "emoji_animals.txt").write_text("\n".join(emoji_data.TRAIN_CAPTIONS) + "\n")
    (prompts / "emoji_report.txt").write_text("\n".join(emoji_data.REPORT_CAPTIONS) + "\n")


if __name__ == "__main__":
    main()
