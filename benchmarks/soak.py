"""One long run of the whole program: does it stay as fast and as small as at its start?

    python -m benchmarks.soak           # 240 generations; about 5 minutes on one core
    python -m benchmarks.soak --quick   # 8 generations

It uses the embedded model, two agents and the cheapest rewards. Every generation samples, updates,
evaluates, selects and saves as in any run. Rollouts are few and small, so that growth with the
number of generations (history, archive, checkpoints) shows. It measures CPU time, which a busy
machine does not disturb.

The last line is JSON. It compares the first and the last quarter of the run: CPU seconds per
generation and per save, memory, policies held. It also gives the file sizes of the last checkpoint.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import ml_collections

from benchmarks import common
from config import ddpo
from config.settings.parse import parse
from front.publish import FrontPublisher
from mo_train import train
from morl.types import Generation
from run.session import Session

QUICK_GENERATIONS, GENERATIONS = 8, 240


def recipe(num_generations: int, logdir: Path) -> ml_collections.ConfigDict:
    """Settings under which a generation takes about a second."""
    config = ddpo.get_config()
    config.logdir, config.run_name, config.num_threads = str(logdir), "soak", 1
    config.rewards.names = ("colorfulness", "jpeg_compressibility")
    config.sample.update(num_steps=3, prompts_per_iteration=2, images_per_prompt=2)
    # large steps, so that policies differ and fill archive and population
    config.train.update(updates_per_epoch=1, max_sensitivity=5.0, learning_rate=0.05)
    config.evaluation.update(
        num_steps=0, calibration_prompts=8, selection_images=16, report_images=8
    )
    config.evolution.update(
        num_agents=2,
        start="even_weights",
        warmup_generations=2,
        evolutionary_generations=num_generations - 2,
        iterations_per_generation=1,
    )
    return config


@dataclass(frozen=True, kw_only=True, eq=False)
class Soak(Session):
    """A run that records the CPU time of saving each generation."""

    saving: list[float] = field(default_factory=list)

    def commit(self, generation: Generation) -> None:
        """Save a generation and record the CPU time."""
        begin = time.process_time()
        super().commit(generation)
        self.saving.append(time.process_time() - begin)


class Notes:
    """CPU time, memory and number of policies after each generation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.megabytes: list[float] = []
        self.num_policies: list[float] = []
        self._began = time.process_time()

    def generation(self, run: Session) -> None:
        """Record a generation."""
        self.seconds.append(time.process_time() - self._began)
        self.megabytes.append(resident_megabytes())
        self.num_policies.append(len(run.search.policies))
        self._began = time.process_time()

    def front(self, run: Session) -> None:
        """Publish, as the program does."""
        FrontPublisher().front(run)


def resident_megabytes() -> float:
    """Resident memory of this process, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def quarters(values: list[float]) -> tuple[float, float]:
    """Medians of the first and of the last quarter, without the first two values."""
    size = max(1, len(values) // 4)
    return statistics.median(values[2 : 2 + size]), statistics.median(values[-size:])


def main() -> None:
    """Run, and print the table and the headline."""
    arguments = common.parser(__doc__, rounds=1).parse_args()
    common.pin_to_one_thread()
    common.print_header("Soak")
    count = QUICK_GENERATIONS if arguments.quick else GENERATIONS
    with tempfile.TemporaryDirectory() as folder:
        with Soak.open(parse(recipe(count, Path(folder)), {})) as run:
            notes = Notes()
            train(run, notes)
        saved = max((Path(folder) / "soak" / "checkpoints").iterdir())
        sizes = {path.name: path.stat().st_size / 1024 for path in sorted(saved.iterdir())}
    measured = {
        "generation_seconds": quarters(notes.seconds),
        "saving_seconds": quarters(run.saving),
        "megabytes": quarters(notes.megabytes),
        "policies": quarters(notes.num_policies),
    }
    common.print_table(
        ["", "first quarter", "last quarter", "ratio"],
        [[name, first, last, last / first] for name, (first, last) in measured.items()],
    )
    common.print_headline(
        {
            "generations": count,
            **{name: {"first": a, "last": b} for name, (a, b) in measured.items()},
            "checkpoint_kilobytes": sizes,
        }
    )


if __name__ == "__main__":
    main()
