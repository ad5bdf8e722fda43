"""Trains the embedded CLIP: its cosine similarity falls steadily as a picture loses its caption.

Pictures are degraded by a known amount (`emoji_visibility`): each gets a visibility from 0 to 1.
The loss is SigLIP's sigmoid loss (Zhai et al. 2023) with fixed scale and bias, over all pairs of
picture and caption. Its target for `sigmoid(SCALE * cosine + BIAS)` is the visibility if the
caption is right, and about zero if it is not. Fixed scale and bias spread the cosine: 0.1 for a
wrong caption or an empty picture, 0.5 for a half visible subject, 0.9 for a clear one. A caption
with the wrong ground ("a cat on a green ground" for a blue one) counts as half right.

A second loss makes the image embedding tell how well made a picture is (`emoji_damage`), so that a
judge of beauty can be built on it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tools import emoji_data
from tools.emoji_bank import to_unit
from tools.emoji_text import CONTEXT_LENGTH, GROUND_TEMPLATES, ground_table, prompt_table
from tools.emoji_training import Course, TrainingRun
from tools.emoji_visibility import Bank, degrade, side_visibility

SCALE, BIAS = 10.0, -5.0
LOWEST = 0.02
CLEAR_FRACTION = 0.3  # of the training, before pictures are degraded
WRONG_GROUND = 0.5  # of the visibility
PROJECTION = 64


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Returns an untrained CLIPModel for 64 x 64 pictures."""
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
        "patch_size": 8,
        "hidden_act": "gelu",
    }
    config = CLIPConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=PROJECTION,
        logit_scale_init_value=float(np.log(SCALE)),
    )
    return CLIPModel(config)


def embed_images(model: CLIPModel, images: torch.Tensor) -> torch.Tensor:
    """Returns unit vectors (rows, PROJECTION) of images (rows, 3, 64, 64) in [0, 1]."""
    vision = model.vision_model(pixel_values=2 * images - 1).pooler_output
    return F.normalize(model.visual_projection(vision), dim=-1)


def embed_texts(model: CLIPModel, tokens: torch.Tensor) -> torch.Tensor:
    """Returns unit vectors (texts, PROJECTION) of token ids."""
    text = model.text_model(input_ids=tokens).pooler_output
    return F.normalize(model.text_projection(text), dim=-1)


def similarity(model: CLIPModel, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Returns cosines (rows, texts) of images (rows, 3, 64, 64) in [0, 1] and token ids."""
    return embed_images(model, images) @ embed_texts(model, tokens).T


def visibility_loss(
    cosines: torch.Tensor, captions: torch.Tensor, visibility: torch.Tensor
) -> torch.Tensor:
    """Returns the sigmoid loss of all pairs; a right pair counts eight times.

    Args:
        cosines: (rows, captions).
        captions: (rows,) index of the right one.
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
    """Returns the cross-entropy of the right caption where the subject can be seen.

    The sigmoid loss alone takes long to leave the answer "no caption fits".
    """
    losses = F.cross_entropy(2 * SCALE * cosines, captions, reduction="none")
    seen = (visibility > 0.3).float()
    return (losses * seen).sum() / seen.sum().clamp(min=1)


class GroundPhrases:
    """Phrases that name the ground of a picture, rightly or wrongly."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._table = ground_table(tokenizer)

    def draw(
        self, captions: torch.Tensor, grounds: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns token ids (rows, length), and how right the ground is: 1 or `WRONG_GROUND`."""
        rows, count = len(captions), self._table.shape[1]
        own = torch.rand(rows, generator=generator) < 0.5
        others = torch.randint(count, (rows,), generator=generator)
        named = torch.where(own & (grounds < count), grounds, others)
        template = torch.randint(len(GROUND_TEMPLATES), (rows,), generator=generator)
        right = torch.where(named == grounds, 1.0, WRONG_GROUND)
        return self._table[captions, named, template], right


def train_clip(bank: Bank, tokenizer: CLIPTokenizer, course: Course) -> CLIPModel:
    """Trains a CLIP model, first on clear, then on degraded pictures; returns averaged weights."""
    torch.manual_seed(course.seed)
    batch, device = course.batch, course.device
    model = build_clip(tokenizer).train()
    quality_head = nn.Sequential(nn.Linear(PROJECTION, 32), nn.GELU(), nn.Linear(32, 1))
    both = nn.ModuleList([model, quality_head]).to(device)
    table, on_ground = prompt_table(tokenizer), GroundPhrases(tokenizer)
    run = TrainingRun("clip", both, course, peak=1.5e-3, decay=0.995, weight_decay=0.02)
    for generator in run:
        rows = torch.randint(len(bank.captions), (batch,), generator=generator)
        captions, visibility = bank.captions[rows], side_visibility(bank.sides[rows])
        images = to_unit(bank.pictures[rows]) / 2 + 0.5
        if run.progress > CLEAR_FRACTION:
            backgrounds = to_unit(bank.backgrounds[rows]) / 2 + 0.5
            images, still_visible = degrade(images, backgrounds, generator)
            visibility = visibility * still_visible
        spoilt_rows = torch.randint(len(bank.quality), (batch // 3,), generator=generator)
        spoilt = to_unit(bank.spoilt[spoilt_rows]) / 2 + 0.5
        images_embedded = embed_images(model, torch.cat([images, spoilt]).to(device))
        phrases = torch.randint(table.shape[1], (len(table),), generator=generator)
        tokens, right = on_ground.draw(captions, bank.grounds[rows], generator)
        tokens = torch.cat([table[torch.arange(len(table)), phrases], tokens])
        texts = embed_texts(model, tokens.to(device))
        captions, visibility, right = (x.to(device) for x in (captions, visibility, right))
        cosines = images_embedded[:batch] @ texts[: len(table)].T
        with_ground = (images_embedded[:batch] * texts[len(table) :]).sum(1)
        clear = visibility > 0.9
        accuracy = (cosines.argmax(1) == captions)[clear].float().mean().item()
        loss = visibility_loss(cosines, captions, visibility)
        loss = loss + choice_loss(cosines, captions, visibility)
        target = LOWEST + (1 - 2 * LOWEST) * right * visibility
        logits = SCALE * with_ground + BIAS
        loss = loss + 8 * F.binary_cross_entropy_with_logits(logits, target)
        made = quality_head(images_embedded[batch:])[:, 0]
        error = F.mse_loss(made, bank.quality[spoilt_rows].to(device))
        run.update(loss + 10 * error, right=accuracy, quality=error.item())
    both.cpu().load_state_dict(run.averaged())
    return model.eval()
