"""Trains the recipes of docs/gallery.md on the embedded model and writes that page.

    python -m tools.gallery                # trains what is not trained yet, some minutes each
    python -m tools.gallery --logdir DIR   # where the runs are, `logs` by default

Every front is shown by its plot and by pictures along it. The base model's pictures of the same
prompts and noise stand above them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from config.settings.files import path
from front.labels import Label
from front.pictures.plots import plot_front, plot_samples
from front.record import FrontRecord
from front.verdict import Gain
from front.view import FrontView
from morl.types import BASE_POLICY
from run.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from front.record import BlendRecord, PolicyRecord
    from morl.types import Array

    Entry = PolicyRecord | BlendRecord

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "img"
RECIPES = ("base", "emoji_compressibility", "emoji_incompressibility", "three_objectives")
SHOWN = 5  # members of a front
COLUMNS = 8  # prompts
TILE = 100  # pixels

_HEAD = """# Gallery

Fronts of four recipes on a tiny model that ships with the project. It draws emoji of 64 pixels,
enlarged here. A row is one member of the front: a policy, or a blend of two. A column has the same
prompt and noise. No policy was trained on these captions.

A member *improves everything* if it beats the base model in each reward by more than two standard
errors. Where rewards conflict there may be none: members then trade one reward for another. Towards
either end subjects fade or dissolve, so look at the middle rows, too.

`python -m tools.gallery` trains them and writes this page.
"""


def trained(recipe: str, logdir: Path) -> Path:
    """The finished run of a recipe; if there is none, one is started or resumed."""
    run = logdir / f"gallery_{recipe}"
    if not (run / "front.json").is_file():
        command = [sys.executable, "mo_train.py", "--config", f"config/{recipe}.py"]
        if run.is_dir():
            command = [sys.executable, "mo_train.py", f"--config.resume_from={run}"]
        else:
            command += [f"--config.logdir={logdir}", f"--config.run_name={run.name}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return run


def along(members: Sequence[Entry]) -> list[Entry]:
    """At most `SHOWN` members in the order of the first objective, both ends among them."""
    ordered = sorted(members, key=lambda member: float(member.report_returns[0]))
    indices = np.linspace(0, len(ordered) - 1, min(SHOWN, len(ordered))).round().astype(int)
    return [ordered[index] for index in indices]


def pictures(run: Path, name: str, number: int) -> torch.Tensor:
    """The first report pictures of a policy or blend, (number, 3, H, W) uint8."""
    tiles = read_samples(run, "report", name, number)
    return torch.stack([torch.from_numpy(np.array(tile)).permute(2, 0, 1) for tile in tiles])


def section(recipe: str, run: Path) -> str:
    """Draw a front's pictures below docs/img; return its part of the page."""
    record = FrontRecord.read(run)
    labels = [Label.of(objective) for objective in record.objectives]
    entries: list[Entry] = [*record.policies, *(record.blends or ())]
    base, errors = record.base.report_returns, record.base.report_std_error
    sheet, plot = (PICTURES / f"gallery_{recipe}{end}.png" for end in ("", "_front"))
    PICTURES.mkdir(exist_ok=True)

    def said(returns: Array) -> list[str]:
        each = zip(labels, returns, errors, strict=True)
        return [
            f"{label.text} {label.brief(value, error)} {label.plain_unit}".rstrip()
            for label, value, error in each
        ]

    prompts = record.samples.prompts[:COLUMNS]
    shown: list[tuple[str, str, Array]] = [("base model", BASE_POLICY, base)]
    shown += [(str(m.id), str(m.id), m.report_returns) for m in along(entries)]
    rows = [
        ("\n".join([title, *said(returns)]), pictures(run, name, len(record.samples))[:COLUMNS])
        for title, name, returns in shown
    ]
    plot_samples(sheet, prompts, rows, TILE)
    plot_front(plot, FrontView.of_front(record))
    with Image.open(plot) as drawn:  # a page needs no more than half of a print's resolution
        drawn.convert("RGB").reduce(2).quantize(64).save(plot, optimize=True)

    better = sum(Gain.published(entry, record.base).is_everywhere for entry in entries)
    returns = np.array([entry.report_returns for entry in entries])
    ends = returns.max(axis=0)
    gains = [
        f"{label.text} from {label.brief(before, error)} to {label.brief(after, error)}"
        + f" {label.plain_unit}".rstrip()
        for label, before, after, error in zip(labels, base, ends, errors, strict=True)
    ]
    best = "\n".join(f"- {gain}" for gain in gains)
    title = " against ".join(label.praise for label in labels)
    return f"""
## {title[0].upper()}{title[1:]}

`python mo_train.py --config config/{recipe}.py`: {record.costs.train:,} pictures to learn from.
{better} of {len(entries)} members improve everything by more than two standard errors.
Best of each reward:

{best}

![Pictures along the front](img/{sheet.name})
![The front](img/{plot.name})
"""


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logdir", type=path, default=ROOT / "logs", help="folder of the runs")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    arguments = parser.parse_args()
    runs = {recipe: trained(recipe, arguments.logdir) for recipe in arguments.recipes}
    parts = [section(recipe, run) for recipe, run in runs.items()]
    PAGE.write_text(_HEAD + "".join(parts), encoding="utf-8")
    sys.stdout.write(json.dumps({recipe: str(run) for recipe, run in runs.items()}) + "\n")


if __name__ == "__main__":
    main()
