"""The one server per test process that processes are forked from, within milliseconds each."""

from __future__ import annotations

import multiprocessing

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.support.warm"])
