"""Builds the embedded models from public emoji pictures: diffusion model, CLIP, judges.

    python -m tools.train_emoji_sd --work /tmp/emoji

The parts are trained one after another. The command may be stopped at any time; with the same
`--work` it resumes. Everything is seeded. `unet`, `decoder`, `encoder` and `judge` need nothing of
each other, so `--parts` may share them among several processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPModel

from config.settings.files import path
from ddpo.rewards.emoji_beauty import BeautyHead
from tools import (
    emoji_bank,
    emoji_beauty,
    emoji_beauty_data,
    emoji_clip,
    emoji_data,
    emoji_export,
    emoji_judge,
    emoji_text,
    emoji_unet,
    emoji_vae,
    emoji_visibility,
)
from tools.emoji_training import Course, kept_path, save_state

ASSETS = Path(__file__).resolve().parent.parent / "ddpo" / "assets"
# Number of steps and batch size of each part.
TRAININGS = {
    "decoder": (5500, 8),
    "encoder": (800, 8),
    "unet": (18_000, 32),
    "judge": (2500, 64),
    "clip": (2000, 48),
    "beauty": (2000, 256),
}
VARIANTS = 400
CLIP_VARIANTS = 100
BEAUTY_VARIANTS = 40


class Builder:
    """The parts of the embedded models; each is trained when it is first asked for.

    Args:
        work: Folder for states.
        sprites: One picture per caption.
        seed: Of everything.
        scale: Times all numbers of steps.
        device: Where the trainings compute.
    """

    def __init__(
        self, work: Path, sprites: dict[str, Image.Image], seed: int, scale: float, device: str
    ) -> None:
        self.work, self.sprites, self.seed, self.scale = work, sprites, seed, scale
        self.device = device
        self.tokenizer = emoji_text.build_tokenizer()
        self.bank = emoji_bank.load_bank(sprites, work / "bank.npz", self._few(VARIANTS), seed)
        self.components = emoji_bank.components_of(self.bank, work / "components.pt")

    def _few(self, variants: int) -> int:
        return math.ceil(min(1, self.scale) * variants)

    def _course(self, part: str, shift: int = 0) -> Course:
        """How a part is trained; its seed is the builder's, shifted."""
        steps, batch = TRAININGS[part]
        return Course(
            path=self.work / f"{part}.pt",
            steps=math.ceil(self.scale * steps),
            seed=self.seed + shift,
            batch=batch,
            device=self.device,
        )

    def vae(self, *parts: str) -> AutoencoderKL:
        """Returns the autoencoder with these parts trained: "decoder", "encoder"."""
        torch.manual_seed(self.seed)
        vae = emoji_vae.build_vae()
        given = vae, self.components, self.bank.pictures
        if "decoder" in parts:
            emoji_vae.train_decoder(*given, self._course("decoder"))
        if "encoder" in parts:
            emoji_vae.train_encoder(*given, self._course("encoder"))
        return vae.eval()

    def unet(self) -> nn.ModuleList:
        """Returns denoiser and text encoder."""
        latents = emoji_bank.encode_bank(self.bank, self.components, self.work / "latents.pt")
        unet, encoder = emoji_unet.train_unet(
            latents,
            self.bank.captions,
            self.bank.grounds,
            self.tokenizer,
            self._course("unet"),
        )
        return nn.ModuleList([unet, encoder])

    def pipeline(self, kept_step: int | None = None) -> StableDiffusionPipeline:
        """Returns the diffusion model, or what it was after a step whose weights were kept."""
        both = self.unet()
        if kept_step is not None:
            path = kept_path(self.work / "unet.pt", kept_step)
            both.load_state_dict(torch.load(path, weights_only=True))
        unet, encoder = both
        assert isinstance(unet, UNet2DConditionModel)
        return emoji_export.build_pipeline(
            vae=self.vae("decoder", "encoder"),
            unet=unet,
            text_encoder=encoder,
            tokenizer=self.tokenizer,
            scaling_factor=self.components.factor,
        )

    def judge(self) -> emoji_judge.Judge:
        """Returns the judge that says what a picture shows."""
        return emoji_judge.train_judge(self.sprites, self._course("judge", shift=1000))

    def clip(self) -> CLIPModel:
        """Returns the CLIP model."""
        path = self.work / "clip_bank.pt"
        if not path.exists():
            made = emoji_visibility.render_bank(
                self.sprites, self._few(CLIP_VARIANTS), self.seed + 2000
            )
            fields = dataclasses.fields(made)
            save_state(path, {field.name: getattr(made, field.name) for field in fields})
        bank = emoji_visibility.Bank(**torch.load(path, weights_only=True))
        return emoji_clip.train_clip(bank, self.tokenizer, self._course("clip"))

    def beauty(self) -> BeautyHead:
        """Returns the judge of beauty."""
        path = self.work / "beauty_bank.pt"
        if not path.exists():
            kept = [
                self.pipeline(step)
                for step in emoji_unet.KEPT_STEPS
                if kept_path(self.work / "unet.pt", step).exists()
            ]
            drawn = emoji_beauty_data.drawn_examples(self.pipeline(), kept, self.seed)
            made = emoji_beauty_data.made_examples(
                self.sprites, self._few(BEAUTY_VARIANTS), self.seed + 3000
            )
            clip = self.clip()
            parts = [emoji_beauty_data.embed(clip, images) for images, _ in (made, drawn)]
            qualities = torch.cat([made[1], drawn[1]])
            save_state(path, {"embeddings": torch.cat(parts), "quality": qualities})
        state = torch.load(path, weights_only=True)
        return emoji_beauty.train_beauty(
            state["embeddings"], state["quality"], self._course("beauty")
        )

    def export(self, output: Path) -> None:
        """Writes all models."""
        judge = self.judge()
        emoji_judge.save_judge(judge, output / "emoji64-judge" / "judge.safetensors")
        emoji_beauty.save_beauty(self.beauty(), output / "emoji64-beauty" / "head.safetensors")
        emoji_export.save_clip(output / "emoji64-clip", self.clip(), self.tokenizer)
        emoji_export.save_pipeline(output / "emoji64-sd", self.pipeline())
        emoji_export.save_prompts(output / "prompts")
        accuracy = emoji_judge.held_out_accuracy(judge, self.sprites, self.seed + 1001)
        sys.stdout.write(f"judge: right on {accuracy:.1%} of new pictures\n")


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
    parser.add_argument("--device", default="cpu", help="where the trainings compute")
    parser.add_argument("--threads", type=int, help="CPU threads [all]")
    parser.add_argument(
        "--parts", nargs="+", choices=TRAININGS, help="train only these, write no models"
    )
    return parser.parse_args()


def main() -> None:
    """Trains what is not trained yet and writes the models."""
    arguments = parse_arguments()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    sprites = emoji_data.load_sprites(arguments.data or emoji_data.install_packages(work / "npm"))
    builder = Builder(work, sprites, arguments.seed, arguments.scale, arguments.device)
    for part in arguments.parts or ():
        builder.vae(part) if part in {"decoder", "encoder"} else getattr(builder, part)()
    if not arguments.parts:
        builder.export(arguments.output)


if __name__ == "__main__":
    main()
