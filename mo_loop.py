"""The method: PGMORL's evolutionary loop around DDPO's sampling and updates.

`Run.train` is the whole of it. The search (`morl/`) sees numbers only; the agents (`ddpo/`) move
together, one UNet pass for all.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from config.errors import UserError
from config.schema import check_resumable
from ddpo.advantages import advantages
from ddpo.agents import Agents
from ddpo.calibration import IMAGES_PER_PROMPT, Calibration, calibrate, initial_statistics
from ddpo.evaluation import Evaluation, EvaluationSet, evaluate
from ddpo.pipeline import FrozenDiffusion
from ddpo.prompts import draw_prompts, load_prompts
from ddpo.rewards import REWARDS
from ddpo.sampler import Sampler
from ddpo.scorer import RewardError, Scorer, collect
from ddpo.seeding import keyed_seed
from ddpo.update import Updater
from front.progress import Progress, ProgressHandler
from front.publish import Costs, front_record, publish
from front.run_dir import open_run_dir
from front.trackers import Trackers
from morl.evolution import Evolution
from morl.types import BASE_POLICY, Objective, Offspring, PolicyId, policy_id
from morl.weights import even_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.schema import Settings
    from ddpo.agents import Policy
    from morl.types import Generation

logger = logging.getLogger(__name__)

_UPDATE_KEY = 1  # keys the shuffles of an update apart from the noise of its samples


class Run:
    """All parts of one run.

    Args:
        settings: checked already.

    Raises:
        UserError: if the run directory, the model or the checkpoint cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        logging.basicConfig(level=logging.INFO, handlers=[ProgressHandler()], force=True)
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        if settings.num_threads:
            torch.set_num_threads(settings.num_threads)
        self.run_dir = open_run_dir(settings)
        accelerator = Accelerator(log_with=settings.trackers or None, project_dir=self.run_dir.path)
        if accelerator.num_processes > 1:
            raise UserError("mo_train.py runs as one process; launch it with --num_processes 1")
        self.model = FrozenDiffusion.load(settings.pretrained, accelerator.device)
        self.scorer = Scorer.build(settings.rewards, accelerator.device)
        if settings.train.gradient_checkpointing:
            self.model.pipe.unet.enable_gradient_checkpointing()
        self.agents = Agents(
            self.model.unet, settings.evolution.num_agents, settings.adapter, settings.train
        )
        self.sampler = Sampler(self.model, settings.sample)
        self.updater = Updater(self.sampler, settings.train)
        self.prompts = load_prompts(settings.prompts.train)
        self.selection_set = EvaluationSet.make(
            "selection", self.prompts, settings.evaluation.selection_images, settings.seed
        )
        self.report_set = EvaluationSet.make(
            "report",
            load_prompts(settings.prompts.report),
            settings.evaluation.report_images,
            settings.seed,
        )
        self.trackers = Trackers(
            accelerator, settings.trackers, self.run_dir.path.name, settings.flat()
        )
        self.progress = Progress(settings.evolution.num_generations)
        self.policies: dict[PolicyId, Policy] = {}
        self.costs = Costs(train=0, selection=0, report=0, unet_rows=0)
        self.curve: list[tuple[int, float]] = []
        self.warmup_archive: list[PolicyId] = []
        if settings.resume_from:
            self._restore()
        else:
            self._start(accelerator.device)

    def train(self) -> None:
        """The loop: tasks from the search, DDPO on all of them at once, offspring to the search."""
        try:
            while (generation := self.evolution.ask()) is not None:
                started = time.monotonic()
                self.progress.generation(
                    generation.index, generation.stage, generation.num_iterations
                )
                for slot, task in enumerate(generation.tasks):
                    self.agents.load(slot, self.policies[task.policy])
                for iteration in range(generation.num_iterations):
                    self._iterate(generation, iteration)
                self.evolution.tell(self._offspring(generation))
                self._commit(generation, time.monotonic() - started)
            self._publish()
        except (RewardError, FloatingPointError, torch.OutOfMemoryError) as error:
            raise UserError(
                f"{error}\nThe last finished generation is safe: go on from it with "
                f"--config.resume_from={self.run_dir.path}"
            ) from error
        finally:
            self.progress.close()
            self.trackers.close()
            self.scorer.close()

    def _iterate(self, generation: Generation, iteration: int) -> None:
        """One iteration of DDPO for all agents: sample, score, update."""
        settings, sample = self.settings, self.settings.sample
        key = (settings.seed, generation.index, iteration)
        num_agents, num_images = len(generation.tasks), sample.images_per_agent
        draw = generation.index * generation.num_iterations + iteration
        distinct = draw_prompts(self.prompts, sample.prompts_per_iteration, draw, settings.seed)
        texts = [text for text in distinct for _ in range(sample.images_per_prompt)]
        batch = self.sampler.prompt_batch(
            texts * num_agents,
            [keyed_seed(*key, agent, i) for agent in range(num_agents) for i in range(num_images)],
            num_agents,
        )
        chunks = -(-num_images // self.sampler.samples_per_pass(num_agents))
        on_step = self.progress.steps("sampling", chunks * sample.num_steps)
        rollout, rewards = collect(self.sampler, self.scorer, self.agents, batch, on_step)
        weights = torch.stack([torch.from_numpy(task.weights.copy()) for task in generation.tasks])
        values, self.agents.statistics = advantages(
            rewards.values,
            weights,
            [texts] * num_agents,
            self.agents.statistics,
            torch.tensor(self.calibration.scales),
            settings.advantage,
        )
        stats = self.updater.update(
            self.agents,
            rollout,
            values,
            seeds=[keyed_seed(*key, agent, num_images, _UPDATE_KEY) for agent in range(num_agents)],
            on_pass=self.progress.steps("updating", 0),
        )
        self._spend(train=num_images * num_agents, unet_rows=stats.unet_rows)
        self.progress.iteration()
        self._log(
            {
                **_reward_metrics(rewards.objectives, rewards.values),
                "update/loss": stats.loss.mean().item(),
                "update/approx_kl": stats.approx_kl.mean().item(),
                "update/clip_fraction": stats.clip_fraction.mean().item(),
                "update/grad_norm": stats.grad_norm.mean().item(),
                "update/ratio_error": stats.ratio_error.nan_to_num(0).max().item(),
                "update/excluded_steps": stats.excluded_steps,
                "cost/images": self.costs.train,
                "cost/unet_rows": self.costs.unet_rows,
            }
        )

    def _offspring(self, generation: Generation) -> list[Offspring]:
        """Snapshot and evaluate what the agents have become."""
        names = [policy_id(generation.index, slot) for slot in range(len(generation.tasks))]
        trained = [self.agents.snapshot(slot) for slot in range(len(names))]
        self.policies |= dict(zip(names, trained, strict=True))
        evaluations = self._evaluate(trained, self.selection_set, "selection")
        return [
            Offspring(
                policy=name,
                parent=task.policy,
                weights=task.weights,
                returns=evaluation.returns.numpy(),
                std_error=evaluation.std_error.numpy(),
                generation=generation.index,
            )
            for name, task, evaluation in zip(names, generation.tasks, evaluations, strict=True)
        ]

    def _evaluate(
        self, policies: Sequence[Policy], on: EvaluationSet, purpose: str, keep_images: int = 0
    ) -> list[Evaluation]:
        on_step = self.progress.steps(f"evaluating ({purpose})", 0)
        evaluations = evaluate(
            policies, on, self.sampler, self.scorer, self.agents, keep_images, on_step
        )
        self._spend(**{purpose: len(policies) * len(on.prompts)})
        return evaluations

    def _start(self, device: torch.device) -> None:
        """Measure the base model: scales, reference and ideal points, its own returns."""
        settings = self.settings
        self.run_dir.write_config(settings, str(device))
        initial = self.agents.initial_policy()
        calibration_set = EvaluationSet.make(
            "calibration", self.prompts, IMAGES_PER_PROMPT * len(self.prompts), settings.seed
        )
        rewards = self._evaluate([initial], calibration_set, "selection")[0].rewards
        self.calibration = calibrate(rewards, calibration_set.prompts, settings.rewards)
        statistics = initial_statistics(
            rewards, calibration_set.prompts, settings.advantage.buffer_size
        )
        self.policies[BASE_POLICY] = dataclasses.replace(initial, statistics=statistics)
        returns = self._evaluate([initial], self.selection_set, "selection")[0]
        base = Offspring(
            policy=BASE_POLICY,
            parent=None,
            weights=even_weights(len(self.objectives), len(self.objectives)).mean(axis=0),
            returns=returns.returns.numpy(),
            std_error=returns.std_error.numpy(),
            generation=-1,
        )
        self.evolution = Evolution(settings.evolution, self.objectives, base)
        self._log(_returns_metrics("base", self.objectives, base))
        self._save(-1)

    def _restore(self) -> None:
        """Continue from the newest whole checkpoint."""
        checkpoint = self.run_dir.store.latest()
        record = checkpoint.record
        check_resumable(record["settings"], self.settings)
        self.policies = {
            PolicyId(name): self.run_dir.store.load_policy(name) for name in checkpoint.policies
        }
        self.calibration = Calibration.from_json(record["calibration"])
        self.costs = Costs(**record["costs"])
        self.curve = [(images, value) for images, value in record["curve"]]
        self.warmup_archive = [PolicyId(name) for name in record["warmup_archive"]]
        self.updater.recompute = record["recompute_log_probs"]
        self.run_dir.truncate_metrics(record["metrics_bytes"])
        self.evolution = Evolution.restore(
            self.settings.evolution, self.objectives, checkpoint.evolution
        )
        self.progress.say(
            f"resumed after generation {checkpoint.generation} of {self.run_dir.path}"
        )

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives with their fixed reference and ideal points."""
        return tuple(
            Objective(name=name, unit=REWARDS[name].unit, reference=reference, ideal=ideal)
            for name, reference, ideal in zip(
                self.settings.rewards.names,
                self.calibration.reference,
                self.calibration.ideal,
                strict=True,
            )
        )

    def _commit(self, generation: Generation, seconds: float) -> None:
        """Log a finished generation and make it durable."""
        evolution = self.evolution
        metrics = evolution.metrics()
        self.curve.append((self.costs.train, metrics["morl/hypervolume"]))
        if generation.stage == "warmup":
            self.warmup_archive = [member.policy for member in evolution.archive]
        self._log(metrics)
        live = evolution.live_policies | {*self.warmup_archive, BASE_POLICY}
        self.policies = {name: policy for name, policy in self.policies.items() if name in live}
        archive = {member.policy: self.policies[member.policy] for member in evolution.archive}
        self.run_dir.write_adapters(self.agents, archive)
        self.run_dir.write_json("history.json", evolution.history.to_json())
        self._save(generation.index)
        left = self.settings.evolution.num_generations - generation.index - 1
        errors = [value for name, value in metrics.items() if "prediction_error" in name]
        predicted = f"  prediction error {max(errors):.3f}" if errors else ""
        self.progress.say(
            f"generation {generation.index:2d} {generation.stage:12s}"
            f"  hypervolume {metrics['morl/hypervolume']:.4f}"
            f"  archive {int(metrics['morl/archive_size'])}"
            f"  sparsity {metrics['morl/sparsity']:.4f}{predicted}"
            f"  images {self.costs.train}  {seconds:.0f} s, about {left * seconds:.0f} s left"
        )

    def _save(self, generation: int) -> None:
        store = self.run_dir.store
        for name, policy in self.policies.items():
            store.save_policy(name, policy)
        record = {
            "settings": self.settings.to_json(),
            "calibration": self.calibration.to_json(),
            "costs": dataclasses.asdict(self.costs),
            "curve": self.curve,
            "warmup_archive": self.warmup_archive,
            "recompute_log_probs": self.updater.recompute,
            "metrics_bytes": self.run_dir.metrics_bytes(),
        }
        store.commit(generation, self.evolution.state(), self.policies, record)

    def _publish(self) -> None:
        """Re-evaluate the archive on the report set and write what is published."""
        archive = self.evolution.archive
        names = sorted({member.policy for member in archive} | {*self.warmup_archive, BASE_POLICY})
        count = min(self.settings.evaluation.sample_prompts, len(self.report_set.prompts))
        evaluations = self._evaluate(
            [self.policies[name] for name in names], self.report_set, "report", count
        )
        report = dict(zip(names, evaluations, strict=True))
        front = front_record(self.objectives, archive, self.warmup_archive, report, self.costs)
        generations = [
            {"generation": record.generation, "returns": record.after.tolist()}
            for record in self.evolution.history
        ]
        prompts = self.report_set.prompts[:count]
        publish(self.run_dir, front, generations, self.curve, prompts, report)
        volumes = front["hypervolume"]
        self.progress.say(
            f"front of {len(front['policies'])} policies in {self.run_dir.path}; hypervolume on "
            f"the report set {volumes['report']:.4f} (base model {volumes['report_base']:.4f}, after "
            f"warm-up {volumes['report_warmup']:.4f})"
        )

    def _spend(self, **counts: int) -> None:
        """Add to the costs, with the UNet rows the sampler has counted since."""
        counts["unet_rows"] = counts.get("unet_rows", 0) + self.sampler.take_unet_rows()
        totals = {name: getattr(self.costs, name) + count for name, count in counts.items()}
        self.costs = dataclasses.replace(self.costs, **totals)

    def _log(self, metrics: dict[str, float]) -> None:
        self.run_dir.log(self.costs.train, metrics)
        self.trackers.log(metrics, self.costs.train)


def _reward_metrics(objectives: Sequence[str], values: torch.Tensor) -> dict[str, float]:
    out = {}
    for index, name in enumerate(objectives):
        out[f"reward/{name}/mean"] = values[..., index].mean().item()
        out[f"reward/{name}/std"] = values[..., index].std().item()
        for agent, mean in enumerate(values[..., index].mean(dim=1).tolist()):
            out[f"reward/{name}/agent{agent}"] = mean
    return out


def _returns_metrics(
    area: str, objectives: Sequence[Objective], offspring: Offspring
) -> dict[str, float]:
    return {
        f"{area}/{objective.name}": value
        for objective, value in zip(objectives, offspring.returns.tolist(), strict=True)
    }
