"""Prints the results of finished runs as a Markdown table, as in the README.

python -m tools.summarise_runs logs/seed0 logs/seed1 logs/seed2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def summarise(folder: Path) -> list[str]:
    """The cells of one run: size of the front, gains at its ends, hypervolumes, cost."""
    front: dict[str, Any] = json.loads((folder / "front.json").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    volumes = front["hypervolume"]
    ends = []
    for index in range(len(front["objectives"])):
        end = max(front["policies"], key=lambda policy: policy["report_returns"][index])
        gain, error = end["gain_over_base"][index], end["gain_std_error"][index]
        ratio = f"{gain / error:.1f}" if error else "0"
        ends.append(f"{gain:+.3f} ({ratio} s.e.)")
    return [
        folder.name,
        str(len(front["policies"])),
        *ends,
        *(f"{volumes[name]:.3f}" for name in ("report_base", "report_warmup", "report")),
        str(front["images"]["train"]),
        f"{json.loads(lines[-1])['seconds'] / 60:.1f} min",
    ]


def main() -> None:
    """Print the table for the given folders."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    front = json.loads((folders[0] / "front.json").read_text(encoding="utf-8"))
    header = [
        "Run",
        "Policies on the front",
        *(f"Best `{o['name']}` over base [{o['unit']}]" for o in front["objectives"]),
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
