"""`taste:FOLDER`: what one person likes, learnt from their answers to `mo_front.py taste`.

A Bradley-Terry model on CLIP embeddings of pictures (`ddpo/rewards/preferences.py`). The score is
its logit, 0 for the mean of the pictures that the person saw: of two pictures that differ by 1, the
better one is chosen in 73 % of the cases. It is linear in the embedding, so it has a gradient.

`taste:FOLDER#certainty` is minus the standard error of that score: a guard, which falls where
pictures leave what the person was asked about.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from config.settings.derived import objective_name
from config.settings.errors import UserError
from config.settings.files import is_file
from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.answers import CHANCE, CHOICES, FILE, PICTURES, Answers
from ddpo.rewards.clip import ClipTower, load_clip
from ddpo.rewards.image_batch import BatchReward, ImageBatch
from ddpo.rewards.preferences import Check, Fit, ahead, check, fit, held_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ddpo.rewards.preferences import Array

logger = logging.getLogger(__name__)

MAX_P_VALUE = 0.05
_CERTAINTY = "certainty"
_BATCH = 64  # pictures embedded together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learnt:
    """A taste as far as it is known.

    Attributes:
        fit: the model of all answers.
        checked: each answer predicted by a fit of others (cross-validation): how good it is.
        by_chance: the same for pairs that were drawn by chance, not because they were hard.
        foretold: each answer predicted from those before it: whether it is better than chance.
    """

    fit: Fit
    checked: Check
    by_chance: Check
    foretold: Check

    @property
    def is_better_than_chance(self) -> bool:
        """Whether it may be trained towards."""
        return self.foretold.p_value < MAX_P_VALUE

    @property
    def text(self) -> str:
        """How good it is, in a sentence."""
        checked, foretold = self.checked, self.foretold
        return (
            f"predicts {checked.accuracy:.0%} of {checked.num_choices} choices that it was not "
            f"fitted to, and is {checked.confidence:.0%} sure of them; of the choices so far it "
            f"foretold {foretold.num_right} of {foretold.num_choices} (p = {foretold.p_value:.2g})"
        )


class Taste(BatchReward):
    """The logit of one person's taste.

    Args:
        clip: that the taste was learnt on.
        fitted: the model.
        centre: (D,) the mean embedding of the pictures that were shown.
    """

    def __init__(self, clip: ClipTower, fitted: Fit, centre: Array) -> None:
        self.clip = clip
        self._weights = torch.from_numpy(fitted.weights).to(clip.device, torch.float32)
        self._offset = float(centre @ fitted.weights)

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See `BatchReward`; the prompts do not matter."""
        embeds = self.clip.embed_images(batch)
        return embeds @ self._weights.to(embeds) - self._offset


class Certainty(BatchReward):
    """Minus the standard error of `Taste`; see there."""

    def __init__(self, clip: ClipTower, fitted: Fit, centre: Array) -> None:
        self.clip = clip
        # A root R of the covariance in all D dimensions, C = R R^T. Outside the basis, C is the
        # prior's.
        outside = np.eye(len(centre)) - fitted.basis @ fitted.basis.T
        covariance = fitted.basis @ fitted.covariance @ fitted.basis.T + outside / fitted.ridge
        self._covariance = torch.from_numpy(covariance).to(clip.device, torch.float32)
        self._centre = torch.from_numpy(centre).to(clip.device, torch.float32)

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See `BatchReward`; the prompts do not matter."""
        embeds = self.clip.embed_images(batch)
        embeds = embeds - self._centre.to(embeds)
        return -((embeds @ self._covariance.to(embeds)) * embeds).sum(dim=1).clamp(min=0).sqrt()


def embed(clip: ClipTower, pictures: Sequence[Image.Image]) -> Array:
    """(n, D) float64 embeddings of pictures of any sizes."""
    out = np.zeros((len(pictures), clip.model.config.projection_dim))
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(picture.size, []).append(index)
    for rows in by_size.values():
        for start in range(0, len(rows), _BATCH):
            chunk = rows[start : start + _BATCH]
            arrays = np.stack([np.asarray(pictures[row].convert("RGB")) for row in chunk])
            images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div(255)
            out[chunk] = clip.embed_images(ImageBatch(images, clip.device)).cpu().numpy()
    return out


def embed_answers(folder: Path, answers: Answers, clip: ClipTower) -> dict[str, Array]:
    """The embedding (D,) of each picture, by its file.

    Raises:
        UserError: naming a picture that cannot be read.
    """
    files = sorted({s.file for each in answers.answers for s in (each.left, each.right)})
    pictures = []
    for file in files:
        try:
            with Image.open(folder / PICTURES / file) as picture:
                pictures.append(picture.convert("RGB"))
        except OSError as error:
            raise UserError(f"{folder / PICTURES / file} cannot be read: {error}") from error
    return dict(zip(files, embed(clip, pictures), strict=True))


def as_numbers(answers: Answers, embeds: Mapping[str, Array]) -> tuple[Array, Array]:
    """Differences (n, D) and choices (n,) of answers, given the embeddings (D,) by file."""
    pairs = [(embeds[each.left.file], embeds[each.right.file]) for each in answers.answers]
    choices = np.array([CHOICES[each.choice] for each in answers.answers])
    return np.stack([left - right for left, right in pairs]), choices


def learn(answers: Answers, embeds: Mapping[str, Array]) -> Learnt:
    """Learn a taste from answers; there must be at least one."""
    differences, choices = as_numbers(answers, embeds)
    logits, before = held_out(differences, choices, answers.groups), ahead(differences, choices)
    is_chance = np.array([each.asked_by == CHANCE for each in answers.answers])
    is_foretold = before != 0  # the first answers are not
    return Learnt(
        fit=fit(differences, choices),
        checked=check(logits, choices),
        by_chance=check(logits[is_chance], choices[is_chance]),
        foretold=check(before[is_foretold], choices[is_foretold]),
    )


def problem(argument: str) -> str | None:
    """The problem with the argument of a taste, or None; no model is loaded."""
    where, mark, part = argument.partition("#")
    if mark and part != _CERTAINTY:
        return f"must be taste:FOLDER, or taste:FOLDER#{_CERTAINTY} for a guard"
    if not objective_name(argument).strip("._"):
        return "must name a folder by its own name, which is what the objective is called"
    folder = Path(where)
    if not is_file(folder / FILE):
        return (
            f"names a folder that has no {FILE}: {folder}, seen from {Path.cwd()}; "
            f"mo_front.py taste RUN_OR_MODEL --out {folder} makes one"
        )
    try:
        answers = Answers.read(folder)
    except UserError as error:
        return f"cannot be used: {error}"
    if not answers.num_choices:
        return f"has no choices yet; make some with mo_front.py taste RUN_OR_MODEL --out {folder}"
    return None


def entry_of(argument: str) -> RewardEntry:
    """See `KINDS`.

    Raises:
        UserError: if the answers cannot be read.
    """
    where, _, part = argument.partition("#")
    folder = Path(where)
    answers = Answers.read(folder)

    def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> BatchReward:
        clip = load_clip(sources["clip"], device, dtype)
        embeds = embed_answers(folder, answers, clip)
        learnt = learn(answers, embeds)
        if not learnt.is_better_than_chance:
            raise UserError(
                f"the taste is not better than chance yet: it {learnt.text}, and p must be below "
                f"{MAX_P_VALUE}. Answer more with mo_front.py taste RUN_OR_MODEL --out {folder}"
            )
        logger.info("taste:%s %s", where, learnt.text)
        kind = Certainty if part == _CERTAINTY else Taste
        return kind(clip, learnt.fit, np.mean(list(embeds.values()), axis=0))

    return RewardEntry(
        unit="logit",
        meaning="what a person likes, learnt from choices between two pictures",
        published="Bradley and Terry 1952",
        parts={"clip": Part(source=answers.clip)},
        is_differentiable=True,
        build=build,
    )
