"""The comparison: pairs of objectives, arms, seeds and the sweep of learning rates.

An arm is only a set of settings over `COMMON` and the faithful recipe. `mo_train.py` would do the
same run with the same command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.evidence import REMOVED, SECOND, command_line

if TYPE_CHECKING:
    from collections.abc import Mapping

# Reference and ideal points are fixed to the values that `mo_train.py --calibrate` measures, so
# that the hypervolumes of all runs have the same units.
PAIRS: dict[str, dict[str, str]] = {
    "compress": {
        "rewards.names": "clip_alignment,jpeg_compressibility",
        "rewards.reference": "0.095,-1.2711",
        "rewards.ideal": "1.039,-0.7713",
        "rewards.scales": "0.157,0.0833",
    },
    "incompress": {
        "rewards.names": "clip_alignment,jpeg_incompressibility",
        "rewards.reference": "0.095,0.7713",
        "rewards.ideal": "1.039,1.2711",
        "rewards.scales": "0.157,0.0833",
    },
    "colour": {
        "rewards.names": "clip_alignment,colorfulness",
        "rewards.reference": "0.4833,14.8",
        "rewards.ideal": "0.9333,123.4",
        "rewards.scales": "0.0750,18.1",
        "sample.guidance_scale": "3",
    },
}
# DDPO's, of the main question. The third shows what guidance changes.
MAIN_PAIRS = ("compress", "incompress")

COMMON: dict[str, str] = {
    "sample.prompts_per_iteration": "8",
    "evaluation.selection_images": "48",
    "evaluation.report_images": "96",
    "evaluation.calibration_prompts": "16",
    "evolution.warmup_generations": "3",
    "evolution.evolutionary_generations": "4",
    "evolution.iterations_per_generation": "2",
}

BASELINE = "baseline"
RECOMMENDED = "soup_few"
GRADIENT = "gradient"
HYBRID = "hybrid"
FEW_STEP = "few_step"
FEW_STEP_GRADIENT = "few_step_gradient"
MAIN_SEEDS = range(8)
SEEDS = range(5)  # of the other arms
TUNING_SEEDS = (100,)
RATES = (5e-3, 1e-2, 2e-2)
HIGHER_RATES = (1e-2, 2e-2, 4e-2, 8e-2)  # for updates with more noise or smaller steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One variant of the method.

    Attributes:
        title: in tables.
        overrides: settings over `COMMON`.
        pairs: the pairs of objectives that it is run on.
        is_main: whether it is compared on all seeds.
        rates: learning rates of its sweep.
        tuned_as: the arm whose learning rate it uses; empty if it has its own sweep.
        measured_at: for an arm that can no longer be run, the last commit with its settings, which
            made its records; empty for all others.
    """

    title: str
    overrides: Mapping[str, str]
    pairs: tuple[str, ...] = MAIN_PAIRS
    is_main: bool = False
    rates: tuple[float, ...] = RATES
    tuned_as: str = ""
    measured_at: str = ""


# A soup's warm-up trains one agent per objective, half as many as the others: it costs half.
_SOUP = {
    "evolution.start": "soup",
    "evolution.warmup_generations": "3",
    "evolution.evolutionary_generations": "5",
}
_SPECIALISTS = {
    "evolution.start": "soup",
    "evolution.num_agents": "7",
    "evolution.warmup_generations": "12",
    "evolution.evolutionary_generations": "0",
}
_FEW = {"sample.num_steps": "6", "evaluation.num_steps": "10"}
_SINGLE_PASS = {"train.single_pass": "True", "train.updates_per_epoch": "1"}
# As many optimiser steps on as many images each, but sampled after the previous step.
_SMALL = {"sample.prompts_per_iteration": "2", "evolution.iterations_per_generation": "8"}
_SKIP = {"train.max_sensitivity": "5"}
_FIXED = {"evolution.strategy": "fixed_weights"}
# Four agents with four pictures each per update, and two of four steps with gradient. Policies are
# still judged with ten steps. They change quickly, so fewer pictures are enough to compare them.
_GRADIENT = {
    "train.update_rule": "reward_gradient",
    "train.updates_per_epoch": "1",
    "train.gradient_steps": "2",
    "sample.num_steps": "4",
    "evaluation.num_steps": "10",
    "sample.prompts_per_iteration": "4",
    "sample.images_per_prompt": "1",
    "evaluation.selection_images": "16",
    "evolution.warmup_generations": "1",
    "evolution.evolutionary_generations": "5",
    "evolution.iterations_per_generation": "6",
}
_TEN_STEPS = {"sample.num_steps": "10"}
# The embedded model distilled for four steps with guidance 3 folded in. Its policies are judged as
# they are used, in four steps. The points of the pair were measured on the base model without
# guidance. So these arms start elsewhere, with better subjects and larger files: lower on the first
# pair and higher on the second. The guided arms show how much guidance alone is worth.
_FEW_STEP_BASE = {
    "pretrained.lora": "emoji-lcm",
    "sample.sampler": "lcm",
    "sample.num_steps": "4",
    "evaluation.num_steps": "4",
}
_GUIDED = {"sample.guidance_scale": "3"}

ARMS: dict[str, Arm] = {
    BASELINE: Arm(
        title="faithful baseline: PGMORL + DDPO",
        overrides={},
        pairs=tuple(PAIRS),
        is_main=True,
        rates=(*HIGHER_RATES, 0.16),
    ),
    "baseline_50": Arm(
        title="the same with DDPO's 50 steps to learn from",
        overrides={"sample.num_steps": "50", "evaluation.num_steps": "10"},
        pairs=("compress",),
        tuned_as=BASELINE,
    ),
    "raw": Arm(
        title="weighted before normalising: raw w . r",
        overrides={"advantage.normalisation": "raw"},
        rates=HIGHER_RATES,
    ),
    "fixed": Arm(title="fixed weights", overrides=_FIXED, rates=HIGHER_RATES),
    "nft": Arm(
        title="DiffusionNFT's update, beta 0.3",
        overrides={},
        rates=HIGHER_RATES,
        measured_at=REMOVED,
    ),
    "awm": Arm(
        title="AWM's update",
        overrides={"train.update_rule": "awm"},
        rates=HIGHER_RATES,
    ),
    "skip": Arm(title="last noisy step untrained", overrides=_SKIP, pairs=("compress",)),
    "skip_soup": Arm(title="last noisy step untrained, soup start", overrides={**_SKIP, **_SOUP}),
    RECOMMENDED: Arm(
        title="last noisy step untrained, soup start, 6 steps to learn from",
        overrides={**_SKIP, **_SOUP, **_FEW},
        is_main=True,
    ),
    "single_pass": Arm(
        title="the same, but a single pass of 8 images an update",
        overrides={**_SKIP, **_SOUP, **_FEW, **_SINGLE_PASS, **_SMALL},
    ),
    "single_pass_32": Arm(
        title="the same, but a single pass of 32 images an update",
        overrides={**_SKIP, **_SOUP, **_FEW, **_SINGLE_PASS},
        rates=HIGHER_RATES,
    ),
    "specialists": Arm(
        title="soup of specialists, last noisy step untrained",
        overrides={**_SKIP, **_SPECIALISTS},
    ),
    "conditioned": Arm(
        title="weight-conditioned adapter, last noisy step untrained",
        overrides={**_SKIP, **_FIXED, "agents.kind": "conditioned"},
    ),
    GRADIENT: Arm(
        title="gradients of rewards, fixed weights",
        overrides={**_GRADIENT, **_FIXED},
        pairs=tuple(PAIRS),
        is_main=True,
        rates=(6e-3, 1.2e-2, 2.4e-2),
    ),
    "gradient_search": Arm(
        title="gradients of rewards, PGMORL",
        overrides=_GRADIENT,
        tuned_as=GRADIENT,
    ),
    "gradient_conditioned": Arm(
        title="gradients of rewards, weight-conditioned adapter",
        overrides={**_GRADIENT, **_FIXED, "agents.kind": "conditioned"},
        tuned_as=GRADIENT,
    ),
    "gradient_soup": Arm(
        title="gradients of rewards, soup start, fixed weights",
        overrides={
            **_GRADIENT,
            **_FIXED,
            "evolution.start": "soup",
            "evolution.warmup_generations": "2",  # of half as many agents
        },
        tuned_as=GRADIENT,
    ),
    HYBRID: Arm(
        title="gradient of CLIP's reward, JPEG a black box, fixed weights",
        overrides={
            **_GRADIENT,
            **_FIXED,
            **_FEW,
            **_SKIP,
            "sample.prompts_per_iteration": "8",
            "rewards.black_boxes": SECOND,
        },
        tuned_as=GRADIENT,
    ),
    "gradient_1_of_10": Arm(
        title="gradients of rewards, K = 1 of 10 steps",
        overrides={**_GRADIENT, **_FIXED, **_TEN_STEPS, "train.gradient_steps": "1"},
        pairs=("compress",),
        tuned_as=GRADIENT,
    ),
    "gradient_3_of_10": Arm(
        title="gradients of rewards, K = 3 of 10 steps",
        overrides={**_GRADIENT, **_FIXED, **_TEN_STEPS, "train.gradient_steps": "3"},
        pairs=("compress",),
        tuned_as=GRADIENT,
    ),
    "gradient_2_of_6": Arm(
        title="gradients of rewards, K = 2 of 6 steps",
        overrides={**_GRADIENT, **_FIXED, **_FEW},
        pairs=("compress",),
        tuned_as=GRADIENT,
    ),
    FEW_STEP: Arm(
        title="few-step base, soup start",
        overrides={**_SKIP, **_SOUP, **_FEW_STEP_BASE},
    ),
    FEW_STEP_GRADIENT: Arm(
        title="few-step base, gradients of rewards, fixed weights",
        overrides={**_GRADIENT, **_FIXED, **_FEW_STEP_BASE},
        is_main=True,
        rates=(6e-3, 1.2e-2, 2.4e-2),
    ),
    "guided": Arm(
        title="last noisy step untrained, soup start, 6 steps to learn from, guidance 3",
        overrides={**_SKIP, **_SOUP, **_FEW, **_GUIDED},
        pairs=("compress",),
        tuned_as=RECOMMENDED,
    ),
    "guided_gradient": Arm(
        title="gradients of rewards, fixed weights, guidance 3",
        overrides={**_GRADIENT, **_FIXED, **_GUIDED},
        pairs=("compress",),
        tuned_as=GRADIENT,
    ),
    "weighted": Arm(
        title="steps weighted by sensitivity",
        overrides={},
        pairs=("compress",),
        measured_at=REMOVED,
    ),
    "few": Arm(
        title="last noisy step untrained, 6 steps to learn from",
        overrides={**_SKIP, **_FEW},
        pairs=("compress",),
        tuned_as="skip",
    ),
    "window": Arm(
        title="last noisy step untrained, noise in 3 others only",
        overrides={},
        pairs=("compress",),
        tuned_as="skip",
        measured_at=REMOVED,
    ),
    "half": Arm(
        title="last noisy step untrained, half of the others too",
        overrides={**_SKIP, "train.timestep_fraction": "0.5"},
        pairs=("compress",),
        tuned_as="skip",
    ),
    "best_of": Arm(
        title="last noisy step untrained, best and worst quarter of the images",
        overrides={},
        pairs=("compress",),
        tuned_as="skip",
        measured_at=REMOVED,
    ),
}


def words(
    pair: str, arm: str, seed: int, learning_rate: float, changes: Mapping[str, str] | None = None
) -> list[str]:
    """The command line of a run; `changes` are further settings, such as its folder."""
    if commit := ARMS[arm].measured_at:
        raise ValueError(f"{arm} was measured at {commit}; this version has no settings for it")
    settings = {**COMMON, **PAIRS[pair], **ARMS[arm].overrides, **(changes or {})}
    return command_line(settings, seed, learning_rate)
