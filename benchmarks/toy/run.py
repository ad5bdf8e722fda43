"""One run of the comparison: the program on the toy, without leaving files on disk."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.emoji.run import measured
from benchmarks.toy.arms import words
from benchmarks.toy.model import ToyDiffusion
from run.command_line import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.evidence import Record

# A run this small would mostly wait for a disk.
_MEMORY = Path("/dev/shm")


def play(
    pair: str, arm: str, seed: int, learning_rate: float, changes: Mapping[str, str] | None = None
) -> Record:
    """Do a run and measure it.

    Args:
        pair: its name in `arms.PAIRS`.
        arm: its name in `arms.ARMS`.
        seed: of the run; the base model is always the same.
        learning_rate: of the run.
        changes: further settings.
    """
    logging.disable(logging.INFO)
    where = str(_MEMORY) if _MEMORY.is_dir() else None
    with TemporaryDirectory(dir=where) as folder, contextlib.redirect_stdout(io.StringIO()):
        place = {"logdir": folder, **(changes or {})}
        settings = read_settings(words(pair, arm, seed, learning_rate, place))
        return measured(settings, pair, arm, ToyDiffusion.trained())
