"""A run's evaluations: returns and guards of policies on its fixed sets, and what they cost."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ddpo.evaluation import evaluation_set
from run.records import Costs, Samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from config.base import Settings
    from ddpo.processes import Processes
    from ddpo.rewards.guards import GuardReading
    from ddpo.trainer import Trainer
    from ddpo.types import Evaluation, EvaluationSet, Policy
    from morl.types import PolicyId
    from run.directory import RunDir
    from run.recorder import Recorder

NUM_SHOWN = 8  # pictures of each policy that samples.png shows


class Evaluator:
    """Judges policies on the selection set, which decides the search, and on the report set.

    Args:
        settings: of the run.
        trainer: draws and scores.
        processes: the ones that share the work.
        directory: gets the pictures of the selection set.
        recorder: counts images and UNet rows.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        processes: Processes,
        directory: RunDir,
        recorder: Recorder,
    ) -> None:
        self._settings = settings
        self._trainer = trainer
        self._processes = processes
        self._directory = directory
        self._recorder = recorder
        self.base: Evaluation | None = None  # the base model's on the selection set, for guards

    @cached_property
    def selection_set(self) -> EvaluationSet:
        """The pictures that the search decides by."""
        return evaluation_set(
            "selection",
            self._trainer.prompts.selection,
            self._settings.evaluation.selection_images,
            self._settings.seed,
            self._settings.guards.names,
        )

    @cached_property
    def report_set(self) -> EvaluationSet:
        """The pictures of the published front's returns; no decision sees them."""
        return evaluation_set(
            "report",
            self._trainer.prompts.report,
            self._settings.evaluation.report_images,
            self._settings.seed,
            self._settings.guards.names,
        )

    def samples(self, evaluation_set: EvaluationSet) -> Samples:
        """Prompts and seeds of the pictures of a set that are kept."""
        kept = evaluation_set.first(NUM_SHOWN)
        return Samples(prompts=kept.prompts, seeds=kept.seeds)

    def measure(
        self, policy: Policy, evaluation_set: EvaluationSet, keep_images: int
    ) -> Evaluation:
        """Judge a policy on a set of its own; no guard is measured."""
        (evaluation,) = self._trainer.evaluate(
            [policy], evaluation_set, keep_images, use_guards=False
        )
        self._spend("selection", len(evaluation_set.prompts))
        return evaluation

    def select(self, policies: Mapping[PolicyId, Policy]) -> dict[PolicyId, Evaluation]:
        """Judge policies on the selection set, and store their pictures."""
        evaluations = self._evaluate("selection", policies, self.selection_set)
        self._processes.by_first(self._directory.write_samples, "selection", evaluations)
        return evaluations

    def report(self, policies: Mapping[PolicyId, Policy]) -> dict[PolicyId, Evaluation]:
        """Judge policies on the report set."""
        return self._evaluate("report", policies, self.report_set)

    def blends(self, policies: Sequence[Policy]) -> list[Evaluation]:
        """Judge blends on the report set; they do not count among the run's costs."""
        num_kept = len(self.samples(self.report_set))
        evaluations = self._trainer.evaluate(policies, self.report_set, num_kept)
        self._trainer.take_unet_rows()
        return evaluations

    def measure_base(self, base: Policy) -> None:
        """Judge the base model again, for the guards of a resumed run; its cost is not counted."""
        if self._trainer.guards is not None:
            (self.base,) = self._trainer.evaluate([base], self.selection_set)
            self._trainer.take_unet_rows()

    def guards(
        self,
        evaluation_set: EvaluationSet,
        evaluations: Mapping[PolicyId, Evaluation],
        base: Evaluation | None,
    ) -> dict[PolicyId, GuardReading]:
        """The guards' values for policies; empty without guards.

        Args:
            evaluation_set: the set that all were judged on.
            evaluations: of the policies.
            base: the base model's.
        """
        guards = self._trainer.guards
        if guards is None or base is None:
            return {}
        return {name: guards.read(evaluation_set, each, base) for name, each in evaluations.items()}

    def _evaluate(
        self,
        purpose: Literal["selection", "report"],
        policies: Mapping[PolicyId, Policy],
        evaluation_set: EvaluationSet,
    ) -> dict[PolicyId, Evaluation]:
        num_kept = len(self.samples(evaluation_set))
        evaluations = self._trainer.evaluate(list(policies.values()), evaluation_set, num_kept)
        self._spend(purpose, len(policies) * len(evaluation_set.prompts))
        return dict(zip(policies, evaluations, strict=True))

    def _spend(self, purpose: Literal["selection", "report"], num_images: int) -> None:
        rows = self._trainer.take_unet_rows()
        self._recorder.spend(Costs(**{purpose: num_images}, unet_rows=rows))
