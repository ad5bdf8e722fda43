"""A small convolutional classifier that says which caption a 64 x 64 picture shows.

The judge measures the embedded diffusion model and is used by tests. It is trained apart from the
CLIP model that serves as a reward: another architecture, other random pictures, other
augmentation, and one more answer, "nothing", for pictures without a subject.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import nn

from tools import emoji_data
from tools.emoji_training import Budget, TrainingRun, channels_last

NOTHING = len(emoji_data.CAPTIONS)


class Judge(nn.Module):
    """Four convolution stages, average pooling and a linear answer (captions + "nothing")."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for index, width in enumerate(widths):
            size = 3 if index else 5
            layers += [
                nn.Conv2d(previous, width, size, stride=2, padding=size // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            previous = width
        self.features = nn.Sequential(*layers)
        self.answer = nn.Linear(previous, NOTHING + 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits (rows, captions + 1) for images (rows, 3, 64, 64) in [0, 1]."""
        features = self.features(2 * images - 1)
        return torch.as_tensor(self.answer(features.amax((2, 3))))


def load_judge(path: Path) -> Judge:
    """Returns the trained judge, in float32 and evaluation mode."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.eval()


def _disturb(picture: emoji_data.Picture, rng: np.random.Generator) -> emoji_data.Picture:
    """Blurs, shifts in brightness, roughens or partly covers a picture, now and then."""
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
    """Returns pictures (H, W, 3) in bytes as images (rows, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def train_judge(
    sprites: dict[str, Image.Image],
    path: Path,
    budget: Budget,
    *,
    seed: int,
    variants: int = 100,
    batch: int = 64,
    device: str = "cpu",
) -> Judge:
    """Trains the judge on pictures of its own; returns its averaged weights."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    bank = emoji_data.render_bank(sprites, variants, seed, smallest=0.4)
    rows = [(row.caption, row.picture) for row in bank]
    rows += [(NOTHING, empty_picture(rng)) for _ in range(6 * variants)]
    judge = channels_last(Judge()).to(device)
    run = TrainingRun("judge", judge, path, budget, peak=4e-3, seed=seed, weight_decay=0.02)
    for generator in run:
        chosen = [rows[index] for index in torch.randint(len(rows), (batch,), generator=generator)]
        step_rng = np.random.default_rng([seed, run.step])
        images = to_images([_disturb(picture, step_rng) for _, picture in chosen])
        labels = torch.tensor([label for label, _ in chosen])
        run.update(
            F.cross_entropy(judge(images.to(device)), labels.to(device), label_smoothing=0.05)
        )
    judge.cpu().load_state_dict(run.averaged())
    return judge.eval()


@torch.no_grad()
def held_out_accuracy(
    judge: Judge, sprites: dict[str, Image.Image], seed: int, variants: int = 20
) -> float:
    """Returns how often the judge is right on new random pictures."""
    rows = list(emoji_data.render_bank(sprites, variants, seed))
    answers = judge(to_images([row.picture for row in rows])).argmax(1)
    return float((answers == torch.tensor([row.caption for row in rows])).float().mean())


def save_judge(judge: Judge, path: Path) -> None:
    """Writes the judge in float16 (whole numbers as they are)."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in judge.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
