"""One process against two, with one thread each, on the default recipe's model.

    python -m benchmarks.processes           # about 3 minutes on 2 cores
    python -m benchmarks.processes --quick

Both do the same iterations of four agents: sample, score, update. Two times are shown, from the
second iteration on:

- the wall time of the slowest process, which is meaningful only if two cores are idle;
- the CPU time of the busiest process, which depends less on other load and leaves out waiting.

`max_difference` compares the first iteration, which starts from the same policies: rewards in
standard deviations, and gradient norms relative to themselves.

The last line is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.worker import ROOT

COUNTS = (1, 2)


def run(count: int, iterations: int, steps: int, images: int) -> dict[str, Any]:
    """The times and results of `count` processes.

    Raises:
        CalledProcessError: if one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        script = ROOT / "benchmarks" / "workers" / "process_worker.py"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        sizes = [str(iterations), str(steps), str(images)]
        subprocess.run(
            [*launcher, "--nproc_per_node", str(count), str(script), str(out), *sizes],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        answer: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return answer


def difference(one: dict[str, Any], two: dict[str, Any]) -> float:
    """The largest difference between two runs in their first iteration."""
    rewards = [np.array(answer["rewards"]) for answer in (one, two)]
    norms = [np.array(answer["grad_norms"]) for answer in (one, two)]
    return max(
        float((np.abs(rewards[0] - rewards[1]) / rewards[0].std(axis=(0, 1))).max()),
        float((np.abs(norms[0] - norms[1]) / norms[0]).max()),
    )


def main() -> None:
    """Print the table and the headline."""
    parser = common.parser(__doc__, rounds=3)
    arguments = parser.parse_args()
    common.pin_to_one_thread()
    common.print_header("Processes")
    rounds, iterations, steps, images = arguments.rounds, 2, 10, 48
    if arguments.quick:
        rounds, iterations, steps, images = 1, 1, 1, 4
    answers: dict[int, list[dict[str, Any]]] = {count: [] for count in COUNTS}
    for _ in range(rounds):
        for count in COUNTS:
            answers[count].append(run(count, iterations, steps, images))
    seconds = {
        clock: {count: median(each[clock] for each in answers[count]) for count in COUNTS}
        for clock in ("wall", "cpu")
    }
    speedups = {
        clock: median(
            one[clock] / two[clock] for one, two in zip(answers[1], answers[2], strict=True)
        )
        for clock in ("wall", "cpu")
    }
    common.print_table(
        ["processes", "wall [s/iteration]", "busiest process, CPU [s/iteration]"],
        [[count, *(seconds[c][count] / iterations for c in ("wall", "cpu"))] for count in COUNTS],
    )
    common.print_headline(
        {
            "speedup": speedups["wall"],
            "speedup_cpu": speedups["cpu"],
            "max_difference": difference(answers[1][0], answers[2][0]),
        }
    )


if __name__ == "__main__":
    main()
