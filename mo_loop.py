"""The method: PGMORL's evolutionary loop around DDPO's sampling and updates.

`Run.train` is the whole of it. The search (`morl/`) sees numbers only; the agents (`ddpo/`) move
together, one UNet pass for all. Where several processes share a run, all of them run this file:
sampling, updates and evaluation are shared, and what is called through `once` (decisions, files,
logs) happens in the first process alone.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator

from config.settings.errors import ConfigError, UserError
from config.settings.resume import changed_settings, check_prompts
from config.settings.rules import process_problems
from ddpo.agents.soup import blend_policies
from ddpo.calibration import Calibration, calibrate, calibration_set, initial_statistics
from ddpo.evaluation import evaluation_set
from ddpo.processes import Processes, use_threads
from ddpo.prompts import split_prompts
from ddpo.rewards.guards import excluded_policies, guard_metrics
from ddpo.trainer import Trainer
from ddpo.types import EvaluationSet
from front.media import generation_media, published_media
from front.publish import Costs, front_record, publish, search_record, with_guards
from morl.evolution import Evolution
from morl.types import BASE_POLICY, Objective, Offspring, PolicyId, policy_id
from morl.weights import even_weights
from run.choice import mark_finished
from run.directory import open_run_dir, version_changes, written_by
from run.failures import explained, memory_advised
from run.progress import Progress, route_logs
from run.trackers import Trackers, installed_trackers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from config.settings.schema import Settings
    from ddpo.evaluation import evaluation_set
    from ddpo.model.stable_diffusion import BaseModel
    from ddpo.rewards.guards import GuardReading
    from ddpo.trainer import Batch
    from ddpo.types import Evaluation, Policy, UpdateStats
    from morl.types import Generation
    from run.checkpoint import Checkpoint
    from run.stop import Stop


class Run:
    """One run: the search, the agents, and what they leave on disk.

    Args:
        settings: checked already.
        stop: tells when a signal asks for an end.
        model: the base model; by default that of `settings.pretrained` is loaded.

    Raises:
        UserError: if the processes, the run directory, the model or the checkpoint cannot be used.
    """

    def __init__(
        self, settings: Settings, stop: Stop | None = None, model: BaseModel | None = None
    ) -> None:
        self.settings = settings
        with ExitStack() as parts:
            self._open(settings, stop, model, parts)
            self._parts = parts.pop_all()  # closed by `train`, or above if something fails

    def _open(
        self, settings: Settings, stop: Stop | None, model: BaseModel | None, parts: ExitStack
    ) -> None:
        """Make the parts, those first that fail fast; each is closed with `parts`."""
        self.processes = Processes.start(settings.processes, settings.task_counts)
        parts.push(lambda _kind, error, _trace: self.processes.close(error))
        self.once = self.processes.once
        is_first = self.processes.is_first
        route_logs(is_first)
        problems = list(process_problems(settings.flat(), self.processes.count))
        if problems:
            raise ConfigError(problems)
        self.run_dir = self.once(open_run_dir, settings, parts)
        checkpoint, changes = self.once(self._read_checkpoint)
        tracker_names = installed_trackers(settings.trackers) if is_first else []
        accelerator = Accelerator(
            cpu=self.processes.device.type == "cpu",
            log_with=tracker_names or None,
            project_dir=self.run_dir.path,
        )
        use_threads(settings.num_threads)
        self.progress = Progress(settings.evolution.num_generations, is_first)
        parts.callback(self.progress.close)
        check_stop = stop.check if stop else lambda: None
        with self.processes.together(UserError), memory_advised():
            self.trainer = Trainer(settings, self.processes, self.progress.steps, check_stop, model)
        parts.callback(self.trainer.close)
        self.selection_set = evaluation_set(
            "selection",
            self.trainer.prompts.selection,
            settings.evaluation.selection_images,
            settings.seed,
        )
        self.shown = self.selection_set.first(settings.evaluation.sample_prompts)
        self.trackers = Trackers(
            accelerator, tracker_names, self.run_dir.path.name, settings.flat()
        )
        parts.callback(self.trackers.close)
        self.policies: dict[PolicyId, Policy] = {}
        self.base_evaluation: Evaluation | None = None  # on the selection set, for guards
        self.warmup_archive = [BASE_POLICY]  # all there is without a warm-up
        self.curve: list[tuple[int, float]] = []
        self.costs = Costs(train=0, selection=0, report=0, unet_rows=0)
        with explained(self.run_dir, is_first):
            if checkpoint:
                self._restore(checkpoint, changes)
            else:
                self._start()

    def train(self) -> None:
        """The loop: tasks from the search, DDPO on all of them at once, offspring to the search."""
        with self._parts, explained(self.run_dir, self.processes.is_first):
            while (generation := self.once(self.evolution.ask)) is not None:
                self.progress.generation(generation)
                weights = torch.from_numpy(np.stack([task.weights for task in generation.tasks]))
                self.trainer.load(self._starting_points(generation), weights)
                for index in range(generation.num_iterations):
                    batch = self.trainer.draw(generation.index, index)
                    stats = self.trainer.update(batch, self.trainer.advantages(batch))
                    self._record(batch, stats)
                self.once(self.evolution.tell, *self._offspring(generation))
                self._commit(generation)
            self._publish()

    def _starting_points(self, generation: Generation) -> list[Policy]:
        """The policy that each task starts from, blended where it has several ingredients."""
        return [
            blend_policies(
                self.trainer.agents, [(self.policies[name], share) for name, share in parts.items()]
            )
            for parts in self.once(self.evolution.ingredients, generation)
        ]

    def _offspring(self, generation: Generation) -> tuple[list[Offspring], frozenset[PolicyId]]:
        """Snapshot and evaluate what the agents have become; which of them the guards exclude."""
        trained = self.trainer.policies()
        names = [policy_id(generation.index, slot) for slot in range(len(trained))]
        self.policies |= dict(zip(names, trained, strict=True))
        evaluations = self._evaluate("selection", trained, self.selection_set, self.shown)
        pictures = dict(zip(names, evaluations, strict=True))
        self.once(self.run_dir.write_samples, "selection", pictures)
        offspring = [
            _offspring(name, task.policy, task.weights, evaluation, generation.index)
            for name, task, evaluation in zip(names, generation.tasks, evaluations, strict=True)
        ]
        readings = self._read_guards(self.selection_set, pictures, self.base_evaluation)
        return offspring, self.once(self._exclude, readings)

    def _read_guards(
        self,
        on: EvaluationSet,
        evaluations: Mapping[PolicyId, Evaluation],
        base: Evaluation | None,
    ) -> dict[PolicyId, GuardReading]:
        """What the guards say of each policy; nothing without guards."""
        guards = self.trainer.guards
        if guards is None or base is None:
            return {}
        return {name: guards.read(on, each, base) for name, each in evaluations.items()}

    def _exclude(self, readings: dict[PolicyId, GuardReading]) -> frozenset[PolicyId]:
        """Log the guards of a generation; the policies that have lost more than they may."""
        excluded = excluded_policies(readings, self.progress.say)
        if readings:
            self._log(guard_metrics(readings.values(), len(excluded)))
        return excluded

    def _start(self) -> None:
        """Measure the base model: scales, reference and ideal points, its own returns."""
        settings, prompts = self.settings, self.trainer.prompts
        for note in prompts.notes:
            self.progress.say(note)
        self.once(self.run_dir.write_config, settings, str(self.processes.device))
        self.once(self.run_dir.truncate_metrics, 0)
        initial = self.trainer.agents.initial_policy()
        on = calibration_set(prompts.train, settings.evaluation.calibration_prompts, settings.seed)
        rewards = self._evaluate("selection", [initial], on, use_guards=False)[0].rewards
        self.calibration = calibrate(rewards, on.prompts, settings.rewards)
        self.trainer.scales = torch.tensor(self.calibration.scales)
        statistics = initial_statistics(rewards, on.prompts, settings)
        self.policies[BASE_POLICY] = dataclasses.replace(initial, statistics=statistics)
        evaluation = self._evaluate("selection", [initial], self.selection_set, self.shown)[0]
        self.base_evaluation = evaluation
        self.once(self.run_dir.write_samples, "selection", {BASE_POLICY: evaluation})
        num_objectives = len(self.objectives)
        even = even_weights(num_objectives, num_objectives).mean(axis=0)
        base = _offspring(BASE_POLICY, None, even, evaluation, generation=-1)
        self.evolution = Evolution(settings.evolution, self.objectives, base)
        self.curve.append((0, self.evolution.metrics()["morl/hypervolume"]))
        returns = zip(settings.rewards.objectives, base.returns.tolist(), strict=True)
        self.once(self._log, {f"base/{name}": value for name, value in returns})
        self.once(self._save, -1)

    def _read_checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """What to go on from, if anything, and what has changed since the run began."""
        if self.run_dir.is_new:
            return None, []
        checkpoint = self.run_dir.store.latest()
        record, prompts = checkpoint.record, split_prompts(self.settings.prompts)
        changes = changed_settings(record["settings"], self.settings)
        check_prompts(record.get("prompts", {}), prompts.digests(), self.settings)
        return checkpoint, changes + version_changes(checkpoint.written_by)

    def _restore(self, checkpoint: Checkpoint, changes: Sequence[str]) -> None:
        """Continue from a checkpoint."""
        record = checkpoint.record
        self.policies = {PolicyId(name): policy for name, policy in checkpoint.policies.items()}
        self.calibration = Calibration.from_json(record["calibration"])
        self.trainer.scales = torch.tensor(self.calibration.scales)
        self.costs = Costs(**record["costs"])
        self.curve = [(images, value) for images, value in record["curve"]]
        self.warmup_archive = [PolicyId(name) for name in record["warmup_archive"]]
        self.evolution = Evolution.restore(
            self.settings.evolution, self.objectives, checkpoint.evolution
        )
        if self.trainer.guards:  # they compare with the base model; paid for when the run began
            base = self.policies[BASE_POLICY]
            self.base_evaluation = self.trainer.evaluate([base], self.selection_set)[0]
            self.trainer.take_unet_rows()
        self.once(self._reopen, record["metrics_bytes"])
        for change in changes:
            self.progress.say(f"since the run began: {change}")
        self.progress.say(
            f"resumed after generation {checkpoint.generation} of {self.run_dir.path}"
        )

    def _reopen(self, metrics_bytes: int) -> None:
        """Take back what was written after the checkpoint."""
        self.run_dir.write_config(self.settings, str(self.processes.device))
        self.run_dir.truncate_metrics(metrics_bytes)
        self.run_dir.store.prune()
        self._write_adapters()

    def _commit(self, generation: Generation) -> None:
        """Log a finished generation, make it durable, and forget what nothing asks for."""
        live = self.once(self._conclude, generation)
        self.policies = {name: policy for name, policy in self.policies.items() if name in live}

    def _conclude(self, generation: Generation) -> set[PolicyId]:
        """Write what a finished generation leaves; the policies that are still needed."""
        evolution = self.evolution
        metrics = evolution.metrics()
        self.curve.append((self.costs.train, metrics["morl/hypervolume"]))
        if generation.stage != "evolutionary":
            self.warmup_archive = [member.policy for member in evolution.archive]
        self._log(metrics)
        live = evolution.live_policies | {*self.warmup_archive, BASE_POLICY}
        self.policies = {name: policy for name, policy in self.policies.items() if name in live}
        with self.run_dir.outlasting_a_full_disk(generation.index):
            self._write_generation()
        self.trackers.show(generation_media, self.run_dir.path, self.costs.train)
        self.progress.finished(generation, metrics, self.costs.train)
        return set(self.policies)

    def _write_generation(self) -> None:
        """Write the archive's adapters, the history and a checkpoint of the last generation."""
        self._write_adapters()
        history = self.evolution.history.to_json()
        self.run_dir.write_json("history.json", history, for_people=False)
        self._save(self.evolution.num_generations_done - 1)

    def _catch_up(self) -> None:
        """Write the last generation if a full disk has kept it from being written."""
        if self.run_dir.store.last_generation != self.evolution.num_generations_done - 1:
            self._write_generation()

    def _write_adapters(self) -> None:
        archive = {member.policy: self.policies[member.policy] for member in self.evolution.archive}
        self.run_dir.write_adapters(self.trainer.agents, archive)

    def _save(self, generation: int) -> None:
        """Write a checkpoint: policies first, then the file that names them."""
        store = self.run_dir.store
        for name, policy in self.policies.items():
            store.save_policy(name, policy)
        record = {
            "settings": self.settings.to_json(),
            "calibration": self.calibration.to_json(),
            "costs": dataclasses.asdict(self.costs),
            "curve": self.curve,
            "warmup_archive": self.warmup_archive,
            "prompts": self.trainer.prompts.digests(),
            "metrics_bytes": self.run_dir.flush_metrics(),
        }
        num_generations = self.settings.evolution.num_generations
        search = search_record(self.evolution, num_generations, self.curve, self.costs, self.shown)
        self.run_dir.write_json("search.json", search, for_people=False)
        writer = {**written_by(), "num_processes": self.processes.count}
        store.commit(generation, self.evolution.state(), self.policies, record, writer)

    def _publish(self) -> None:
        """Re-evaluate the archive on the report set and write what is published."""
        self.once(self._catch_up)
        on = self.report_set
        names = self.once(self._finalists)
        shown = on.first(self.settings.evaluation.sample_prompts)
        evaluations = self._evaluate("report", [self.policies[name] for name in names], on, shown)
        self.once(self._write_front, on, shown, dict(zip(names, evaluations, strict=True)))

    def _finalists(self) -> list[PolicyId]:
        """The archive's policies, those of the warm-up's archive, and the base model."""
        archive = {member.policy for member in self.evolution.archive}
        return sorted(archive | {*self.warmup_archive, BASE_POLICY})

    def _write_front(
        self, on: EvaluationSet, shown: EvaluationSet, report: dict[PolicyId, Evaluation]
    ) -> None:
        archive = self.evolution.archive
        front = front_record(self.objectives, archive, self.warmup_archive, report, self.costs)
        if self.trainer.guards:
            readings = self._read_guards(on, report, report[BASE_POLICY])
            front = with_guards(front, readings, self.trainer.guards.units)
        publish(self.run_dir, front, self.evolution.offspring, self.curve, shown, report)
        self._write_adapters()  # those that only the front before this one had are let go
        volumes = front["hypervolume"]
        overhead = self.trainer.work.overhead_fraction
        self._log({"report/hypervolume": volumes["report"], "cost/overhead_fraction": overhead})
        self.trackers.show(published_media, self.run_dir.path, self.costs.train)
        self.run_dir.flush_metrics()
        mark_finished(self.run_dir.path, self.evolution.num_generations)
        self.progress.say(
            f"front of {len(front['policies'])} policies in {self.run_dir.path}; hypervolume on "
            f"the report set {volumes['report']:.4f} (base model {volumes['report_base']:.4f}, "
            f"after warm-up {volumes['report_warmup']:.4f})"
        )
        self.progress.say(
            f"{overhead:.1%} of the time went to search, files, logs and plots, all else to "
            "drawing, scoring and updates"
        )

    @cached_property
    def report_set(self) -> EvaluationSet:
        """What the published front is measured on; no decision sees it."""
        settings, prompts = self.settings, self.trainer.prompts.report
        return evaluation_set("report", prompts, settings.evaluation.report_images, settings.seed)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives with their fixed reference and ideal points."""
        names, points = self.settings.rewards.objectives, self.calibration
        units = self.trainer.scorer.units
        return tuple(
            Objective(name=name, unit=units[name], reference=reference, ideal=ideal)
            for name, reference, ideal in zip(names, points.reference, points.ideal, strict=True)
        )

    def _evaluate(
        self,
        purpose: str,
        policies: Sequence[Policy],
        on: EvaluationSet,
        shown: EvaluationSet | None = None,
        *,
        use_guards: bool = True,
    ) -> list[Evaluation]:
        """Judge policies, and keep the pictures that are shown."""
        evaluations = self.trainer.evaluate(
            policies, on, len(shown.prompts) if shown else 0, use_guards=use_guards
        )
        self._spend(**{purpose: len(policies) * len(on.prompts)})
        return evaluations

    def _record(self, batch: Batch, stats: UpdateStats) -> None:
        """Count and log one iteration."""
        self._spend(train=batch.num_images)
        self.progress.iteration()
        self.once(
            self._log,
            {
                **batch.metrics(),
                **stats.metrics(),
                "cost/images": self.costs.train,
                "cost/unet_rows": self.costs.unet_rows,
            },
        )

    def _spend(self, **counts: int) -> None:
        """Add to the costs, with the UNet rows passed since."""
        counts["unet_rows"] = self.trainer.take_unet_rows()
        totals = {name: getattr(self.costs, name) + count for name, count in counts.items()}
        self.costs = dataclasses.replace(self.costs, **totals)

    def _log(self, metrics: dict[str, float]) -> None:
        self.run_dir.log(self.costs.train, metrics)
        self.trackers.log(metrics, self.costs.train)


def _offspring(
    name: PolicyId,
    parent: PolicyId | None,
    weights: np.ndarray,
    evaluation: Evaluation,
    generation: int,
) -> Offspring:
    return Offspring(
        policy=name,
        parent=parent,
        weights=weights,
        returns=evaluation.returns.numpy(),
        std_error=evaluation.std_error.numpy(),
        generation=generation,
    )
