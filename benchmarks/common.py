"""Shared parts of the benchmarks: arguments, interleaved rounds, tables, a last line of JSON.

Each round measures all compared cases one after another, so that a slow phase of the machine
affects all of them. Figures are medians over the rounds. Times are process CPU time on a CPU, with
one thread, and device events on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Clock = Callable[[Callable[[], object]], float]

CACHE = Path.home() / ".cache" / "mo-ddpo"
_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "numpy",
    "scipy",
    "moocore",
)


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the arguments that every benchmark takes.

    Args:
        description: the module's docstring.
        rounds: the default number of rounds.
    """
    out = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    out.add_argument("--rounds", type=int, default=rounds, help="figures are medians over these")
    return out


def pin_to_one_thread() -> None:
    """Use one torch thread, and set OMP_NUM_THREADS=1 for libraries that are loaded later."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of all threads of this process while `function` runs."""
    start = time.process_time()
    function()
    return time.process_time() - start


def cuda_seconds(function: Callable[[], object]) -> float:
    """Time between two events on the current CUDA device around `function`."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of one case, one entry per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds)


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Clock = cpu_seconds,
    *,
    warm_up: bool = True,
) -> dict[str, Measured]:
    """Measure all cases one after another in every round, after one unmeasured call of each.

    Args:
        cases: name -> what to run.
        rounds: at least 1.
        clock: runs a function and returns its seconds.
        warm_up: whether to make the unmeasured calls.
    """
    for case in cases.values() if warm_up else ():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(clock(case))
    return {name: Measured(seconds=tuple(values)) for name, values in seconds.items()}


def paired_ratio(slow: Measured, fast: Measured) -> float:
    """How many times as long `slow` takes: the median of the ratios of the rounds."""
    return statistics.median(s / f for s, f in zip(slow.seconds, fast.seconds, strict=True))


def say(line: str = "") -> None:
    """Print a line and flush."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_header(title: str) -> None:
    """Print the conditions of a measurement: versions, processor, device, threads, load."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # a benchmark may run with fewer packages
            continue
    say(f"# {title}\n")
    say(f"Python {platform.python_version()}, {', '.join(versions)}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    say(f"{processor()}, {torch.get_num_threads()} threads, load average {load}")
    if torch.cuda.is_available():
        say(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    say()


def processor() -> str:
    """Name of the processor, its family and model, and the cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in pairs}
        # A virtual machine may name it without its generation.
        parts = {"model name": "", "cpu family": "family ", "model": "model "}
        known = [prefix + facts[key] for key, prefix in parts.items() if key in facts]
        name = ", ".join(known) or name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table; floats with three significant digits."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * max(w, 3) for w in widths) + " |"
    say("\n".join([lines[0], rule, *lines[1:]]) + "\n")


def _cell(value: object) -> str:
    return f"{_rounded(value):g}" if isinstance(value, float) else str(value)


def print_headline(headline: Mapping[str, Any]) -> None:
    """Print the headline figures as one line of JSON: the last line of every benchmark."""
    say(json.dumps(_rounded_all(headline)))


def _rounded_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded_all(each) for name, each in value.items()}
    return _rounded(value) if isinstance(value, float) else value


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
