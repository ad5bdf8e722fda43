"""Faults that a run of the program can be started with, by name."""

from __future__ import annotations

import os
import signal
import time


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
