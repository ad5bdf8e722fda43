"""Emoji pictures with captions, drawn at random sizes and places on random backgrounds.

A public npm package gives one drawing of each subject, shaded and with soft edges. A *sprite* is
such a drawing, cropped to its subject; `render` places a sprite on a background. Variety is the
point: a model trained on one fixed picture per caption leaves reinforcement learning nothing to
explore. Half of the backgrounds have a colour with a name, so that captions can ask for it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tools.emoji_names import CAPTIONS, GROUNDS, REPORT_CAPTIONS, TRAIN_CAPTIONS

__all__ = ["CAPTIONS", "GROUNDS", "REPORT_CAPTIONS", "TRAIN_CAPTIONS"]

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

RESOLUTION = 64
NO_GROUND = len(GROUNDS)  # the background's colour has no name
NAMED_FRACTION = 0.5

# Pinned version, installed by `npm install` when no data directory is given.
PACKAGE, VERSION = "@lobehub/fluent-emoji-3d", "1.1.0"
FOLDER = f"{PACKAGE}/assets"


def install_packages(cache: Path) -> Path:
    """Installs the pinned npm package below `cache` (once) and returns its `node_modules`."""
    modules = cache / "node_modules"
    if (modules / FOLDER).is_dir():
        return modules
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "the emoji pictures come from an npm package and `npm` was not found; install "
            f"Node.js, or pass --data with a node_modules folder that holds {PACKAGE}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--ignore-scripts", "--prefix", str(cache), f"{PACKAGE}@{VERSION}"]
    subprocess.run(command, check=True)
    return modules


def load_sprites(modules: Path) -> dict[str, Image.Image]:
    """Returns one RGBA picture per caption, cropped to its subject.

    Args:
        modules: A `node_modules` folder with the package `PACKAGE`.

    Raises:
        FileNotFoundError: Some caption has no picture.
    """
    sprites: dict[str, Image.Image] = {}
    for caption, code in CAPTIONS.items():
        names = (code, code.removesuffix("-fe0f"), f"{code}-fe0f")
        paths = [modules / FOLDER / f"{name}.webp" for name in names]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"caption {caption!r} has no picture {paths[0]}")
        picture = Image.open(path).convert("RGBA")
        solid = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 24))
        sprites[caption] = picture.crop(solid.getbbox())
    return sprites


def _random_colour(rng: np.random.Generator) -> Floats:
    """Returns an RGB colour in [0, 1], light more often than dark."""
    hue, saturation = rng.random(), rng.beta(1.2, 1.6)
    value = 1 - 0.75 * rng.beta(1.0, 1.8)
    channel = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    shade = np.clip(np.minimum(channel, 4 - channel), 0, 1)
    return np.asarray(value * (1 - saturation * shade), np.float32)


def _blend(first: Floats, second: Floats, kind: str, rng: np.random.Generator, size: int) -> Floats:
    """Returns (size, size, 3), a mixture of two colours that varies with the place."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:size, 0:size] / (size - 1)
    along = (rows - 0.5) * np.sin(angle) + (columns - 0.5) * np.cos(angle)
    if kind == "gradient":
        mix = np.clip(along + 0.5, 0, 1)
    elif kind == "stripes":
        mix = 0.5 + 0.5 * np.clip(
            3 * np.sin(2 * np.pi * (rng.uniform(1.5, 4) * along + rng.random())), -1, 1
        )
    else:
        cells = int(rng.choice([3, 5, 8]))
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), np.uint8))
        mix = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) / 255.0
    return np.asarray(first + mix[..., None] * (second - first), np.float32)


def draw_background(
    rng: np.random.Generator, size: int = RESOLUTION, ground: int = NO_GROUND
) -> Floats:
    """Returns a background (size, size, 3) in [0, 1]: plain, gradient, striped or textured.

    Args:
        rng: Decides what it looks like.
        size: Its side in pixels.
        ground: Index of a named colour; without one any colours may be.
    """
    if ground < NO_GROUND:
        colour = np.array(list(GROUNDS.values())[ground], np.float32)
        first = (colour + rng.normal(0, 0.03, 3) + rng.normal(0, 0.03)).astype(np.float32)
        if rng.random() < 0.6:
            return np.full((size, size, 3), first.clip(0, 1), np.float32)
        second = first * np.float32(rng.uniform(0.7, 0.9))
        return _blend(first.clip(0, 1), second.clip(0, 1), "gradient", rng, size)
    kind = rng.choice(4, p=[0.4, 0.36, 0.08, 0.16])
    first, second = _random_colour(rng), _random_colour(rng)
    if kind == 0:
        return np.full((size, size, 3), first, np.float32)
    if kind == 1:
        return _blend(first, second, "gradient", rng, size)
    second = first + np.float32(rng.uniform(0.2, 0.6)) * (second - first)
    return _blend(first, second, "stripes" if kind == 2 else "spots", rng, size)


def random_ground(rng: np.random.Generator) -> int:
    """Returns the index of a named ground, or `NO_GROUND` half of the time."""
    return int(rng.integers(len(GROUNDS))) if rng.random() < NAMED_FRACTION else NO_GROUND


@dataclass(frozen=True, slots=True)
class Placement:
    """How a sprite is drawn: longer side in pixels, corner (0 to 1), mirror, hue, brightness."""

    side: int
    left: float
    top: float
    mirror: bool
    hue: float
    brightness: float


def random_placement(
    rng: np.random.Generator, smallest: float = 0.6, mirrored: float = 0.0
) -> Placement:
    """Returns a random placement; the longer side is `smallest` to 1 of the frame.

    Places near the centre are likelier: a small model takes long to learn scattered subjects.
    """
    return Placement(
        side=round(RESOLUTION * rng.uniform(smallest, 1.0)),
        left=rng.beta(2, 2),
        top=rng.beta(2, 2),
        mirror=bool(rng.random() < mirrored),
        hue=rng.uniform(-0.2, 0.2),
        brightness=rng.uniform(0.85, 1.1),
    )


def _rotate_hue(colours: Floats, angle: float) -> Floats:
    """Rotates RGB colours (..., 3) about the grey axis by `angle` radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    third, root = (1 - cosine) / 3, sine / np.sqrt(3)
    circulant = np.array(
        [
            [cosine + third, third - root, third + root],
            [third + root, cosine + third, third - root],
            [third - root, third + root, cosine + third],
        ],
        np.float32,
    )
    return np.asarray(colours @ circulant.T, np.float32)


def render(sprite: Image.Image, placement: Placement, background: Floats) -> Picture:
    """Returns `sprite` drawn on `background` as (size, size, 3) bytes.

    Args:
        sprite: RGBA, cropped to its subject.
        placement: Size, place and colour change.
        background: (size, size, 3) in [0, 1].
    """
    size = background.shape[0]
    scale = placement.side / max(sprite.size)
    width, height = (max(1, round(scale * length)) for length in sprite.size)
    resized = sprite.resize((width, height), Image.Resampling.LANCZOS)
    small: Floats = np.asarray(resized, np.float32) / np.float32(255)
    if placement.mirror:
        small = small[:, ::-1]
    colours: Floats = np.clip(
        _rotate_hue(small[..., :3], placement.hue) * placement.brightness, 0, 1
    )
    alpha = small[..., 3:]
    top = round(placement.top * (size - height))
    left = round(placement.left * (size - width))
    canvas = background.copy()
    window = canvas[top : top + height, left : left + width]
    window[:] = alpha * colours + (1 - alpha) * window
    return np.asarray(np.round(255 * np.clip(canvas, 0, 1)), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A picture with the indices of its caption and of its ground's colour."""

    picture: Picture
    caption: int
    ground: int


def render_bank(
    sprites: dict[str, Image.Image], variants: int, seed: int, smallest: float = 0.6
) -> Iterator[Example]:
    """Yields random pictures, `variants` of each caption, caption by caption."""
    for index, sprite in enumerate(sprites.values()):
        rng = np.random.default_rng([seed, index])
        for _ in range(variants):
            ground = random_ground(rng)
            placement = random_placement(rng, smallest)
            background = draw_background(rng, ground=ground)
            yield Example(render(sprite, placement, background), index, ground)
