"""The rewards: each scores an image for one objective. A new reward is a file and a line here.

A reward's file describes it in one `RewardEntry` called `REWARD`: what it measures, where its
models come from, and how it is built.

    entry = reward_entry("clip_alignment")
    reward = entry.build({"clip": "emoji-clip"}, torch.device("cpu"), "float32")
    scores = reward(images, prompts)   # (rows, 3, H, W) in [0, 1], one prompt per row -> (rows,)

A reward that takes an argument is named `kind:argument`, such as `taste:my_taste`. The file of its
kind makes the entry from the argument, and finds problems of an argument.

Listing the table imports none of these files. Importing one must not import transformers or
huggingface_hub: settings are checked first, and `--dry_run` then takes the hub offline. All other
rewards, a user's own and remote ones, are built by `ddpo/rewards/lookup.py`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from config.base import RewardSettings
    from ddpo.rewards.published import PublishedModel


class Reward(Protocol):
    """Scores a batch of images; larger is better."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (rows,) of images (rows, 3, H, W) in [0, 1], one prompt per row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A model, or a piece of one, that a reward is built from.

    Attributes:
        source: hub id, folder or file.
        licence: of the source; empty if unknown.
        model: what it costs; None for a tokenizer, a file of some MB, or if unknown.
    """

    source: str
    licence: str = ""
    model: PublishedModel | None = None

    def __str__(self) -> str:
        """The source, with its licence and the size of its download in brackets."""
        size = f"{self.model.file_bytes / 1e9:.2f} GB" if self.model else ""
        known = ", ".join(filter(None, (self.licence, size)))
        return f"{self.source} ({known})" if known else self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardEntry:
    """The description of a reward in its file.

    Attributes:
        unit: unit of the score.
        meaning: one sentence on what a large score means.
        published: where the measure was published.
        parts: name -> default source of that part; empty for a formula.
        is_differentiable: whether gradients flow from the scores to the pictures of an `ImageBatch`
            that keeps a graph.
        companion: for a reward without a gradient, a differentiable function of images
            (rows, 3, H, W) that follows its score up to scale and offset. Learning by gradients
            follows the companion; policies are still judged by the reward.
        build: makes the reward from (part -> source, device, dtype of the models).
    """

    unit: str
    meaning: str = ""
    published: str = ""
    parts: Mapping[str, Part] = field(default_factory=dict)
    is_differentiable: bool = False
    companion: Callable[[torch.Tensor], torch.Tensor] | None = None
    build: Callable[[Mapping[str, str], torch.device, str], Reward]


REWARDS: dict[str, str] = {  # name -> module that has it as `REWARD`
    "clip_alignment": "ddpo.rewards.clip_alignment",
    "clip_score": "ddpo.rewards.clip_score",
    "pick_score": "ddpo.rewards.pick_score",
    "hps_v2": "ddpo.rewards.hps_v2",
    "image_reward": "ddpo.rewards.image_reward",
    "aesthetic_score": "ddpo.rewards.aesthetic_score",
    "emoji_beauty": "ddpo.rewards.emoji_beauty",
    "jpeg_compressibility": "ddpo.rewards.jpeg_compressibility",
    "jpeg_incompressibility": "ddpo.rewards.jpeg_incompressibility",
    "colorfulness": "ddpo.rewards.colorfulness",
    "sharpness": "ddpo.rewards.sharpness",
    "rms_contrast": "ddpo.rewards.rms_contrast",
    "brightness": "ddpo.rewards.brightness",
}

# Kinds of rewards that take an argument -> module with `entry_of(argument)`, which makes the entry,
# and `problem(argument)`, which names a problem as far as files show it, or None.
KINDS: dict[str, str] = {
    "taste": "ddpo.rewards.taste",
    "classifier": "ddpo.rewards.classifier",
}

EMOJI_CLIP = Part(source="emoji-clip")  # ships with the project

# Guards that compare pictures, or judges, and therefore are not rewards: `ddpo/rewards/guards.py`.
PICTURE_GUARDS: dict[str, Mapping[str, Part]] = {  # name -> parts
    "base_similarity": {"clip": EMOJI_CLIP},
    "diversity": {"clip": EMOJI_CLIP},
    "agreement": {},
}


def reward_entry(name: str) -> RewardEntry:
    """The entry of a reward in the table."""
    entry: RewardEntry = importlib.import_module(REWARDS[name]).REWARD
    return entry


def known_entry(name: str) -> RewardEntry | None:
    """The entry of a reward in the table or of a `kind:argument`; None for any other."""
    kind, colon, argument = name.partition(":")
    if colon and kind in KINDS:
        entry: RewardEntry = importlib.import_module(KINDS[kind]).entry_of(argument)
        return entry
    return reward_entry(name) if name in REWARDS else None


def argument_problem(name: str) -> str | None:
    """The problem with the argument of a `kind:argument`; None if there is none."""
    kind, _, argument = name.partition(":")
    problem: str | None = importlib.import_module(KINDS[kind]).problem(argument)
    return problem


def parts_of(name: str, sources: Sequence[str] = ()) -> dict[str, Part]:
    """The parts of a reward of the table, or of a guard that compares pictures.

    Args:
        name: of the reward or guard.
        sources: texts REWARD.PART=SOURCE as in `rewards.sources`; they replace defaults.
    """
    entry = known_entry(name)
    parts = entry.parts if entry else PICTURE_GUARDS.get(name, {})
    given = dict(text.split("=", 1) for text in sources)
    return {
        part: Part(source=source) if (source := given.get(f"{name}.{part}")) else default
        for part, default in parts.items()
    }


def may_be_black_box(name: str, settings: RewardSettings) -> bool:
    """Whether an objective may have to be learnt without a gradient, judging by the settings.

    Args:
        name: as in `rewards.names`.
        settings: of all rewards.
    """
    if name in settings.remote_names or name in settings.black_boxes:
        return True
    entry = known_entry(name)
    return entry is None or not (entry.is_differentiable or entry.companion)


def markdown_table() -> str:
    """The table of rewards in docs/rewards.md."""
    rows = []
    for name in REWARDS:
        entry = reward_entry(name)
        parts = ", ".join(f"`{part}`: {default}" for part, default in entry.parts.items()) or "-"
        gradient = "own" if entry.is_differentiable else "companion" if entry.companion else "-"
        cells = (f"`{name}`", entry.unit, entry.meaning, gradient, entry.published, parts)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "| Name | Unit | A large score means | Gradient | Published | "
            "Parts and their default sources |",
            "| --- " * 6 + "|",
            *rows,
        ]
    )
