"""The end of a run in words: what happened, what to change, how to resume."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from config.settings.errors import ConfigError, StoppedError, UserError
from config.settings.terminal import typed_command
from ddpo.files import DISK_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from run.directory import RunDir


@contextmanager
def explained(run_dir: RunDir, is_first: bool) -> Iterator[None]:
    """Turn errors that a user can mend into a `UserError` that says how to resume.

    Args:
        run_dir: of the run.
        is_first: whether this is the process that saves, and so knows what is saved.

    Raises:
        UserError: `StoppedError` if a signal ended the run.
    """
    way_back = _way_back if is_first else lambda _: ""
    try:
        with memory_advised():
            yield
    except ConfigError:
        raise
    except StoppedError as error:
        raise StoppedError(f"{error}. {way_back(run_dir)}") from error
    except (UserError, FloatingPointError) as error:
        raise UserError(f"{error}\n{way_back(run_dir)}") from error
    except DISK_ERRORS as error:
        raise UserError(f"{run_dir.path}: {error}\n{way_back(run_dir)}") from error


@contextmanager
def memory_advised() -> Iterator[None]:
    """Say which settings to lower when memory runs out inside the block.

    Raises:
        UserError: in place of what torch or Python raises then.
    """
    try:
        yield
    except UserError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"out of memory: {told[0]}\nLower train.rows_per_pass first, then "
            "sample.rows_per_pass, or set train.gradient_checkpointing=True: results stay the same "
            "up to rounding. Fewer evolution.num_agents need less as well."
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine or the GPU had no memory left; torch says so in several ways."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error).lower()
    return "out of memory" in words or "can't allocate memory" in words


def _way_back(run_dir: RunDir) -> str:
    saved = run_dir.store.last_generation
    if saved is None:
        return "Nothing was saved yet: start the run again."
    what = "The measured base model" if saved < 0 else f"Generation {saved}"
    return (
        f"{what} is saved; what was done since is done again when the run resumes: "
        + typed_command("mo_train.py", f"--config.resume_from={run_dir.path}")
    )
