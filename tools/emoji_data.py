"""Emoji pictures with captions, drawn at random sizes and places on random backgrounds.

Three public npm packages give three drawing styles of the same animals. A *sprite* is one such
picture, cropped to its subject; `render` places a sprite on a background. Pictures vary on purpose:
a model trained on one fixed picture per caption leaves reinforcement learning nothing to explore.
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

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

RESOLUTION = 32

# Pinned versions, installed by `npm install` when no data directory is given.
PACKAGES = {
    "emoji-datasource-twitter": "16.0.0",
    "emoji-datasource-google": "16.0.0",
    "@lobehub/fluent-emoji-3d": "1.1.0",
}

# Folder below `node_modules` and file ending of each drawing style.
STYLES = {
    "twemoji": ("emoji-datasource-twitter/img/twitter/64", ".png"),
    "noto": ("emoji-datasource-google/img/google/64", ".png"),
    "fluent": ("@lobehub/fluent-emoji-3d/assets", ".webp"),
}

# DDPO's `simple_animals` that have an emoji; the face if there is one, as it is clearer at 32 px.
TRAIN_CAPTIONS = {
    "cat": "1f431",
    "dog": "1f436",
    "horse": "1f434",
    "monkey": "1f435",
    "rabbit": "1f430",
    "zebra": "1f993",
    "spider": "1f577-fe0f",
    "bird": "1f426",
    "sheep": "1f411",
    "deer": "1f98c",
    "cow": "1f42e",
    "goat": "1f410",
    "lion": "1f981",
    "tiger": "1f42f",
    "bear": "1f43b",
    "raccoon": "1f99d",
    "fox": "1f98a",
    "wolf": "1f43a",
    "lizard": "1f98e",
    "beetle": "1fab2",
    "ant": "1f41c",
    "butterfly": "1f98b",
    "fish": "1f41f",
    "shark": "1f988",
    "whale": "1f433",
    "dolphin": "1f42c",
    "squirrel": "1f43f-fe0f",
    "mouse": "1f42d",
    "rat": "1f400",
    "snake": "1f40d",
    "turtle": "1f422",
    "frog": "1f438",
    "chicken": "1f414",
    "duck": "1f986",
    "goose": "1fabf",
    "bee": "1f41d",
    "pig": "1f437",
    "turkey": "1f983",
    "fly": "1fab0",
    "llama": "1f999",
    "camel": "1f42b",
    "bat": "1f987",
    "gorilla": "1f98d",
    "hedgehog": "1f994",
    "kangaroo": "1f998",
}

# Further captions that the model knows; the default prompt set leaves them for the report.
REPORT_CAPTIONS = {
    "elephant": "1f418",
    "panda": "1f43c",
    "penguin": "1f427",
    "koala": "1f428",
    "octopus": "1f419",
    "owl": "1f989",
    "crab": "1f980",
    "snail": "1f40c",
    "giraffe": "1f992",
    "unicorn": "1f984",
    "parrot": "1f99c",
    "flamingo": "1f9a9",
    "hamster": "1f439",
    "sloth": "1f9a5",
    "crocodile": "1f40a",
    "ladybug": "1f41e",
}

CAPTIONS = TRAIN_CAPTIONS | REPORT_CAPTIONS


def install_packages(cache: Path) -> Path:
    """Installs the pinned npm packages below `cache` (once) and returns their `node_modules`."""
    modules = cache / "node_modules"
    if all((modules / folder).is_dir() for folder, _ in STYLES.values()):
        return modules
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "the emoji pictures come from npm packages and `npm` was not found; install Node.js, "
            "or pass --data with a node_modules folder holding " + ", ".join(PACKAGES)
        )
    cache.mkdir(parents=True, exist_ok=True)
    specs = [f"{name}@{version}" for name, version in PACKAGES.items()]
    subprocess.run([npm, "install", "--ignore-scripts", "--prefix", str(cache), *specs], check=True)
    return modules


def load_sprites(modules: Path) -> dict[str, list[Image.Image]]:
    """Returns caption -> one RGBA picture per drawing style, cropped to its subject.

    Args:
        modules: A `node_modules` folder with the packages of `PACKAGES`.

    Raises:
        FileNotFoundError: Fewer than two styles have a picture for some caption.
    """
    sprites: dict[str, list[Image.Image]] = {}
    for caption, code in CAPTIONS.items():
        found = []
        for folder, suffix in STYLES.values():
            names = (code, code.removesuffix("-fe0f"))
            paths = [modules / folder / f"{name}{suffix}" for name in names]
            path = next((path for path in paths if path.is_file()), None)
            if path is not None:
                picture = Image.open(path).convert("RGBA")
                solid = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 24))
                found.append(picture.crop(solid.getbbox()))
        if len(found) < 2:
            raise FileNotFoundError(f"caption {caption!r} ({code}) has fewer than two pictures")
        sprites[caption] = found
    return sprites


def _random_colour(rng: np.random.Generator) -> Floats:
    """Returns an RGB colour in [0, 1], light more often than dark."""
    hue, saturation = rng.random(), rng.beta(1.2, 1.6)
    value = 1 - 0.75 * rng.beta(1.0, 1.8)
    channel = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    shade = np.clip(np.minimum(channel, 4 - channel), 0, 1)
    return np.asarray(value * (1 - saturation * shade), np.float32)


def draw_background(rng: np.random.Generator, size: int = RESOLUTION) -> Floats:
    """Returns a background (size, size, 3) in [0, 1]: plain, gradient, striped or textured."""
    kind = rng.choice(4, p=[0.37, 0.23, 0.2, 0.2])
    first = _random_colour(rng)
    if kind == 0:
        return np.full((size, size, 3), first, np.float32)
    second = _random_colour(rng)
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:size, 0:size] / (size - 1)
    along = (rows - 0.5) * np.sin(angle) + (columns - 0.5) * np.cos(angle)
    if kind == 1:
        mix = np.clip(along + 0.5, 0, 1)
    elif kind == 2:
        second = first + rng.uniform(0.2, 0.7) * (second - first)
        mix = 0.5 + 0.5 * np.clip(
            3 * np.sin(2 * np.pi * (rng.uniform(2, 5) * along + rng.random())), -1, 1
        )
    else:
        second = first + rng.uniform(0.2, 0.6) * (second - first)
        cells = int(rng.choice([4, 8, 16]))
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), np.uint8))
        mix = np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR)) / 255.0
    return np.asarray(first + mix[..., None] * (second - first), np.float32)


@dataclass(frozen=True, slots=True)
class Placement:
    """How a sprite is drawn: longer side in pixels, corner (0 to 1), mirror, hue, brightness."""

    side: int
    left: float
    top: float
    mirror: bool
    hue: float
    brightness: float


def random_placement(rng: np.random.Generator, smallest: float = 0.55) -> Placement:
    """Returns a random placement; the longer side is `smallest` to 1 of the frame."""
    return Placement(
        side=round(RESOLUTION * rng.uniform(smallest, 1.0)),
        left=rng.random(),
        top=rng.random(),
        mirror=bool(rng.random() < 0.5),
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


def render_random(
    sprites: list[Image.Image], rng: np.random.Generator, smallest: float = 0.55
) -> Picture:
    """Returns one random picture of a caption: style, size, place, colours and background."""
    sprite = sprites[rng.integers(len(sprites))]
    return render(sprite, random_placement(rng, smallest), draw_background(rng))


def render_bank(
    sprites: dict[str, list[Image.Image]], variants: int, seed: int, smallest: float = 0.55
) -> Iterator[tuple[int, Picture]]:
    """Yields (caption index, picture), caption by caption, with `variants` per caption."""
    for index, pictures in enumerate(sprites.values()):
        rng = np.random.default_rng([seed, index])
        for _ in range(variants):
            yield index, render_random(pictures, rng, smallest)
