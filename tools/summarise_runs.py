"""Prints the results of finished runs as a Markdown table, as in the README.

Standard errors are clustered by prompt where a run has noted them.

python -m tools.summarise_runs logs/seed0 logs/seed1 logs/seed2
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from config.settings.files import path
from front.record import FrontRecord
from front.verdict import Gain

if TYPE_CHECKING:
    from pathlib import Path


def summarise(folder: Path) -> list[str]:
    """The cells of one run: size of the front, gains at its ends, hypervolumes, cost."""
    front = FrontRecord.read(folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    volumes = front.hypervolume
    ends = []
    for index in range(len(front.objectives)):
        end = max(front.policies, key=lambda policy: float(policy.report_returns[index]))
        found = Gain.published(end, front.base)
        gain, error = found.value[index], found.std_error[index]
        ratio = f"{gain / error:.1f}" if error else "0"
        ends.append(f"{gain:+.3f} ({ratio} s.e.)")
    return [
        folder.name,
        str(len(front.policies)),
        *ends,
        *(f"{v:.3f}" for v in (volumes.report_base, volumes.report_warmup, volumes.report)),
        str(front.costs.train),
        f"{json.loads(lines[-1])['seconds'] / 60:.1f} min",
    ]


def main() -> None:
    """Print the table of the given runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=path, help="finished run directories")
    folders = parser.parse_args().runs
    front = FrontRecord.read(folders[0])
    header = [
        "Run",
        "Policies on the front",
        *(f"Best `{o.name}` over base [{o.unit}]" for o in front.objectives),
        "Hypervolume: base",
        "after warm-up",
        "at the end",
        "Training images",
        "Time",
    ]
    rows = [header, ["---"] * len(header), *(summarise(folder) for folder in folders)]
    sys.stdout.write("".join(f"| {' | '.join(row)} |\n" for row in rows))


if __name__ == "__main__":
    main()
