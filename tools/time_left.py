"""Compares the time that a run said it still needed with the time that it then took.

    python -m tools.time_left logs/my_run                  # a table
    python -m tools.time_left logs/my_run --out left.png   # and a plot

Reads `cost/seconds_left` in the run's `metrics.jsonl`, whose last line is the end of the run. A
resumed run is read from its last start.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from config.settings.files import path
from config.settings.runs import named_run


class Said(NamedTuple):
    """An estimate and the truth, in seconds.

    Attributes:
        after: since the run began.
        generation: the one in progress.
        said: time left, as estimated.
        took: time left, as it turned out.
    """

    after: float
    generation: int
    said: float
    took: float

    @property
    def error(self) -> float:
        """Of the estimate, as a part of the truth."""
        return self.said / self.took - 1 if self.took > 0 else 0.0


def read(run: Path) -> list[Said]:
    """Every estimate of a finished run.

    Raises:
        ValueError: if it holds none, or is not finished.
    """
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    for index in range(len(lines) - 1, 0, -1):  # the clock starts again where a run was resumed
        if lines[index]["seconds"] < lines[index - 1]["seconds"]:
            lines = lines[index:]
            break
    if not lines or lines[-1].get("cost/seconds_left") != 0:
        raise ValueError(f"{run} is not finished, or says nothing of the time left")
    end, generation, found = lines[-1]["seconds"], 0, []
    for line in lines[:-1]:
        generation += "morl/hypervolume" in line
        if "cost/seconds_left" in line:
            after = line["seconds"]
            found.append(Said(after, generation, line["cost/seconds_left"], end - after))
    return found


def plot(file: Path, said: list[Said]) -> None:
    """Draw estimates against the truth, with a band of a fifth around it."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axis = plt.subplots(figsize=(6.2, 4))
    after, truth = [each.after for each in said], [each.took for each in said]
    low, high = ([factor * took for took in truth] for factor in (0.8, 1.2))
    axis.fill_between(after, low, high, alpha=0.15, label="within 20 %")
    axis.plot(after, truth, label="time left, as it came")
    axis.plot(after, [each.said for each in said], "o-", markersize=4, label="as it was said")
    axis.set_xlabel("seconds since the start")
    axis.set_ylabel("seconds left")
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main() -> None:
    """Print, and draw if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=path)
    parser.add_argument("--out", type=path, help="a plot")
    arguments = parser.parse_args()
    said = read(named_run(arguments.run))
    sys.stdout.write("after [s]  generations done  said [s]  took [s]  error\n")
    for each in said:
        sys.stdout.write(
            f"{each.after:9.0f}  {each.generation:16d}  {each.said:8.0f}  {each.took:8.0f}  "
            f"{each.error:+5.0%}\n"
        )
    late = [abs(each.error) for each in said if each.generation >= 2]
    if late:
        sys.stdout.write(f"largest error after the second generation: {max(late):.0%}\n")
    if arguments.out:
        plot(arguments.out, said)


if __name__ == "__main__":
    main()
