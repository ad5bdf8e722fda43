"""Stable Diffusions with random weights: real classes and shapes, no download.

Speed does not depend on the weights. "small" is limited by the overhead of many small operations,
like a GPU with few rows. "larger" is limited by arithmetic, like a GPU with many rows.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

if TYPE_CHECKING:
    from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPT_LENGTH = 16  # tokens
_WORDS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]

# UNet channels, latent size, width of the text embeddings, attention heads
_SIZES = {"small": ((16, 32), 16, 96, 2), "larger": ((32, 64), 32, 176, 4)}
MODELS = tuple(_SIZES)


def random_pipeline(name: str) -> Any:
    """A StableDiffusionPipeline of 0.27 M ("small") or 1.06 M ("larger") UNet parameters."""
    channels, size, width, heads = _SIZES[name]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=heads,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=2 * size,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(_WORDS),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=heads,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    return StableDiffusionPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=letter_tokenizer(PROMPT_LENGTH),
        scheduler=DDIMScheduler(**sd_scheduler_settings()),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def letter_tokenizer(length: int) -> Any:
    """A CLIPTokenizer that knows letters, for prompts of `length` tokens."""
    vocabulary = {word: i for i, word in enumerate(_WORDS)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def sd_scheduler_settings() -> dict[str, Any]:
    """Stable Diffusion 1.5's noise schedule."""
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def save_random_pipeline(name: str, folder: Path) -> None:
    """Save it readable for transformers 4 too: plain tokenizer files, older weight names."""
    random_pipeline(name).save_pretrained(folder)
    weights = folder / "text_encoder" / "model.safetensors"
    named = load_file(weights)
    save_file(
        {f"text_model.{key}": value for key, value in named.items()}, weights, {"format": "pt"}
    )
    tokenizer = folder / "tokenizer"
    vocabulary = {word: i for i, word in enumerate(_WORDS)}
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tokenizer / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
