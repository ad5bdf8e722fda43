"""Faults that a run of the program can be started with, by name."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path


def never_reach_a_safe_point() -> None:
    """The first picture takes for ever."""
    from ddpo.agents import Agents

    def hang(*args: object) -> None:
        os.write(2, b"stuck\n")
        while True:
            time.sleep(0.01)

    Agents.predict = hang


def signal_myself_at(words: str, count: int) -> None:
    """SIGTERM at the start of a bar called `words`, for the `count`-th time."""
    from front.progress import Progress

    original, seen = Progress.steps, [0]

    def steps(self: Progress, name: str, total: int) -> object:
        if name == words:
            seen[0] += 1
            if seen[0] == count + 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, name, total)

    Progress.steps = steps


def kill_at(operation: str, part: str) -> None:
    """SIGKILL just before the first file operation on a path that ends in `part`."""
    original = getattr(Path, operation)

    def deadly(self: Path, *arguments: object, **options: object) -> object:
        is_read = operation == "open" and not arguments
        if str(self).endswith(part) and not is_read:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **options)

    setattr(Path, operation, deadly)


def limit_file_size(kilobytes: int) -> None:
    """No file may grow beyond this: a full disk, for whatever is larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, resource.RLIM_INFINITY))


def fill_disk_during(generations: list[int]) -> None:
    """Writing any file of a checkpoint fails in these generations, after half of it."""
    from front.checkpoint import CheckpointStore

    original = CheckpointStore.commit

    def commit(self: CheckpointStore, generation: int, *arguments: object) -> None:
        limit = 1 if generation in generations else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            original(self, generation, *arguments)
        finally:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )

    CheckpointStore.commit = commit


def run_out_of_memory_in(generation: int) -> None:
    """A tensor that no machine can hold is asked for, and torch says so in its own words."""
    import torch

    from ddpo.trainer import Trainer

    original = Trainer.iterate

    def iterate(self: Trainer, index: int, *arguments: object) -> object:
        if index == generation:
            torch.empty(1 << 50)
        return original(self, index, *arguments)

    Trainer.iterate = iterate


def impatient_with_trackers() -> None:
    """One second instead of fifteen."""
    from front import trackers

    trackers.PATIENCE = 1.0


def fill_disk_while_publishing() -> None:
    """No file of the published front can be written."""
    import mo_loop

    original = mo_loop.publish

    def publish(*arguments: object, **options: object) -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        try:
            return original(*arguments, **options)
        finally:  # what is printed goes to a file as well
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )

    mo_loop.publish = publish
