"""Runs side by side, with one process and one thread each."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, TypeVar

from benchmarks.common import pin_to_one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from benchmarks.evidence import Record

JobT = TypeVar("JobT")


def completed(
    do: Callable[[JobT], Record], jobs: Sequence[JobT], workers: int
) -> Iterator[tuple[JobT, Future[Record]]]:
    """Do jobs, `workers` at a time, and yield each with its outcome when it is done.

    Args:
        do: does one job. Workers import it, so it must be in a module, not in a package's
            `__main__`.
        jobs: the jobs.
        workers: number of processes.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=pin_to_one_thread) as pool:
        futures = {pool.submit(do, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future
