"""A small convolutional classifier that says which caption a picture shows.

The judge measures the embedded diffusion model and is used by tests. It is independent of the CLIP
model that serves as a reward: it has another architecture, other random pictures and other
augmentation. It has one more answer, "nothing", for pictures without a subject.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import nn

from ddpo.assets import ASSETS
from tools import emoji_data
from tools.emoji_training import Course, TrainingRun, channels_last

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING = len(emoji_data.CAPTIONS)


class Judge(nn.Module):
    """Four convolution stages, pooling and a linear answer (captions + "nothing").

    Args:
        resolution: 64 pixels; or 32, as the model `emoji-sd` draws: its first stage halves nothing.
        captions: How many it knows.
    """

    WIDTHS = (32, 64, 96, 128)

    def __init__(self, resolution: int = 64, captions: int = NOTHING) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous, size, stride = 3, *((5, 2) if resolution == 64 else (3, 1))
        for width in self.WIDTHS:
            layers += [
                nn.Conv2d(previous, width, size, stride=stride, padding=size // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            previous, size, stride = width, 3, 2
        self.features = nn.Sequential(*layers)
        self.answer = nn.Linear(previous, captions + 1)

    @property
    def captions(self) -> list[str]:
        """The captions that it knows, in the order of its answers; the last answer is "nothing"."""
        return list(emoji_data.CAPTIONS)[: self.answer.out_features - 1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits (rows, captions + 1) for images (rows, 3, H, W) in [0, 1]."""
        features = self.features(2 * images - 1)
        return torch.as_tensor(self.answer(features.amax((2, 3))))


def load_judge(path: Path) -> Judge:
    """Returns the trained judge, in float32 and evaluation mode."""
    state = {name: value.float() for name, value in load_file(path).items()}
    resolution = 64 if state["features.0.weight"].shape[-1] == 5 else 32
    judge = Judge(resolution, captions=len(state["answer.bias"]) - 1)
    judge.load_state_dict(state)
    return judge.eval()


@torch.no_grad()
def subjects_found(images: torch.Tensor, prompts: Sequence[str]) -> float:
    """Share of pictures whose most likely caption is their prompt, by the judge that ships.

    Args:
        images: (n, 3, 64, 64) or (n, 3, 32, 32) uint8.
        prompts: one for each, all of them captions of the embedded model.
    """
    captions = list(emoji_data.CAPTIONS)
    wanted = torch.tensor([captions.index(prompt) for prompt in prompts])
    answers = _shipped_judge(images.shape[-1])(images.float() / 255).argmax(dim=1)
    return float((answers == wanted).float().mean())


@lru_cache
def _shipped_judge(resolution: int) -> Judge:
    name = "emoji64-judge" if resolution == 64 else "emoji-judge"
    return load_judge(ASSETS / name / "judge.safetensors")


def _disturb(picture: emoji_data.Picture, rng: np.random.Generator) -> emoji_data.Picture:
    """Sometimes blurs, roughens or partly covers a picture; always changes its brightness."""
    if rng.random() < 0.5:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.4, 2.0))
        picture = np.asarray(Image.fromarray(picture).filter(blur))
    values: npt.NDArray[np.float64] = picture.astype(np.float64)
    if rng.random() < 0.3:
        values += rng.normal(0, rng.uniform(2, 16), values.shape)
    if rng.random() < 0.2:
        top, left = rng.integers(0, emoji_data.RESOLUTION - 16, 2)
        height, width = rng.integers(8, 22, 2)
        values[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    contrast = rng.uniform(0.75, 1.15)
    values = 128 + contrast * (values - 128) + rng.uniform(-15, 15)
    return np.asarray(values.clip(0, 255), np.uint8)


def empty_picture(rng: np.random.Generator) -> emoji_data.Picture:
    """Returns a picture without a subject: a background, or noise, or colour patches."""
    background = emoji_data.draw_background(rng)
    kind = rng.integers(3)
    if kind == 1:
        cells = int(rng.choice([3, 4, 6, 8]))
        patches = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        size = (emoji_data.RESOLUTION, emoji_data.RESOLUTION)
        patches = patches.resize(size, Image.Resampling.BICUBIC)
        colours: emoji_data.Floats = np.asarray(patches, np.float32) / np.float32(255)
        background = np.float32(0.5) * (background + colours)
    elif kind == 2:
        background = background + rng.normal(0, 0.15, background.shape).astype(np.float32)
    return np.asarray(255 * background.clip(0, 1), np.uint8)


def to_images(pictures: list[emoji_data.Picture]) -> torch.Tensor:
    """Turns pictures (H, W, 3) in bytes into images (rows, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def train_judge(sprites: dict[str, Image.Image], course: Course, *, variants: int = 100) -> Judge:
    """Trains the judge on its own pictures; returns it with averaged weights."""
    torch.manual_seed(course.seed)
    rng = np.random.default_rng(course.seed)
    bank = emoji_data.render_bank(sprites, variants, course.seed, smallest=0.4)
    rows = [(row.caption, row.picture) for row in bank]
    rows += [(NOTHING, empty_picture(rng)) for _ in range(6 * variants)]
    judge = channels_last(Judge()).to(course.device)
    run = TrainingRun("judge", judge, course, peak=4e-3, weight_decay=0.02)
    for generator in run:
        chosen = torch.randint(len(rows), (course.batch,), generator=generator)
        step_rng = np.random.default_rng([course.seed, run.step])
        labels, pictures = zip(*(rows[index] for index in chosen), strict=True)
        images = to_images([_disturb(picture, step_rng) for picture in pictures])
        answers = judge(images.to(course.device))
        right = torch.tensor(labels, device=course.device)
        run.update(F.cross_entropy(answers, right, label_smoothing=0.05))
    judge.cpu().load_state_dict(run.averaged())
    return judge.eval()


@torch.no_grad()
def held_out_accuracy(
    judge: Judge, sprites: dict[str, Image.Image], seed: int, variants: int = 20
) -> float:
    """Returns the share of new random pictures on which the judge is right."""
    rows = list(emoji_data.render_bank(sprites, variants, seed))
    answers = judge(to_images([row.picture for row in rows])).argmax(1)
    return float((answers == torch.tensor([row.caption for row in rows])).float().mean())


def save_judge(judge: Judge, path: Path) -> None:
    """Writes the judge in float16; integers stay as they are."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in judge.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
