"""The values that flow through DDPO: prompts, rollouts, rewards, policies and evaluations.

K agents, N samples per agent, rows = K * N in agent-major order, T denoising steps, latents of
C x h x w, images of H x W pixels, M objectives. All types are frozen and check their own shapes.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from config.base import PROMPT_MEMORY
from ddpo.devices import pairs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ddpo.ddim import Schedule

    Buffers = Mapping[str, tuple[tuple[float, ...], ...]]


def _check(holds: bool, name: str, expected: str, got: object) -> None:
    """Unless `holds`, raise a ValueError that names the field, the rule and the value."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """The UNet's inputs besides latents and timesteps, one row per sample.

    Attributes:
        text: (rows, L, D) text embeddings.
        pooled: (rows, P) pooled text embeddings; None if the UNet takes none (SD 1.x and 2.x).
        time_ids: (rows, 6) sizes and crops in pixels (SDXL: Podell et al. 2023, section 2.2); None
            if the UNet takes none.
        guidance: (rows, W) embedding of the guidance scale (Luo et al. 2023, section 4.2); None if
            the UNet takes none.
    """

    text: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None
    guidance: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check(self.text.ndim == 3, "text", "(rows, L, D)", tuple(self.text.shape))
        for name in ("pooled", "time_ids", "guidance"):
            value = getattr(self, name)
            _check(
                value is None or (value.ndim == 2 and len(value) == len(self)),
                name,
                f"({len(self)}, P)",
                value is not None and tuple(value.shape),
            )

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: torch.Tensor | Sequence[int] | slice) -> Conditioning:
        """The given rows, in that order."""
        return self.map(lambda values: values[rows])

    def map(self, function: Callable[..., torch.Tensor], *others: Conditioning) -> Conditioning:
        """Apply `function` to each tensor, together with the same tensor of every other value."""

        def one(name: str) -> torch.Tensor | None:
            values = [getattr(each, name) for each in (self, *others)]
            return None if values[0] is None else function(*values)

        return Conditioning(
            text=function(self.text, *(other.text for other in others)),
            pooled=one("pooled"),
            time_ids=one("time_ids"),
            guidance=one("guidance"),
        )

    def expand(self, rows: int) -> Conditioning:
        """Repeat a single row `rows` times, without copying memory."""
        return self.map(lambda values: values.expand(rows, *values.shape[1:]))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate the rows of all parts, with texts of one length; see `of_one_length`."""
        first, *others = Conditioning.of_one_length(parts)
        return first.map(lambda *values: torch.cat(values), *others)

    @staticmethod
    def of_one_length(parts: Sequence[Conditioning]) -> list[Conditioning]:
        """Repeat each text until all have the least common multiple of their lengths.

        Cross-attention is a weighted mean over the text, so repeating the text does not change it.
        A picture therefore does not depend on other prompts, up to rounding.
        """
        length = math.lcm(*(part.text.shape[1] for part in parts))
        return [
            part
            if (times := length // part.text.shape[1]) == 1
            else replace(part, text=part.text.repeat(1, times, 1))
            for part in parts
        ]

    def without_text(self) -> Conditioning:
        """The same with text embeddings of zero; sizes and crops stay as they are."""
        zero = self.map(torch.zeros_like)
        return replace(zero, time_ids=self.time_ids, guidance=self.guidance)

    def unet_arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """Keyword arguments of a `UNet2DConditionModel`."""
        arguments: dict[str, Any] = {"encoder_hidden_states": self.text.to(dtype)}
        if self.pooled is not None and self.time_ids is not None:
            arguments["added_cond_kwargs"] = {
                "text_embeds": self.pooled.to(dtype),
                "time_ids": self.time_ids.to(dtype),
            }
        if self.guidance is not None:
            arguments["timestep_cond"] = self.guidance.to(dtype)
        return arguments


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptBatch:
    """What to draw: one prompt and one random seed per sample.

    Attributes:
        texts: one prompt per row.
        encoded: the UNet's conditioning, one row per distinct prompt.
        which: (rows,) int64, the row of `encoded` that belongs to each sample.
        seeds: one seed per row; no other seed affects a sample.
        num_agents: K; rows are agent-major, so agent k owns rows k*N to (k+1)*N - 1.
    """

    texts: tuple[str, ...]
    encoded: Conditioning
    which: torch.Tensor
    seeds: tuple[int, ...]
    num_agents: int

    def __post_init__(self) -> None:
        rows = len(self.texts)
        _check(tuple(self.which.shape) == (rows,), "which", f"({rows},)", tuple(self.which.shape))
        _check(len(self.seeds) == rows, "seeds", f"{rows} seeds", len(self.seeds))
        _check(
            rows > 0 and rows % self.num_agents == 0,
            "texts",
            f"a positive multiple of {self.num_agents} agents",
            rows,
        )

    @property
    def samples_per_agent(self) -> int:
        """N, the samples of each agent."""
        return len(self.texts) // self.num_agents

    @property
    def conditioning(self) -> Conditioning:
        """The conditioning with one row per sample."""
        return self.encoded[self.which]

    def conditioning_of(self, rows: torch.Tensor) -> Conditioning:
        """The conditioning of the samples `rows`."""
        return self.encoded[self.which[rows]]

    def chunks(self, size: int) -> Iterator[PromptBatch]:
        """Parts of at most `size` samples per agent, one after another."""
        for start in range(0, self.samples_per_agent, size):
            yield self.chunk(start, start + size)

    def chunk(self, start: int, stop: int) -> PromptBatch:
        """Samples start to stop - 1 of every agent, again agent-major."""
        k, n = self.num_agents, self.samples_per_agent
        index = [agent * n + i for agent in range(k) for i in range(start, min(stop, n))]
        return PromptBatch(
            texts=tuple(self.texts[i] for i in index),
            encoded=self.encoded,
            which=self.which.unflatten(0, (k, n))[:, start:stop].flatten(),
            seeds=tuple(self.seeds[i] for i in index),
            num_agents=k,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """Denoising trajectories of all agents; the (state, action) pairs of DDPO's MDP.

    Attributes:
        prompts: the prompts and seeds of the samples.
        schedule: the T steps and the noise of each.
        latents: (rows, T+1, C, h, w); step i takes latents[:, i] to latents[:, i + 1].
        log_probs: (rows, T) float32, mean over latent entries; NaN for steps without variance.
        images: (rows, 3, H, W) in [0, 1].
        gradients: (rows, P) gradient of each sample's log-probability with respect to its agent's
            adapter: a weighted sum over the trained steps, times the agent's loss scale. None if no
            gradients were taken while sampling.
    """

    prompts: PromptBatch
    schedule: Schedule
    latents: torch.Tensor
    log_probs: torch.Tensor
    images: torch.Tensor
    gradients: torch.Tensor | None = None

    def __post_init__(self) -> None:
        rows, steps = len(self.prompts.texts), len(self.timesteps)
        _check(
            self.latents.ndim == 5 and tuple(self.latents.shape[:2]) == (rows, steps + 1),
            "latents",
            f"({rows}, {steps + 1}, C, h, w)",
            tuple(self.latents.shape),
        )
        _check(
            tuple(self.log_probs.shape) == (rows, steps),
            "log_probs",
            f"({rows}, {steps})",
            tuple(self.log_probs.shape),
        )
        _check(
            self.images.ndim == 4 and tuple(self.images.shape[:2]) == (rows, 3),
            "images",
            f"({rows}, 3, H, W)",
            tuple(self.images.shape),
        )
        _check(
            self.gradients is None or (self.gradients.ndim == 2 and len(self.gradients) == rows),
            "gradients",
            f"({rows}, P)",
            self.gradients is not None and tuple(self.gradients.shape),
        )

    @property
    def timesteps(self) -> torch.Tensor:
        """(T,) int64, descending."""
        return self.schedule.timesteps

    def states(self, rows: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
        """Latents (pairs, C, h, w) before these steps; see `pairs_of`."""
        return pairs_of(self.latents, rows, steps)

    def offloaded(self) -> Rollout:
        """The same rollout with latents, images and gradients on the host."""
        gradients = None if self.gradients is None else self.gradients.cpu()
        return replace(
            self, latents=self.latents.cpu(), images=self.images.cpu(), gradients=gradients
        )

    @classmethod
    def join(cls, prompts: PromptBatch, chunks: Sequence[Rollout]) -> Rollout:
        """Join the rollouts of all chunks of `prompts` (see `PromptBatch.chunk`), agent-major."""
        k = prompts.num_agents

        def cat(field: str) -> torch.Tensor:
            parts = [getattr(chunk, field).unflatten(0, (k, -1)) for chunk in chunks]
            return torch.cat(parts, dim=1).flatten(0, 1)

        return cls(
            prompts=prompts,
            schedule=chunks[0].schedule,
            latents=cat("latents"),
            log_probs=cat("log_probs"),
            images=cat("images"),
            gradients=None if chunks[0].gradients is None else cat("gradients"),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardBatch:
    """Scores of a rollout's images.

    Attributes:
        objectives: M names.
        values: (K, N, M) float32, larger is better; NaN where a score is missing.
        seconds_per_image: time of each reward's calls per image; M numbers, or none.
    """

    objectives: tuple[str, ...]
    values: torch.Tensor
    seconds_per_image: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check(
            self.values.ndim == 3 and self.values.shape[2] == len(self.objectives),
            "values",
            f"(K, N, {len(self.objectives)})",
            tuple(self.values.shape),
        )

    @property
    def is_valid(self) -> torch.Tensor:
        """(K, N) bool: whether a sample has all its scores."""
        return self.values.isfinite().all(dim=-1)

    def metrics(self) -> dict[str, float]:
        """Mean, spread, agents' means and cost of each objective, without missing scores."""
        out: dict[str, float] = {}
        for index, name in enumerate(self.objectives):
            values = self.values[..., index]
            present = values[values.isfinite()]
            out[f"reward/{name}/invalid"] = values.numel() - len(present)
            if len(present) == 0:
                continue
            out[f"reward/{name}/mean"] = present.mean().item()
            out[f"reward/{name}/std"] = present.std(correction=min(1, len(present) - 1)).item()
            for agent, mean in enumerate(values.nanmean(dim=1).tolist()):
                if not math.isnan(mean):
                    out[f"reward/{name}/agent{agent}"] = mean
        for name, seconds in zip(self.objectives, self.seconds_per_image, strict=False):
            out[f"cost/reward_seconds_per_image/{name}"] = seconds
        return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateStats:
    """Statistics of one iteration's updates, per agent.

    Attributes:
        means: metric -> (K,) mean over (sample, step) pairs of the rule's metrics
            (`Surrogate.metrics`): "loss", "approx_kl", "clip_fraction" and so on.
        grad_norm: (K,) mean gradient norm before clipping, over the steps that were not skipped;
            NaN if all were.
        skipped: (K,) optimiser steps that an agent skipped because its gradient was not finite. Its
            loss may still be finite: in float16 only the scaled gradient may overflow.
        ratio_error: (T,) mean absolute log-ratio per step before the first update, which is zero up
            to rounding; NaN for steps that are not trained.
        excluded_steps: denoising steps left out: steps without noise and too sensitive ones.
    """

    means: Mapping[str, torch.Tensor]
    grad_norm: torch.Tensor
    skipped: torch.Tensor
    ratio_error: torch.Tensor
    excluded_steps: int

    @classmethod
    def join(cls, parts: Sequence[UpdateStats]) -> UpdateStats:
        """Join the statistics of groups of agents, in the order of the agents."""
        first = parts[0]
        return cls(
            means={name: torch.cat([part.means[name] for part in parts]) for name in first.means},
            grad_norm=torch.cat([part.grad_norm for part in parts]),
            skipped=torch.cat([part.skipped for part in parts]),
            ratio_error=first.ratio_error,
            excluded_steps=first.excluded_steps,
        )

    def metrics(self) -> dict[str, float]:
        """Means over agents with finite values; for the ratio error, the worst step."""
        means = {}
        for name, values in {**self.means, "grad_norm": self.grad_norm}.items():
            means[f"update/{name}"] = values[values.isfinite()].mean().item()
        return {
            **means,
            "update/ratio_error": self.ratio_error.nan_to_num(0).max().item(),
            "update/excluded_steps": self.excluded_steps,
            "update/skipped_steps": int(self.skipped.sum()),
        }


@dataclass(frozen=True, slots=True)
class PromptStatistics:
    """The latest reward vectors of each prompt, oldest first. Immutable: `add` returns a copy.

    Attributes:
        buffers: prompt -> tuple of reward vectors of length M.
    """

    buffers: Buffers = field(default_factory=dict)

    def add(
        self, prompts: Sequence[str], rewards: torch.Tensor, size: int = PROMPT_MEMORY
    ) -> PromptStatistics:
        """Append rewards (N, M) of N prompts, keeping the last `size` vectors of each prompt.

        Vectors with a missing score are left out.
        """
        grown = {prompt: deque(rows, maxlen=size) for prompt, rows in self.buffers.items()}
        kept, vectors = scored(prompts, rewards)
        for prompt, row in zip(kept, vectors.tolist(), strict=True):
            grown.setdefault(prompt, deque(maxlen=size)).append(tuple(row))
        return PromptStatistics({prompt: tuple(rows) for prompt, rows in grown.items()})

    def rewards(self, prompt: str) -> torch.Tensor:
        """The kept reward vectors of a prompt: (count, M) float64, (0,) if it was never seen."""
        return torch.tensor(self.buffers.get(prompt, ()), dtype=torch.float64)


def scored(prompts: Sequence[str], rewards: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    """The prompts and reward vectors (N, M) without a missing score (NaN)."""
    is_valid = rewards.isfinite().all(dim=-1)
    kept = [prompt for prompt, ok in zip(prompts, is_valid.tolist(), strict=True) if ok]
    return kept, rewards[is_valid]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """A frozen snapshot of one agent, with everything that further training depends on.

    Attributes:
        adapter: (P,) float32, all LoRA matrices of one agent, flat.
        exp_avg: (P,) Adam's first moment.
        exp_avg_sq: (P,) Adam's second moment.
        step: number of optimiser steps taken.
        statistics: recent reward vectors per prompt.
    """

    adapter: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    step: int
    statistics: PromptStatistics

    def __post_init__(self) -> None:
        for name in ("exp_avg", "exp_avg_sq"):
            if getattr(self, name).shape != self.adapter.shape:
                raise ValueError(f"{name} must have the shape of adapter")
        for name in ("adapter", "exp_avg", "exp_avg_sq"):
            if not getattr(self, name).isfinite().all():
                raise FloatingPointError(f"{name} has entries that are not finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """N prompts and seeds that every policy is judged on.

    Attributes:
        prompts: one per image.
        seeds: one per image.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def first(self, num_images: int | None) -> EvaluationSet:
        """The first prompts and seeds, such as those whose pictures are shown; None: all."""
        return EvaluationSet(prompts=self.prompts[:num_images], seeds=self.seeds[:num_images])

    def to_json(self) -> dict[str, list[str] | list[int]]:
        """As the run's records store it."""
        return {"prompts": list(self.prompts), "seeds": list(self.seeds)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """One policy's rewards on an evaluation set.

    Attributes:
        rewards: (N, M) float32, one row per image; NaN where a score is missing. Returns are
            means over the images that have all scores.
        images: (n, 3, H, W) uint8, the first n images.
        features: (N, F) float32, which guards keep of each image (`ddpo/rewards/guards.py`).
        prompts: one per image.
    """

    rewards: torch.Tensor
    images: torch.Tensor
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))
    prompts: tuple[str, ...] = ()

    @property
    def returns(self) -> torch.Tensor:
        """(M,) float64 mean reward."""
        return _present(self.rewards).mean(dim=0)

    @property
    def std_error(self) -> torch.Tensor:
        """(M,) float64 standard error of `returns`."""
        return standard_error(self.rewards)

    @property
    def std_error_by_prompt(self) -> torch.Tensor:
        """(M,) float64 standard error of `returns`, clustered by prompt."""
        return clustered_standard_error(self.rewards, self.prompts)

    def gain_over(self, other: Evaluation) -> Gain:
        """Paired difference of returns, self minus `other`, image by image."""
        difference = self.rewards.double() - other.rewards.double()
        return Gain(
            mean=_present(difference).mean(dim=0),
            std_error=standard_error(difference),
            std_error_by_prompt=clustered_standard_error(difference, self.prompts),
        )


class Gain(NamedTuple):
    """A paired difference of returns, each (M,) float64.

    Attributes:
        mean: over images.
        std_error: standard error of `mean` for new pictures of the same prompts.
        std_error_by_prompt: standard error of `mean` for new prompts as well.
    """

    mean: torch.Tensor
    std_error: torch.Tensor
    std_error_by_prompt: torch.Tensor


def standard_error(rewards: torch.Tensor) -> torch.Tensor:
    """(M,) float64 standard error of the mean of rewards (N, M), over rows without NaN."""
    present = _present(rewards)
    return present.std(dim=0) / math.sqrt(len(present))


def clustered_standard_error(rewards: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Standard error of the mean, clustered by prompt: pictures of one prompt are alike.

    sqrt(G / (G - 1) sum_g (sum_{i in g} (r_i - mean))^2) / N over the G prompts. If all prompts
    have equally many pictures, it is the standard error of the prompts' means.

    Source: Liang and Zeger (1986), for a mean.

    Args:
        rewards: (N, M); rows with NaN are left out.
        prompts: one per row.

    Returns:
        (M,) float64; NaN with fewer than two prompts.
    """
    is_present = rewards.isfinite().all(dim=-1).tolist()
    distinct, cluster = np.unique(list(compress(prompts, is_present)), return_inverse=True)
    num_prompts, num_objectives = len(distinct), rewards.shape[-1]
    if num_prompts <= 1:
        return torch.full((num_objectives,), torch.nan, dtype=torch.float64)
    centred = _present(rewards) - _present(rewards).mean(dim=0)
    sums = torch.zeros(num_prompts, num_objectives, dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(cluster), centred)
    return (num_prompts / (num_prompts - 1) * sums.square().sum(dim=0)).sqrt() / len(centred)


def _present(rewards: torch.Tensor) -> torch.Tensor:
    """The rows of rewards (N, M) with all scores, as float64."""
    return rewards[rewards.isfinite().all(dim=-1)].double()
