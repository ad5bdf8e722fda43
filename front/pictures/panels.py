"""Panels for trackers, besides metrics: the front, sample pictures and a table of returns."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from front.pictures.plots import plot_front, plot_samples
from front.record import FrontRecord
from front.tables import markdown_table, with_error
from front.view import FrontView
from morl.types import BASE_POLICY
from run.records import SearchRecord
from run.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from morl.types import PolicyId
    from run.records import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Images and one table, under metric names such as `morl/front`.

    Attributes:
        images: name -> (H, W, 3) uint8.
        table: its name.
        header: names of the table's columns.
        rows: cells, as text.
    """

    images: Mapping[str, NDArray[np.uint8]]
    table: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def send(self, tracker: Any, step: int) -> None:
        """Show it in one of accelerate's trackers.

        Args:
            tracker: wandb's or tensorboard's.
            step: training images sampled so far.
        """
        batches = {name: image[None] for name, image in self.images.items()}
        if tracker.name == "tensorboard":  # which knows no tables
            tracker.log_images(batches, step=step, dataformats="NHWC")
            tracker.log({self.table: markdown_table(self.header, self.rows)}, step=step)
        else:
            tracker.log_images(batches, step=step)
            rows = [list(row) for row in self.rows]
            tracker.log_table(self.table, columns=list(self.header), data=rows, step=step)


def generation_panel(run: Path) -> Panel:
    """The archive after the last generation, and pictures of the policies that were made in it.

    Args:
        run: the run directory, with `search.json` and `samples/selection/`.

    Raises:
        RecordError: if a record is missing or damaged.
    """
    search = SearchRecord.read(run)
    made = search.generations[-1].offspring if search.generations else ()
    view = FrontView.of_search(search)
    return _panel("morl", "selection", run, view, search.samples, [each.policy for each in made])


def front_panel(run: Path) -> Panel:
    """The published front and pictures of all its policies.

    Args:
        run: the run directory, with `front.json` and `samples/report/`.

    Raises:
        UserError: if a record is missing or damaged.
    """
    front = FrontRecord.read(run)
    names = [policy.id for policy in front.policies]
    return _panel("report", "report", run, FrontView.of_front(front), front.samples, names)


def _panel(
    area: str,
    purpose: str,
    run: Path,
    front: FrontView,
    samples: Samples,
    pictured: Sequence[PolicyId],
) -> Panel:
    """A panel of a front.

    Args:
        area: of the metric names.
        purpose: "selection" or "report", the evaluation set.
        run: the run directory.
        front: on that set.
        samples: prompts and seeds of the stored pictures.
        pictured: policies whose pictures are shown below the base model's.
    """
    title = f"{len(front.policies)} policies ({purpose} set, ± 1 standard error)"
    images = {f"{area}/front": _drawn(lambda file: plot_front(file, front, title))}
    tiles = [
        (name, read_samples(run, purpose, name, len(samples))) for name in (BASE_POLICY, *pictured)
    ]
    rows = [(name, _stack(each)) for name, each in tiles if each]
    if rows:
        images[f"{area}/samples"] = _drawn(lambda file: plot_samples(file, samples.prompts, rows))
    names = [f"{objective.name} [{objective.unit}]" for objective in front.objectives]
    return Panel(
        images=images,
        table=f"{area}/policies",
        header=["policy", "weights", *names],
        rows=[
            [
                policy.id,
                ", ".join(f"{weight:.2f}" for weight in policy.weights),
                *map(with_error, policy.returns.tolist(), policy.std_error.tolist()),
            ]
            for policy in front.policies
        ],
    )


def _drawn(draw: Callable[[BinaryIO], None]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) that a plot writes into a file."""
    file = io.BytesIO()
    draw(file)
    return np.asarray(Image.open(file).convert("RGB"))


def _stack(tiles: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as a tensor (n, 3, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2)
