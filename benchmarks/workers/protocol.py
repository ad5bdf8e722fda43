"""The worker's side of `benchmarks/worker.py`, with only the standard library."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def serve(commands: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer lines of JSON until the input ends.

    Output of libraries goes to stderr, so that stdout holds only answers. Every answer includes its
    CPU time, of all threads, and the peak memory of the process so far.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.process_time()
        answer = commands[request.pop("command")](**request)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        own = {"seconds": time.process_time() - start, "peak_mb": usage.ru_maxrss / 1024}
        answers.write(json.dumps({**own, **answer}) + "\n")
        answers.flush()
