"""Pictures of a run: the front, the hypervolume curve, samples along the front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from front.labels import DPI, label_axis

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

    import torch
    from PIL.PngImagePlugin import PngInfo

    from front.member import Guard
    from front.view import FrontView
    from run.records import CurvePoint

_TILE = 72  # pixels of one picture in samples.png
_LABEL = 150  # pixels of the column of row labels
_HEADER = 18  # pixels of the row of prompts


def plot_front(
    path: Path | BinaryIO,
    front: FrontView,
    title: str = "",
) -> None:
    """Draw every pair of objectives: the front with error bars, the base model, what was trained.

    With one objective there are no pairs, and its returns are drawn instead. Guards are drawn
    below, each against the first objective, to show where a gain is over-optimisation.

    Args:
        path: the PNG file.
        front: on one evaluation set.
        title: empty for the title of a published front.
    """
    num, guards = len(front.objectives), front.guards
    pairs = [(i, j) for i in range(num) for j in range(i + 1, num)]
    rows, columns = 2 if guards else 1, max(1, len(pairs), len(guards))
    figure, axes = plt.subplots(
        rows, columns, figsize=(6.2 * columns, 5 + 3.5 * (rows - 1)), squeeze=False
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, (i, j) in zip(axes[0], pairs, strict=False):
        _plot_pair(axis, front, i, j)
    if num == 1:
        _plot_returns(axes[0, 0], front)
    for axis, guard in zip(axes[-1], guards, strict=False):
        _plot_guard(axis, front, guard)
    what = f"Pareto front of {len(front.policies)} policies" if num > 1 else front.policies[0].id
    standard = f"{what} (report set, ± 1 standard error)"
    figure.suptitle(title or standard)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _plot_pair(axis: Any, front: FrontView, i: int, j: int) -> None:
    axis.set_visible(True)
    policies = sorted(front.policies, key=lambda policy: float(policy.returns[i]))
    means = np.array([policy.returns for policy in policies])
    errors = np.array([policy.std_error for policy in policies])
    axis.errorbar(
        means[:, i],
        means[:, j],
        xerr=errors[:, i],
        yerr=errors[:, j],
        fmt="o-" if len(front.objectives) == 2 else "o",
        color="tab:blue",
        label="front",
    )
    base = front.base.returns
    axis.plot(base[i], base[j], "*", color="tab:red", markersize=14, label="base model")
    axis.margins(0.1)  # room for arrows
    span = [np.ptp(axis.get_xlim()), np.ptp(axis.get_ylim())]
    for policy, mean in zip(policies, means, strict=True):
        direction = policy.weights[[i, j]]
        tip = (mean[i] + 0.06 * span[0] * direction[0], mean[j] + 0.06 * span[1] * direction[1])
        arrow = {"arrowstyle": "->", "color": "tab:orange"}
        axis.annotate("", xy=tip, xytext=(mean[i], mean[j]), arrowprops=arrow)
    axis.plot(
        [],
        [],
        color="tab:orange",
        marker=r"$\rightarrow$",
        linestyle="none",
        markersize=14,
        label="weights that it was trained along",
    )
    label_axis(axis, "x", front.objectives[i])
    label_axis(axis, "y", front.objectives[j])
    axis.legend(loc="best")
    axis.grid(alpha=0.3)


def _plot_returns(axis: Any, front: FrontView) -> None:
    """The only objective: the base model beside what was trained."""
    axis.set_visible(True)
    shown = [(front.base, "base model", "tab:red")]
    shown += [(policy, policy.id, "tab:blue") for policy in front.policies]
    for policy, name, color in shown:
        axis.errorbar([name], policy.returns, yerr=policy.std_error, fmt="o", color=color)
    label_axis(axis, "y", front.objectives[0])
    axis.margins(x=0.5)
    axis.grid(alpha=0.3)


def _plot_guard(axis: Any, front: FrontView, guard: Guard) -> None:
    """One guard over the first objective, the base model's value and the limit below it."""
    axis.set_visible(True)
    objective = front.objectives[0]
    values = [policy.guards[guard.name] for policy in front.policies]
    axis.errorbar(
        [policy.returns[0] for policy in front.policies],
        [each.value for each in values],
        yerr=[each.std_error for each in values],
        fmt="s-",
        color="tab:green",
        label="front",
    )
    base = front.base.guards[guard.name].value
    axis.plot(front.base.returns[0], base, "*", color="tab:red", markersize=14)
    if guard.max_drop is not None:
        axis.axhline(base - guard.max_drop, linestyle="--", color="tab:red", label="limit")
    label_axis(axis, "x", objective)
    label_axis(axis, "y", guard, "guard: ")
    axis.legend(loc="best")
    axis.grid(alpha=0.3)


def plot_hypervolume(path: Path, curve: Sequence[CurvePoint], num_objectives: int) -> None:
    """Draw the archive's hypervolume (selection set, z-units) against training images.

    For one objective it is the best return above the reference point.
    """
    figure, axis = plt.subplots(figsize=(6.2, 4))
    axis.plot([point.images for point in curve], [point.hypervolume for point in curve], "o-")
    axis.set_xlabel("training images sampled")
    axis.set_ylabel("hypervolume [z-units]" if num_objectives > 1 else "best return [z-units]")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def plot_samples(
    path: Path | BinaryIO,
    prompts: Sequence[str],
    rows: Sequence[tuple[str, torch.Tensor]],
    tile_size: int = _TILE,
    text: PngInfo | None = None,
) -> None:
    """Draw the same prompts and seeds for several policies, one row each.

    Args:
        path: the PNG file.
        prompts: n column titles.
        rows: (label, images (n, 3, H, W) uint8) from the top down.
        tile_size: pixels from one picture to the next.
        text: for the file to carry, see `png_text`.
    """
    size = (_LABEL + tile_size * len(prompts), _HEADER + tile_size * len(rows))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, prompt in enumerate(prompts):
        draw.text(
            (_LABEL + column * tile_size + 3, 3), prompt[: tile_size // 6], fill="black", font=font
        )
    for row, (label, images) in enumerate(rows):
        top = _HEADER + row * tile_size
        draw.multiline_text((4, top + 6), label, fill="black", font=font)
        for column, image in enumerate(images):
            tile = Image.fromarray(image.permute(1, 2, 0).numpy())
            is_large = tile.width > tile_size
            resample = Image.Resampling.LANCZOS if is_large else Image.Resampling.NEAREST
            where = (_LABEL + column * tile_size, top)
            sheet.paste(tile.resize((tile_size - 2, tile_size - 2), resample), where)
    sheet.save(path, "PNG", pnginfo=text)
