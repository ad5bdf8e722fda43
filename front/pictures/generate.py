"""The `generate` command: files and a sheet of what a `Painter` draws."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Any

from PIL import Image

from ddpo.files import check_writable
from front.errors import FrontError
from front.pictures.painter import Painter
from front.pictures.parameters import describe, png_text, sampler_of
from front.pictures.plots import plot_samples
from run.progress import named_bar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from front.front import Front
    from front.member import Blend, FrontPolicy

_SMALLEST_TILE, _LARGEST_TILE = 96, 256  # pixels of a picture on the sheet


def draw_beside_base(
    front: Front,
    member: FrontPolicy | Blend,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    model: str = "",
    device: str = "",
    rows_per_pass: int = 0,
    **changes: Any,
) -> Path:
    """Draw every prompt with every seed, by the base model and by a member of the front.

    Args:
        front: of the run.
        member: policy or blend.
        prompts: what to draw; one given twice is drawn once.
        seeds: the same for every prompt, one after the other.
        out: folder for `<policy>_<prompt>_<seed>.png` and the sheet; made if absent. Files of
            different pictures have different names, with `changes` as well, so only the same
            picture is replaced.
        model: where the base model is now.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.
        changes: to the run's sampler settings, see `Painter.draw`.

    Returns:
        The sheet's path.

    Raises:
        UserError: if the model, the adapter or the folder cannot be used.
    """
    try:
        check_writable(out)
    except OSError as error:
        raise FrontError(f"{out} cannot be written to: {error}") from error
    painter = Painter(front, model, device, rows_per_pass)
    prompts = list(dict.fromkeys(prompts))
    texts = [prompt for prompt in prompts for _ in seeds]
    keys = [seed for _ in prompts for seed in seeds]
    rows = []
    with named_bar("drawing", 2 * len(texts)) as bar:
        for label, drawn in (("base model", None), (member.id, member)):
            images = painter.draw(drawn, texts, keys, on_batch=bar.update, **changes)
            rows.append((label.replace("-", "\n") if len(label) > 20 else label, images))
    settings, sampler = sorted(changes.items()), sampler_of(front, **changes)
    files = [f"{_slug(prompt, *settings)}_{seed}.png" for prompt in prompts for seed in seeds]
    try:
        for name, (_, images) in zip(("base", member.id), rows, strict=True):
            drawer = None if name == "base" else member
            for file, image, text, key in zip(files, images, texts, keys, strict=True):
                picture = describe(to_picture(image), front, drawer, text, key, sampler)
                picture.save(out / f"{name}_{file}", pnginfo=png_text(picture))
        size = max(_SMALLEST_TILE, min(_LARGEST_TILE, images.shape[-1]))
        what = _slug(*prompts, *settings)
        sheet = out / f"sheet_{member.id}_{what}_{seeds[0]}-{seeds[-1]}.png"
        plot_samples(sheet, texts, rows, size, png_text(picture))
    except OSError as error:
        raise FrontError(f"{out} cannot be written to: {error}") from error
    return sheet


def to_picture(image: torch.Tensor) -> Image.Image:
    """A picture from (3, H, W) uint8."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _slug(prompt: str, *rest: object) -> str:
    """A prompt as part of a file name; a digest stands for what is lost of it, and for the rest."""
    slug = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:32] or "empty"
    try:
        os.fsencode(slug)
    except UnicodeEncodeError:  # where the system claims to know ASCII only
        slug = slug.encode("ascii", errors="ignore").decode().strip("-") or "empty"
    if slug == prompt and not rest:
        return slug
    return f"{slug}-{hashlib.sha256(repr((prompt, *rest)).encode()).hexdigest()[:8]}"
