"""The run directory: all files that a run leaves on disk, written as it goes."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from config.settings.errors import UserError
from config.settings.resume import has_checkpoint
from ddpo.agents.adapter import holds_adapter, save_adapter
from ddpo.files import DISK_ERRORS, make_folder, new_folder, remove, sweep, sync, write_json
from run.checkpoint import CheckpointStore
from run.choice import RunChoice, choose_run
from run.lock import lock
from run.records import CONFIG, RunConfig
from run.samples import write_samples
from run.versions import Versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from config.base import Settings
    from ddpo.agents.slots import Agents
    from ddpo.types import Evaluation, Policy
    from morl.types import PolicyId

logger = logging.getLogger(__name__)

_MAX_NAMESAKES = 1000  # unnamed runs that begin in the same second
MAX_FAILURES = 3  # generations in a row that a full disk may leave unsaved


def open_run_dir(settings: Settings, parts: ExitStack) -> RunDir:
    """The run directory to write to, locked: the one of `resume_from`, or a new one in `logdir`.

    Args:
        settings: of the run.
        parts: gets the lock, and releases it when it is closed.

    Raises:
        UserError: if there is nothing to continue, something would be overwritten, another process
            writes there, or the folder cannot be made.
    """
    choice = choose_run(settings)
    try:
        choice = _made(choice, settings)
        parts.enter_context(lock(choice.path))
    except OSError as error:
        raise UserError(
            f"the run directory {choice.path} cannot be written ({error}); choose another logdir"
        ) from error
    if choice.is_new and has_checkpoint(choice.path):  # since the choice, before the lock
        raise UserError(
            f"another process has run in {choice.path} just now; start again to resume it"
        )
    return RunDir(choice.path, is_new=choice.is_new)


def _made(choice: RunChoice, settings: Settings) -> RunChoice:
    """A choice whose folder is made; another one if a run of the same second has just taken it.

    Raises:
        OSError: if the folder cannot be made.
    """
    if choice.is_named:
        make_folder(choice.path)
        return choice
    make_folder(choice.path.parent)
    for _ in range(_MAX_NAMESAKES):
        try:
            choice.path.mkdir()
        except FileExistsError:
            choice = choose_run(settings)
        else:
            sync(choice.path.parent)
            return choice
    raise FileExistsError(f"{_MAX_NAMESAKES} runs began in this second")


class RunDir:
    """One run's folder: `config.json`, `metrics.jsonl`, `history.json`, adapters, checkpoints.

    Args:
        path: the folder.
        is_new: whether there is no checkpoint to resume from.
    """

    def __init__(self, path: Path, *, is_new: bool) -> None:
        self.path = path
        self.is_new = is_new
        self.store = CheckpointStore(path)
        self._num_failures = 0
        self._metrics = path / "metrics.jsonl"
        self._unwritten: list[str] = []
        self._written: set[str] = set()  # policies whose adapter file is known to be theirs
        self._started = time.time()

    @contextlib.contextmanager
    def outlasting_a_full_disk(self, generation: int) -> Iterator[None]:
        """Let training continue if the block cannot save a generation, a few times in a row.

        Raises:
            UserError: at the last of `MAX_FAILURES` failures in a row.
        """
        try:
            yield
        except DISK_ERRORS as error:
            self._num_failures += 1
            failed = f"generation {generation} could not be saved ({error})"
            if self._num_failures >= MAX_FAILURES:
                raise UserError(
                    f"{failed}: {self._num_failures} failures in a row; free some space in "
                    f"{self.path}"
                ) from error
            logger.warning(
                "%s; training continues, and ends if %d more generations in a row cannot be saved. "
                "The last checkpoint is intact: free some space",
                failed,
                MAX_FAILURES - self._num_failures,
            )
        else:
            self._num_failures = 0

    def adapter_folder(self, identifier: str) -> Path:
        """Where the adapter of an archive member lies."""
        return self.path / "adapters" / identifier

    def write_config(self, settings: Settings, device: str) -> None:
        """Write `config.json`: resolved settings, seed, device, package versions."""
        config = RunConfig(
            settings=settings.to_json(),
            seed=settings.seed,
            device=device,
            versions=Versions.current(),
        )
        self.write_json(CONFIG, config.to_json())

    def write_json(self, name: str, value: Any, *, for_people: bool = True) -> None:
        """Write one of the run's JSON records, atomically; see `ddpo.files.write_json`."""
        write_json(self.path / name, value, for_people=for_people)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl`; a line that a full disk refuses is written later.

        Args:
            step: images sampled for training so far.
            metrics: `area/name` -> value; those that are not finite are left out.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        line = {"step": step, "seconds": round(time.time() - self._started, 3), **finite}
        self._unwritten.append(json.dumps(line) + "\n")
        with contextlib.suppress(OSError):
            self._write_metrics()

    def flush_metrics(self) -> int:
        """Make `metrics.jsonl` durable; returns its length, which checkpoints remember.

        Raises:
            OSError: if the disk does not take it.
        """
        self._write_metrics()
        if self._metrics.exists():
            sync(self._metrics)
        return self._metrics_bytes()

    def _write_metrics(self) -> None:
        """Append the lines not written yet: all of them or none."""
        before = self._metrics_bytes()
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.writelines(self._unwritten)
        except OSError:
            self.truncate_metrics(before)
            raise
        self._unwritten.clear()

    def _metrics_bytes(self) -> int:
        return self._metrics.stat().st_size if self._metrics.exists() else 0

    def truncate_metrics(self, length: int) -> None:
        """Drop the lines after `length` bytes: they belong to an unfinished generation."""
        if self._metrics_bytes() > length:
            with self._metrics.open("r+b") as file:
                file.truncate(length)
        elif self._metrics_bytes() < length:
            logger.warning("%s has lost lines: it is shorter than it was", self._metrics)

    def write_samples(self, which: str, evaluations: Mapping[PolicyId, Evaluation]) -> None:
        """Store the pictures that evaluations kept; a full disk costs pictures, not the run.

        Args:
            which: "report" or "selection", the evaluation set.
            evaluations: by policy.
        """
        try:
            for identifier, evaluation in evaluations.items():
                write_samples(self.path, which, identifier, evaluation.images)
        except OSError as error:
            logger.warning("pictures could not be stored: %s", error)

    def write_adapters(self, agents: Agents, archive: Mapping[PolicyId, Policy]) -> None:
        """Export every archive member's adapter; remove those that have left the archive.

        Adapters of a published front stay until the next front takes its place. The exception is a
        policy that was trained again from an earlier checkpoint and came out differently.
        """
        adapters = self.path / "adapters"
        sweep(adapters)
        published = self._published()
        for identifier in sorted(archive.keys() - self._written):
            path, policy = self.adapter_folder(identifier), archive[identifier]
            is_another = path.exists() and not holds_adapter(agents, policy, path)
            if is_another and identifier in published:
                logger.warning(
                    "%s was trained again and came out differently: until this run is finished, "
                    "front.json describes the earlier adapter",
                    identifier,
                )
            if is_another:
                remove(path)
            if not path.exists():
                with new_folder(path) as folder:
                    save_adapter(agents, policy, folder)
            self._written.add(identifier)
        for folder in adapters.glob("*"):
            if folder.name not in {*archive, *published}:
                remove(folder)

    def _published(self) -> set[str]:
        """The policies that `front.json` names; none if there is no whole one."""
        try:
            front = json.loads((self.path / "front.json").read_text(encoding="utf-8"))
            return {*(policy["id"] for policy in front["policies"]), *front["dominated_on_report"]}
        except (OSError, ValueError, KeyError, TypeError):
            return set()
