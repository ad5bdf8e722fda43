"""Runs a function in several processes connected by gloo, as a launcher would start them."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import TCPStore

from tests.support.forks import FORK

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection


@dataclass
class Ended:
    """The end of a process: its function's value, or the error it raised, or neither."""

    exit_code: int | None
    value: Any = None
    error: str = ""


def run_processes(
    count: int,
    function: Callable[..., Any],
    *arguments: Any,
    wait_for: int | None = None,
    **settings: Any,
) -> list[Ended]:
    """Call a function in several processes; those still running at the end are killed.

    Args:
        count: number of processes.
        function: of a module, so that it can be found by name.
        arguments: for the function.
        settings: for the function, by name.
        wait_for: the only rank to wait for; by default all.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    workers, pipes = [], []
    for rank in range(count):
        receiver, sender = FORK.Pipe(duplex=False)
        job = (rank, count, store.port, sender, partial(function, *arguments, **settings))
        workers.append(FORK.Process(target=_work, args=job, daemon=True))
        workers[-1].start()
        sender.close()
        pipes.append(receiver)
    ended = [Ended(None) for _ in range(count)]
    for rank in range(count) if wait_for is None else [wait_for]:
        if pipes[rank].poll(60):
            try:
                ended[rank] = pipes[rank].recv()
            except EOFError:
                workers[rank].join(10)
                ended[rank] = Ended(workers[rank].exitcode)
    for rank, worker in enumerate(workers):
        worker.join(0 if wait_for is not None else 10)
        if worker.is_alive():
            worker.kill()
            worker.join()
        elif ended[rank].exit_code is None:
            ended[rank].exit_code = worker.exitcode
    return ended


def _work(
    rank: int,
    count: int,
    port: int,
    sender: Connection,
    function: Callable[[], Any],
) -> None:
    """The work of each process."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        OMP_NUM_THREADS="1",
    )
    if count == 1:
        del os.environ["LOCAL_RANK"]
    torch.set_num_threads(1)
    try:
        ended = Ended(0, value=function())
    except Exception as error:  # sent to the test
        ended = Ended(1, error=f"{type(error).__name__}: {error}")
        traceback.print_exc()
    sender.send(ended)


def values(ended: list[Ended]) -> list[Any]:
    """The value of every process; fails if one ended with an error."""
    assert not [each.error for each in ended if each.error]
    assert [each.exit_code for each in ended] == [0] * len(ended)
    return [each.value for each in ended]
