"""An open run, and the steps of its loop that take several of its parts."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ddpo.rewards.guards import excluded_policies, guard_metrics
from morl.types import Offspring, policy_id
from run.beginning import begin, read_checkpoint, restore
from run.checkpoint import Checkpoint
from run.choice import mark_finished
from run.failures import explained
from run.parts import Parts, join_processes, open_parts
from run.records import SEARCH, Costs, SearchRecord
from run.state import RunState
from run.time_left import Stand, TimeLeft, shown
from run.versions import Versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeVar

    from config.base import Settings
    from ddpo.calibration import Calibration
    from ddpo.model.stable_diffusion import BaseModel
    from ddpo.rewards.guards import GuardReading
    from ddpo.trainer import Batch
    from ddpo.types import Policy, UpdateStats
    from morl.types import Generation, PolicyId
    from run.search import SharedSearch
    from run.stop import Stop

    SessionT = TypeVar("SessionT", bound="Session")


@dataclass(frozen=True, kw_only=True, eq=False)
class Session(Parts):
    """A run's parts with its search, open.

    Attributes:
        calibration: of the base model.
        search: PGMORL, and the policies it may still ask for.
    """

    calibration: Calibration
    search: SharedSearch

    @classmethod
    @contextmanager
    def open(
        cls: type[SessionT],
        settings: Settings,
        stop: Stop | None = None,
        model: BaseModel | None = None,
    ) -> Iterator[SessionT]:
        """Open a run, the parts that fail fast first; it is closed when the block ends.

        Args:
            settings: checked already.
            stop: says when a signal has asked the run to end.
            model: the base model; by default `settings.pretrained` is loaded.

        Raises:
            UserError: if the processes, the directory, the model or the checkpoint cannot be used.
                Also for errors inside the block that a user can mend, see `explained`.
        """
        with ExitStack() as stack:
            processes, directory = join_processes(settings, stack)
            checkpoint, changes = processes.by_first(read_checkpoint, directory, settings)
            done = checkpoint.state.costs.train if checkpoint else None
            parts = open_parts(settings, processes, directory, stop, model, stack, done)
            stack.enter_context(explained(directory, processes.is_first))
            begun = restore(parts, checkpoint, changes) if checkpoint else begin(parts)
            run = cls(**vars(parts), calibration=begun[0], search=begun[1])
            run.introduce()
            if checkpoint is None:
                processes.by_first(run.save_checkpoint)
            yield run

    def introduce(self) -> None:
        """Say in four lines what the run does and how long; from now on show the time left."""
        evolution, recorder, num = self.search.evolution, self.recorder, self.settings.evolution
        plan = self.trainer.plan
        clock = TimeLeft(
            plan,
            num.num_generations,
            evolution.num_generations_done,
            recorder.costs,
            self.trainer.work,
            self.settings.evaluation.blends_fraction,
        )

        def time_left(fraction: float) -> float | None:
            done, finalists = evolution.num_generations_done, self.search.num_finalists
            return clock.seconds(Stand(generations=done, finalists=finalists, fraction=fraction))

        recorder.watch(time_left)
        height, width = self.trainer.model.image_size
        units = self.trainer.scorer.units
        goals = (f"{name} [{units[name]}]" for name in self.settings.rewards.objectives)
        judged, num_processes = plan.images - plan.train_images, self.processes.count
        for line in (
            f"folder      {self.directory.path}",
            f"model       {self.settings.pretrained.model}, {width} x {height} pixels, on "
            f"{self.processes.device} in {num_processes} process{'es' * (num_processes > 1)}",
            f"objectives  {', '.join(goals)}",
            f"budget      {num.num_generations} generations of {plan.num_agents} agents, "
            f"{plan.train_images:,} pictures to learn from, some {judged:,} to judge by: about "
            f"{shown(recorder.seconds_left)}",
        ):
            recorder.say(line)

    def record(self, batch: Batch, stats: UpdateStats) -> None:
        """Count and log one iteration."""
        self.recorder.spend(Costs(train=batch.num_images, unet_rows=self.trainer.take_unet_rows()))
        self.processes.by_first(self.recorder.iteration, {**batch.metrics(), **stats.metrics()})

    def evaluate(
        self, generation: Generation, policies: Sequence[Policy]
    ) -> tuple[list[Offspring], frozenset[PolicyId]]:
        """Judge the policies of the tasks; the second result names those that guards exclude."""
        names = [policy_id(generation.index, slot) for slot in range(len(policies))]
        named = dict(zip(names, policies, strict=True))
        self.search.add(named)
        evaluations = self.evaluator.select(named)
        offspring = [
            Offspring(
                policy=name,
                parent=task.policy,
                weights=task.weights,
                returns=evaluations[name].returns.numpy(),
                std_error=evaluations[name].std_error.numpy(),
                generation=generation.index,
            )
            for name, task in zip(names, generation.tasks, strict=True)
        ]
        readings = self.evaluator.guards(
            self.evaluator.selection_set, evaluations, self.evaluator.base
        )
        return offspring, self.processes.by_first(self._exclude, readings)

    def _exclude(self, readings: Mapping[PolicyId, GuardReading]) -> frozenset[PolicyId]:
        """Log the guards of a generation; returns the policies that have lost too much."""
        excluded = excluded_policies(readings, self.recorder.say)
        if readings:
            self.recorder.log(guard_metrics(readings.values(), len(excluded)))
        return excluded

    def commit(self, generation: Generation) -> None:
        """Log a finished generation, make it durable, and drop the policies nothing asks for."""
        self.search.drop_unneeded(generation)
        self.processes.by_first(self._commit, generation)

    def _commit(self, generation: Generation) -> None:
        metrics = self.search.evolution.metrics()
        self.recorder.archive(metrics)
        self.recorder.log(metrics)
        with self.directory.outlasting_a_full_disk(generation.index):
            self.save()
        self.recorder.finished(generation, metrics)

    def save(self) -> None:
        """Write the archive's adapters, the history and a checkpoint; in the first process."""
        self.save_adapters()
        history = self.search.evolution.history.to_json()
        self.directory.write_json("history.json", history, for_people=False)
        self.save_checkpoint()

    def save_adapters(self) -> None:
        """Write the archive's adapters; remove those that neither it nor a front needs."""
        self.directory.write_adapters(self.trainer.agents, self.search.archive())

    def save_checkpoint(self) -> None:
        """Write `search.json`, and a checkpoint of the last generation; in the first process."""
        evolution, recorder = self.search.evolution, self.recorder
        state = RunState(
            settings=self.settings.to_json(),
            calibration=self.calibration,
            costs=recorder.costs,
            curve=tuple(recorder.curve),
            warmup_archive=self.search.warmup_archive,
            prompts=self.trainer.prompts.digests(),
            metrics_bytes=self.directory.flush_metrics(),
        )
        samples = self.evaluator.samples(self.evaluator.selection_set)
        record = SearchRecord.of(evolution, state.curve, state.costs, samples)
        self.directory.write_json(SEARCH, record.to_json(), for_people=False)
        self.directory.store.commit(
            Checkpoint(
                generation=evolution.num_generations_done - 1,
                search=evolution.state(),
                policies=self.search.policies,
                state=state,
                versions=Versions.current(),
                num_processes=self.processes.count,
            )
        )

    def catch_up(self) -> None:
        """Save the last generation if a full disk has kept it from being saved."""
        if self.directory.store.last_generation != self.search.evolution.num_generations_done - 1:
            self.save()

    def finish(self) -> None:
        """Note that the run is done and its front is published; in the first process."""
        self.directory.flush_metrics()
        mark_finished(self.directory.path, self.search.evolution.num_generations)


class Publisher(Protocol):
    """Shows what a run has found; called in every process."""

    def generation(self, run: Session) -> None:
        """Show the generation that is on disk now."""
        ...

    def front(self, run: Session) -> None:
        """Publish the result of a run whose generations are all done."""
        ...
