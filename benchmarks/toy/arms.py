"""The comparison: two pairs of objectives, the arms, and the learning rates of the sweep.

An arm is only a set of settings over `COMMON` and the faithful recipe. No arm may score more images
than the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.evidence import REMOVED, SECOND, command_line
from benchmarks.toy import rewards

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.toy.rewards import Reward

HERE = Path(__file__).parent
BASELINE = "baseline"
SEEDS = range(8)
TUNING_SEEDS = (100, 101)
LEARNING_RATES = (4e-3, 8e-3, 1.6e-2)  # and more if an end is best

COMMON: dict[str, str] = {
    "num_threads": "1",
    "pretrained.model": "benchmarks/toy/model.py",
    "adapter.target_modules": "layers.0,layers.1,layers.2,layers.3",
    "prompts.train": str(HERE / "hours.txt"),
    "prompts.report": str(HERE / "half_hours.txt"),
    "sample.prompts_per_iteration": "8",
    "sample.images_per_prompt": "8",
    "sample.rows_per_pass": "1024",
    "train.rows_per_pass": "1024",
    "evaluation.calibration_prompts": "12",
    "evaluation.selection_images": "36",
    "evaluation.report_images": "240",
    "evolution.num_agents": "6",
    "evolution.warmup_generations": "4",
    "evolution.evolutionary_generations": "8",
    "evolution.iterations_per_generation": "3",
}


def _pair(first: str, second: str) -> dict[str, str]:
    """The settings of a pair, with fixed points, so that hypervolumes of all runs have one unit."""
    pair: list[Reward] = [getattr(rewards, name) for name in (first, second)]
    return {
        "rewards.names": f"{rewards.__name__}:{first},{rewards.__name__}:{second}",
        "rewards.reference": ",".join(f"{reward.reference:.6g}" for reward in pair),
        "rewards.ideal": ",".join(f"{reward.ideal:.6g}" for reward in pair),
        "rewards.scales": ",".join(f"{reward.spread:g}" for reward in pair),
    }


PAIRS: dict[str, dict[str, str]] = {
    "conflict": _pair("near_fine", "near_coarse"),  # a front that bulges outwards
    "partial": _pair("bell_fine", "bell_coarse"),  # a hollow one
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One variant of the method.

    Attributes:
        title: in tables.
        overrides: settings over `COMMON`.
        is_main: whether its comparison was planned in advance. p-values are corrected for the
            number of planned comparisons; with 8 seeds, at most six of them can reach p < 0.05.
        measured_at: for an arm that can no longer be run, the last commit with its settings, which
            made its records; empty for all others.
    """

    title: str
    overrides: Mapping[str, str]
    is_main: bool = False
    measured_at: str = ""


_SKIP = {"train.max_sensitivity": "5"}
_AWM = {"train.update_rule": "awm"}
_FEW = {"train.timestep_fraction": "0.4"}
_FIXED = {"evolution.strategy": "fixed_weights"}
_CONDITIONED = {**_FIXED, "agents.kind": "conditioned"}
# The warm-up trains one agent per objective, a third of the baseline's.
_SOUP = {
    "evolution.start": "soup",
    "evolution.warmup_generations": "3",
    "evolution.evolutionary_generations": "10",
}
# Both specialists get the images of six agents, and eleven blends are judged at the end.
_SPECIALISTS = {
    "evolution.start": "soup",
    "evolution.num_agents": "11",
    "evolution.warmup_generations": "13",
    "evolution.evolutionary_generations": "0",
    "evolution.iterations_per_generation": "9",
}
# One picture per prompt: it is compared with nothing. Learning from 4 steps, judged with 10.
_GRADIENT = {
    "train.update_rule": "reward_gradient",
    "train.updates_per_epoch": "1",
    "train.gradient_steps": "2",
    "sample.num_steps": "4",
    "sample.images_per_prompt": "1",
    "evaluation.num_steps": "10",
}
# Its policy gradient compares pictures of a prompt, and wants steps to learn from.
_HYBRID = {
    "rewards.black_boxes": SECOND,
    "train.max_sensitivity": "5",
    "sample.num_steps": "6",
    "sample.images_per_prompt": "4",
}

ARMS: dict[str, Arm] = {
    BASELINE: Arm(title="faithful baseline: PGMORL, DDPO", overrides={}),
    "raw": Arm(
        title="weighted before normalising: raw w . r",
        overrides={"advantage.normalisation": "raw"},
        is_main=True,
    ),
    "authors": Arm(title="the authors' predictor", overrides={}, measured_at=REMOVED),
    "fixed": Arm(title="fixed weights", overrides=_FIXED),
    "random": Arm(title="random selection", overrides={"evolution.strategy": "random"}),
    "moead": Arm(title="MOEA/D selection", overrides={"evolution.strategy": "moead"}),
    "skip": Arm(title="last two steps not trained", overrides=_SKIP, is_main=True),
    "nft": Arm(title="DiffusionNFT, beta 0.3", overrides={}, is_main=True, measured_at=REMOVED),
    "nft_beta_1": Arm(
        title="DiffusionNFT, beta 1", overrides={"train.update_rule": "diffusion_nft"}
    ),
    "awm": Arm(title="AWM", overrides=_AWM),
    "soup": Arm(title="soup start", overrides=_SOUP),
    "skip_soup": Arm(
        title="last two steps not trained, soup start", overrides=_SKIP | _SOUP, is_main=True
    ),
    "nft_soup": Arm(
        title="DiffusionNFT, soup start", overrides={}, is_main=True, measured_at=REMOVED
    ),
    "skip_few": Arm(
        title="last two steps not trained, 3 of the others are", overrides=_SKIP | _FEW
    ),
    "nft_few": Arm(title="DiffusionNFT, 4 of 10 noise levels", overrides={}, measured_at=REMOVED),
    "nft_few_soup": Arm(
        title="DiffusionNFT, 4 of 10 noise levels, soup start", overrides={}, measured_at=REMOVED
    ),
    "fixed_nft": Arm(title="fixed weights, DiffusionNFT", overrides={}, measured_at=REMOVED),
    "specialists": Arm(
        title="soup of specialists, last two steps not trained", overrides=_SKIP | _SPECIALISTS
    ),
    "nft_specialists": Arm(
        title="soup of specialists, DiffusionNFT", overrides={}, measured_at=REMOVED
    ),
    "conditioned": Arm(
        title="conditioned adapter, last two steps not trained", overrides=_SKIP | _CONDITIONED
    ),
    "nft_conditioned": Arm(
        title="conditioned adapter, DiffusionNFT", overrides={}, is_main=True, measured_at=REMOVED
    ),
    "gradient": Arm(title="gradients of rewards, fixed weights", overrides=_GRADIENT | _FIXED),
    "gradient_search": Arm(title="gradients of rewards, PGMORL", overrides=_GRADIENT),
    "gradient_soup": Arm(title="gradients of rewards, soup start", overrides=_GRADIENT | _SOUP),
    "gradient_conditioned": Arm(
        title="gradients of rewards, conditioned adapter", overrides=_GRADIENT | _CONDITIONED
    ),
    "hybrid": Arm(
        title="gradient of the first reward, the second a black box, fixed weights",
        overrides={**_GRADIENT, **_FIXED, **_HYBRID},
    ),
}


RUNNABLE = [name for name, arm in ARMS.items() if not arm.measured_at]


def words(
    pair: str, arm: str, seed: int, learning_rate: float, changes: Mapping[str, str]
) -> list[str]:
    """The command line of a run, for `run.command_line.read_settings`."""
    if commit := ARMS[arm].measured_at:
        raise ValueError(f"{arm} was measured at {commit}; this version has no settings for it")
    settings = {**COMMON, **PAIRS[pair], **ARMS[arm].overrides, **changes}
    return command_line(settings, seed, learning_rate)
