"""The open parts of a run: processes, run directory, trainer, accounts, evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import Accelerator

from config.settings.derived import patience
from config.settings.errors import ConfigError, UserError
from config.settings.rules import process_problems
from ddpo.processes import Processes, use_threads
from ddpo.trainer import Trainer
from run.directory import RunDir, open_run_dir
from run.evaluator import Evaluator
from run.failures import memory_advised
from run.progress import Progress, route_logs
from run.recorder import Recorder
from run.trackers import Trackers, installed_trackers

if TYPE_CHECKING:
    from contextlib import ExitStack

    from config.base import Settings
    from ddpo.model.stable_diffusion import BaseModel
    from run.stop import Stop


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The parts of a run.

    Where several processes share a run, each has its own parts. They share sampling, updates and
    evaluation. Calls through `processes.by_first` (decisions, files, logs) happen in the first
    process alone.

    Attributes:
        settings: checked already.
        processes: the ones that share the run.
        directory: the run's files.
        trainer: DDPO.
        recorder: costs, curve, metrics.
        evaluator: judges policies on the run's sets.
    """

    settings: Settings
    processes: Processes
    directory: RunDir
    trainer: Trainer
    recorder: Recorder
    evaluator: Evaluator


def join_processes(settings: Settings, stack: ExitStack) -> tuple[Processes, RunDir]:
    """Meet the other processes of the run, and lock its directory.

    Args:
        settings: of the run.
        stack: closes both.

    Raises:
        UserError: if the processes or the directory cannot be used; `ConfigError` if the settings
            do not fit that many processes.
    """
    processes = Processes.start(settings.task_counts, patience(settings.rewards.timeout_seconds))
    stack.push(lambda _kind, error, _trace: processes.close(error))
    route_logs(processes.is_first)
    problems = list(process_problems(settings.flat(), processes.count))
    if problems:
        raise ConfigError(problems)
    return processes, processes.by_first(open_run_dir, settings, stack)


def open_parts(
    settings: Settings,
    processes: Processes,
    directory: RunDir,
    stop: Stop | None,
    model: BaseModel | None,
    stack: ExitStack,
    resumed_at: int | None = None,
) -> Parts:
    """Load the model and the rewards, and start the accounts.

    Args:
        settings: of the run.
        processes: the ones that share it.
        directory: of the run.
        stop: says when a signal has asked the run to end.
        model: the base model; by default `settings.pretrained` is loaded.
        stack: closes the parts.
        resumed_at: training images of the checkpoint that the run resumes from; None if it is new.

    Raises:
        UserError: if the model or a reward cannot be loaded, in this process or in another.
    """
    tracker_names = installed_trackers(settings.trackers) if processes.is_first else []
    accelerator = Accelerator(
        cpu=processes.device.type == "cpu",
        log_with=tracker_names or None,
        project_dir=directory.path,
    )
    use_threads(settings.num_threads)
    progress = Progress(settings.evolution.num_generations, processes.is_first)
    stack.callback(progress.close)
    check_stop = stop.check if stop else lambda: None
    with processes.fail_together(UserError), memory_advised():
        trainer = Trainer(settings, processes, progress.steps, check_stop, model)
    stack.callback(trainer.close)
    trackers = Trackers(accelerator, tracker_names, directory.path, settings.flat(), resumed_at)
    stack.callback(trackers.close)
    recorder = Recorder(directory, progress, trackers)
    return Parts(
        settings=settings,
        processes=processes,
        directory=directory,
        trainer=trainer,
        recorder=recorder,
        evaluator=Evaluator(settings, trainer, processes, directory, recorder),
    )
