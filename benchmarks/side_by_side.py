"""Runs side by side: one process and one thread each."""

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
    """Do jobs, `workers` at a time; each comes with its outcome as soon as it is done.

    Args:
        do: does one of them. Workers import it, so it stands in a module: they find none in a
            package's `__main__`.
        jobs: to do.
        workers: processes.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=pin_to_one_thread) as pool:
        futures = {pool.submit(do, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future
