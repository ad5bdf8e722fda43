"""Writes the embedded models in the formats of diffusers and transformers, float16."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tools import emoji_data, emoji_names, emoji_unet, older_transformers

PROMPTS = {
    "emoji_animals": emoji_names.TRAIN_CAPTIONS,
    "emoji_report": emoji_names.REPORT_CAPTIONS,
    "emoji_things": emoji_names.OTHER_CAPTIONS,
}


def _store_as_float32(config: Path) -> None:
    """Makes transformers load a model in float32 although it is stored in float16."""
    settings = json.loads(config.read_text())
    settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n")


def build_pipeline(
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scaling_factor: float,
) -> StableDiffusionPipeline:
    """Returns a complete pipeline.

    Args:
        vae: Autoencoder.
        unet: Denoiser.
        text_encoder: Text encoder trained with the denoiser.
        tokenizer: Its tokenizer.
        scaling_factor: Brings latents to unit standard deviation.
    """
    vae.register_to_config(scaling_factor=scaling_factor)
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=emoji_unet.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(folder: Path, pipeline: StableDiffusionPipeline) -> None:
    """Writes a pipeline; weights are stored in float16 and load as float32."""
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        module.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    _store_as_float32(folder / "text_encoder" / "config.json")
    older_transformers.adapt(folder)


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


def save_prompts(folder: Path) -> None:
    """Writes the lists of captions, one per line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, captions in PROMPTS.items():
        (folder / f"{name}.txt").write_text("\n".join(captions) + "\n")
