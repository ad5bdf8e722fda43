"""Trains the embedded judge of beauty (`ddpo/rewards/emoji_beauty.py`)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPModel

from ddpo.rewards.emoji_beauty import BEST, BeautyHead
from tools import emoji_data
from tools.emoji_clip import embed_images
from tools.emoji_training import Course, TrainingRun

MARGIN = 1.0


def save_beauty(head: BeautyHead, path: Path) -> None:
    """Writes the head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in head.state_dict().items()}, path)


def beauty(clip: CLIPModel, head: BeautyHead, images: torch.Tensor) -> torch.Tensor:
    """Returns scores (rows,) of images (rows, 3, H, W) in [0, 1]; gradients flow to the images.

    Args:
        clip: The embedded CLIP.
        head: of beauty.
        images: Of any size; they are resized to 64 x 64.
    """
    size = (emoji_data.RESOLUTION, emoji_data.RESOLUTION)
    if images.shape[-2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return torch.as_tensor(head(embed_images(clip, images)))


def train_beauty(embeddings: torch.Tensor, quality: torch.Tensor, course: Course) -> BeautyHead:
    """Trains the head on embeddings (rows, WIDTH) of pictures of known quality in [0, 1].

    The loss is the distance to 10 x quality, and a penalty where a worse picture of the batch does
    not score lower by a margin.
    """
    torch.manual_seed(course.seed)
    head = BeautyHead()
    run = TrainingRun("beauty", head, course, peak=2e-3, decay=0.99, weight_decay=0.02)
    for generator in run:
        rows = torch.randint(len(quality), (course.batch,), generator=generator)
        scores, wanted = head(embeddings[rows]), quality[rows]
        gap, difference = wanted - wanted.flip(0), scores - scores.flip(0)
        ranking = F.relu(MARGIN - difference)[gap > 0.25].mean()
        right = (difference > 0)[gap > 0.25].float().mean().item()
        run.update(F.smooth_l1_loss(scores, BEST * wanted) + ranking, right=right)
    head.load_state_dict(run.averaged())
    return head.eval()
