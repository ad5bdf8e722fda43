"""How a run begins: from its base model, measured first, or from its last checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from config.settings.resume import changed_settings, check_prompts
from ddpo.calibration import (
    NUM_LOOKED_AT,
    calibrate,
    calibration_set,
    initial_statistics,
    picture_problem,
)
from ddpo.prompts import split_prompts
from morl.evolution import Evolution
from morl.types import BASE_POLICY, Objective, Offspring
from morl.weights import even_weights
from run.search import SharedSearch
from run.versions import Versions

if TYPE_CHECKING:
    from config.base import Settings
    from ddpo.calibration import Calibration
    from ddpo.types import Evaluation
    from run.checkpoint import Checkpoint
    from run.directory import RunDir
    from run.parts import Parts

logger = logging.getLogger(__name__)


def begin(run: Parts) -> tuple[Calibration, SharedSearch]:
    """Measure the base model: scales, reference and ideal points, its own returns."""
    settings, trainer, evaluator = run.settings, run.trainer, run.evaluator
    by_first, recorder = run.processes.by_first, run.recorder
    for line in trainer.prompts.summary():
        recorder.say(line)
    for note in (*trainer.prompts.notes, *trainer.length_notes(), *trainer.step_notes()):
        recorder.say(f"note: {note}")
    by_first(run.directory.write_config, settings, str(run.processes.device))
    by_first(run.directory.truncate_metrics, 0)
    initial = trainer.agents.initial_policy()
    drawn = calibration_set(
        trainer.prompts.train, settings.evaluation.calibration_prompts, settings.seed
    )
    measured = evaluator.measure(initial, drawn, max(NUM_LOOKED_AT, trainer.num_fit_pictures))
    if problem := picture_problem(measured.images[:NUM_LOOKED_AT], trainer.scale):
        logger.warning("%s", problem)
    rewards = measured.rewards
    calibration = dataclasses.replace(
        calibrate(rewards, drawn.prompts, settings.rewards),
        slopes=trainer.measure_slopes(measured, drawn.prompts),
    )
    trainer.calibrate(calibration.scales, calibration.slopes)
    statistics = initial_statistics(rewards, drawn.prompts, settings)
    policies = {BASE_POLICY: dataclasses.replace(initial, statistics=statistics)}
    evaluator.base = evaluator.select(policies)[BASE_POLICY]
    base = base_offspring(evaluator.base)
    evolution = Evolution(settings.evolution, objectives(run, calibration), base)
    recorder.archive(evolution.metrics())
    returns = zip(settings.rewards.objectives, base.returns.tolist(), strict=True)
    by_first(recorder.log, {f"base/{name}": value for name, value in returns})
    search = SharedSearch(
        evolution, policies, [BASE_POLICY], trainer.agents, run.processes, recorder.begin
    )
    return calibration, search


def restore(
    run: Parts, checkpoint: Checkpoint, changes: list[str]
) -> tuple[Calibration, SharedSearch]:
    """Resume from a checkpoint.

    Args:
        run: its parts.
        checkpoint: of the run.
        changes: sentences on what has changed since the run began.

    Raises:
        ConfigError: if this process trains on other prompts than the run.
    """
    state, recorder = checkpoint.state, run.recorder
    # again in every process: it may see other files, or they may have changed since the first look
    check_prompts(state.prompts, run.trainer.prompts.digests(), run.settings)
    run.trainer.calibrate(state.calibration.scales, state.calibration.slopes)
    recorder.costs, recorder.curve = state.costs, list(state.curve)
    search = SharedSearch(
        Evolution.restore(
            run.settings.evolution, objectives(run, state.calibration), checkpoint.search
        ),
        checkpoint.policies,
        state.warmup_archive,
        run.trainer.agents,
        run.processes,
        recorder.begin,
    )
    run.evaluator.measure_base(search.policies[BASE_POLICY])
    run.processes.by_first(_reopen, run, search, state.metrics_bytes)
    for change in changes:
        recorder.say(f"since the run began: {change}")
    recorder.say(f"resumed after generation {checkpoint.generation} of {run.directory.path}")
    return state.calibration, search


def read_checkpoint(directory: RunDir, settings: Settings) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to resume from, if any, and the changes since the run began.

    Raises:
        UserError: if no checkpoint is whole; `ConfigError` if settings or prompts have changed that
            may not.
    """
    if directory.is_new:
        return None, []
    checkpoint = directory.store.latest()
    changes = changed_settings(checkpoint.state.settings, settings)
    check_prompts(checkpoint.state.prompts, split_prompts(settings.prompts).digests(), settings)
    return checkpoint, changes + Versions.current().differences(checkpoint.versions)


def _reopen(run: Parts, search: SharedSearch, metrics_bytes: int) -> None:
    """Undo what was written after the checkpoint."""
    directory = run.directory
    directory.write_config(run.settings, str(run.processes.device))
    directory.truncate_metrics(metrics_bytes)
    directory.store.prune()
    directory.write_adapters(run.trainer.agents, search.archive())


def objectives(run: Parts, calibration: Calibration) -> tuple[Objective, ...]:
    """The objectives with their fixed reference and ideal points."""
    names, units = run.settings.rewards.objectives, run.trainer.scorer.units
    points = zip(names, calibration.reference, calibration.ideal, strict=True)
    return tuple(
        Objective(name=name, unit=units[name], reference=reference, ideal=ideal)
        for name, reference, ideal in points
    )


def base_offspring(evaluation: Evaluation) -> Offspring:
    """The evaluated base model, as the search knows it."""
    num = len(evaluation.returns)
    return Offspring(
        policy=BASE_POLICY,
        parent=None,
        weights=even_weights(num, num).mean(axis=0),
        returns=evaluation.returns.numpy(),
        std_error=evaluation.std_error.numpy(),
        generation=-1,
    )
