"""What trackers are shown besides metrics: the front, sample pictures and a table of returns."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from front.plots import plot_front, plot_samples
from front.tables import markdown_table, with_error
from morl.types import BASE_POLICY
from run.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
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


def generation_media(run: Path) -> Media:
    """The archive after the last generation, and pictures of the policies that were made in it.

    Args:
        run: the run directory, with `search.json` and `samples/selection/`.
    """
    search = json.loads((run / "search.json").read_text(encoding="utf-8"))
    steps = [entry["offspring"] for entry in search["generations"]]
    records = {record["policy"]: record for step in steps for record in step}
    records[BASE_POLICY] = search["base"]
    members = [_as_published(records[name]) for name in search["archives"][-1]]
    front = {
        "objectives": search["objectives"],
        "policies": members,
        "base": _as_published(search["base"]),
    }
    made = [record["policy"] for record in steps[-1]] if steps else []
    prompts = search["samples"]["prompts"]
    return _media("morl", "selection", run, front, prompts, made)


def published_media(run: Path) -> Media:
    """The published front and pictures of all its policies.

    Args:
        run: the run directory, with `front.json` and `samples/report/`.
    """
    front = json.loads((run / "front.json").read_text(encoding="utf-8"))
    names = [policy["id"] for policy in front["policies"]]
    return _media("report", "report", run, front, front["samples"]["prompts"], names)


def _media(
    area: str,
    which: str,
    run: Path,
    front: Mapping[str, Any],
    prompts: Sequence[str],
    shown: Sequence[str],
) -> Media:
    policies = sorted(front["policies"], key=lambda policy: policy["report_returns"][0])
    title = f"{len(policies)} policies ({which} set, ± 1 standard error)"
    images = {f"{area}/front": _drawn(lambda file: plot_front(file, front, [], title))}
    sheets = [
        (name, read_samples(run, which, name, len(prompts))) for name in (BASE_POLICY, *shown)
    ]
    rows = [(name, _stack(tiles)) for name, tiles in sheets if tiles]
    if rows:
        images[f"{area}/samples"] = _drawn(lambda file: plot_samples(file, prompts, rows))
    names = [f"{objective['name']} [{objective['unit']}]" for objective in front["objectives"]]
    return Media(
        images=images,
        table=f"{area}/policies",
        header=["policy", "weights", *names],
        rows=[
            [
                policy["id"],
                ", ".join(f"{weight:.2f}" for weight in policy["weights"]),
                *map(with_error, policy["report_returns"], policy["report_std_error"]),
            ]
            for policy in policies
        ],
    )


def _as_published(record: Mapping[str, Any]) -> dict[str, Any]:
    """A policy of the search under the names of `front.json`."""
    return {
        "id": record["policy"],
        "weights": record["weights"],
        "report_returns": record["returns"],
        "report_std_error": record["std_error"],
    }


def _drawn(draw: Callable[[BinaryIO], None]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) that a plot writes into a file."""
    file = io.BytesIO()
    draw(file)
    return np.asarray(Image.open(file).convert("RGB"))


def _stack(tiles: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as a tensor (n, 3, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2)
