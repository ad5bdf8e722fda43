"""Prints the results of finished runs as a Markdown table, as in the README.

Standard errors are clustered by prompt where a run has noted them.

python -m tools.summarise_runs logs/seed0 logs/seed1 logs/seed2
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from config.settings.files import path


def summarise(folder: Path) -> list[str]:
    """The cells of one run: size of the front, gains at its ends, hypervolumes, cost."""
    front: dict[str, Any] = json.loads((folder / "front.json").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    volumes = front["hypervolume"]
    ends = []
    for index in range(len(front["objectives"])):
        end = max(front["policies"], key=lambda policy: policy["report_returns"][index])
        errors = end.get("gain_std_error_by_prompt") or end["gain_std_error"]
        gain, error = end["gain_over_base"][index], errors[index]
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
    """Print the table of the given runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=path, help="finished run directories")
    folders = parser.parse_args().runs
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
