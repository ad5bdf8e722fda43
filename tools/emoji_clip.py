"""Trains the embedded CLIP: its cosine falls steadily as a picture shows less of its caption.

Each picture is degraded by a known amount: faded into its background, pixelated, roughened,
covered, shrunk, or emptied. So its subject has a known visibility in [0, 1]. The loss is a sigmoid
loss over all pairs of picture and caption, as in SigLIP (Zhai et al. 2023), with fixed scale and
bias:

    sigmoid(SCALE * cosine + BIAS)  should be  the visibility for the right caption,
                                               about 0 for any other

Fixed scale and bias spread the cosine: 0.1 for a wrong caption or an empty picture, 0.5 for a half
visible subject, 0.9 for a clear one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tools import emoji_data
from tools.emoji_training import Budget, TrainingRun
from tools.emoji_unet import CONTEXT_LENGTH, prompt_table
from tools.emoji_vae import to_unit

SCALE, BIAS = 10.0, -5.0
LOWEST = 0.02
CLEAR_FRACTION = 0.3  # of the training with clear pictures, before any are degraded


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Returns an untrained CLIPModel for 32 x 32 pictures."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": emoji_data.RESOLUTION,
        "patch_size": 4,
        "hidden_act": "gelu",
    }
    config = CLIPConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=64,
        logit_scale_init_value=float(np.log(SCALE)),
    )
    return CLIPModel(config)


@dataclass(frozen=True, slots=True)
class Bank:
    """Pictures, with everything needed to degrade them; each field has `rows` entries."""

    pictures: torch.Tensor  # (rows, H, W, 3) bytes
    backgrounds: torch.Tensor  # (rows, H, W, 3) bytes, the same without subjects
    captions: torch.Tensor  # (rows,) index
    sides: torch.Tensor  # (rows,) longer side of the subject as a fraction of the frame


def render_bank(sprites: dict[str, list[Image.Image]], variants: int, seed: int) -> Bank:
    """Returns `variants` pictures per caption; a third of them have subjects of any size."""
    pictures, backgrounds, captions, sides = [], [], [], []
    for index, styles in enumerate(sprites.values()):
        rng = np.random.default_rng([seed, index])
        for _ in range(variants):
            smallest = 0.15 if rng.random() < 0.35 else 0.5
            placement = emoji_data.random_placement(rng, smallest)
            background = emoji_data.draw_background(rng)
            sprite = styles[rng.integers(len(styles))]
            pictures.append(emoji_data.render(sprite, placement, background))
            backgrounds.append((255 * background.clip(0, 1)).astype(np.uint8))
            captions.append(index)
            sides.append(placement.side / emoji_data.RESOLUTION)
    return Bank(
        pictures=torch.from_numpy(np.stack(pictures)),
        backgrounds=torch.from_numpy(np.stack(backgrounds)),
        captions=torch.tensor(captions),
        sides=torch.tensor(sides),
    )


@torch.no_grad()
def reconstruct_half(pictures: torch.Tensor, vae: AutoencoderKL, seed: int) -> None:
    """Passes half of the pictures through the autoencoder, in place, as CLIP will see them."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    for rows in tqdm(order[: len(order) // 2].split(256), desc="reconstruct"):
        latents = vae.encode(to_unit(pictures[rows])).latent_dist.mean
        images = vae.decode(latents).sample.clamp(-1, 1)
        pictures[rows] = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def side_visibility(sides: torch.Tensor) -> torch.Tensor:
    """Returns the visibility of subjects by their longer side; 1 from 0.55 of the frame."""
    return ((sides - 0.1) / 0.45).clamp(0, 1) ** 0.7


def _fade(image: torch.Tensor, background: torch.Tensor, amount: float) -> torch.Tensor:
    return torch.lerp(image, background, amount)


def _pixelate(image: torch.Tensor, amount: float, mode: str) -> torch.Tensor:
    size = image.shape[-1]
    cells = max(2, round(size * 0.5 ** (4 * amount)))
    small = F.interpolate(image[None], (cells, cells), mode="area")
    return F.interpolate(small, (size, size), mode=mode)[0]


def _cover(image: torch.Tensor, patch: torch.Tensor, amount: float, side: int) -> torch.Tensor:
    size = image.shape[-1]
    covered = round(size * amount)
    area = torch.zeros(size, size, dtype=torch.bool)
    area[slice(0, covered) if side % 2 else slice(size - covered, size)] = True
    return torch.where(area if side < 2 else area.T, patch, image)


def degrade(
    images: torch.Tensor, backgrounds: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrades most of the images, each in one way, and returns how visible the subjects still are.

    Args:
        images: (rows, 3, H, W) in [0, 1].
        backgrounds: The same without subjects.
        generator: Decides the way and the amount.

    Returns:
        The degraded images, and their visibility (rows,) in [0, 1].
    """
    rows = len(images)
    visibility = torch.ones(rows)
    images = images.clone()
    kinds = torch.randint(8, (rows,), generator=generator).tolist()  # 0 and 1: unchanged
    sides = torch.randint(4, (rows,), generator=generator).tolist()
    colours = torch.rand(rows, 3, 1, 1, generator=generator)
    amounts, choices = torch.rand(2, rows, generator=generator).tolist()
    for row, (kind, amount, choice) in enumerate(zip(kinds, amounts, choices, strict=True)):
        image = images[row]
        if kind in {2, 3}:
            images[row] = _fade(image, backgrounds[row], amount)
            visibility[row] = min(1.0, ((1 - amount) / 0.7) ** 0.8)
        elif kind == 4:
            images[row] = _pixelate(image, amount, "nearest" if choice < 0.3 else "bilinear")
            visibility[row] = 1 - (amount - 0.15) / 0.5
        elif kind == 5:
            noise = torch.randn(image.shape, generator=generator)
            images[row] = image + 0.7 * amount * noise
            visibility[row] = 1.1 - amount
        elif kind == 6:
            patch = backgrounds[row - 1] if choice < 0.5 else colours[row].expand_as(image)
            images[row] = _cover(image, patch, amount, sides[row])
            visibility[row] = 1.15 - amount
        elif kind == 7 and choice < 0.4:
            images[row] = backgrounds[row]
            visibility[row] = 0.0
    brightness = 0.85 + 0.3 * torch.rand(rows, 1, 1, 1, generator=generator)
    return (images * brightness).clamp(0, 1), visibility.clamp(0, 1)


def similarity(model: CLIPModel, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Returns cosines (rows, texts) of images (rows, 3, 32, 32) in [0, 1] and token ids."""
    vision = model.vision_model(pixel_values=2 * images - 1).pooler_output
    text = model.text_model(input_ids=tokens).pooler_output
    vision = F.normalize(model.visual_projection(vision), dim=-1)
    return vision @ F.normalize(model.text_projection(text), dim=-1).T


def visibility_loss(
    cosines: torch.Tensor, captions: torch.Tensor, visibility: torch.Tensor
) -> torch.Tensor:
    """Returns the sigmoid loss over all pairs; a right pair counts eight times.

    Args:
        cosines: (rows, captions).
        captions: (rows,) index of the right caption.
        visibility: (rows,) in [0, 1].
    """
    right = F.one_hot(captions, cosines.shape[1]).float()
    targets = LOWEST + (1 - 2 * LOWEST) * right * visibility[:, None]
    logits = SCALE * cosines + BIAS
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * (1 + 7 * right)).sum(1).mean()


def choice_loss(
    cosines: torch.Tensor, captions: torch.Tensor, visibility: torch.Tensor
) -> torch.Tensor:
    """Returns the cross-entropy of the right caption, for pictures whose subject is visible.

    With the sigmoid loss alone, training answers "no caption fits" for a long time.
    """
    losses = F.cross_entropy(2 * SCALE * cosines, captions, reduction="none")
    seen = (visibility > 0.3).float()
    return (losses * seen).sum() / seen.sum().clamp(min=1)


def train_clip(
    bank: Bank, tokenizer: CLIPTokenizer, path: Path, budget: Budget, *, seed: int, batch: int
) -> CLIPModel:
    """Trains a CLIP model, first on clear, then on degraded pictures; returns averaged weights."""
    torch.manual_seed(seed)
    model = build_clip(tokenizer).train()
    table = prompt_table(tokenizer)
    run = TrainingRun(
        "clip", model, path, budget, peak=1.5e-3, seed=seed, decay=0.995, weight_decay=0.02
    )
    for generator in run:
        rows = torch.randint(len(bank.captions), (batch,), generator=generator)
        captions, visibility = bank.captions[rows], side_visibility(bank.sides[rows])
        images = to_unit(bank.pictures[rows]) / 2 + 0.5
        if run.progress > CLEAR_FRACTION:
            backgrounds = to_unit(bank.backgrounds[rows]) / 2 + 0.5
            images, still_visible = degrade(images, backgrounds, generator)
            visibility = visibility * still_visible
        phrases = torch.randint(table.shape[1], (len(table),), generator=generator)
        cosines = similarity(model, images, table[torch.arange(len(table)), phrases])
        clear = visibility > 0.9
        accuracy = (cosines.argmax(1) == captions)[clear].float().mean().item()
        loss = visibility_loss(cosines, captions, visibility)
        loss = loss + choice_loss(cosines, captions, visibility)
        run.update(loss, right=accuracy)
    model.load_state_dict(run.averaged())
    return model.eval()
